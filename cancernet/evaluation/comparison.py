"""Runs on the same images: their rows in one order, and the difference of every metric with a paired interval.

A difference is the other run's value minus the first's. Its interval leaves each patient out of both runs at once: what
makes a patient difficult makes it difficult for both, and cancels in the difference.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from cancernet import InputError
from cancernet.evaluation.evaluate import measure, patient_table
from cancernet.evaluation.intervals import PLAIN, Bounds, jackknife_interval
from cancernet.evaluation.metrics import Metric, list_metrics
from cancernet.evaluation.predictions import Predictions
from cancernet.evaluation.results import Difference, PatientDifference, Verdict
from cancernet.evaluation.tables import EvaluatedImages

UNDEFINED = "it is undefined for one of the two"


def align_predictions(runs: Mapping[str, Predictions]) -> dict[str, Predictions]:
    """Bring the rows of all runs, by their names, into the order of the first run's.

    Raises:
        InputError: the runs did not evaluate the same images, or disagree on the class or the patient of one.
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
    runs: Sequence[Predictions], *, classes: Sequence[str], positive: str | None
) -> list[dict[str, Difference]]:
    """Compare every metric of each run after the first with that of the first.

    The interval is that of `intervals.jackknife_interval` on the metrics' own scale, where the difference is one figure
    of each patient's images. How often it holds the true difference of two runs is simulated by benchmarks/coverage.py;
    the table is in docs/reporting.md.

    Args:
        runs: two or more, of the same images in the same order, from `align_predictions`.
    """
    metrics = list_metrics(two_classes=positive is not None)
    images = [EvaluatedImages.of(run, classes=classes, positive=positive) for run in runs]
    computations = {metric.name: metric.compute for metric in metrics}
    (first, first_left_out), *others = (measure(each, computations) for each in images)

    def subtract(metric: Metric, values: dict[str, float], left_out: dict[str, np.ndarray]) -> Difference:
        with np.errstate(invalid="ignore"):  # between two infinite ratios
            changes = left_out[metric.name] - first_left_out[metric.name]
        change = values[metric.name] - first[metric.name]
        return estimate_difference(metric, change, changes, n_groups=images[0].n_groups, unit=images[0].unit)

    return [{metric.name: subtract(metric, *other) for metric in metrics} for other in others]


def estimate_difference(metric: Metric, change: float, changes: np.ndarray, *, n_groups: int, unit: str) -> Difference:
    """Give a difference of a metric its interval and verdict.

    Args:
        change: the difference; NaN or infinite where it is undefined.
        changes: the same with each group left out, from `intervals.jackknife`.
        n_groups, unit: as of `intervals.jackknife_interval`.
    """
    if not np.isfinite(change):
        return Difference(None, None, None, UNDEFINED, verdict="unclear")
    bounds = _find_bounds(metric, change, changes, n_groups, unit)
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
        np.bincount(images[0].groups, one & ~two).astype(int).tolist() for one, two in (right, right[::-1])
    )
    rows = []
    for one, two, lost, gained in zip(*map(patient_table, images), only_first, only_other):  # groups may follow these
        rows.append(PatientDifference(one.patient, one.images, lost, gained, (gained - lost) / one.images, one, two))
    return sorted(rows, key=lambda row: (-_mcnemar(row), -row.images, row.patient))


def _find_bounds(metric: Metric, change: float, changes: np.ndarray, n_groups: int, unit: str) -> Bounds:
    if metric.biased_upward:
        return Bounds(None, None, "no interval: noise increases both errors, by different amounts")
    if not changes.any():
        return Bounds(None, None, f"no interval: both are the same, whichever of the {unit} are left out")
    return jackknife_interval(change, changes, n_groups, unit=unit, scale=PLAIN, why_undefined=UNDEFINED)


def _mcnemar(row: PatientDifference) -> float:
    discordant = row.only_other + row.only_first
    return (row.only_other - row.only_first) ** 2 / discordant if discordant else 0.0


def _give_verdict(metric: Metric, bounds: Bounds) -> Verdict:
    low, high, _ = bounds
    if low is None or high is None or low <= 0 <= high or metric.better == "neither":
        return "unclear"
    return "better" if (low > 0) == (metric.better == "higher") else "worse"
