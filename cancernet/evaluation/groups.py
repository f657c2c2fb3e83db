"""The main metrics by a column of the manifest, such as site, and their differences from all other images.

The interval of a difference leaves each patient out of both sides at once, so that it also holds for a column by which
the images of a patient differ, such as the scanner of a slide.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cancernet.evaluation.comparison import compare_figures, estimate_difference
from cancernet.evaluation.evaluate import estimate_metrics
from cancernet.evaluation.intervals import jackknife
from cancernet.evaluation.metrics import Metric, list_metrics
from cancernet.evaluation.predictions import Predictions
from cancernet.evaluation.results import ColumnResults, Difference, ValueResults
from cancernet.evaluation.tables import EvaluatedImages, WeightedImages


def evaluate_groups(
    predictions: Predictions, column: str, values: Sequence[str], *, classes: Sequence[str], positive: str | None
) -> ColumnResults:
    """Evaluate the images with each value of a column, and compare them with all other images.

    Args:
        column: its name.
        values: of each image, [n]; "" where it has none.
        positive: one of two classes; None where there are more.
    """
    metrics = list_main_metrics(two_classes=positive is not None)
    every, of_image, found = EvaluatedImages.of(predictions, classes=classes, positive=positive), np.array(values), []
    for value in list_values(values):
        inside = of_image == value
        own, others = (
            EvaluatedImages.of(predictions.take(np.flatnonzero(rows)), classes=classes, positive=positive)
            if rows.any()
            else None
            for rows in (inside, ~inside)
        )
        assert own  # some image has the value
        difference = {metric.name: _NO_OTHERS for metric in metrics}
        if others:
            sides = [
                (each, _number_groups(each, every.groups[rows])) for each, rows in ((own, inside), (others, ~inside))
            ]
            difference = _subtract(every, sides, metrics)
        found.append(
            ValueResults(
                value,
                images=len(own.labels),
                patients=len(own.patients),
                prevalence=None if positive is None else float(own.outcome.mean()),
                metrics=estimate_metrics(own, [metric.name for metric in metrics]),
                difference=difference,
            )
        )
    return ColumnResults(column, found)


_NO_OTHERS = Difference(None, None, None, "there are no other images", verdict="unclear")


def compare_groups(
    runs: Sequence[Predictions], values: Sequence[str], *, classes: Sequence[str], positive: str | None
) -> list[dict[str, dict[str, Difference]]]:
    """Compare the main metrics of each run after the first with those of the first, value by value of a column.

    Args:
        runs: as of `comparison.compare_figures`.
        values: as of `evaluate_groups`.
    """
    shown = {metric.name for metric in list_main_metrics(two_classes=positive is not None)}
    found: list[dict[str, dict[str, Difference]]] = [{} for _ in runs[1:]]
    for value in list_values(values):
        rows = np.flatnonzero(np.array(values) == value)
        compared = compare_figures([run.take(rows) for run in runs], classes=classes, positive=positive)
        for by_value, differences in zip(found, compared, strict=True):
            by_value[value] = {name: each for name, each in differences.items() if name in shown}
    return found


def list_main_metrics(*, two_classes: bool) -> list[Metric]:
    """List the metrics that the printed report shows."""
    place = "two-class text" if two_classes else "many-class text"
    return [metric for metric in list_metrics(two_classes=two_classes) if place in metric.shown_in]


def list_values(values: Sequence[str]) -> list[str]:
    """List the values of a column in order; images without one come last."""
    return sorted(set(values), key=lambda value: (not value, value))


def _number_groups(part: EvaluatedImages, numbers: np.ndarray) -> np.ndarray:
    """Return the number among all groups of each group of some images, whose numbers [m] these are."""
    found = np.zeros(part.n_groups, dtype=int)
    found[part.groups] = numbers
    return found


def _subtract(
    every: EvaluatedImages, sides: Sequence[tuple[EvaluatedImages, np.ndarray]], metrics: Sequence[Metric]
) -> dict[str, Difference]:
    """Compute the first side's metrics minus the second's; a side is its images and the numbers of their groups."""

    def compute(weights: np.ndarray) -> dict[tuple[str, int], np.ndarray]:
        weighted = [WeightedImages(images, weights[:, numbers]) for images, numbers in sides]
        return {(metric.name, side): metric.compute(each) for metric in metrics for side, each in enumerate(weighted)}

    whole, left_out = compute(np.ones((1, every.n_groups))), jackknife(compute, every.n_groups, len(every.labels))
    least, found = min(images.n_groups for images, _ in sides), {}
    for metric in metrics:
        (own,), (other,) = (whole[metric.name, side] for side in range(2))
        without = [left_out[metric.name, side] for side in range(2)]
        difference = estimate_difference(
            metric, float(own - other), without[0] - without[1], n_groups=least, unit=every.unit
        )
        if difference.low is not None and any(np.ptp(each) <= 1e-12 for each in without):
            reason = f"no interval: one of the two is the same for all {every.unit}"
            difference = replace(difference, low=None, high=None, reason=reason, verdict="unclear")
        found[metric.name] = difference
    return found
