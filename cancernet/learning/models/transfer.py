"""Transfer learning: a backbone of `keras.applications` with its own preprocessing inside, and a small new head."""

import keras
from keras import layers

from cancernet.learning.models.axes import channel_axis, image_shape
from cancernet.learning.models.structure import set_trainable
from cancernet.learning.models.weights import find_imagenet_weights, load_backbone_weights

# As keras.applications' preprocess_input, whose figures are over the ImageNet training set, for pixels of 0 to 255.
CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)
TORCH_MEAN_RGB = (0.485, 0.456, 0.406)
TORCH_DEVIATION_RGB = (0.229, 0.224, 0.225)


def build_transfer_model(architecture, image_size, classes, weights):
    """Build the network of `architecture` (an `Architecture` of family transfer) for square images.

    `weights` is `imagenet`, `none`, or a file of weights of that backbone without its top. Returns an uncompiled
    `keras.Model`: [n, image_size, image_size, 3] of 0 to 255 -> [n, classes] softmax, put together and trainable in
    phase `all` as `cancernet.learning.models.structure` says.

    Raises InputError for weights that are missing, unreadable or another network's.
    """
    if weights == "imagenet":
        weights = find_imagenet_weights(architecture)
    extractor = build_extractor(architecture, image_size, weights)
    head = build_head(extractor.output_shape[-1], classes)
    image = keras.Input(extractor.input_shape[1:], name="image")
    model = keras.Model(image, head(extractor(image)), name=architecture.backbone.lower())
    set_trainable(model, "all")
    return model


def build_extractor(architecture, image_size, weights):
    """Raw images [n, size, size, 3] -> pooled features [n, f]; `weights` is `none` or a file.

    The features are global averages of the backbone's last maps and of those at twice their side, which see less of the
    image's objects and more of its texture: what tissue is told by (docs/recipes.md has what that gives).
    """
    image = keras.Input(image_shape(image_size, image_size, architecture.channels), name="image")
    construct = getattr(keras.applications, architecture.backbone)
    backbone = construct(include_top=False, weights=None, input_tensor=preprocess(image, architecture.preprocessing))
    if weights != "none":
        load_backbone_weights(backbone, architecture.backbone, weights)
    stages = {"middle": backbone.get_layer(architecture.middle).output, "last": backbone.output}
    pooled = [layers.GlobalAveragePooling2D(name=f"{name}_features")(maps) for name, maps in stages.items()]
    features = layers.Concatenate(name="features")(pooled)
    return keras.Model(image, features, name="extractor")


def build_head(features, classes):
    """Features [n, features] -> probabilities [n, classes]: the only part that starts from nothing."""
    return keras.Sequential(
        [
            keras.Input((features,), name="features"),
            layers.Dropout(0.5),
            layers.BatchNormalization(),
            layers.Dense(classes, activation="softmax"),
        ],
        name="head",
    )


def preprocess(image, preprocessing):
    """The backbone's own preprocessing of raw RGB images, in layers without weights."""
    axis = channel_axis()
    if preprocessing == "caffe":
        image = reverse_channels(image)
        return layers.Normalization(axis=axis, mean=CAFFE_MEAN_BGR, variance=(1, 1, 1), name="subtract_mean")(image)
    if preprocessing == "torch":
        image = layers.Rescaling(1 / 255, name="rescale")(image)
        variance = [deviation**2 for deviation in TORCH_DEVIATION_RGB]
        return layers.Normalization(axis=axis, mean=TORCH_MEAN_RGB, variance=variance, name="standardise")(image)
    if preprocessing == "included":
        return image
    raise ValueError(f"Preprocessing is caffe, torch or included; got {preprocessing}.")


def reverse_channels(image):
    """RGB to BGR by cutting the three channels out and joining them in reverse order.

    Cropping2D works on the last two axes or the two before, by data_format; told the order that is not the image's,
    it cuts along the channels. A function of keras.ops would save as a private class, which a later Keras may move.
    """
    axis = channel_axis()
    planes = []
    for name, skipped in (("blue", (2, 0)), ("green", (1, 1)), ("red", (0, 2))):
        cropping, order = ((skipped, (0, 0)), "channels_last") if axis == 1 else (((0, 0), skipped), "channels_first")
        planes.append(layers.Cropping2D(cropping, data_format=order, name=name)(image))
    return layers.Concatenate(axis=axis, name="rgb_to_bgr")(planes)
