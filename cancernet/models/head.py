"""The head of a model, from features to probabilities, in Keras' own layers."""

from collections.abc import Sequence
from typing import NamedTuple

import keras
import numpy as np
from keras import layers


class Dense(NamedTuple):
    """Weights of a dense layer."""

    kernel: np.ndarray  # [inputs, units]
    bias: np.ndarray  # [units]


class Centres(NamedTuple):
    """Hidden units exp(-width |ratio * x - centre|^2) of standardised features x [f]."""

    ratio: np.ndarray  # [f]
    centres: np.ndarray  # [units, f]
    width: float


def build_head(features: int, classes: int) -> keras.Sequential:
    """Build the network from features [n, features] to probabilities [n, classes]; its weights start at random."""
    return keras.Sequential(
        [
            keras.Input((features,), name="features"),
            layers.Dropout(0.5),
            layers.BatchNormalization(),
            layers.Dense(classes, activation="softmax"),
        ],
        name="head",
    )


def build_linear_head(mean: np.ndarray, deviation: np.ndarray, output: Dense) -> keras.Sequential:
    """Build the same network with weights that are known.

    Args:
        mean, deviation: of the features [f], which are standardised by them.
        output: of standardised features to logits.
    """
    head = build_head(len(mean), output.kernel.shape[1])
    *_, normalisation, dense = head.layers
    _set_standardisation(normalisation, mean, deviation)
    dense.set_weights(output)
    return head


def build_wide_head(
    mean: np.ndarray, deviation: np.ndarray, hidden: Sequence[Dense] | Sequence[Centres], output: Dense
) -> keras.Model:
    """Build a head with one hidden layer of several groups of units, all of one kind.

    A Gaussian to a centre is exp(2 width ratio * centre . x - width |ratio * x|^2 - width |centre|^2): a dense layer
    over the features and, for each group, the weighed sum of their squares.

    Args:
        mean, deviation: of the features [f], which are standardised by them.
        hidden: of each group its units on standardised features, rectified if they are `Dense`.
        output: of all hidden units to logits.
    """
    features = keras.Input((len(mean),), name="features")
    normalisation = layers.BatchNormalization(name="standardised")
    inputs, activation = normalisation(features), "relu"
    _set_standardisation(normalisation, mean, deviation)
    if isinstance(hidden[0], Centres):
        squares = layers.Multiply(name="squares")([inputs, inputs])
        norms = layers.Dense(len(hidden), use_bias=False, name="norms")
        inputs, activation = layers.Concatenate(name="features_and_norms")([inputs, norms(squares)]), "exponential"
        norms.set_weights([np.stack([-group.width * group.ratio**2 for group in hidden], axis=1)])
        hidden = [_expand(group, number, len(hidden)) for number, group in enumerate(hidden)]
    units = layers.Dense(len(output.kernel), activation=activation, name="hidden")
    probabilities = layers.Dense(len(output.bias), activation="softmax", name="probabilities")
    head = keras.Model(features, probabilities(units(inputs)), name="head")
    kernels, biases = zip(*hidden, strict=True)
    units.set_weights([np.hstack(kernels), np.concatenate(biases)])
    probabilities.set_weights(output)
    return head


def _expand(group: Centres, number: int, groups: int) -> Dense:
    """The exponents of a group as a dense layer over the features and the norms of all groups."""
    norms = np.zeros((groups, len(group.centres)))
    norms[number] = 1
    kernel = 2 * group.width * group.ratio[:, None] * group.centres.T
    return Dense(np.vstack([kernel, norms]), -group.width * (group.centres**2).sum(axis=1))


def _set_standardisation(normalisation: layers.BatchNormalization, mean: np.ndarray, deviation: np.ndarray) -> None:
    size = np.ones_like(mean)
    normalisation.set_weights([size, 0 * size, mean, deviation**2 - normalisation.epsilon])
