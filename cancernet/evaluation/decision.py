"""The decision of a run: how scores become calibrated probabilities and a class, fitted on validation."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cancernet import InputError, StorageError, TrainingDiverged
from cancernet.evaluation.calibration import apply_calibration, fit_calibration
from cancernet.evaluation.predictions import Scores
from cancernet.storage import read_json, write_files

DEFAULT_OPERATING_POINT = "balanced"
CURVE_STEPS = 200  # of the threshold from 0 to 1, in `Decision.curve`
ABOVE_ONE = float(np.nextafter(1.0, 2.0))  # a threshold that even a probability of exactly 1 does not reach

_ADVICE = "Train again, or copy the whole run folder again."


@dataclass(frozen=True)
class FittedOn:
    """The images that a decision was fitted on, each predicted by a network that was not trained on it."""

    images: int
    patients: int | None = None  # None if no patient is known
    out_of_fold: bool = False  # whether training images are among them, each predicted by the member that left it out


@dataclass(frozen=True)
class ValidationRates:
    """Sensitivity and specificity of a threshold on the validation split."""

    sensitivity: float
    specificity: float


@dataclass(frozen=True)
class RatesCurve:
    """Sensitivity and specificity on the validation split by threshold, in ascending order."""

    threshold: list[float]
    sensitivity: list[float]
    specificity: list[float]


@dataclass(frozen=True)
class Decision:
    """Calibration, threshold and smoothing. Thresholds are on the calibrated probability of the positive class."""

    classes: tuple[str, ...]
    positive: str | None  # None for more than two classes; so are threshold, expected rates, curve and other points
    temperature: float  # divides the scores; above 1 it makes the probabilities less confident
    bias: tuple[float, ...]  # then added to the score of each class; the first is 0
    threshold: float | None  # positive from this probability
    operating_point: str  # as requested
    neighbour_sigma: float  # width of the smoothing over a slide's grid, in patches; 0 is off
    fitted_on: FittedOn
    expected_on_validation: ValidationRates | None  # at the threshold
    curve: RatesCurve | None  # see `expected_rates`
    other_points: dict[str, float] | None = None  # name -> threshold, for comparison
    without_neighbours: "Decision | None" = None  # for patches that are not smoothed; None where sigma is 0
    refer: float | None = None  # share of the images fitted on that are uncertain; None refers none to a person
    uncertain_below: float | None = None  # this certainty, see `measure_certainty`
    __pydantic_config__ = {"allow_inf_nan": False}  # noqa: RUF012


class OperatingPoint(NamedTuple):
    rule: str  # balanced | sensitivity | specificity | threshold | F1
    value: float = math.nan  # that the rule asks for; NaN of balanced and F1


OTHER_POINTS = {
    "most probable class": OperatingPoint("threshold", 0.5),
    "sensitivity=0.95": OperatingPoint("sensitivity", 0.95),
    "specificity=0.95": OperatingPoint("specificity", 0.95),
    "highest F1": OperatingPoint("F1"),
}


def parse_operating_point(text: str) -> OperatingPoint:
    """Parse `balanced`, `sensitivity=0.95`, `specificity=0.95` (above 0, at most 1), or a threshold: `0.5` (0 to 1).

    Raises InputError for anything else.
    """
    rule, equals, number = text.strip().partition("=")
    rule = rule.strip()
    if rule == "balanced" and not equals:
        return OperatingPoint("balanced")
    try:
        value = float(number if equals else rule) if text.isascii() else math.nan  # float accepts digits of any script
    except ValueError:
        value = math.nan
    if equals and rule in ("sensitivity", "specificity") and 0 < value <= 1:
        return OperatingPoint(rule, value)
    if not equals and 0 < value < 1:
        return OperatingPoint("threshold", value)
    raise InputError(
        f"Unknown operating point {text!r}. Give balanced, sensitivity=0.95, specificity=0.95, "
        "or a threshold between 0 and 1 such as 0.5."
    )


def fit_decision(
    scores: Scores,
    *,
    classes: Sequence[str],
    positive: str | None,
    operating_point: str = DEFAULT_OPERATING_POINT,
    log_class_weight: float = 0.0,
    refer: float | None = None,
    calibration: tuple[float, tuple[float, ...]] | None = None,
) -> Decision:
    """Fit temperature, bias (see `calibration.fit_calibration`) and threshold on the validation images.

    - `balanced`: the mean calibrated probability, which is the expected share of the positive class. A patch of
      probability p contributes p / share to the expected sensitivity if it is classified as positive, otherwise
      (1 - p) / (1 - share) to the specificity, and the first is larger where p exceeds the share: no threshold has a
      higher expected balanced accuracy. The threshold with the highest observed one on a dozen validation patients does
      worse on other patients (docs/recipes.md).
    - `sensitivity=s`: the highest threshold whose sensitivity is at least s. `specificity=s`: the lowest threshold
      whose specificity is at least s. Both lie midway between neighbouring probabilities (0 and 1 count as neighbours),
      not on that of an image.

    `positive` is one of two classes; with more it is None: the most probable class is then decided on, and only
    `balanced` is allowed. `log_class_weight` is, of two classes, the log of the weight of the positive over that of the
    negative one in training. `refer` is the share of these images, above 0 and below 1, that the decision leaves to a
    person: the least certain ones. `calibration` is a temperature and a bias to use instead of fitting them.

    Raises InputError for no images, one class only, or an operating point that cannot be used; TrainingDiverged for
    scores that are not finite.
    """
    values, labels = np.asarray(scores.log_probabilities, dtype=np.float64), scores.index_labels(classes)
    patients = [patch.patient for patch in scores.patches]
    point = _check(values, labels, classes, positive, operating_point)
    towards_last = log_class_weight if positive == classes[-1] else -log_class_weight
    temperature, bias = calibration or fit_calibration(values, labels, patients, towards_last)
    threshold = expected = curve = others = None
    if positive is not None:
        index = classes.index(positive)
        probability, is_positive = apply_calibration(values, temperature, bias)[:, index], labels == index
        threshold = _fit_threshold(probability, is_positive, point)
        others = {name: _fit_threshold(probability, is_positive, other) for name, other in OTHER_POINTS.items()}
        curve = _trace_rates(probability, is_positive, [threshold, *others.values()])
        at = curve.threshold.index(threshold)
        expected = ValidationRates(curve.sensitivity[at], curve.specificity[at])
    out_of_fold = any(patch.split == "training" for patch in scores.patches)
    fitted_on = FittedOn(len(labels), len(set(patients) - {""}) or None, out_of_fold)
    fitted = Decision(
        tuple(classes), positive, temperature, bias, threshold, operating_point, 0.0, fitted_on, expected, curve, others
    )
    return fitted if refer is None else refer_least_certain(fitted, values, refer)


def refer_least_certain(decision: Decision, scores: np.ndarray, refer: float) -> Decision:
    """Set the limit of certainty that a share of images with these log-probabilities `[n, k]` does not reach."""
    certainty = measure_certainty(decision, calibrate(decision, scores))
    return replace(decision, refer=refer, uncertain_below=float(np.quantile(certainty, refer)))


def calibrate(decision: Decision, scores: np.ndarray) -> np.ndarray:
    """Turn log-probabilities `[n, k]` into probabilities, softmax(scores / temperature + bias).

    These are float64 `[n, k]`, 0 to 1, and rows sum to 1. Of two classes, images keep their order by log-odds. Raises
    InputError if the number of columns is not that of the decision's classes.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[1] != len(decision.classes):
        raise InputError(
            f"Scores of shape {list(scores.shape)} do not match the decision's {len(decision.classes)} classes "
            f"({', '.join(decision.classes)}). Use the decision.json of the same run."
        )
    return apply_calibration(scores, decision.temperature, decision.bias)


