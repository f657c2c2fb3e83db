"""Transfer learning: a backbone of `keras.applications` with its own preprocessing inside, and a small new head."""

from pathlib import Path

import keras
from keras import KerasTensor, layers

from cancernet.models.architectures import Architecture
from cancernet.models.head import build_head
from cancernet.models.structure import attach_head
from cancernet.models.weights import find_imagenet_weights, load_backbone_weights

# The means and standard deviations of the ImageNet training set that keras.applications' preprocess_input uses: CAFFE
# for pixels of 0 to 255, TORCH for pixels of 0 to 1.
CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)
TORCH_MEAN_RGB = (0.485, 0.456, 0.406)
TORCH_DEVIATION_RGB = (0.229, 0.224, 0.225)


def build_transfer_model(architecture: Architecture, image_size: int, classes: int, weights: str | Path) -> keras.Model:
    """Build a backbone with a new head, in the parts that `cancernet.models.structure` describes.

    All of it is trainable but the backbone's batch normalisation, which so stays in inference mode, on its stored mean
    and variance, whatever is trained; this is saved with the model. Calling the extractor with training=False would not
    do that: Keras 3 replaces it by the training=True of the call around it.

    Args:
        architecture: one of family `transfer`.
        image_size: side of the square images in pixels.
        classes: outputs of the network.
        weights: `imagenet`, `none`, or a file of weights of that backbone without its top.

    Returns:
        An uncompiled network: [n, image_size, image_size, 3] of 0 to 255 -> [n, classes] softmax.

    Raises:
        InputError: the weights are missing, unreadable or another network's.
    """
    if weights == "imagenet":
        weights = find_imagenet_weights(architecture)
    extractor = build_extractor(architecture, image_size, weights)
    for layer in extractor.layers:
        layer.trainable = not isinstance(layer, layers.BatchNormalization)
    head = build_head(extractor.output_shape[-1], classes)
    return attach_head(extractor, head, architecture.backbone.lower())


def build_extractor(architecture: Architecture, image_size: int, weights: str | Path) -> keras.Model:
    """Build the network from raw images [n, image_size, image_size, 3] to features [n, f].

    The features are global averages of the backbone's maps of four sizes, from a quarter of the image's side on. The
    finer maps show less of the objects in an image and more of its texture, which tells tissue apart (figures:
    docs/recipes.md).

    Args:
        architecture: one of family `transfer`.
        image_size: side of the square images in pixels.
        weights: `none` or a file of weights of that backbone without its top.

    Raises:
        InputError: the weights are missing, unreadable or another network's.
    """
    image = keras.Input((image_size, image_size, architecture.channels), name="image")
    construct = getattr(keras.applications, architecture.backbone)
    backbone = construct(include_top=False, weights=None, input_tensor=preprocess(image, architecture.preprocessing))
    if weights != "none":
        load_backbone_weights(backbone, architecture.backbone, Path(weights))
    stages = {name: backbone.get_layer(name).output for name in architecture.stages} | {"last": backbone.output}
    pooled = [layers.GlobalAveragePooling2D(name=f"{name}_features")(maps) for name, maps in stages.items()]
    features = layers.Concatenate(name="features")(pooled)
    return keras.Model(image, features, name="extractor")


def preprocess(image: KerasTensor, preprocessing: str) -> KerasTensor:
    """Preprocess raw images as the backbone was trained with, in layers without weights of their own.

    Args:
        image: [n, size, size, 3] RGB, 0 to 255.
        preprocessing: `caffe` (BGR less the mean), `torch` (scaled to 0 to 1, then standardised), or `included` (the
            backbone does it itself).

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
    raise ValueError(f"Preprocessing is caffe, torch or included; got {preprocessing}.")


def reverse_channels(image: KerasTensor) -> KerasTensor:
    """Turn RGB images [n, size, size, 3] into BGR: cut the three channels out and join them in reverse order.

    Cropping2D crops the last two axes or the two before them, by `data_format`. Told that the channels come first, it
    crops the last axis, where they are. A function of keras.ops would do it in one line, but it saves under the name of
    a private class, which a later Keras may move.
    """
    planes = [
        layers.Cropping2D(((0, 0), skipped), data_format="channels_first", name=name)(image)
        for name, skipped in (("blue", (2, 0)), ("green", (1, 1)), ("red", (0, 2)))
    ]
    return layers.Concatenate(name="rgb_to_bgr")(planes)
