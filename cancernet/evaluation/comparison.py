"""Runs on the same images: their rows in one order, and the difference of every metric with a paired interval.

A difference is the other run's value minus the first's. Its interval leaves each patient out of both runs at once: what
makes a patient difficult makes it difficult for both, and cancels in the difference.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from cancernet import InputError
from cancernet.evaluation.evaluate import measure, patient_table
from cancernet.evaluation.intervals import PLAIN, Bounds, Measured, jackknife_interval
from cancernet.evaluation.metrics import Metric, list_metrics
from cancernet.evaluation.predictions import Predictions
from cancernet.evaluation.results import Difference, PatientDifference, Verdict
from cancernet.evaluation.tables import EvaluatedImages

UNDEFINED = "it is undefined for one of the two"


def align_predictions(runs: Mapping[str, Predictions]) -> dict[str, Predictions]:
    """Bring the rows of all runs, by their names, into the order of the first run's.

    Raises InputError if they did not evaluate the same images, or disagree on the class or the patient of one.
    """
    (first, reference), *others = runs.items()
    files = [patch.file for patch in reference.patches]
    aligned = {first: reference}
    for name, predictions in others:
        rows = {patch.file: row for row, patch in enumerate(predictions.patches)}
        for missing, has, has_not in ((set(files) - rows.keys(), first, name), (rows.keys() - files, name, first)):
            if missing:
                raise InputError(
                    f"{has} evaluated {len(missing):,} images that {has_not} did not, first {min(missing)}. Evaluate "
                    "both on the same images: evaluate_model.py RUN --dataset FOLDER --output FOLDER."
                )
        aligned[name] = predictions.take(np.array([rows[file] for file in files]))
        for one, other in zip(reference.patches, aligned[name].patches, strict=True):
            for what in ("label", "patient"):
                if getattr(one, what) != getattr(other, what):
                    raise InputError(
                        f"The {what} of {one.file} is {getattr(one, what) or 'unknown'} in {first} and "
                        f"{getattr(other, what) or 'unknown'} in {name}. Evaluate both on the same dataset."
                    )
    return aligned


def compare_figures(
    runs: Sequence[Predictions],
    *,
    classes: Sequence[str],
    positive: str | None,
    metrics: Sequence[Metric] | None = None,
) -> list[dict[str, Difference]]:
    """Compare every metric, or the given ones, of each run after the first with those of the first.

    The interval is that of `intervals.jackknife_interval` on the metrics' own scale, where the difference is one figure
    of each patient's images. How often it holds the true difference of two runs is simulated by benchmarks/coverage.py;
    the table is in docs/reporting.md. The runs are two or more, in the same order of images (`align_predictions`).
    """
    metrics = list_metrics(two_classes=positive is not None) if metrics is None else metrics
    computations = {metric.name: metric.compute for metric in metrics}
    images = [EvaluatedImages.of(run, classes=classes, positive=positive) for run in runs]
    first, *others = (measure(each, computations) for each in images)
    return [{each.name: subtract(each, other[each.name], first[each.name]) for each in metrics} for other in others]


def subtract(metric: Metric, one: Measured, other: Measured) -> Difference:
    """Compute one value of a metric minus another, both with the same groups left out in turn."""
    change = one.value - other.value
    if not np.isfinite(change):
        return Difference(None, None, None, UNDEFINED, verdict="unclear")
    with np.errstate(invalid="ignore"):  # between two infinite ratios
        changes = one.left_out - other.left_out
    if metric.biased_upward:
        bounds = Bounds(None, None, "no interval: noise increases both errors, by different amounts")
    elif not changes.any():
        bounds = Bounds(None, None, f"no interval: both are the same, whichever of the {one.unit} are left out")
    else:
        difference = Measured(change, changes, min(one.n_groups, other.n_groups), one.unit)
        bounds = jackknife_interval(difference, scale=PLAIN, why_undefined=UNDEFINED)
    return Difference(change, *bounds, verdict=_give_verdict(metric, bounds))


def compare_patients(
    first: Predictions, other: Predictions, *, classes: Sequence[str], positive: str | None
) -> list[PatientDifference]:
    """Compare two runs patient by patient, the most significant differences first; known patients only.

    The order is that of McNemar's statistic, (only_other - only_first)^2 / (only_other + only_first), so that neither
    one image of two nor five of two thousand comes first.
    """
    images = [EvaluatedImages.of(run, classes=classes, positive=positive) for run in (first, other)]
    right = [run.predicted == run.labels for run in (first, other)]
    only_first, only_other = (
        images[0].sum_by_group(one & ~two).astype(int).tolist() for one, two in (right, right[::-1])
    )
    rows = []
    for one, two, lost, gained in zip(*map(patient_table, images), only_first, only_other):  # groups may follow these
        rows.append(PatientDifference(one.patient, one.images, lost, gained, (gained - lost) / one.images, one, two))

    def mcnemar(row: PatientDifference) -> float:
        return (row.only_other - row.only_first) ** 2 / max(row.only_other + row.only_first, 1)

    return sorted(rows, key=lambda row: (-mcnemar(row), -row.images, row.patient))


def _give_verdict(metric: Metric, bounds: Bounds) -> Verdict:
    low, high, _ = bounds
    if low is None or high is None or low <= 0 <= high or metric.better == "neither":
        return "unclear"
    return "better" if (low > 0) == (metric.better == "higher") else "worse"
