"""Mixed precision: a network that multiplies in bfloat16 while it trains, where a step is faster that way.

Weights, gradients' sums and the saved file stay float32. bfloat16 has float32's range, so that the loss needs no
scaling. A processor or GPU without bfloat16 instructions imitates them, which is slower: hence the stopwatch.
"""

import statistics
import time
from collections.abc import Callable

import keras
import numpy as np

SINGLE, MIXED = "float32", "mixed_bfloat16"
_WORTH = 0.9  # of float32's time: below it the choice is the same in every run on a machine, above it a matter of luck
_STEPS = 5


def set_precision(model: keras.Model, policy: str) -> None:
    """Let the layers of a model compute in a dtype policy, its last layer, the softmax, always in float32.

    Takes effect when the model is compiled next.
    """
    for layer in _flatten(model)[:-1]:
        layer.dtype_policy = policy


def choose_precision(model: keras.Model, prepare: Callable[[], object], images, targets) -> dict[str, float]:
    """Seconds of a training step, median of several, in either policy; the model is left in the one to use.

    That is `MIXED` if its step takes at most nine tenths of the time. Weights stay as they were; compile afterwards.

    Args:
        prepare: compiles the model, as it is about to be trained.
        images, targets: a batch of the training's size, of any values.
    """
    weights, seconds = model.get_weights(), {}
    for policy in (SINGLE, MIXED):
        set_precision(model, policy)
        prepare()
        seconds[policy] = _time_step(model, images, targets)
        model.set_weights(weights)
    set_precision(model, faster(seconds))
    return seconds


def faster(seconds: dict[str, float]) -> str:
    """The policy to use, from the seconds of a step in each."""
    return MIXED if seconds[MIXED] <= _WORTH * seconds[SINGLE] else SINGLE


def _time_step(model: keras.Model, images: np.ndarray, targets: np.ndarray) -> float:
    seconds = []
    for _ in range(_STEPS + 2):
        started = time.perf_counter()
        model.train_on_batch(images, targets)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[2:])  # the first ones trace


def _flatten(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers of a model and of the models in it, in their order."""
    nested = [_flatten(layer) if isinstance(layer, keras.Model) else [layer] for layer in model.layers]
    return [layer for layers in nested for layer in layers]