def decide(decision: Decision, probabilities: np.ndarray, threshold: float | None = None) -> np.ndarray:
    """Decide on class indices `[n]` from calibrated probabilities `[n, k]`: the most probable class.

    Of two classes the positive one where its probability is at least the threshold, by default the decision's own.
    """
    if decision.positive is None:
        return probabilities.argmax(axis=1)
    index = decision.classes.index(decision.positive)
    threshold = decision.threshold if threshold is None else threshold
    return np.where(probabilities[:, index] >= threshold, index, 1 - index)


def measure_certainty(decision: Decision, probabilities: np.ndarray, threshold: float | None = None) -> np.ndarray:
    """Measure how certain the decided classes are, `[n]` from 0 to 1, from calibrated probabilities `[n, k]`.

    Of two classes, with a probability p of the positive one, (t - p) / t below the threshold t and (p - t) / (1 - t)
    from it on. A threshold t implies that a missed positive image costs (1 - t) / t times as much as a false alarm
    (Elkan 2001, IJCAI 973), and an image is the less certain the higher the expected cost of its class is: to refer the
    least certain ones is Chow's rule (1970, IEEE Transactions on Information Theory 16:41). Of more classes all errors
    cost the same: the probability of the most probable class. A threshold given replaces the decision's own.
    """
    threshold = decision.threshold if threshold is None else threshold
    if decision.positive is None or threshold is None:
        return probabilities.max(axis=1)
    probability = probabilities[:, decision.classes.index(decision.positive)]
    room = np.where(probability >= threshold, 1 - threshold, threshold)  # 0 only for a probability at the threshold
    return np.abs(probability - threshold) / np.where(room > 0, room, 1)


