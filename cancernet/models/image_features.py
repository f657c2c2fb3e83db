"""Networks that also output what out-of-distribution detection compares: colour statistics and penultimate features."""

from functools import lru_cache

import keras
import numpy as np
from keras import layers, ops

from cancernet.models.structure import has_backbone, split_model

MAX_IMAGES = 10_000  # that out-of-distribution detection is fitted to


@lru_cache(maxsize=2)  # rebuilding a backbone takes seconds
def add_image_features(model: keras.Model) -> keras.Model:
    """Return a network from raw images to [probabilities [n, classes], image features [n, c + f] of each member, ...].

    It shares the model's weights. Image features are colour statistics (see `build_colour_statistics`) followed by the
    input of the member's last layer; for a transfer model, by the output of its extractor.
    """
    image = keras.Input(model.input_shape[1:])
    output, *features = _output_penultimate_features(model)(image)
    colours = _compute_colour_statistics(image)
    return keras.Model(image, [output, *(ops.concatenate([colours, each], axis=1) for each in features)])


def build_colour_statistics(shape: tuple[int, int, int]) -> keras.Model:
    """Return a network without weights from raw images to colour statistics [n, 3 * channels], each 0 to 1.

    They are of each channel the mean, the standard deviation, and the mean absolute difference from all channels' mean.
    """
    image = keras.Input(shape)
    return keras.Model(image, _compute_colour_statistics(image))


def thin_out(values: np.ndarray) -> np.ndarray:
    """Return at most MAX_IMAGES rows of an array, evenly spaced."""
    return values[:: -(-len(values) // MAX_IMAGES)] if len(values) else values


def _output_penultimate_features(network: keras.Model) -> keras.Model:
    """Return the network with the outputs [its own, features, ...]: the inputs of the last layer of each member."""
    image = keras.Input(network.input_shape[1:])
    members = [layer for layer in network.layers if layer.name.startswith("member_")]
    if members:
        members.sort(key=lambda layer: int(layer.name.removeprefix("member_")))
        output, features = [], []
        for member in members:
            logits, *own = _output_penultimate_features(member)(image)
            output.append(logits)
            features += own
        for layer in network.layers:  # the mean of the logits, and a softmax
            if layer not in members and not isinstance(layer, layers.InputLayer):
                output = layer(output)
        return keras.Model(image, [output, *features], name=network.name)
    parts = [layer for layer in network.layers if not isinstance(layer, layers.InputLayer)]
    *before, last = split_model(network) if has_backbone(network) else parts
    features = image
    for layer in before:
        features = layer(features)
    return keras.Model(image, [last(features), features], name=network.name)


def _compute_colour_statistics(image: keras.KerasTensor) -> keras.KerasTensor:
    values = ops.cast(image, "float32") / 255
    hues = ops.abs(values - ops.mean(values, axis=-1, keepdims=True))
    parts = [ops.mean(values, axis=(1, 2)), ops.std(values, axis=(1, 2)), ops.mean(hues, axis=(1, 2))]
    return ops.concatenate(parts, axis=1)
