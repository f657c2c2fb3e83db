"""The moving mean and variance of batch normalisation: how fast they move, and recomputing them after training."""

from collections.abc import Iterable

import keras
import numpy as np


def set_momentum(model: keras.Model, momentum: float) -> None:
    """Set the momentum (0 to 1, closer to 1 is slower) of the moving statistics of a model and its sub-models."""
    for layer in _list_layers(model):
        layer.momentum = momentum


def recompute_statistics(model: keras.Model, batches: Iterable) -> None:
    """Replace the moving statistics of a model and its sub-models by those of all images of some training batches.

    While weights change, the moving statistics lag behind, and mean weights have none of their own; the weights stay as
    they are ("precise batch normalisation": Wu & Johnson, "Rethinking 'Batch' in BatchNorm", 2021, section 3). With
    batches of equal size, the variance of all images is the mean of the batches' variances plus the variance of their
    means.

    Args:
        batches: tuples that begin with images.
    """
    layers = _list_layers(model)
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    set_momentum(model, 0.0)  # the statistics are then those of the last batch
    found = []
    for images, *_ in batches:
        model(np.asarray(images), training=True)
        found.append([(np.array(layer.moving_mean), np.array(layer.moving_variance)) for layer in layers])
    for layer, momentum, of_batches in zip(layers, momenta, zip(*found, strict=True), strict=True):
        means, variances = np.array(of_batches, dtype=np.float64).swapaxes(0, 1)
        layer.moving_mean.assign(means.mean(axis=0))
        layer.moving_variance.assign(variances.mean(axis=0) + means.var(axis=0))
        layer.momentum = momentum


def _list_layers(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """List the batch normalisation whose moving statistics training changes, in sub-models too."""
    found: list[keras.layers.BatchNormalization] = []
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            found += _list_layers(layer)
        elif isinstance(layer, keras.layers.BatchNormalization) and layer.trainable:
            found.append(layer)
    return found