def bound_uncertain(decision: Decision) -> tuple[float, float] | None:
    """Return the probabilities between which an image is uncertain, both excluded; None if the decision refers none.

    They are probabilities of the positive class, and of more than two classes those of the most probable one.
    """
    limit, threshold = decision.uncertain_below, decision.threshold
    if limit is None:
        return None
    return (0.0, limit) if threshold is None else (threshold * (1 - limit), threshold + limit * (1 - threshold))


def decide_otherwise(decision: Decision, point: str) -> Decision:
    """Replace the threshold by one of the decision's other points, also in the decision without neighbours."""
    alone, points = decision.without_neighbours, decision.other_points or {}
    return replace(decision, threshold=points[point], without_neighbours=alone and decide_otherwise(alone, point))


def expected_rates(decision: Decision, threshold: float) -> ValidationRates:
    """Return the rates on the validation split at any threshold from 0 to 1, of a decision on two classes.

    They are exact at the decision's own threshold, at its other points and at multiples of 0.005, and interpolated
    linearly in between.
    """
    curve = decision.curve
    assert curve, "a decision on more than two classes has no threshold"
    rates = (np.interp(threshold, curve.threshold, rate) for rate in (curve.sensitivity, curve.specificity))
    return ValidationRates(*map(float, rates))


def save_decision(decision: Decision, path: Path) -> None:
    """Write the decision as JSON, one line a field; the file is either the old one or the whole new one."""
    lines = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in asdict(decision).items())
    write_files(path.parent, {path.name: ("{\n" + ",\n".join(lines) + "\n}\n").encode()})


def load_decision(path: Path) -> Decision:
    """Read a decision that `save_decision` wrote; StorageError if the file is missing or damaged."""
    decision = read_json(path, Decision, advice=_ADVICE)
    problem = _find_contradiction(decision)
    if problem:
        raise StorageError(f"{path} is damaged: {problem}. {_ADVICE}")
    return decision


