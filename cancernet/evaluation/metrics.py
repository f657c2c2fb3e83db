"""The table of metrics: one entry for each, from which reports, comparisons and pages follow.

Definitions that differ between books:
- ECE, expected calibration error: images are put into 10 bins of (nearly) equal numbers by their probability, and the
  bins' |mean probability - share of positive images| are averaged, weighted by images (Naeini et al. 2015; equal-mass
  bins: Nixon et al. 2019). With more than two classes it is that of the most probable class: its probability against
  the share in which it is the true one (Guo et al. 2017). The bins of all images are kept under every weighting.
- Brier score: of two classes the mean of (probability of the positive class - outcome)^2, 0 to 1; of more the mean
  of that summed over the classes, 0 to 2 (Brier 1950).
- AUPRC: average precision. AUROC with more than two classes: the unweighted mean of one against the rest.
- MCC with more than two classes: Gorodkin's R_K (2004).
- A macro mean needs every class: it is undefined where one of its rates is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from cancernet.evaluation.intervals import CORRELATION, PLAIN, POSITIVE, SHARE, Scale
from cancernet.evaluation.rates import matthews_correlation, ratio
from cancernet.evaluation.tables import EvaluatedImages, WeightedImages

Place = Literal["two-class text", "many-class text", "folds", "comparison text", "comparison plot", "run summary"]


@dataclass(frozen=True)
class Metric:
    """A metric: how it is computed, its interval, and how reports name and explain it."""

    name: str  # in report.json
    label: str
    explanation: str  # one line
    compute: Callable[[WeightedImages], np.ndarray]  # values [rows]; NaN or infinite where undefined
    undefined: Callable[[EvaluatedImages], str] = lambda images: ""  # why it would be undefined
    classes: Literal["two", "many", "any"] = "any"  # that it is defined for
    scale: Scale = SHARE
    better: Literal["higher", "lower", "neither"] = "higher"
    biased_upward: bool = False  # by noise, so that its interval has no lower end
    same_as: str = ""  # another metric of equal value, which tables show in its place
    shown_in: tuple[Place, ...] = ()  # in addition to report.json and the tables of all metrics


class ClassMetric(NamedTuple):
    """A metric of one class against all others, by the class's index."""

    label: str
    compute: Callable[[WeightedImages, int], np.ndarray]
    undefined: Callable[[EvaluatedImages, int], str]


def list_metrics(*, two_classes: bool) -> list[Metric]:
    """List the metrics of two classes, or of more, in the order of the table."""
    kind = "two" if two_classes else "many"
    return [metric for metric in METRICS.values() if metric.classes in (kind, "any")]


def adjusted_ppv(weighted: WeightedImages, prevalence: float) -> np.ndarray:
    """Compute the PPV `[rows]` at another prevalence of the positive class (Bayes' theorem)."""
    true_positive = prevalence * _positive("sensitivity")(weighted)
    return ratio(true_positive, true_positive + (1 - prevalence) * (1 - _positive("specificity")(weighted)))


def adjusted_npv(weighted: WeightedImages, prevalence: float) -> np.ndarray:
    """Compute the NPV `[rows]` at another prevalence of the positive class (Bayes' theorem)."""
    true_negative = (1 - prevalence) * _positive("specificity")(weighted)
    return ratio(true_negative, true_negative + prevalence * (1 - _positive("sensitivity")(weighted)))


def no_image_of_some_class(images: EvaluatedImages) -> str:
    """Name the first class without images; without a name where only leaving out a group would make one absent."""
    absent = [name for name, n in zip(images.classes, images.matrix.sum(axis=1), strict=True) if not n]
    return f"no image of class {absent[0]}" if absent else "one class has no image"


def _no_image(images: EvaluatedImages, index: int) -> str:
    return f"no image of class {images.classes[index]}"


def _no_other_image(images: EvaluatedImages, index: int) -> str:
    if len(images.classes) == 2:
        return _no_image(images, 1 - index)
    return f"no image of a class other than {images.classes[index]}"


def _none_predicted(images: EvaluatedImages, index: int) -> str:
    return f"no image was classified as class {images.classes[index]}"


def _no_image_and_none_predicted(images: EvaluatedImages, index: int) -> str:
    return f"no image of class {images.classes[index]} and none classified as it"


def _no_pair(images: EvaluatedImages, index: int) -> str:
    return _no_other_image(images, index) if images.matrix[index].any() else _no_image(images, index)


def _some_class_not_predicted(images: EvaluatedImages) -> str:
    unused = [name for name, n in zip(images.classes, images.matrix.sum(axis=0), strict=True) if not n]
    never = f"class {unused[0]}" if unused else "one of the classes"
    return f"no image was classified as {never}"


def _one_class_only(images: EvaluatedImages) -> str:
    return f"all images {'are of' if images.matrix.any(axis=1).sum() == 1 else 'were classified as'} one class"


