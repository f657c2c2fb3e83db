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
from operator import methodcaller
from typing import Literal, NamedTuple

import numpy as np

from cancernet.evaluation.intervals import CORRELATION, PLAIN, POSITIVE, SHARE, Scale
from cancernet.evaluation.rates import matthews_correlation, ratio
from cancernet.evaluation.tables import EvaluatedImages, WeightedImages

Compute = Callable[[WeightedImages], np.ndarray]  # values [rows]; NaN or infinite where undefined
ONE_EMPTY = "one class has no image"
Place = Literal["two-class text", "many-class text", "folds", "comparison text", "comparison plot", "run summary"]


@dataclass(frozen=True)
class Metric:
    """A metric: how it is computed, its interval, and how reports name and explain it."""

    name: str  # in report.json
    label: str
    explanation: str  # one line
    compute: Compute
    undefined: str = ONE_EMPTY  # why it would be, as `explain_undefined` takes it
    needs_every_class: bool = True  # undefined where a class has no image, if it ever is
    classes: Literal["two", "many", "any"] = "any"  # that it is defined for
    scale: Scale = SHARE
    better: Literal["higher", "lower", "neither"] = "higher"
    biased_upward: bool = False  # by noise, so that its interval has no lower end
    same_as: str = ""  # another metric of equal value, which tables show in its place
    shown_in: tuple[Place, ...] = ()  # in addition to report.json and the tables of all metrics


class ClassMetric(NamedTuple):
    """A metric of one class against all others, see `WeightedImages.of_class`."""

    label: str
    undefined: str  # why it would be, as `explain_undefined` takes it


CLASS_METRICS = {
    "precision": ClassMetric("precision", "no image was classified as class {this}"),
    "sensitivity": ClassMetric("sensitivity", "no image of class {this}"),
    "specificity": ClassMetric("specificity", "no image of {others}"),
    "f1": ClassMetric("F1", "no image of class {this} and none classified as it"),
    "auroc": ClassMetric("AUROC", "no image of {absent}"),
}


def list_metrics(*, two_classes: bool) -> list[Metric]:
    """List the metrics of two classes, or of more, in the order of the table."""
    kind = "two" if two_classes else "many"
    return [metric for metric in METRICS.values() if metric.classes in (kind, "any")]


def explain_undefined(
    images: EvaluatedImages, reason: str, index: int | None = None, *, every_class: bool = False
) -> str:
    """Explain why a metric is undefined; with `every_class` a class without images is the first reason.

    `reason` may hold {this}, the name of the class `index` (the positive one if None); {others}, all other classes;
    {absent}, that of the two without images; {unused}, the first class that no image was classified as; {have}, why all
    images count as one.
    """
    classes, true, predicted = images.classes, images.matrix.sum(axis=1) > 0, images.matrix.sum(axis=0) > 0
    if every_class and not true.all():
        return f"no image of class {classes[int(np.argmin(true))]}"
    index = (images.positive or 0) if index is None else index
    this = classes[index]
    others = f"class {classes[1 - index]}" if len(classes) == 2 else f"a class other than {this}"
    return reason.format(
        this=this,
        others=others,
        absent=others if true[index] else f"class {this}",
        unused="one of the classes" if predicted.all() else f"class {classes[int(np.argmin(predicted))]}",
        have="are of" if true.sum() == 1 else "were classified as",
    )


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide elementwise; infinite where only the denominator is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return numerator / denominator


def adjusted_value(weighted: WeightedImages, name: str, prevalence: float) -> np.ndarray:
    """Compute `ppv` or `npv` `[rows]` at another prevalence of the positive class (Bayes' theorem)."""
    own, other = ("sensitivity", prevalence), ("specificity", 1 - prevalence)
    (rate, share), (other_rate, other_share) = (own, other) if name == "ppv" else (other, own)
    right = share * weighted.of_positive(rate)
    return ratio(right, right + other_share * (1 - weighted.of_positive(other_rate)))


def net_benefit(weighted: WeightedImages, threshold: float) -> np.ndarray:
    """Compute the net benefit `[rows]` of classifying images as positive from a probability of `threshold` (0 to 1) on.

    True positives / n - false positives / n * threshold / (1 - threshold): a threshold of 0.2 says that one missed
    positive image is as bad as four false alarms (Vickers & Elkin 2006, Medical Decision Making 26:565). Two classes.
    """
    images = weighted.images
    worth = np.where(images.outcome > 0, 1.0, -threshold / (1 - threshold)) * (images.stated >= threshold)
    return weighted.mean(images.sum_by_group(worth))


def net_benefit_of_all(weighted: WeightedImages, threshold: float) -> np.ndarray:
    """Compute the net benefit `[rows]` of classifying every image as positive."""
    share = ratio(weighted.counts.sum(axis=2)[:, weighted.images.positive or 0], weighted.total)
    return share - (1 - share) * threshold / (1 - threshold)


def _macro_mean(rate: str) -> Compute:
    return lambda weighted: getattr(weighted.rates, rate).mean(axis=1)


def _weighted_mean(rate: str) -> Compute:
    def compute(weighted: WeightedImages) -> np.ndarray:
        share = weighted.counts.sum(axis=2) / weighted.total[:, None]  # a class without images has no weight
        return np.where(share > 0, share * getattr(weighted.rates, rate), 0.0).sum(axis=1)

    return compute


def _of_positive(
    name: str, label: str, explanation: str, *, rate: str = "", same_as: str = "", shown_in: tuple[Place, ...] = ()
) -> Metric:
    """Declare a metric of the positive class that any class has, or its NPV."""
    rate = rate or name
    undefined = CLASS_METRICS[rate].undefined if rate in CLASS_METRICS else "no image was classified as {others}"
    compute = methodcaller("of_positive", rate)
    return Metric(name, label, explanation, compute, undefined, False, "two", same_as=same_as, shown_in=shown_in)


