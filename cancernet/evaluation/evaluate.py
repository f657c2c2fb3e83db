"""Predictions of images with known classes in; metrics with intervals over patients out."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import NamedTuple

import numpy as np

from cancernet import InputError
from cancernet.evaluation import metrics, results
from cancernet.evaluation.intervals import (
    LEVEL,
    PLAIN,
    SHARE,
    Bounds,
    Key,
    Measured,
    Scale,
    count_needed,
    exact_interval,
    jackknife,
    jackknife_interval,
)
from cancernet.evaluation.metrics import CLASS_METRICS, METRICS, Compute, Metric, explain_undefined
from cancernet.evaluation.predictions import Predictions
from cancernet.evaluation.ranking import rank_images
from cancernet.evaluation.rates import class_rates
from cancernet.evaluation.results import Estimate, Evaluation, PatientRow, PointRates, TwoClassPatientRow
from cancernet.evaluation.tables import EvaluatedImages, WeightedImages

# For which a missed positive image is at least as bad as a false alarm:
NET_BENEFIT_THRESHOLDS = tuple(step / 40 for step in range(1, 21))
LEAST_UNBIASED_GROUPS = 50  # fewer give no bound of a metric that noise biases upward


class Figure(NamedTuple):
    """What is estimated: a metric, or one of a class."""

    compute: Compute
    undefined: str  # why it would be
    scale: Scale = SHARE
    biased_upward: bool = False
    of: np.ndarray | None = None  # bool [n]: the images that the figure is a share of; None if it is no such share


def evaluate(
    predictions: Predictions, *, classes: Sequence[str], positive: str | None, prevalence: float | None = None
) -> Evaluation:
    """Compute every metric of some predictions, with 95% intervals over patients.

    The intervals are those of `intervals.jackknife_interval`; they hold the model and its decisions fixed. An image of
    an unknown patient counts as a patient of its own. A share that is 0 or 1 does not vary between patients; its
    interval is `intervals.exact_interval` over the patients that have such images.

    The true classes of the images are known; `positive` is one of two classes, None where there are more. PPV and NPV
    are also given at a prevalence of the positive class above 0 and below 1. Raises InputError for no images, another
    positive class, probabilities outside 0 to 1, or a prevalence that cannot be used.
    """
    _check(predictions, classes, positive, prevalence)
    images = EvaluatedImages.of(predictions, classes=classes, positive=positive)
    found = estimate_figures(images, _list_figures(images, prevalence))
    rows = patient_table(images)
    rates = ("accuracy",) if positive is None else ("accuracy", "sensitivity", "specificity", "auroc")
    at_prevalence = None
    if prevalence is not None:
        at_prevalence = results.AtPrevalence(prevalence, found["prevalence", "ppv"], found["prevalence", "npv"])
    return Evaluation(
        metrics={key: estimate for key, estimate in found.items() if isinstance(key, str)},
        per_class={
            name: results.ClassMetrics(**{rate: found[index, rate] for rate in CLASS_METRICS}, images=int(row.sum()))
            for index, (name, row) in enumerate(zip(classes, images.matrix, strict=True))
        },
        confusion_matrix=images.matrix.tolist(),
        calibration=_describe_calibration(images),
        interval=results.Interval(LEVEL, images.unit, images.n_groups),
        prevalence=at_prevalence,
        patients=rows,
        patient_spread={rate: _spread([getattr(row, rate) for row in rows]) for rate in rates},
        decision_curve=None if positive is None else trace_net_benefit(images),
        distribution=None if positive is None else _count_probabilities(images),
    )


def trace_net_benefit(images: EvaluatedImages) -> list[results.NetBenefit]:
    """Estimate the net benefit at NET_BENEFIT_THRESHOLDS, with intervals as `evaluate`; two classes."""
    whole = WeightedImages(images, np.ones((1, images.n_groups)))
    of_all = {each: float(metrics.net_benefit_of_all(whole, each)[0]) for each in NET_BENEFIT_THRESHOLDS}

    def compute_gain(weighted: WeightedImages, threshold: float) -> np.ndarray:
        better = metrics.net_benefit_of_all(weighted, threshold) if of_all[threshold] > 0 else 0.0
        return metrics.net_benefit(weighted, threshold) - better

    figures = {}
    for threshold in NET_BENEFIT_THRESHOLDS:
        for name, compute in (("model", metrics.net_benefit), ("gain", compute_gain)):
            figures[threshold, name] = Figure(partial(compute, threshold=threshold), metrics.ONE_EMPTY, PLAIN)
    found = estimate_figures(images, figures)
    return [results.NetBenefit(each, found[each, "model"], of_all[each], found[each, "gain"]) for each in of_all]


def _count_probabilities(images: EvaluatedImages) -> dict[str, list[int]]:
    """Count the images of each true class in 20 bins of the positive class's probability."""
    of_class = {name: images.stated[images.labels == index] for index, name in enumerate(images.classes)}
    return {name: np.histogram(values, bins=20, range=(0, 1))[0].tolist() for name, values in of_class.items()}