def or_no_image(otherwise: Callable[[EvaluatedImages], str]) -> Callable[[EvaluatedImages], str]:
    """Give the reason that a class has no image; another one where all have."""
    return lambda images: (otherwise if images.matrix.any(axis=1).all() else no_image_of_some_class)(images)


CLASS_METRICS = {
    "precision": ClassMetric("precision", lambda weighted, index: weighted.rate("precision", index), _none_predicted),
    "sensitivity": ClassMetric("sensitivity", lambda weighted, index: weighted.rate("sensitivity", index), _no_image),
    "specificity": ClassMetric(
        "specificity", lambda weighted, index: weighted.rate("specificity", index), _no_other_image
    ),
    "f1": ClassMetric("F1", lambda weighted, index: weighted.rate("f1", index), _no_image_and_none_predicted),
    "auroc": ClassMetric("AUROC", lambda weighted, index: weighted.auroc(index), _no_pair),
}


def _index(images: EvaluatedImages) -> int:
    """Index of the positive class."""
    if images.positive is None:
        raise ValueError(f"A metric of two classes cannot be computed for {len(images.classes)}.")
    return images.positive


def _positive(rate: str) -> Callable[[WeightedImages], np.ndarray]:
    """A rate of the positive one of two classes."""
    return lambda weighted: weighted.rate(rate, _index(weighted.images))


def _of_positive(reason: Callable[[EvaluatedImages, int], str]) -> Callable[[EvaluatedImages], str]:
    return lambda images: reason(images, _index(images))


def _of_negative(reason: Callable[[EvaluatedImages, int], str]) -> Callable[[EvaluatedImages], str]:
    return lambda images: reason(images, 1 - _index(images))


def _macro(rate: str) -> Callable[[WeightedImages], np.ndarray]:
    return lambda weighted: getattr(weighted.rates, rate).mean(axis=1)


def _weighted(rate: str) -> Callable[[WeightedImages], np.ndarray]:
    def compute(weighted: WeightedImages) -> np.ndarray:
        share = weighted.counts.sum(axis=2) / weighted.total[:, None]  # a class without images has no weight
        return np.where(share > 0, share * getattr(weighted.rates, rate), 0.0).sum(axis=1)

    return compute


def _accuracy(weighted: WeightedImages) -> np.ndarray:
    return ratio(np.trace(weighted.counts, axis1=1, axis2=2), weighted.total)


def _lr_positive(weighted: WeightedImages) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return _positive("sensitivity")(weighted) / (1 - _positive("specificity")(weighted))


def _lr_negative(weighted: WeightedImages) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return (1 - _positive("sensitivity")(weighted)) / _positive("specificity")(weighted)


def _auroc(weighted: WeightedImages) -> np.ndarray:
    return np.mean([areas.roc for areas in weighted.areas], axis=0)


def _calibration_error(weighted: WeightedImages) -> np.ndarray:
    return ratio(np.abs(weighted.weights @ weighted.images.gaps).sum(axis=1), weighted.total)


def squared_error(images: EvaluatedImages) -> np.ndarray:
    """Compute the squared error `[n]` of the positive class's probability; of more than two classes their sum."""
    squares = (images.probabilities - np.eye(len(images.classes))[images.labels]) ** 2
    return squares.sum(axis=1) if images.positive is None else squares[:, images.positive]


def negative_log_probability(images: EvaluatedImages) -> np.ndarray:
    """Compute -log `[n]` of the probability of the true class, which counts as at least 2.2e-16."""
    stated = images.probabilities[np.arange(len(images.labels)), images.labels]
    return -np.log(np.maximum(stated, np.finfo(np.float64).eps))


def _macro_metric(
    rate: str, undefined: Callable[[EvaluatedImages], str] = no_image_of_some_class, *, shown_in: tuple[Place, ...] = ()
) -> Metric:
    label, meaning = f"{CLASS_METRICS[rate].label}, macro mean", "unweighted mean over the classes"
    return Metric(f"macro_{rate}", label, meaning, _macro(rate), undefined, classes="many", shown_in=shown_in)


def _weighted_metric(rate: str, undefined: Callable[[EvaluatedImages], str] = no_image_of_some_class) -> Metric:
    label = f"{CLASS_METRICS[rate].label}, weighted mean"
    meaning = "mean over the classes, weighted by their numbers of images"
    return Metric(f"weighted_{rate}", label, meaning, _weighted(rate), undefined, classes="many")


