"""Mixed precision: training in bfloat16 where a measured step is faster.

Weights, sums of gradients and the saved file stay float32. bfloat16 has the range of float32, so the loss needs no
scaling. Hardware without bfloat16 instructions emulates them, which is slower; so a step is timed both ways.
"""

import statistics
import time
from collections.abc import Callable, Iterable

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
    model: keras.Model, compile_model: Callable[[], object], batch: Iterable, say: Callable[[str], None]
) -> str:
    """Time a step with each policy on a batch, which begins with images and targets, and return the faster one.

    That is `MIXED` if its median is at most nine tenths of that of `SINGLE`. The weights do not change. Set the policy
    and compile the model afterwards.
    """
    images, targets, *_ = map(np.asarray, batch)
    weights, seconds = model.get_weights(), {}
    for policy in (SINGLE, MIXED):
        set_precision(model, policy)
        compile_model()
        seconds[policy] = _time_step(model, images, targets)
        model.set_weights(weights)
    seconds = distribution.broadcast(seconds)
    faster = MIXED if seconds[MIXED] <= _MAX_TIME_RATIO * seconds[SINGLE] else SINGLE
    measured = " and ".join(f"{1000 * value:.3g} ms in {name}" for name, value in seconds.items())
    say(f"A training step takes {measured}: training in {faster}.")
    return faster


def _time_step(model: keras.Model, images: np.ndarray, targets: np.ndarray) -> float:
    seconds = []
    for _ in range(_STEPS + 2):
        started = time.perf_counter()
        model.train_on_batch(images, targets)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[2:])  # the first steps build the graph
