"""How raw scores become a calibrated probability and a yes or no: fitted on validation, then frozen.

Scores are log-probabilities `[n, k]` float64, a row an image, a column a class, in the order of `classes`.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cancernet import InputError, StorageError, TrainingDiverged
from cancernet.evaluation.calibration import apply_calibration, fit_calibration
from cancernet.storage import read_json, write_files

DEFAULT_OPERATING_POINT = "balanced"
CURVE_STEPS = 200  # of the threshold from 0 to 1, in `Decision.curve`
OTHER_POINTS = ("most probable class", "sensitivity=0.95", "specificity=0.95", "highest F1")
ABOVE_ONE = float(np.nextafter(1.0, 2.0))  # a threshold that even a probability of exactly 1 does not reach

_AGAIN = "Train again, or copy the whole run folder again."


@dataclass(frozen=True)
class Decision:
    """What was fitted on validation. Probabilities and thresholds are calibrated ones, of the positive class."""

    classes: tuple[str, ...]
    positive: str | None  # None where there are more than two classes
    temperature: float  # scores are divided by it; above 1 it makes the probabilities less sure
    bias: tuple[float, ...]  # then added to each class's; the first is 0
    threshold: float | None  # positive where probability >= threshold; None where there are more than two classes
    operating_point: str  # as it was asked for
    neighbour_sigma: float  # width of the smoothing over a slide's grid, in patches; 0 is off
    fitted_on: dict[str, int | None]  # images, patients (None where no patient is known)
    expected_on_validation: dict[str, float] | None  # sensitivity, specificity at the threshold
    curve: dict[str, list[float]] | None  # threshold (ascending), sensitivity, specificity: see `expected_rates`
    other_points: dict[str, float] | None = None  # name -> threshold, to compare with; None of more than two classes
    without_neighbours: "Decision | None" = None  # the one for patches that are not smoothed; None where sigma is 0
    __pydantic_config__ = {"allow_inf_nan": False}  # noqa: RUF012


class OperatingPoint(NamedTuple):
    rule: str  # balanced | sensitivity | specificity | threshold
    value: float | None  # None for balanced


def parse_operating_point(text: str) -> OperatingPoint:
    """`balanced`, `sensitivity=0.95`, `specificity=0.95` (above 0, at most 1), or a threshold between 0 and 1: `0.5`.

    Raises InputError for anything else.
    """
    rule, equals, number = str(text).strip().partition("=")
    rule = rule.strip()
    if rule == "balanced" and not equals:
        return OperatingPoint("balanced", None)
    try:
        value = float(number if equals else rule) if text.isascii() else math.nan  # float takes digits of all scripts
    except ValueError:
        value = math.nan
    if equals and rule in ("sensitivity", "specificity") and 0 < value <= 1:
        return OperatingPoint(rule, value)
    if not equals and 0 < value < 1:
        return OperatingPoint("threshold", value)
    raise InputError(
        f"Unknown operating point {str(text)!r}. Give balanced, sensitivity=0.95, specificity=0.95, "
        "or a threshold between 0 and 1 such as 0.5."
    )


def fit_decision(
    scores: np.ndarray,
    labels: np.ndarray,
    patients: Sequence[str],
    *,
    classes: Sequence[str],
    positive: str | None,
    operating_point: str = DEFAULT_OPERATING_POINT,
    neighbour_sigma: float = 0.0,
    log_class_weight: float = 0.0,
) -> Decision:
    """Fit temperature, bias and threshold on the validation images.

    scores: `[n, k]` log-probabilities, already smoothed over neighbours where `neighbour_sigma` (recorded, not applied
    here) is above 0. labels: `[n]` class indices. patients: `[n]`, '' where unknown. positive: one of the two classes;
    None where there are more. operating_point: see `parse_operating_point`; with more than two classes the most
    probable one is decided on, and only `balanced` is allowed. log_class_weight: of two classes, the logarithm of the
    positive class's weight in training over the negative one's, which the calibration expects to take back.

    - Temperature and bias: see `calibration.fit_calibration`.
    - `balanced`: the mean calibrated probability, which is the share of the positive class that the probabilities
      expect (the share seen only where validation alone made the bias). A patch of probability p adds p / share to the
      expected sensitivity when it is called positive, else (1 - p) / (1 - share) to the specificity, and the first is
      more where p is above the share: no threshold expects a higher balanced accuracy. The one that happens to have the
      highest on a dozen validation patients does worse on others (docs/recipes.md).
    - `sensitivity=s`: the highest threshold whose sensitivity is at least s. `specificity=s`: the lowest threshold
      whose specificity is at least s. Both lie midway between neighbouring probabilities (0 and 1 count as neighbours),
      not on an image's own.

    Raises InputError: no images, shapes that do not match, one class only, an operating point that cannot be used.
    """
    scores, labels, classes = np.asarray(scores, dtype=np.float64), np.asarray(labels), tuple(classes)
    point = parse_operating_point(operating_point)
    _check_fit(scores, labels, patients, classes, positive, point, operating_point, neighbour_sigma)
    known = {patient for patient in patients if patient}
    towards_last = log_class_weight if positive == classes[-1] else -log_class_weight
    temperature, bias = fit_calibration(scores, labels, patients, towards_last)
    threshold = expected = curve = others = None
    if positive is not None:
        index = classes.index(positive)
        probability = apply_calibration(scores, temperature, bias)[:, index]
        threshold = _fit_threshold(probability, labels == index, point)
        others = {name: _fit_other(probability, labels == index, name) for name in OTHER_POINTS}
        curve = _rates_curve(probability, labels == index, [threshold, *others.values()])
        at = curve["threshold"].index(threshold)
        expected = {name: curve[name][at] for name in ("sensitivity", "specificity")}
    return Decision(
        classes=classes,
        positive=positive,
        temperature=temperature,
        bias=bias,
        threshold=threshold,
        operating_point=operating_point,
        neighbour_sigma=float(neighbour_sigma),
        fitted_on={"images": len(labels), "patients": len(known) or None},
        expected_on_validation=expected,
        curve=curve,
        other_points=others,
    )


def calibrate(decision: Decision, scores: np.ndarray) -> np.ndarray:
    """Turn scores into probabilities: softmax(scores / temperature + bias), `[n, k]` float64, 0 to 1, rows sum to 1.

    Of two classes the order of any two images by log-odds is kept. Raises InputError where the number of columns is not
    that of the decision's classes.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[1] != len(decision.classes):
        raise InputError(
            f"Scores of shape {list(scores.shape)} do not fit the decision's {len(decision.classes)} classes "
            f"({', '.join(decision.classes)}). Use the decision.json of the same run."
        )
    return apply_calibration(scores, decision.temperature, decision.bias)