def _find_contradiction(decision: Decision) -> str:
    """Return which values of a decision, of the right types, contradict each other; "" for none."""
    classes, positive, threshold, curve = decision.classes, decision.positive, decision.threshold, decision.curve
    of_two, others = positive is not None, decision.other_points or {}
    contradictions = {
        f"classes is {list(classes)}": len(classes) < 2,
        f"positive is {positive!r} of classes {', '.join(classes)}": not _is_positive_of(positive, classes),
        f"temperature is {decision.temperature}": not decision.temperature > 0,
        f"bias is {list(decision.bias)}": len(decision.bias) != len(classes),
        f"neighbour_sigma is {decision.neighbour_sigma}": not decision.neighbour_sigma >= 0,
        f"threshold is {threshold}": of_two and (threshold is None or not 0 <= threshold <= ABOVE_ONE),
        "expected_on_validation is None": of_two and decision.expected_on_validation is None,
        f"other_points is {others}": of_two and not all(0 <= other <= ABOVE_ONE for other in others.values()),
        f"uncertain_below is {decision.uncertain_below}": not 0 <= (decision.uncertain_below or 0) <= 1,
        "its curve is not three lists of one length": of_two
        and (curve is None or not len(curve.threshold) == len(curve.sensitivity) == len(curve.specificity) > 0),
    }
    found = next((words for words, holds in contradictions.items() if holds), "")
    if found or decision.without_neighbours is None:
        return found
    problem = _find_contradiction(decision.without_neighbours)
    return problem and f"without_neighbours: {problem}"


def _is_positive_of(positive: str | None, classes: Sequence[str]) -> bool:
    """Return whether it is one of two classes, or None for more."""
    return positive in classes if len(classes) == 2 else positive is None


def _check(
    scores: np.ndarray, labels: np.ndarray, classes: Sequence[str], positive: str | None, operating_point: str
) -> OperatingPoint:
    point = parse_operating_point(operating_point)
    if not len(labels):
        raise InputError(
            "No validation images to fit the decision on. Build the dataset again with a validation split."
        )
    if not np.isfinite(scores).all():
        raise TrainingDiverged(
            "Validation scores are not all finite numbers: training diverged. Use a smaller --learning-rate."
        )
    if (labels == labels[0]).all():
        raise InputError(
            f"All {len(labels):,} validation images are of class {classes[labels[0]]}; calibration and threshold "
            "need at least two classes. Build the dataset again with more patients, or another --seed."
        )
    if not _is_positive_of(positive, classes):
        raise InputError(f"The positive class {positive!r} does not match the classes {', '.join(classes)}.")
    if positive is None and point.rule != DEFAULT_OPERATING_POINT:
        raise InputError(
            f"Operating point {operating_point} needs two classes, and there are {len(classes)} "
            f"({', '.join(classes)}). Leave --operating-point out: the most probable class is decided on."
        )
    return point


def _fit_threshold(probability: np.ndarray, is_positive: np.ndarray, point: OperatingPoint) -> float:
    """Find the threshold of an operating point; of several with the highest F1 the lowest."""
    if point.rule == "balanced":
        return float(probability.mean())
    if point.rule == "threshold":
        return point.value
    values = np.unique(probability)
    lower, upper = np.append(0.0, values), np.append(values, 1.0)
    middle = (lower + upper) / 2
    middle = np.where(middle <= lower, upper, middle)  # where the neighbours are adjacent floating-point numbers
    if values[-1] >= 1.0:
        middle[-1] = ABOVE_ONE
    hits, rejections = _count_right(probability, is_positive, middle)
    positives, negatives = is_positive.sum(), (~is_positive).sum()
    if point.rule == "sensitivity":
        return float(middle[hits / positives >= point.value][-1])
    if point.rule == "specificity":
        return float(middle[rejections / negatives >= point.value][0])
    wrong = positives - hits + negatives - rejections
    return float(middle[np.argmax(2 * hits / (2 * hits + wrong))])


def _count_right(
    probability: np.ndarray, is_positive: np.ndarray, thresholds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Count the positive images at or above each threshold, and the negative ones below it."""
    positives, negatives = np.sort(probability[is_positive]), np.sort(probability[~is_positive])
    return len(positives) - np.searchsorted(positives, thresholds), np.searchsorted(negatives, thresholds)


def _trace_rates(probability: np.ndarray, is_positive: np.ndarray, exact: Sequence[float]) -> RatesCurve:
    thresholds = np.unique(np.append(np.arange(CURVE_STEPS + 1) / CURVE_STEPS, exact))
    hits, rejections = _count_right(probability, is_positive, thresholds)
    sensitivity, specificity = hits / is_positive.sum(), rejections / (~is_positive).sum()
    return RatesCurve(thresholds.tolist(), sensitivity.tolist(), specificity.tolist())