def evaluate_points(
    predictions: Predictions, decided: Mapping[str, np.ndarray], *, classes: Sequence[str], positive: str
) -> dict[str, PointRates]:
    """Estimate the rates of several thresholds on the same images of two classes, with intervals as `evaluate`.

    `decided` maps the name of a threshold to the class indices [n] that it gives.
    """
    images = EvaluatedImages.of(predictions, classes=classes, positive=positive)
    rates = [rate.name for rate in fields(PointRates)]
    return {
        name: PointRates(**estimate_metrics(replace(images, predicted=of_point), rates))
        for name, of_point in decided.items()
    }


def estimate_metrics(images: EvaluatedImages, names: Iterable[str]) -> dict[str, Estimate]:
    """Estimate some of METRICS by their names, with intervals as `evaluate`."""
    return estimate_figures(images, {name: _figure(METRICS[name], images) for name in names})


def measure(images: EvaluatedImages, computations: Mapping[Key, Compute]) -> dict[Key, Measured]:
    """Compute figures of all images, and with each group left out."""

    def compute(weights: np.ndarray) -> dict[Key, np.ndarray]:
        weighted = WeightedImages(images, weights)
        return {key: function(weighted) for key, function in computations.items()}

    whole, left_out = compute(np.ones((1, images.n_groups))), jackknife(compute, images.n_groups, len(images.labels))
    n_groups = len(np.unique(images.groups))
    return {key: Measured(float(value[0]), left_out[key], n_groups, images.unit) for key, value in whole.items()}


def patient_table(images: EvaluatedImages) -> list[TwoClassPatientRow] | list[PatientRow]:
    """Evaluate each known patient on its own, in the order of their names."""
    names, positive, k = images.patients, images.positive, len(images.classes)
    counts = images.counts[: len(names)].astype(int).reshape(-1, k, k)
    total, correct = counts.sum(axis=(1, 2)), np.trace(counts, axis1=1, axis2=2)
    if positive is None:
        columns = (column.tolist() for column in (total, correct, correct / total))
        return [PatientRow(*row) for row in zip(names, *columns, strict=True)]
    negative, rates, auroc = 1 - positive, class_rates(counts), []
    rows_by_group = np.split(np.argsort(images.groups, kind="stable"), np.cumsum(total))
    for rows in rows_by_group[: len(names)]:
        weigh = rank_images(images.stated[rows], images.labels[rows] == positive, np.zeros(len(rows), dtype=int))
        auroc.append(weigh(np.ones((1, 1))).roc[0])
    tp, fp = counts[:, positive, positive], counts[:, negative, positive]
    tn, fn = counts[:, negative, negative], counts[:, positive, negative]
    shares = [
        [None if np.isnan(share) else float(share) for share in column]
        for column in (rates.sensitivity[:, positive], rates.specificity[:, positive], auroc)
    ]
    columns = (column.tolist() for column in (total, tp, fp, tn, fn, correct / total))
    return [TwoClassPatientRow(*row) for row in zip(names, *columns, *shares, strict=True)]


