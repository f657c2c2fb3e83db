"""Runs that judged the same images: their rows in one order, and the difference of every figure with a paired interval.

A difference is the other run's figure less the first's. Its interval comes from the draws of patients that both share:
what makes a patient hard makes it hard for both, and goes out of the difference.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from cancernet import InputError
from cancernet.judging.bootstrap import LEVEL, bootstrap, percentile_interval
from cancernet.judging.metrics import (
    MANY_CLASS_METRICS,
    TWO_CLASS_METRICS,
    group_images,
    patient_table,
    weigh_figures,
)
from cancernet.judging.smoothing import Predictions

LOWER_IS_BETTER = {"lr_negative", "brier", "ece", "log_loss"}
DRAWS, SEED = 2000, 42


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


def compare_figures(
    runs: Sequence[Predictions], *, classes: Sequence[str], positive: str | None, draws: int = DRAWS, seed: int = SEED
) -> list[dict[str, dict]]:
    """Of each run after the first, every figure less the first run's: name to difference.

    A difference is a metric, `{"value", "low", "high"}` with a 95% interval, and `verdict`: `better` or `worse` than
    the first where the whole interval is on one side of zero, else `unclear`. What cannot be given is None, with a
    `reason`. The interval is the percentile bootstrap's over patients, as `bootstrap.percentile_interval` has it.

    Args:
        runs: two or more, of the same images in the same order, as of `align_predictions`.
        positive: one of two classes, None where there are more.
    """
    index = None if positive is None else list(classes).index(positive)
    _, groups = group_images([patch.patient for patch in runs[0].patches])
    n_groups = int(groups.max()) + 1
    found = []
    for run in runs:  # the draws follow from the seed, and are the same for every run
        figures = weigh_figures(run.labels, run.probabilities, run.predicted, groups, positive=index)
        values = figures(np.ones((1, n_groups)))
        drawn = bootstrap(figures, n_groups, len(groups), draws=draws, seed=seed)
        found.append({key: (float(values[key][0]), drawn[key]) for key in values})
    names = MANY_CLASS_METRICS if positive is None else TWO_CLASS_METRICS
    first, *others = found
    return [{name: _subtract(name, first[name], other[name], n_groups) for name in names} for other in others]


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


def _subtract(name: str, first: tuple, other: tuple, n_groups: int) -> dict:
    (value, drawn), (other_value, other_drawn) = first, other
    if not np.isfinite([value, other_value]).all():
        return {"value": None, "low": None, "high": None, "verdict": "unclear", "reason": "undefined for one of them"}
    with np.errstate(invalid="ignore"):  # between two infinite ratios
        differences = other_drawn - drawn
    low, high, reason = _find_interval(name, differences, n_groups)
    found = {"value": other_value - value, "low": low, "high": high, "verdict": _judge(name, low, high)}
    return found | ({"reason": reason} if reason else {})


def _find_interval(name: str, differences: np.ndarray, n_groups: int) -> tuple[float | None, float | None, str | None]:
    if name == "ece":
        return None, None, "no interval: drawing patients anew enlarges a calibration error"
    if not differences.any():
        return None, None, "no interval: both have the same figure in every draw"
    infinite = np.isinf(differences).mean()
    if infinite > (1 - LEVEL) / 2:
        return None, None, f"no interval: a ratio is infinite in {infinite:.1%} of the draws"
    return percentile_interval(np.where(np.isinf(differences), np.nan, differences), n_groups, "it is undefined")


def _mcnemar(row: dict) -> float:
    discordant = row["only_other"] + row["only_first"]
    return (row["only_other"] - row["only_first"]) ** 2 / discordant if discordant else 0.0


def _judge(name: str, low: float | None, high: float | None) -> str:
    if low is None or high is None or low <= 0 <= high:
        return "unclear"
    return "better" if (low > 0) != (name in LOWER_IS_BETTER) else "worse"
