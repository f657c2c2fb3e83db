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
    Scale,
    count_needed,
    exact_interval,
    jackknife,
    jackknife_interval,
)
from cancernet.evaluation.metrics import CLASS_METRICS, METRICS, Compute, Metric, explain_undefined
from cancernet.evaluation.predictions import Predictions
from cancernet.evaluation.ranking import rank_images, weighted_areas
from cancernet.evaluation.rates import class_rates, confusion_matrix
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

    Args:
        predictions: of images whose true classes are known.
        positive: one of two classes; None where there are more.
        prevalence: of the positive class, above 0 and below 1, to give PPV and NPV at; two classes only.

    Raises:
        InputError: no images, shapes that do not match, an unknown class, or probabilities outside 0 to 1.
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

    Args:
        decided: name of a threshold -> class index [n] that it gives.
    """
    found = {}
    for point, predicted in decided.items():
        images = EvaluatedImages.of(replace(predictions, predicted=predicted), classes=classes, positive=positive)
        found[point] = PointRates(**estimate_metrics(images, [rate.name for rate in fields(PointRates)]))
    return found


def estimate_metrics(images: EvaluatedImages, names: Iterable[str]) -> dict[str, Estimate]:
    """Estimate some of METRICS by their names, with intervals as `evaluate`."""
    return estimate_figures(images, {name: _figure(METRICS[name], images) for name in names})


def measure(
    images: EvaluatedImages, computations: Mapping[Key, Compute]
) -> tuple[dict[Key, float], dict[Key, np.ndarray]]:
    """Compute figures of all images, and `[groups]` of each figure with a group left out."""

    def compute(weights: np.ndarray) -> dict[Key, np.ndarray]:
        weighted = WeightedImages(images, weights)
        return {key: function(weighted) for key, function in computations.items()}

    values = {key: float(value[0]) for key, value in compute(np.ones((1, images.n_groups))).items()}
    return values, jackknife(compute, images.n_groups, len(images.labels))


def patient_table(images: EvaluatedImages) -> list[TwoClassPatientRow] | list[PatientRow]:
    """Evaluate each known patient on its own, in the order of their names."""
    names = images.patients
    order = np.argsort(images.groups, kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(images.groups))[:-1])[: len(names)]
    of_names = list(zip(names, parts, strict=True))
    if images.positive is not None:
        return [_evaluate_patient(images, name, part) for name, part in of_names]
    right = images.labels == images.predicted
    return [PatientRow(name, len(part), int(right[part].sum()), float(right[part].mean())) for name, part in of_names]


def _evaluate_patient(images: EvaluatedImages, name: str, rows: np.ndarray) -> TwoClassPatientRow:
    is_positive, predicted = images.labels[rows] == images.positive, images.predicted[rows] == images.positive
    matrix = confusion_matrix(is_positive.astype(int), predicted, 2)
    (tn, fp), (fn, tp) = matrix.tolist()
    rates = class_rates(matrix)
    ranking = rank_images(images.stated[rows], is_positive, np.zeros(len(rows), dtype=int))
    shares = (rates.sensitivity[1], rates.specificity[1], weighted_areas(ranking, np.ones((1, 1))).roc[0])
    defined = (None if np.isnan(share) else float(share) for share in shares)
    return TwoClassPatientRow(name, len(rows), tp, fp, tn, fn, float(np.trace(matrix) / len(rows)), *defined)


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
        for name, adjusted in (("ppv", metrics.adjusted_ppv), ("npv", metrics.adjusted_npv)):
            why = explain_undefined(images, METRICS[name].undefined, every_class=True)
            figures["prevalence", name] = Figure(partial(adjusted, prevalence=prevalence), why)
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
    values, left_out = measure(images, {key: figure.compute for key, figure in figures.items()})
    estimates = {}
    for key, figure in figures.items():
        if np.isfinite(values[key]):
            bounds, needed = _find_bounds(figure, values[key], left_out[key], images), None
            if figure.scale is SHARE and 0 < values[key] < 1:
                groups = images.n_groups if figure.of is None else len(np.unique(images.groups[figure.of]))
                needed = count_needed(bounds, groups)
            estimates[key] = Estimate(values[key], *bounds, needed)
        else:
            estimates[key] = Estimate(None, None, None, figure.undefined)
    return estimates


def _find_bounds(figure: Figure, value: float, left_out: np.ndarray, images: EvaluatedImages) -> Bounds:
    if figure.of is not None and value in (0, 1):
        trials = len(np.unique(images.groups[figure.of]))
        return exact_interval(int(value) * trials, trials)
    bounds = jackknife_interval(
        value, left_out, images.n_groups, unit=images.unit, scale=figure.scale, why_undefined=figure.undefined
    )
    if not figure.biased_upward or bounds.reason:
        return bounds
    if images.n_groups < LEAST_UNBIASED_GROUPS:
        return Bounds(None, None, f"no bound below {LEAST_UNBIASED_GROUPS} {images.unit}: most of it may be noise")
    return Bounds(None, bounds.high, "only an upper bound: noise makes it too large, never too small")


def _describe_calibration(images: EvaluatedImages) -> results.Calibration:
    sizes = np.bincount(images.bins)
    columns = (np.bincount(images.bins, weights=values) / sizes for values in (images.stated, images.outcome))
    bins = [results.CalibrationBin(float(p), float(f), int(n)) for p, f, n in zip(*columns, sizes, strict=True)]
    return results.Calibration(bins, len(bins), "equal mass")


def _spread(values: Iterable[float | None]) -> results.Spread:
    known = [value for value in values if value is not None]
    if not known:
        return results.Spread(None, None, None, None, None, 0)
    median, q1, q3, least, most = np.quantile(known, [0.5, 0.25, 0.75, 0, 1]).tolist()
    return results.Spread(median, q1, q3, least, most, len(known))


def _check(predictions: Predictions, classes: Sequence[str], positive: str | None, prevalence: float | None) -> None:
    labels, probabilities, predicted = predictions.labels, predictions.probabilities, predictions.predicted
    n, k = len(labels), len(classes)
    if not n:
        raise InputError("No images to evaluate. Name a split that has images.")
    if probabilities.shape != (n, k) or len(predicted) != n or len(predictions.patches) != n:
        raise InputError(
            f"{n:,} labels, probabilities of shape {list(probabilities.shape)}, {len(predicted):,} decisions, "
            f"{len(predictions.patches):,} patches and {k} classes do not match. They must be of the same images."
        )
    if (positive is None) == (k == 2) or (positive is not None and positive not in classes):
        raise InputError(f"The positive class {positive!r} does not match the classes {', '.join(classes)}.")
    for what, indices in (("label", labels), ("decision", predicted)):
        if not np.isin(indices, np.arange(k)).all():
            raise InputError(f"A {what} is none of the {k} classes {', '.join(classes)}. Use the run's own classes.")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise InputError("A probability is not between 0 and 1. Predict the images again.")
    if prevalence is not None and (positive is None or not 0 < prevalence < 1):
        raise InputError(
            f"Prevalence {prevalence} cannot be used: it needs two classes ({k} here) and a value between 0 and 1."
        )
