"""Runs that judged the same images: their rows in one order, and every figure's difference with a paired interval.

A difference is the other run's figure less the first's. Its interval comes from leaving each patient out of both runs
at once: what makes a patient hard makes it hard for both, and goes out of the difference.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from cancernet import InputError
from cancernet.evaluation.intervals import PLAIN, jackknife, jackknife_interval
from cancernet.evaluation.metrics import (
    MANY_CLASS_METRICS,
    TWO_CLASS_METRICS,
    group_images,
    patient_table,
    weigh_figures,
)
from cancernet.evaluation.smoothing import Predictions

LOWER_IS_BETTER = {"lr_negative", "brier", "ece", "log_loss"}
NEITHER_IS_BETTER = {"calibration_slope", "calibration_intercept"}  # best at 1 and 0


def align_predictions(runs: Mapping[str, Predictions]) -> dict[str, Predictions]:
    """The same predictions by the name of their run, all with the rows in the order of the first run's.

    Raises:
        InputError: the runs did not judge the same images, or do not agree on the class or the patient of one.
    """
    (first, reference), *others = runs.items()
    files = [patch.file for patch in reference.patches]
    aligned = {first: reference}
    for name, predictions in others:
        rows = {patch.file: row for row, patch in enumerate(predictions.patches)}
        for missing, judged, not_by in ((set(files) - rows.keys(), first, name), (rows.keys() - files, name, first)):
            if missing:
                raise InputError(
                    f"{judged} judged {len(missing):,} images that {not_by} did not, first {min(missing)}. Judge the "
                    "same images with both: evaluate_model.py RUN --dataset FOLDER --output FOLDER."
                )
        order = np.array([rows[file] for file in files])
        patches = [predictions.patches[row] for row in order]
        for one, other in zip(reference.patches, patches, strict=True):
            for what in ("label", "patient"):
                if getattr(one, what) != getattr(other, what):
                    raise InputError(
                        f"The {what} of {one.file} is {getattr(one, what) or 'unknown'} in {first} and "
                        f"{getattr(other, what) or 'unknown'} in {name}. Judge the same dataset with both."
                    )
        aligned[name] = Predictions(patches, *(column[order] for column in predictions[1:]))
    return aligned


def compare_figures(runs: Sequence[Predictions], *, classes: Sequence[str], positive: str | None) -> list[dict]:
    """Of each run after the first, every figure less the first run's: name to difference.

    A difference is a metric, `{"value", "low", "high"}` with a 95% interval, and `verdict`: `better` or `worse` than
    the first where the whole interval is on one side of zero, else `unclear`. What cannot be given is None, with a
    `reason`. The interval is that of `jackknife.jackknife_interval` on the figures' own scale, the difference being one
    figure of each patient's two answers. How often it holds the true difference of two runs is simulated by
    benchmarks/coverage.py; the table is in docs/reporting.md.

    Args:
        runs: two or more, of the same images in the same order, as of `align_predictions`.
        positive: one of two classes, None where there are more.
    """
    index = None if positive is None else list(classes).index(positive)
    known, groups = group_images([patch.patient for patch in runs[0].patches])
    n_groups, over = int(groups.max()) + 1, "patients" if known else "images"
    values, left_out = [], []
    for run in runs:
        figures = weigh_figures(run.labels, run.probabilities, run.predicted, groups, positive=index)
        values.append({name: float(value[0]) for name, value in figures(np.ones((1, n_groups))).items()})
        left_out.append(jackknife(figures, n_groups, len(groups)))

    def subtract(name: str, other: int) -> dict:
        change = values[other][name] - values[0][name]
        if not np.isfinite(change):
            undefined = "it is undefined for one of the two"
            return {"value": None, "low": None, "high": None, "verdict": "unclear", "reason": undefined}
        with np.errstate(invalid="ignore"):  # between two infinite ratios
            changes = left_out[other][name] - left_out[0][name]
        low, high, reason = _find_interval(name, change, changes, n_groups, over)
        found = {"value": change, "low": low, "high": high, "verdict": _judge(name, low, high)}
        return found | ({"reason": reason} if reason else {})

    names = MANY_CLASS_METRICS if positive is None else TWO_CLASS_METRICS
    return [{name: subtract(name, other) for name in names} for other in range(1, len(runs))]


def compare_patients(first: Predictions, other: Predictions, *, classes: Sequence[str], positive: str | None) -> list:
    """A row a known patient, those on whom the two runs differ most surely first.

    A row has `patient`, `images`, `only_first` and `only_other` (images given their own class by that run alone),
    `first` and `other` (what `metrics.patient_table` tells of each), and `difference`, of the share of the patient's
    images that are given their own class: above 0 where the other run gives more. The order is that of McNemar's
    statistic, (only_other - only_first)^2 / (only_other + only_first), so that neither one image of two nor five of
    two thousand comes first.
    """
    index = None if positive is None else list(classes).index(positive)
    names, groups = group_images([patch.patient for patch in first.patches])
    right = [run.predicted == run.labels for run in (first, other)]
    only = [np.bincount(groups, one & ~two).astype(int) for one, two in (right, right[::-1])]
    tables = [
        patient_table(run.labels, run.probabilities, run.predicted, groups, names, positive=index)
        for run in (first, other)
    ]
    rows = [
        {
            "patient": one["patient"],
            "images": one["images"],
            "only_first": int(only[0][group]),
            "only_other": int(only[1][group]),
            "difference": (int(only[1][group]) - int(only[0][group])) / one["images"],
            "first": one,
            "other": two,
        }
        for group, (one, two) in enumerate(zip(*tables, strict=True))
    ]
    return sorted(rows, key=lambda row: (-_mcnemar(row), -row["images"], row["patient"]))


def _find_interval(
    name: str, change: float, changes: np.ndarray, n_groups: int, over: str
) -> tuple[float | None, float | None, str | None]:
    if name == "ece":
        return None, None, "no interval: noise adds to both errors, and not alike"
    if not changes.any():
        return None, None, "no interval: both are the same, whoever is left out"
    return jackknife_interval(
        change, changes, n_groups, unit=over, scale=PLAIN, why_undefined="it is undefined for one of the two"
    )


def _mcnemar(row: dict) -> float:
    discordant = row["only_other"] + row["only_first"]
    return (row["only_other"] - row["only_first"]) ** 2 / discordant if discordant else 0.0


def _judge(name: str, low: float | None, high: float | None) -> str:
    if low is None or high is None or low <= 0 <= high or name in NEITHER_IS_BETTER:
        return "unclear"
    return "better" if (low > 0) != (name in LOWER_IS_BETTER) else "worse"