def _over_classes(mean: str, rate: str, *, shown_in: tuple[Place, ...] = ()) -> Metric:
    """Declare the macro or the weighted mean of a rate over more than two classes."""
    label, of_precision = f"{CLASS_METRICS[rate].label}, {mean} mean", rate == "precision"
    weighting = "unweighted" if mean == "macro" else "weighted by numbers of images"
    compute = _macro_mean(rate) if mean == "macro" else _weighted_mean(rate)
    undefined = "no image was classified as {unused}" if of_precision else ONE_EMPTY
    explanation = f"mean over the classes, {weighting}"
    return Metric(f"{mean}_{rate}", label, explanation, compute, undefined, not of_precision, "many", shown_in=shown_in)


_RATE: tuple[Place, ...] = ("two-class text", "folds", "comparison plot", "run summary")
_COMPARED: tuple[Place, ...] = ("comparison text", "comparison plot")
_PREDICTIVE = "share of the images classified as {} that are {}; depends on prevalence"
_ALL_METRICS = (
    Metric(
        "accuracy",
        "accuracy",
        "share of all images that are classified correctly",
        lambda weighted: ratio(np.trace(weighted.counts, axis1=1, axis2=2), weighted.total),
        shown_in=("many-class text", *_RATE[1:]),
    ),
    _of_positive(
        "sensitivity", "sensitivity (recall)", "share of the positive images that are detected", shown_in=_RATE
    ),
    _of_positive(
        "specificity",
        "specificity",
        "share of the negative images that are correctly classified as negative",
        shown_in=_RATE,
    ),
    _of_positive("precision", "precision", _PREDICTIVE.format("positive", "positive"), same_as="ppv"),
    _of_positive(
        "ppv",
        "PPV (precision)",
        _PREDICTIVE.format("positive", "positive"),
        rate="precision",
        shown_in=("folds", "run summary"),
    ),
    _of_positive("npv", "NPV", _PREDICTIVE.format("negative", "negative"), shown_in=("run summary",)),
    Metric(
        "lr_positive",
        "LR+",
        "how many times more often positive images are classified as positive than negative images are",
        lambda weighted: _divide(weighted.of_positive("sensitivity"), 1 - weighted.of_positive("specificity")),
        "specificity is 1, so the ratio divides by zero",
        classes="two",
        scale=POSITIVE,
    ),
    Metric(
        "lr_negative",
        "LR-",
        "how many times as often positive images are classified as negative as negative images are",
        lambda weighted: _divide(1 - weighted.of_positive("sensitivity"), weighted.of_positive("specificity")),
        "specificity is 0, so the ratio divides by zero",
        classes="two",
        scale=POSITIVE,
        better="lower",
    ),
    _of_positive("f1", "F1", "harmonic mean of precision and sensitivity", shown_in=_COMPARED),
    Metric(
        "balanced_accuracy",
        "balanced accuracy",
        "mean sensitivity over the classes",
        _macro_mean("sensitivity"),
        shown_in=("many-class text", *_COMPARED),
    ),
    _over_classes("macro", "precision"),
    _over_classes("macro", "sensitivity", shown_in=("folds",)),
    _over_classes("macro", "specificity"),
    _over_classes("macro", "f1", shown_in=("many-class text", "folds", *_COMPARED, "run summary")),
    *(_over_classes("weighted", rate) for rate in ("precision", "sensitivity", "specificity", "f1")),
    Metric(
        "mcc",
        "MCC",
        "correlation of the true and the predicted class: 0 is chance, 1 is perfect",
        lambda weighted: matthews_correlation(weighted.counts),
        "all images {have} one class",
        needs_every_class=False,
        scale=CORRELATION,
    ),
    Metric(
        "auroc",
        "AUROC",
        "probability that an image of the class has a higher score than one of another class: 0.5 is chance",
        lambda weighted: np.mean([areas.roc for areas in weighted.areas], axis=0),
        shown_in=("two-class text", "many-class text", "folds", *_COMPARED, "run summary"),
    ),
    Metric(
        "auprc",
        "AUPRC",
        "mean precision over all thresholds: chance gives the share of positive images",
        lambda weighted: weighted.areas[0].precision_recall,
        classes="two",
        shown_in=("comparison plot",),
    ),
    Metric(
        "brier",
        "Brier score",
        "mean squared error of the probabilities: 0 is perfect",
        lambda weighted: weighted.mean(weighted.images.squared_errors),
        scale=POSITIVE,
        better="lower",
        shown_in=("comparison plot",),
    ),
    Metric(
        "ece",
        "calibration error (ECE)",
        "mean difference between predicted probability and observed share: 0 is perfect",
        lambda weighted: ratio(np.abs(weighted.weights @ weighted.images.gaps).sum(axis=1), weighted.total),
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
        "the classes' probabilities do not overlap, so no finite slope fits",
        classes="two",
        scale=PLAIN,
        better="neither",
    ),
    Metric(
        "calibration_intercept",
        "calibration intercept",
        "0 is ideal; below 0 the probabilities are too high on average, above 0 too low",
        lambda weighted: weighted.line.intercept,
        classes="two",
        scale=PLAIN,
        better="neither",
    ),
    Metric(
        "log_loss",
        "log-loss",
        "mean negative log-probability of the true class; confident errors cost most: 0 is perfect",
        lambda weighted: weighted.mean(weighted.images.log_losses),
        scale=POSITIVE,
        better="lower",
        shown_in=_COMPARED,
    ),
)
METRICS = {metric.name: metric for metric in _ALL_METRICS}