_ALL_METRICS = (
    Metric(
        "accuracy",
        "accuracy",
        "share of all images that are classified correctly",
        _accuracy,
        shown_in=("many-class text", "folds", "comparison plot", "run summary"),
    ),
    Metric(
        "sensitivity",
        "sensitivity (recall)",
        "share of the positive images that are detected",
        _positive("sensitivity"),
        _of_positive(_no_image),
        classes="two",
        shown_in=("two-class text", "folds", "comparison plot", "run summary"),
    ),
    Metric(
        "specificity",
        "specificity",
        "share of the negative images that are correctly classified as negative",
        _positive("specificity"),
        _of_positive(_no_other_image),
        classes="two",
        shown_in=("two-class text", "folds", "comparison plot", "run summary"),
    ),
    Metric(
        "precision",
        "precision",
        "share of the images classified as positive that are positive; depends on prevalence",
        _positive("precision"),
        _of_positive(_none_predicted),
        classes="two",
        same_as="ppv",
    ),
    Metric(
        "ppv",
        "PPV (precision)",
        "share of the images classified as positive that are positive; depends on prevalence",
        _positive("precision"),
        _of_positive(_none_predicted),
        classes="two",
        shown_in=("folds", "run summary"),
    ),
    Metric(
        "npv",
        "NPV",
        "share of the images classified as negative that are negative; depends on prevalence",
        _positive("npv"),
        _of_negative(_none_predicted),
        classes="two",
        shown_in=("run summary",),
    ),
    Metric(
        "lr_positive",
        "LR+",
        "how many times more often positive images are classified as positive than negative images are",
        _lr_positive,
        or_no_image(lambda images: "specificity is 1, so the ratio divides by zero"),
        classes="two",
        scale=POSITIVE,
    ),
    Metric(
        "lr_negative",
        "LR-",
        "how many times as often positive images are classified as negative as negative images are",
        _lr_negative,
        or_no_image(lambda images: "specificity is 0, so the ratio divides by zero"),
        classes="two",
        scale=POSITIVE,
        better="lower",
    ),
    Metric(
        "f1",
        "F1",
        "harmonic mean of precision and sensitivity",
        _positive("f1"),
        _of_positive(_no_image_and_none_predicted),
        classes="two",
        shown_in=("comparison text", "comparison plot"),
    ),
    Metric(
        "balanced_accuracy",
        "balanced accuracy",
        "mean sensitivity over the classes",
        _macro("sensitivity"),
        no_image_of_some_class,
        shown_in=("many-class text", "comparison text", "comparison plot"),
    ),
    _macro_metric("precision", _some_class_not_predicted),
    _macro_metric("sensitivity", shown_in=("folds",)),
    _macro_metric("specificity"),
    _macro_metric("f1", shown_in=("many-class text", "folds", "comparison text", "comparison plot", "run summary")),
    _weighted_metric("precision", _some_class_not_predicted),
    _weighted_metric("sensitivity"),
    _weighted_metric("specificity"),
    _weighted_metric("f1"),
    Metric(
        "mcc",
        "MCC",
        "correlation of the true and the predicted class: 0 is chance, 1 is perfect",
        lambda weighted: matthews_correlation(weighted.counts),
        _one_class_only,
        scale=CORRELATION,
    ),
    Metric(
        "auroc",
        "AUROC",
        "probability that an image of the class has a higher score than one of another class: 0.5 is chance",
        _auroc,
        no_image_of_some_class,
        shown_in=(
            *("two-class text", "many-class text", "folds"),
            *("comparison text", "comparison plot", "run summary"),
        ),
    ),
    Metric(
        "auprc",
        "AUPRC",
        "mean precision over all thresholds: chance gives the share of positive images",
        lambda weighted: weighted.areas[0].precision_recall,
        no_image_of_some_class,
        classes="two",
        shown_in=("comparison plot",),
    ),
    Metric(
        "brier",
        "Brier score",
        "mean squared error of the probabilities: 0 is perfect",
        lambda weighted: weighted.mean(squared_error),
        scale=POSITIVE,
        better="lower",
        shown_in=("comparison plot",),
    ),
    Metric(
        "ece",
        "calibration error (ECE)",
        "mean difference between predicted probability and observed share: 0 is perfect",
        _calibration_error,
        scale=POSITIVE,
        better="lower",
        biased_upward=True,
        shown_in=("run summary",),
    ),
    Metric(
        "calibration_slope",
        "calibration slope",
        "1 is ideal; below 1 the probabilities are overconfident, above 1 underconfident",
        lambda weighted: weighted.line.slope,
        or_no_image(lambda images: "the classes' probabilities do not overlap, so no finite slope fits"),
        classes="two",
        scale=PLAIN,
        better="neither",
    ),
    Metric(
        "calibration_intercept",
        "calibration intercept",
        "0 is ideal; below 0 the probabilities are too high on average, above 0 too low",
        lambda weighted: weighted.line.intercept,
        no_image_of_some_class,
        classes="two",
        scale=PLAIN,
        better="neither",
    ),
    Metric(
        "log_loss",
        "log-loss",
        "mean negative log-probability of the true class; confident errors cost most: 0 is perfect",
        lambda weighted: weighted.mean(negative_log_probability),
        scale=POSITIVE,
        better="lower",
        shown_in=("comparison text", "comparison plot"),
    ),
)
METRICS = {metric.name: metric for metric in _ALL_METRICS}