def _list_figures(images: EvaluatedImages, prevalence: float | None) -> dict[Hashable, Figure]:
    """List the figures by the names of metrics, by (class index, name), and by ("prevalence", name)."""
    of_two = images.positive is not None
    figures: dict[Hashable, Figure] = {
        metric.name: _figure(metric, images) for metric in metrics.list_metrics(two_classes=of_two)
    }
    for index in range(len(images.classes)):
        for name, of_class in CLASS_METRICS.items():
            compute = partial(WeightedImages.of_class, name=name, index=index)
            why, of = explain_undefined(images, of_class.undefined, index), _find_images(images, name, index)
            figures[index, name] = Figure(compute, why, of=of)
    if prevalence is not None:
        for name in ("ppv", "npv"):
            compute = partial(metrics.adjusted_value, name=name, prevalence=prevalence)
            why = explain_undefined(images, METRICS[name].undefined, every_class=True)
            figures["prevalence", name] = Figure(compute, why)
    return figures


def _figure(metric: Metric, images: EvaluatedImages) -> Figure:
    why = explain_undefined(images, metric.undefined, every_class=metric.needs_every_class)
    of = _find_images(images, metric.name, images.positive)
    return Figure(metric.compute, why, metric.scale, metric.biased_upward, of)


def _find_images(images: EvaluatedImages, name: str, index: int | None) -> np.ndarray | None:
    """Find the images [n] that a metric, of the class `index`, is a share of; None if it is no such share."""
    shares = {
        "accuracy": np.ones(len(images.labels), dtype=bool),
        "sensitivity": images.labels == index,
        "specificity": images.labels != index,
        "precision": images.predicted == index,
        "ppv": images.predicted == index,
        "npv": images.predicted != index,
    }
    return shares.get(name)


def estimate_figures(images: EvaluatedImages, figures: Mapping[Key, Figure]) -> dict[Key, Estimate]:
    """Values with their intervals; an undefined value, or an interval that cannot be given, is None with a reason."""
    measured = measure(images, {key: figure.compute for key, figure in figures.items()})
    return {key: _estimate(images, figure, measured[key]) for key, figure in figures.items()}


def _estimate(images: EvaluatedImages, figure: Figure, measured: Measured) -> Estimate:
    value, needed = measured.value, None
    if not np.isfinite(value):
        return Estimate(None, None, None, figure.undefined)
    n_groups = images.n_groups if figure.of is None else len(np.unique(images.groups[figure.of]))
    if figure.of is not None and value in (0, 1):
        bounds = exact_interval(int(value) * n_groups, n_groups)
    else:
        bounds = jackknife_interval(measured, scale=figure.scale, why_undefined=figure.undefined)
    if figure.biased_upward and not bounds.reason:
        bounds = Bounds(None, bounds.high, "only an upper bound: noise makes it too large, never too small")
        if n_groups < LEAST_UNBIASED_GROUPS:
            few = f"no bound below {LEAST_UNBIASED_GROUPS} {images.unit}: most of it may be noise"
            bounds = Bounds(None, None, few)
    if figure.scale is SHARE and 0 < value < 1:
        needed = count_needed(bounds, n_groups)
    return Estimate(value, *bounds, needed)


def _describe_calibration(images: EvaluatedImages) -> results.Calibration:
    sizes = np.bincount(images.bins)
    columns = (np.bincount(images.bins, weights=values) / sizes for values in (images.stated, images.outcome))
    bins = [results.CalibrationBin(float(p), float(f), int(n)) for p, f, n in zip(*columns, sizes, strict=True)]
    return results.Calibration(bins, len(bins), "equal mass")


def _spread(values: Iterable[float | None]) -> results.Spread:
    known = [value for value in values if value is not None]
    median, q1, q3, least, most = np.quantile(known, [0.5, 0.25, 0.75, 0, 1]).tolist() if known else [None] * 5
    return results.Spread(median, q1, q3, least, most, len(known))


def _check(predictions: Predictions, classes: Sequence[str], positive: str | None, prevalence: float | None) -> None:
    n_classes = len(classes)
    if not len(predictions.labels):
        raise InputError("No images to evaluate. Name a split that has images.")
    if (positive is None) == (n_classes == 2) or (positive is not None and positive not in classes):
        raise InputError(f"The positive class {positive!r} does not match the classes {', '.join(classes)}.")
    if not ((predictions.probabilities >= 0) & (predictions.probabilities <= 1)).all():
        raise InputError("A probability is not between 0 and 1. Predict the images again.")
    if prevalence is not None and (positive is None or not 0 < prevalence < 1):
        found = f"it needs two classes ({n_classes} here) and a value between 0 and 1"
        raise InputError(f"Prevalence {prevalence} cannot be used: {found}.")
