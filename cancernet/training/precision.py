"""Mixed precision: training in bfloat16 where a measured step is faster.

Weights, sums of gradients and the saved file stay float32. bfloat16 has the range of float32, so the loss needs no
scaling. Hardware without bfloat16 instructions emulates them, which is slower; so a step is timed both ways.
"""

import statistics
import time
from collections.abc import Callable

import keras
import numpy as np

from cancernet.models.structure import list_layers
from cancernet.training import distribution

SINGLE, MIXED = "float32", "mixed_bfloat16"
_MAX_TIME_RATIO = 0.9  # of MIXED to SINGLE; closer to 1 the choice would change between runs on the same machine
_STEPS = 5


def set_precision(model: keras.Model, policy: str) -> None:
    """Set the dtype policy of all layers but the last, the softmax; it takes effect when the model is next compiled."""
    for layer in list_layers(model)[:-1]:
        layer.dtype_policy = policy


def choose_precision(
    model: keras.Model, compile_model: Callable[[], object], images: np.ndarray, targets: np.ndarray
) -> dict[str, float]:
    """Time a step with each policy on a batch, set the model to the faster one, and return median seconds by policy.

    The weights do not change. Compile the model afterwards.
    """
    weights, seconds = model.get_weights(), {}
    for policy in (SINGLE, MIXED):
        set_precision(model, policy)
        compile_model()
        seconds[policy] = _time_step(model, images, targets)
        model.set_weights(weights)
    seconds = distribution.broadcast(seconds)
    set_precision(model, select_faster(seconds))
    return seconds


def select_faster(seconds: dict[str, float]) -> str:
    """Return `MIXED` if its step takes at most nine tenths of the time of `SINGLE`, otherwise `SINGLE`."""
    return MIXED if seconds[MIXED] <= _MAX_TIME_RATIO * seconds[SINGLE] else SINGLE


def _time_step(model: keras.Model, images: np.ndarray, targets: np.ndarray) -> float:
    seconds = []
    for _ in range(_STEPS + 2):
        started = time.perf_counter()
        model.train_on_batch(images, targets)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[2:])  # the first steps build the graph
