"""The main metrics by a column of the manifest, such as site, and their differences from all other images.

The interval of a difference leaves each patient out of both sides at once, so that it also holds for a column by which
the images of a patient differ, such as the scanner of a slide.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cancernet.evaluation.comparison import compare_figures, subtract
from cancernet.evaluation.evaluate import estimate_metrics, measure
from cancernet.evaluation.metrics import Metric, list_metrics
from cancernet.evaluation.predictions import Predictions
from cancernet.evaluation.results import ColumnResults, Difference, ValueResults
from cancernet.evaluation.tables import EvaluatedImages


def evaluate_groups(
    predictions: Predictions, column: str, values: Sequence[str], *, classes: Sequence[str], positive: str | None
) -> ColumnResults:
    """Evaluate the images with each value of a column, and compare them with all other images.

    `values` are those of the images, [n], "" where one has none.
    """
    metrics = list_main_metrics(two_classes=positive is not None)
    every, of_image, found = EvaluatedImages.of(predictions, classes=classes, positive=positive), np.array(values), []
    for value in list_values(values):
        inside = of_image == value
        own = EvaluatedImages.of(predictions.take(np.flatnonzero(inside)), classes=classes, positive=positive)
        found.append(
            ValueResults(
                value,
                images=len(own.labels),
                patients=len(own.patients),
                prevalence=None if positive is None else float(own.outcome.mean()),
                metrics=estimate_metrics(own, [metric.name for metric in metrics]),
                difference=_compare_with_others(every, inside, metrics),
            )
        )
    return ColumnResults(column, found)


def compare_groups(
    runs: Sequence[Predictions], values: Sequence[str], *, classes: Sequence[str], positive: str | None
) -> list[dict[str, dict[str, Difference]]]:
    """Compare the main metrics of each run after the first with those of the first, value by value of a column.

    The runs are as for `comparison.compare_figures`, the values as for `evaluate_groups`.
    """
    metrics = list_main_metrics(two_classes=positive is not None)
    found: list[dict[str, dict[str, Difference]]] = [{} for _ in runs[1:]]
    for value in list_values(values):
        rows = np.flatnonzero(np.array(values) == value)
        of_value = [run.take(rows) for run in runs]
        compared = compare_figures(of_value, classes=classes, positive=positive, metrics=metrics)
        for by_value, differences in zip(found, compared, strict=True):
            by_value[value] = differences
    return found


def list_main_metrics(*, two_classes: bool) -> list[Metric]:
    """List the metrics that the printed report shows."""
    place = "two-class text" if two_classes else "many-class text"
    return [metric for metric in list_metrics(two_classes=two_classes) if place in metric.shown_in]


def list_values(values: Sequence[str]) -> list[str]:
    """List the values of a column in order; images without one come last."""
    return sorted(set(values), key=lambda value: (not value, value))


def _compare_with_others(
    every: EvaluatedImages, inside: np.ndarray, metrics: Sequence[Metric]
) -> dict[str, Difference]:
    """Compute the metrics of the images `inside`, bool [n], minus those of all others."""
    if inside.all():
        none = Difference(None, None, None, "there are no other images", verdict="unclear")
        return {metric.name: none for metric in metrics}
    computations, found = {metric.name: metric.compute for metric in metrics}, {}
    own, others = (measure(every.take(rows), computations) for rows in (inside, ~inside))
    for metric in metrics:
        sides = own[metric.name], others[metric.name]
        difference = subtract(metric, *sides)
        if difference.low is not None and any(np.ptp(side.left_out) <= 1e-12 for side in sides):
            reason = f"no interval: one of the two is the same for all {every.unit}"
            difference = replace(difference, low=None, high=None, reason=reason, verdict="unclear")
        found[metric.name] = difference
    return found
