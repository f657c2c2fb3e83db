"""Networks that return, with their output, the values of an image that out-of-distribution detection rests on."""

from functools import lru_cache

import keras
import numpy as np
from keras import layers, ops

from cancernet.models.structure import has_backbone, split_model

MOST_IMAGES = 10_000  # that a spread is fitted to


@lru_cache(maxsize=2)  # a backbone takes seconds to build again
def describe_images(model: keras.Model) -> keras.Model:
    """Return a network that shares the model's weights and answers its output, and values for each network in it.

    The values of an image are its colours, as `describe_colours`, and the features that the network's last layer
    takes; of a transfer model those of its extractor.

    Returns:
        Raw images to [output [n, classes], values [n, c + f], ...], one entry of values for each network.
    """
    image = keras.Input(model.input_shape[1:])
    output, *features = _keep_features(model)(image)
    return keras.Model(image, [output, *(ops.concatenate([_colours(image), each], axis=1) for each in features)])


def describe_colours(shape: tuple[int, int, int]) -> keras.Model:
    """Return a network without weights from raw images to colours [n, c], c three times the channels.

    They are mean and standard deviation of each channel, and its mean absolute difference from the mean of all, 0 to 1.
    """
    image = keras.Input(shape)
    return keras.Model(image, _colours(image))


def take_some(values: np.ndarray) -> np.ndarray:
    """At most MOST_IMAGES of the rows of an array, evenly spread over them."""
    return values[:: -(-len(values) // MOST_IMAGES)] if len(values) else values


def _keep_features(network: keras.Model) -> keras.Model:
    """The same network, answering [output, features, ...]: those that the last layer of each network in it takes."""
    image = keras.Input(network.input_shape[1:])
    members = [layer for layer in network.layers if layer.name.startswith("member_")]
    if members:
        members.sort(key=lambda layer: int(layer.name.removeprefix("member_")))
        output, features = [], []
        for member in members:
            logits, *own = _keep_features(member)(image)
            output.append(logits)
            features += own
        for layer in network.layers:  # the mean of the logits, and a softmax
            if layer not in members and not isinstance(layer, layers.InputLayer):
                output = layer(output)
        return keras.Model(image, [output, *features], name=network.name)
    if has_backbone(network):
        extractor, head = split_model(network)
        features = extractor(image)
        return keras.Model(image, [head(features), features], name=network.name)
    *before, last = (layer for layer in network.layers if not isinstance(layer, layers.InputLayer))
    features = image
    for layer in before:
        features = layer(features)
    return keras.Model(image, [last(features), features], name=network.name)


def _colours(image):
    values = ops.cast(image, "float32") / 255
    hues = ops.abs(values - ops.mean(values, axis=-1, keepdims=True))
    parts = [ops.mean(values, axis=(1, 2)), ops.std(values, axis=(1, 2)), ops.mean(hues, axis=(1, 2))]
    return ops.concatenate(parts, axis=1)
