"""The decision fitted on validation and applied, frozen, to patches that have places; predictions.csv."""

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cancernet import InputError
from cancernet.data.dataset import Patch
from cancernet.data.grid import (
    LEAST_NEIGHBOURS,
    choose_sigma,
    find_unplaceable,
    iterate_slides,
    mean_neighbours,
    smooth_scores,
)
from cancernet.judging.decision import Decision, calibrated_probabilities, decide, fit_decision

PREDICTIONS = "predictions.csv"


class Predictions(NamedTuple):
    """What a frozen decision says of the patches of one split, row by row."""

    patches: Sequence[Patch]
    labels: np.ndarray  # class index [n]
    probabilities: np.ndarray  # calibrated [n, classes]
    predicted: np.ndarray  # class index [n]


def fit_on_validation(
    patches: Sequence[Patch],
    scores: np.ndarray,
    *,
    classes: Sequence[str],
    positive: str | None,
    operating_point: str,
    neighbours: bool,
) -> Decision:
    """Fix the decision on the validation split: width of the smoothing, calibration and threshold.

    Where neighbours are used the decision also holds the one without them.

    Args:
        scores: log-probabilities [n, classes] in the order of `patches`.
        positive: one of two classes, which the operating point is of; None of more.
        operating_point: as `decision.parse_operating_point` takes it.
        neighbours: whether smoothing over a slide's neighbours may be chosen.
    """
    labels = np.array([classes.index(patch.label) for patch in patches], dtype=int)
    places, _ = settle_places(patches)

    def fit(sigma: float) -> Decision:
        return fit_decision(
            smooth_scores(scores, sigma=sigma, **places),
            labels,
            [patch.patient for patch in patches],
            classes=classes,
            positive=positive,
            operating_point=operating_point,
            neighbour_sigma=sigma,
        )

    sigma = choose_sigma(scores, labels, **places) if neighbours else 0.0
    plain = fit(0.0)
    return dataclasses.replace(fit(sigma), without_neighbours=plain) if sigma else plain


def apply_decision(decision: Decision, patches: Sequence[Patch], scores: np.ndarray) -> Predictions:
    """What a frozen decision says of the patches of a split, as `judge_patches`.

    Args:
        scores: log-probabilities [n, classes] in the order of `patches`.
    """
    if len(patches) != len(scores):
        raise ValueError(f"{len(patches)} patches but {len(scores)} scores")
    labels = np.array([decision.classes.index(patch.label) for patch in patches], dtype=int)
    places, _ = settle_places(patches)
    return Predictions(patches, labels, *judge_patches(decision, scores, **places))


def judge_patches(
    decision: Decision,
    scores: np.ndarray,
    patients: Sequence[str],
    x: Sequence[int | None],
    y: Sequence[int | None],
    *,
    files: Sequence[str] | None = None,
    threshold: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated probabilities float64 [n, classes] and decided class indices [n] of scored patches.

    Where the decision smooths over neighbours, the patches of a slide are smoothed together. Patches without a place,
    and slides with too many gaps (fewer than LEAST_NEIGHBOURS of 8 neighbours on average), are judged by the decision
    that was fitted without neighbours.

    Args:
        scores: log-probabilities [n, classes].
        patients, x, y: [n] slide and place; "" and None where unknown.
        files: [n] names for the error.
        threshold: on the positive class's probability, in place of the decision's own; 0 to 1.

    Raises:
        InputError: two patches of a slide overlap; a threshold for more than two classes.
    """
    alone = decision.without_neighbours or decision
    probabilities = calibrated_probabilities(alone, scores)
    predicted = decide(_with_threshold(alone, threshold), probabilities)
    if not decision.neighbour_sigma:
        return probabilities, predicted
    for _, members, _, _ in iterate_slides(patients, x, y, files=files):
        places = [patients[i] for i in members], [x[i] for i in members], [y[i] for i in members]
        if mean_neighbours(*places) >= LEAST_NEIGHBOURS:
            smoothed = smooth_scores(scores[members], *places, decision.neighbour_sigma)
            probabilities[members] = calibrated_probabilities(decision, smoothed)
            predicted[members] = decide(_with_threshold(decision, threshold), probabilities[members])
    return probabilities, predicted


def _with_threshold(decision: Decision, threshold: float | None) -> Decision:
    if threshold is None:
        return decision
    if decision.positive is None:
        raise InputError("A threshold needs a run of two classes; this one takes the most probable of several.")
    return dataclasses.replace(decision, threshold=threshold)


def settle_places(patches: Sequence[Patch]) -> tuple[dict[str, list], dict[str, str]]:
    """What says where patches lie, `patients`, `x` and `y` [n], and which slides cannot be laid out, with the reason.

    The patches of such a slide, of which two overlap or lie implausibly far apart, have None for x and y: names may
    hold numbers that are not places on the grid of a slide, or a patient may have two slides.
    """
    patients, files = [patch.patient for patch in patches], [patch.file for patch in patches]
    axes = {"x": [patch.x for patch in patches], "y": [patch.y for patch in patches]}
    reasons = find_unplaceable(patients, **axes, files=files)
    for axis, values in axes.items():
        axes[axis] = [None if slide in reasons else value for slide, value in zip(patients, values, strict=True)]
    return {"patients": patients, **axes}, reasons


def write_predictions(path: Path, predictions: Predictions, classes: Sequence[str]) -> None:
    """Write predictions.csv: file, label, patient, x, y, probability of each class at full precision, predicted."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*Patch._fields[:5], *(f"probability_{name}" for name in classes), "predicted"])
        for patch, probabilities, index in zip(*predictions[::2], predictions.predicted, strict=True):
            writer.writerow([*patch[:5], *probabilities.tolist(), classes[index]])


def read_predictions(path: Path, classes: Sequence[str]) -> Predictions:
    """What `write_predictions` wrote; the split and the hash of a patch are not in the file and left empty."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    places = [{axis: int(row[axis]) if row[axis] else None for axis in ("x", "y")} for row in rows]
    return Predictions(
        [
            Patch(row["file"], row["label"], row["patient"], **place, split="", sha256="")
            for row, place in zip(rows, places, strict=True)
        ],
        np.array([classes.index(row["label"]) for row in rows]),
        np.array([[float(row[f"probability_{name}"]) for name in classes] for row in rows]),
        np.array([classes.index(row["predicted"]) for row in rows]),
    )
