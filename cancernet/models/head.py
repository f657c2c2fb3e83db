"""The head of a transfer model: from features to probabilities, in Keras' own layers."""

from typing import NamedTuple

import keras
import numpy as np
from keras import layers


class DenseWeights(NamedTuple):
    """Weights of a dense layer, in the order of its `set_weights`."""

    kernel: np.ndarray  # [inputs, units]
    bias: np.ndarray  # [units]


def build_head(features: int, classes: int) -> keras.Sequential:
    """Build the network from features [n, features] to probabilities [n, classes], with random weights."""
    return keras.Sequential(
        [
            keras.Input((features,), name="features"),
            layers.Dropout(0.5),
            layers.BatchNormalization(),
            layers.Dense(classes, activation="softmax"),
        ],
        name="head",
    )


def build_linear_head(mean: np.ndarray, deviation: np.ndarray, output: DenseWeights) -> keras.Sequential:
    """Build the same network with given weights.

    Args:
        mean, deviation: of the features [f]; the batch normalisation standardises with them.
        output: from standardised features to logits.
    """
    head = build_head(len(mean), output.kernel.shape[1])
    *_, normalisation, dense = head.layers
    scale = np.ones_like(mean)
    normalisation.set_weights([scale, 0 * scale, mean, deviation**2 - normalisation.epsilon])
    dense.set_weights(output)
    return head
