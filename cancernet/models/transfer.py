"""Transfer learning: a backbone of `keras.applications` with its preprocessing, below a small new head."""

from pathlib import Path

import keras
from keras import KerasTensor, layers

from cancernet.models.architectures import Architecture
from cancernet.models.structure import attach_head, build_head
from cancernet.models.weights import build_with_imagenet_weights, load_backbone_weights

# Means and standard deviations of the ImageNet training set, as in preprocess_input of keras.applications: CAFFE for
# pixels of 0 to 255, TORCH for pixels of 0 to 1.
CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)
TORCH_MEAN_RGB = (0.485, 0.456, 0.406)
TORCH_DEVIATION_RGB = (0.229, 0.224, 0.225)


def build_transfer_model(architecture: Architecture, image_size: int, classes: int, weights: str) -> keras.Model:
    """Build a backbone with a new head, in the parts that `cancernet.models.structure` describes.

    All layers are trainable except the backbone's batch normalisation, which therefore stays in inference mode, with
    its stored mean and variance, whatever is trained; the saved model keeps that. Calling the extractor with
    training=False would not do it: Keras 3 overrides it by the training=True of the call around it.

    Args:
        architecture: one of a backbone in keras.applications.
        image_size: side of the square images in pixels.
        classes: number of outputs.
        weights: `imagenet`, `none`, or a file of weights of that backbone without its top.

    Returns:
        An uncompiled network: [n, image_size, image_size, 3] of 0 to 255 -> [n, classes] softmax.

    Raises:
        InputError: the weights are missing, unreadable or belong to another network.
    """
    extractor = build_extractor(architecture, image_size, weights)
    for layer in extractor.layers:
        layer.trainable = not isinstance(layer, layers.BatchNormalization)
    head = build_head(extractor.output_shape[-1], classes)
    return attach_head(extractor, head, architecture.constructor.lower())


def build_extractor(architecture: Architecture, image_size: int, weights: str) -> keras.Model:
    """Build the network from raw images [n, image_size, image_size, 3] to features [n, f].

    The features are global averages of the feature maps at 1/4, 1/8, 1/16 and 1/32 of the image's side. The finer maps
    respond less to objects and more to texture, by which tissue differs (measurements: docs/recipes.md).

    Args and errors: see `build_transfer_model`.
    """
    image = keras.Input((image_size, image_size, architecture.channels), name="image")
    pixels = preprocess(image, architecture.preprocessing)
    if weights == "imagenet":
        backbone = build_with_imagenet_weights(architecture.constructor, pixels)
    else:
        construct = getattr(keras.applications, architecture.constructor)
        backbone = construct(include_top=False, weights=None, input_tensor=pixels)
        if weights != "none":
            load_backbone_weights(backbone, architecture.constructor, Path(weights))
    stages = {name: backbone.get_layer(name).output for name in architecture.stages} | {"last": backbone.output}
    pooled = [layers.GlobalAveragePooling2D(name=f"{name}_features")(maps) for name, maps in stages.items()]
    features = layers.Concatenate(name="features")(pooled)
    return keras.Model(image, features, name="extractor")


def preprocess(image: KerasTensor, preprocessing: str) -> KerasTensor:
    """Preprocess raw images as for the backbone's pretraining, in layers without trainable weights.

    Args:
        image: [n, size, size, 3] RGB, 0 to 255.
        preprocessing: `caffe` (BGR minus the mean), `torch` (scaled to 0 to 1, then standardised), or `included` (the
            backbone contains it).

    Raises:
        ValueError: another preprocessing.
    """
    if preprocessing == "caffe":
        image = reverse_channels(image)
        return layers.Normalization(mean=CAFFE_MEAN_BGR, variance=(1, 1, 1), name="subtract_mean")(image)
    if preprocessing == "torch":
        image = layers.Rescaling(1 / 255, name="rescale")(image)
        variance = [deviation**2 for deviation in TORCH_DEVIATION_RGB]
        return layers.Normalization(mean=TORCH_MEAN_RGB, variance=variance, name="standardise")(image)
    if preprocessing == "included":
        return image
    raise ValueError(f"Preprocessing must be caffe, torch or included; got {preprocessing}.")


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