def decide(decision: Decision, probabilities: np.ndarray, threshold: float | None = None) -> np.ndarray:
    """Class indices `[n]` from calibrated probabilities `[n, k]`.

    Of two classes: the positive one where its probability is at least the threshold, the decision's own unless another
    is given. Of more: the most probable.
    """
    probabilities = np.asarray(probabilities)
    if decision.positive is None:
        return probabilities.argmax(axis=1)
    index = decision.classes.index(decision.positive)
    threshold = decision.threshold if threshold is None else threshold
    return np.where(probabilities[:, index] >= threshold, index, 1 - index)


def decide_otherwise(decision: Decision, point: str) -> Decision:
    """The same decision at the threshold of one of its other points, and so that without neighbours."""
    alone, points = decision.without_neighbours, decision.other_points or {}
    return replace(decision, threshold=points[point], without_neighbours=alone and decide_otherwise(alone, point))


def expected_rates(decision: Decision, threshold: float) -> dict[str, float]:
    """Sensitivity and specificity on validation at any threshold from 0 to 1, for a threshold that a user moves.

    Exact at the decision's own threshold, at its other points and at multiples of 0.005, straight lines between them.
    Raises InputError for a decision on more than two classes, which has no threshold.
    """
    if decision.curve is None:
        raise InputError("A decision on more than two classes has no threshold to move.")
    at = decision.curve["threshold"]
    return {name: float(np.interp(threshold, at, decision.curve[name])) for name in ("sensitivity", "specificity")}


def save_decision(decision: Decision, path: Path) -> None:
    """Write the decision as JSON, one line a field; the file is either the old one or the whole new one."""
    path = Path(path)
    lines = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in asdict(decision).items())
    write_files(path.parent, {path.name: ("{\n" + ",\n".join(lines) + "\n}\n").encode()})


def load_decision(path: Path) -> Decision:
    """Read what `save_decision` wrote. Raises InputError if it is missing, StorageError if it is damaged."""
    decision = read_json(path, Decision, advice=_AGAIN)
    problem = _find_contradiction(decision)
    if problem:
        raise StorageError(f"{path} is damaged: {problem}. {_AGAIN}")
    return decision


