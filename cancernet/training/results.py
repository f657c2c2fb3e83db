"""What a training returns, and its summary for the report. Needs no Keras."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class TrainingResult(NamedTuple):
    """What a training returns besides the weights, which are in the model."""

    history: dict[str, list[float]]  # one value per epoch; empty for a linear head, which has no epochs
    kept_epochs: tuple[int, int] | None  # first and last (from 0) of the epochs whose weights were averaged
    seconds: float  # including validation
    images_per_second: float | None  # training images over the time of all epochs except the first
    precision: str = "float32"  # of the computations during training
    strength: float | None = None  # of the linear head: inverse of its L2 penalty; None without such a head


@dataclass(frozen=True)
class TrainingSummary:
    """What a report says about a training."""

    seconds: float
    device: str
    head_strength: float | None = None  # inverse of the linear head's L2 penalty
    epochs: int | None = None  # None for a linear head alone
    kept_epochs: tuple[int, int] | None = None  # first and last (from 1) of the epochs whose weights were averaged
    images_per_second: float | None = None


def average_results(results: Sequence[TrainingResult]) -> TrainingResult:
    """Combine members trained in epochs: mean history, range of kept epochs, total seconds, mean images per second."""
    history = {}
    for key in results[0].history:
        epochs = itertools.zip_longest(*(each.history[key] for each in results))
        history[key] = [float(np.mean([value for value in values if value is not None])) for values in epochs]
    kept = [each.kept_epochs for each in results if each.kept_epochs]
    return results[0]._replace(
        history=history,
        kept_epochs=(min(first for first, _ in kept), max(last for _, last in kept)),
        seconds=sum(each.seconds for each in results),
        images_per_second=float(np.mean([each.images_per_second for each in results])),
    )


def summarize(result: TrainingResult, device: str) -> TrainingSummary:
    """Summarize a training for the report."""
    if not result.kept_epochs:
        return TrainingSummary(result.seconds, device, result.strength)
    first, last = result.kept_epochs
    epochs, kept = len(result.history["loss"]), (first + 1, last + 1)
    return TrainingSummary(result.seconds, device, result.strength, epochs, kept, result.images_per_second)
