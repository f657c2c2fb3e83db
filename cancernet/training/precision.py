"""Mixed precision: a network that multiplies in bfloat16 while it trains, where a step is faster that way.

Weights, sums of gradients and the saved file stay float32. bfloat16 has the range of float32, so the loss needs no
scaling. A processor or GPU without bfloat16 instructions emulates them, which is slower; so a step is timed in both.
"""

import statistics
import time
from collections.abc import Callable

import keras
import numpy as np

from cancernet.training import distribution

SINGLE, MIXED = "float32", "mixed_bfloat16"
_MOST = 0.9  # of float32's time; nearer to 1 the choice would differ from run to run on the same machine
_STEPS = 5


def set_precision(model: keras.Model, policy: str) -> None:
    """Set the dtype policy that the layers of a model compute in, but for the last layer, the softmax.

    Takes effect when the model is compiled next.

    Args:
        model: its weights stay float32.
        policy: `SINGLE` or `MIXED`.
    """
    for layer in _flatten(model)[:-1]:
        layer.dtype_policy = policy


def choose_precision(
    model: keras.Model, prepare: Callable[[], object], images: np.ndarray, targets: np.ndarray
) -> dict[str, float]:
    """Time a training step in either policy and set the model to the faster one.

    Weights stay as they were. Compile the model afterwards.

    Args:
        model: to be trained.
        prepare: compiles the model as it is about to be trained.
        images: a batch of the training's size, of any values.
        targets: of these images.

    Returns:
        Seconds of a step by policy, the median of several.
    """
    weights, seconds = model.get_weights(), {}
    for policy in (SINGLE, MIXED):
        set_precision(model, policy)
        prepare()
        seconds[policy] = _time_step(model, images, targets)
        model.set_weights(weights)
    seconds = distribution.agree(seconds)
    set_precision(model, faster(seconds))
    return seconds


def faster(seconds: dict[str, float]) -> str:
    """Return the policy to use: `MIXED` if its step takes at most nine tenths of the time of `SINGLE`."""
    return MIXED if seconds[MIXED] <= _MOST * seconds[SINGLE] else SINGLE


def _time_step(model: keras.Model, images: np.ndarray, targets: np.ndarray) -> float:
    seconds = []
    for _ in range(_STEPS + 2):
        started = time.perf_counter()
        model.train_on_batch(images, targets)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[2:])  # the first steps build the graph


def _flatten(model: keras.Model) -> list[keras.layers.Layer]:
    """Layers of a model and of the models in it, in their order."""
    nested = [_flatten(layer) if isinstance(layer, keras.Model) else [layer] for layer in model.layers]
    return [layer for layers in nested for layer in layers]
