"""Transfer learning: a backbone of `keras.applications` with its preprocessing and weights, as a feature extractor."""

from collections import Counter
from functools import partial
from pathlib import Path

import h5py
import keras
from keras import KerasTensor, layers

from cancernet import InputError
from cancernet.models.architectures import Architecture

# Means and standard deviations of the ImageNet training set, as in preprocess_input of keras.applications: CAFFE for
# pixels of 0 to 255, TORCH for pixels of 0 to 1.
CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)
TORCH_MEAN_RGB = (0.485, 0.456, 0.406)
TORCH_DEVIATION_RGB = (0.229, 0.224, 0.225)


def build_extractor(architecture: Architecture, image_size: int, weights: str) -> keras.Model:
    """Build the network from raw images [n, image_size, image_size, 3], 0 to 255, to features [n, f].

    The features are global averages of the feature maps at 1/4, 1/8, 1/16 and 1/32 of the image's side. The finer maps
    respond less to objects and more to texture, by which tissue differs (measurements: docs/recipes.md).

    All layers are trainable except batch normalisation, which therefore stays in inference mode, with its stored mean
    and variance, whatever is trained; the saved model keeps that. Calling the extractor with training=False would not
    do it: Keras 3 overrides it by the training=True of the call around it.

    `weights` is `imagenet`, `none`, or a file of weights of that backbone without its top; InputError if they are
    missing, unreadable or belong to another network.
    """
    image = keras.Input((image_size, image_size, architecture.channels), name="image")
    pixels = preprocess(image, architecture.preprocessing)
    construct = partial(getattr(keras.applications, architecture.constructor), include_top=False, input_tensor=pixels)
    if weights == "imagenet":
        try:  # Keras downloads them once into its cache folder and checks the file's hash
            backbone = construct(weights="imagenet")
        except Exception as error:  # Keras raises a plain Exception, and sockets raise many kinds
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            failed = f"Cannot download the ImageNet weights of {architecture.constructor} ({reason})"
            advice = "Download them on a machine with internet access, and give the file with --weights FILE."
            raise InputError(f"{failed}. {advice}") from error
    else:
        backbone = construct(weights=None)
        if weights != "none":
            load_backbone_weights(backbone, architecture.constructor, Path(weights))
    stages = {name: backbone.get_layer(name).output for name in architecture.stages} | {"last": backbone.output}
    pooled = [layers.GlobalAveragePooling2D(name=f"{name}_features")(maps) for name, maps in stages.items()]
    extractor = keras.Model(image, layers.Concatenate(name="features")(pooled), name="extractor")
    for layer in extractor.layers:
        layer.trainable = not isinstance(layer, layers.BatchNormalization)
    return extractor


def preprocess(image: KerasTensor, preprocessing: str) -> KerasTensor:
    """Preprocess raw RGB images, 0 to 255, as for the backbone's pretraining, in layers without trainable weights."""
    if preprocessing == "caffe":
        image = reverse_channels(image)
        return layers.Normalization(mean=CAFFE_MEAN_BGR, variance=(1, 1, 1), name="subtract_mean")(image)
    if preprocessing == "torch":
        image = layers.Rescaling(1 / 255, name="rescale")(image)
        variance = [deviation**2 for deviation in TORCH_DEVIATION_RGB]
        return layers.Normalization(mean=TORCH_MEAN_RGB, variance=variance, name="standardise")(image)
    return image  # included in the backbone


def reverse_channels(image: KerasTensor) -> KerasTensor:
    """Turn RGB images [n, size, size, 3] into BGR by cropping single channels and concatenating them in reverse.

    With `data_format="channels_first"` Cropping2D crops the last axis, where the channels are. One function of
    keras.ops would do all of this, but it is saved under the name of a private class, which a later Keras may move.
    """
    planes = [
        layers.Cropping2D(((0, 0), cropped), data_format="channels_first", name=name)(image)
        for name, cropped in (("blue", (2, 0)), ("green", (1, 1)), ("red", (0, 2)))
    ]
    return layers.Concatenate(name="rgb_to_bgr")(planes)


def load_backbone_weights(backbone: keras.Model, name: str, file: Path) -> None:
    """Load a file of weights, HDF5 of Keras 3 (`.weights.h5`) or Keras 2 (`.h5`), into a backbone.

    Keras also reads a file of a wider network, or of one with more layers, as far as the names go. So the shapes of all
    arrays are compared first. Raises InputError if the file is unreadable or belongs to another network.
    """
    expected = f"the weights of keras.applications.{name} without its top (include_top=False)"
    try:
        shapes, is_keras_2 = _count_shapes(file)
    except OSError as error:
        raise InputError(f"{file} cannot be read as HDF5 ({error}). Give a file of {expected}.") from error
    wanted = Counter(tuple(weight.shape) for weight in backbone.weights)
    if shapes != wanted:
        raise InputError(
            f"{file} belongs to another network: its {shapes.total()} arrays do not have the shapes of the network's "
            f"{wanted.total()}. Give a file of {expected}, or choose the --model of this file."
        )
    # Keras chooses the reader by the file's name, not by its content.
    if file.name.endswith(".weights.h5") == is_keras_2 or file.suffix not in (".h5", ".hdf5"):
        ending = ".h5 (and not .weights.h5)" if is_keras_2 else ".weights.h5"
        raise InputError(f"Keras does not read {file} under this name. Rename it to end in {ending}.")
    try:
        backbone.load_weights(file)
    except (ValueError, KeyError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{file} does not fit the network: {reason} Give a file of {expected}.") from error


def _count_shapes(file: Path) -> tuple[Counter[tuple[int, ...]], bool]:
    """Count the arrays of each shape in a file, without an optimizer's; return also whether Keras 2 wrote it."""
    shapes: Counter[tuple[int, ...]] = Counter()

    def count(path: str, item: h5py.Dataset | h5py.Group) -> None:
        if isinstance(item, h5py.Dataset) and not path.startswith("optimizer") and "seed_generator" not in path:
            shapes[item.shape] += 1

    with h5py.File(file, "r") as content:
        group = content.get("model_weights", content)
        group.visititems(count)
        return shapes, "layer_names" in group.attrs