def _find_contradiction(decision: Decision) -> str:
    """What in a decision of the right types cannot be, in words; "" for nothing."""
    classes, positive, curve = decision.classes, decision.positive, decision.curve
    if len(classes) < 2:
        return f"classes is {list(classes)}"
    if (positive is None) == (len(classes) == 2) or (positive is not None and positive not in classes):
        return f"positive is {positive!r} of classes {', '.join(classes)}"
    if not decision.temperature > 0:
        return f"temperature is {decision.temperature}"
    if len(decision.bias) != len(classes):
        return f"bias is {list(decision.bias)}"
    if not decision.neighbour_sigma >= 0:
        return f"neighbour_sigma is {decision.neighbour_sigma}"
    if not {"images", "patients"} <= decision.fitted_on.keys():
        return f"fitted_on is {decision.fitted_on}"
    if positive is not None:
        if decision.threshold is None or not 0 <= decision.threshold <= ABOVE_ONE:
            return f"threshold is {decision.threshold}"
        if not {"sensitivity", "specificity"} <= (decision.expected_on_validation or {}).keys():
            return f"expected_on_validation is {decision.expected_on_validation}"
        if not all(0 <= threshold <= ABOVE_ONE for threshold in (decision.other_points or {}).values()):
            return f"other_points is {decision.other_points}"
        columns = [(curve or {}).get(name, []) for name in ("threshold", "sensitivity", "specificity")]
        if not columns[0] or len(set(map(len, columns))) != 1:
            return "its curve is not three lists of one length"
    without = decision.without_neighbours
    problem = _find_contradiction(without) if without else ""
    return problem and f"without_neighbours: {problem}"


def _check_fit(scores, labels, patients, classes, positive, point, operating_point, neighbour_sigma) -> None:
    if not len(labels):
        raise InputError(
            "No validation images to fit the decision on. Build the dataset again with a validation split."
        )
    if scores.shape != (len(labels), len(classes)) or len(patients) != len(labels):
        raise InputError(
            f"Validation scores of shape {list(scores.shape)} do not fit {len(labels):,} labels, {len(patients):,} "
            f"patients and {len(classes)} classes. They must be of the same images."
        )
    if not np.isfinite(scores).all():
        raise TrainingDiverged(
            "Validation scores are not all finite numbers: training diverged. Use a smaller --learning-rate."
        )
    if (positive is None) == (len(classes) == 2) or (positive is not None and positive not in classes):
        raise InputError(f"The positive class {positive!r} does not fit the classes {', '.join(classes)}.")
    present = np.unique(labels)
    if len(present) < 2:
        raise InputError(
            f"All {len(labels):,} validation images are of class {classes[int(present[0])]}; calibration and threshold "
            "need at least two classes. Build the dataset again with more patients, or another --seed."
        )
    if positive is None and point.rule != DEFAULT_OPERATING_POINT:
        raise InputError(
            f"Operating point {operating_point} needs two classes, and there are {len(classes)} "
            f"({', '.join(classes)}). Leave --operating-point out: the most probable class is decided on."
        )
    if not neighbour_sigma >= 0:
        raise InputError(f"The neighbours' width is {neighbour_sigma} patches. It must be 0 (off) or more.")


def _fit_threshold(probability: np.ndarray, is_positive: np.ndarray, point: OperatingPoint) -> float:
    if point.value is None:
        return float(probability.mean())
    if point.rule == "threshold":
        return point.value
    middle, hits, rejections = _count_between(probability, is_positive)
    if point.rule == "sensitivity":
        return float(middle[hits / is_positive.sum() >= point.value][-1])
    return float(middle[rejections / (~is_positive).sum() >= point.value][0])


def _fit_other(probability: np.ndarray, is_positive: np.ndarray, name: str) -> float:
    """The threshold of one of OTHER_POINTS; of several with the highest F1 the lowest."""
    if name == "most probable class":
        return 0.5
    if name != "highest F1":
        return _fit_threshold(probability, is_positive, parse_operating_point(name))
    middle, hits, rejections = _count_between(probability, is_positive)
    wrong = is_positive.sum() - hits + (~is_positive).sum() - rejections
    return float(middle[np.argmax(2 * hits / (2 * hits + wrong))])


def _count_between(probability: np.ndarray, is_positive: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thresholds midway between neighbouring probabilities, and as `_count_right` at each."""
    values = np.unique(probability)
    lower, upper = np.append(0.0, values), np.append(values, 1.0)
    middle = (lower + upper) / 2
    middle = np.where(middle <= lower, upper, middle)  # where the neighbours are adjacent floating-point numbers
    if values[-1] >= 1.0:
        middle[-1] = ABOVE_ONE
    return middle, *_count_right(probability, is_positive, middle)


def _count_right(probability, is_positive, thresholds) -> tuple[np.ndarray, np.ndarray]:
    """Positive images at or above each threshold, and negative ones below it."""
    positives, negatives = np.sort(probability[is_positive]), np.sort(probability[~is_positive])
    return len(positives) - np.searchsorted(positives, thresholds), np.searchsorted(negatives, thresholds)


def _rates_curve(probability: np.ndarray, is_positive: np.ndarray, exact: Sequence[float]) -> dict[str, list[float]]:
    thresholds = np.unique(np.append(np.arange(CURVE_STEPS + 1) / CURVE_STEPS, exact))
    hits, rejections = _count_right(probability, is_positive, thresholds)
    return {
        "threshold": thresholds.tolist(),
        "sensitivity": (hits / is_positive.sum()).tolist(),
        "specificity": (rejections / (~is_positive).sum()).tolist(),
    }
