"""Labels, probabilities and patients in; metrics with intervals over patients out.

Definitions that differ between books:
- ECE, expected calibration error: images are put into 10 bins of (nearly) equal numbers by their probability, and the
  bins' |mean probability - share of positive images| are averaged, weighted by images (Naeini et al. 2015; equal-mass
  bins: Nixon et al. 2019). With more than two classes it is that of the most probable class: its probability against
  the share in which it is right (Guo et al. 2017). Bins keep the full sample's edges in every draw.
- Brier score: of two classes the mean of (probability of the positive class - outcome)^2, 0 to 1; of more the mean
  of that summed over the classes, 0 to 2 (Brier 1950).
- AUPRC: average precision. AUROC with more than two classes: the unweighted mean of one against the rest.
- MCC with more than two classes: Gorodkin's R_K (2004).
- A macro mean needs every class: it is undefined where one of the rates it is the mean of is.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np

from cancernet import InputError
from cancernet.evaluation.calibration_line import CalibrationLine, fit_line, line_figures
from cancernet.evaluation.intervals import (
    CORRELATION,
    LEVEL,
    PLAIN,
    POSITIVE,
    SHARE,
    Ranking,
    class_rates,
    jackknife,
    jackknife_interval,
    matthews_correlation,
    rank_images,
    ranking_figures,
    ratio,
)

BINS = 10
LEAST_FOR_ECE = 50  # groups, for a bound of ECE
RATES = ("sensitivity", "specificity", "precision", "f1")
SCALES = {  # of the figures that are not shares
    "mcc": CORRELATION,
    **dict.fromkeys(("calibration_slope", "calibration_intercept"), PLAIN),
    **dict.fromkeys(("lr_positive", "lr_negative", "brier", "ece", "log_loss"), POSITIVE),
}
TWO_CLASS_METRICS = (
    *("accuracy", "sensitivity", "specificity", "precision", "ppv", "npv", "lr_positive", "lr_negative"),
    *("f1", "balanced_accuracy", "mcc", "auroc", "auprc", "brier", "ece"),
    *("calibration_slope", "calibration_intercept", "log_loss"),
)
MANY_CLASS_METRICS = (
    *("accuracy", "balanced_accuracy", "macro_precision", "macro_sensitivity", "macro_specificity", "macro_f1"),
    *("weighted_precision", "weighted_sensitivity", "weighted_specificity", "weighted_f1"),
    *("mcc", "auroc", "brier", "ece", "log_loss"),
)


def evaluate(
    labels: np.ndarray,
    probabilities: np.ndarray,
    predicted: np.ndarray,
    patients: Sequence[str],
    *,
    classes: Sequence[str],
    positive: str | None,
    prevalence: float | None = None,
) -> dict:
    """Every figure of `report.json` that follows from labels, probabilities, decisions and patients.

    labels, predicted: `[n]` class indices. probabilities: `[n, k]`, 0 to 1. patients: `[n]`; '' is unknown, and such an
    image is resampled on its own. positive: one of two classes, None where there are more. prevalence: above 0 and
    below 1, to give PPV and NPV at (Bayes' theorem); two classes only.

    Returns "metrics", "per_class", "confusion_matrix" (rows: true class), "calibration", "interval", "prevalence" (None
    where none was given), "patients" (known ones only), "patient_spread". A metric is {"value", "low", "high"}: a 95%
    interval over patients, as of `jackknife.jackknife_interval`; the decisions are taken as they are. An undefined
    value, or an interval that cannot be given, is None with a "reason".

    Raises InputError: no images, shapes that do not match, an unknown class, probabilities that are none.
    """
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    probabilities = np.asarray(probabilities, dtype=np.float64)
    classes = tuple(classes)
    _check(labels, probabilities, predicted, patients, classes, positive, prevalence)
    index = None if positive is None else classes.index(positive)
    names, groups = group_images(patients)
    n_groups = int(groups.max()) + 1
    matrix = confusion_matrix(labels, predicted, len(classes))
    figures = weigh_figures(labels, probabilities, predicted, groups, positive=index, prevalence=prevalence)
    values = figures(np.ones((1, n_groups)))
    left_out = jackknife(figures, n_groups, len(labels))
    over = "patients" if names else "images"
    reasons = _reasons(matrix, classes, index)
    metrics = {
        key: as_metric(key, float(values[key][0]), left_out[key], reasons.get(key, ""), n_groups, over)
        for key in values
    }
    rows = patient_table(labels, probabilities, predicted, groups, names, positive=index)
    return {
        "metrics": {name: metrics[name] for name in (MANY_CLASS_METRICS if index is None else TWO_CLASS_METRICS)},
        "per_class": {
            name: {rate: metrics[c, rate] for rate in (*RATES, "auroc")} | {"images": int(matrix[c].sum())}
            for c, name in enumerate(classes)
        },
        "confusion_matrix": matrix.tolist(),
        "calibration": _describe_calibration(labels, probabilities, index),
        "interval": {"level": LEVEL, "over": over, "groups": n_groups},
        "prevalence": None
        if prevalence is None
        else {"value": prevalence} | {name: metrics["prevalence", name] for name in ("ppv", "npv")},
        "patients": rows,
        "patient_spread": _spread(rows, index),
    }


def weigh_figures(
    labels: np.ndarray,
    probabilities: np.ndarray,
    predicted: np.ndarray,
    groups: np.ndarray,
    *,
    positive: int | None,
    prevalence: float | None = None,
) -> Callable[[np.ndarray], dict[Hashable, np.ndarray]]:
    """The function from weights of the groups, `[draws, groups]`, to every figure of these images, `[draws]` each.

    Its keys are a metric's name, or (class index, name). What two runs answer of the same images, each prepared so, is
    compared under the same weights. Arguments as `evaluate` has them, but groups: `[n]` indices from 0, as of
    `group_images`; positive: a class index, or None.
    """
    bins = _bin_images(labels, probabilities, positive)
    tables = _tabulate(labels, probabilities, predicted, groups, bins, positive)

    def figures(weights: np.ndarray) -> dict[Hashable, np.ndarray]:
        return _figures(tables, weights, probabilities.shape[1], positive, prevalence)

    return figures


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, n_classes: int) -> np.ndarray:
    """`[k, k]` int: rows are the true class, columns the predicted one."""
    return np.bincount(np.asarray(labels) * n_classes + predicted, minlength=n_classes**2).reshape(n_classes, n_classes)


def patient_table(labels, probabilities, predicted, groups, names, *, positive: int | None) -> list[dict]:
    """A row a known patient, in the order of `names`: the patients' of group 0, 1, ...

    Two classes: images, tp, fp, tn, fn, accuracy, sensitivity, specificity, auroc; undefined ones are None. More:
    images, correct, accuracy.
    """
    order = np.argsort(groups, kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(groups))[:-1])[: len(names)]
    if positive is None:
        right = labels == predicted
        return [
            {
                "patient": name,
                "images": len(part),
                "correct": int(right[part].sum()),
                "accuracy": float(right[part].mean()),
            }
            for name, part in zip(names, parts, strict=True)
        ]
    is_positive, probability = labels == positive, probabilities[:, positive]
    rows = []
    for name, part in zip(names, parts, strict=True):
        counts = confusion_matrix(is_positive[part].astype(int), predicted[part] == positive, 2)
        rates = class_rates(counts)
        ranking = rank_images(probability[part], is_positive[part], np.zeros(len(part), dtype=int))
        auroc, _ = ranking_figures(ranking, np.ones((1, 1)))
        row = {"patient": name, "images": len(part)}
        row |= {"tp": int(counts[1, 1]), "fp": int(counts[0, 1]), "tn": int(counts[0, 0]), "fn": int(counts[1, 0])}
        row["accuracy"] = float(np.trace(counts) / len(part))
        row |= {rate: _number(rates[rate][1]) for rate in ("sensitivity", "specificity")}
        rows.append(row | {"auroc": _number(auroc[0])})
    return rows


class _Tables(NamedTuple):
    """What a draw weighs: sums over the images of each group, and the images ranked."""

    counts: np.ndarray  # [groups, k * k] confusion matrices
    brier: np.ndarray  # [groups]
    log_loss: np.ndarray  # [groups]
    gaps: np.ndarray  # [groups, bins] probability - outcome
    rankings: list[Ranking]  # of the positive class, or of each where there are more than two
    line: CalibrationLine | None  # of the positive class; None where there are more than two


def _check(labels, probabilities, predicted, patients, classes, positive, prevalence) -> None:
    n, k = len(labels), len(classes)
    if not n:
        raise InputError("No images to evaluate. Name a split that has images.")
    if probabilities.shape != (n, k) or len(predicted) != n or len(patients) != n:
        raise InputError(
            f"{n:,} labels, probabilities of shape {list(probabilities.shape)}, {len(predicted):,} decisions, "
            f"{len(patients):,} patients and {k} classes do not fit. They must be of the same images."
        )
    if (positive is None) == (k == 2) or (positive is not None and positive not in classes):
        raise InputError(f"The positive class {positive!r} does not fit the classes {', '.join(classes)}.")
    for what, indices in (("label", labels), ("decision", predicted)):
        if not np.isin(indices, np.arange(k)).all():
            raise InputError(f"A {what} is none of the {k} classes {', '.join(classes)}. Use the run's own classes.")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise InputError("A probability is not between 0 and 1. Predict the images again.")
    if prevalence is not None and (positive is None or not 0 < prevalence < 1):
        raise InputError(f"Prevalence {prevalence} needs two classes ({k} here) and lies between 0 and 1, e.g. 0.1.")


def group_images(patients: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Names of the known patients, sorted, and the group `[n]` of each image; unknown patients' come after."""
    patients = np.asarray(patients, dtype=str)
    known = patients != ""
    names, of_known = np.unique(patients[known], return_inverse=True)
    groups = np.empty(len(patients), dtype=np.int64)
    groups[known] = of_known
    groups[~known] = len(names) + np.arange(len(patients) - known.sum())
    return names.tolist(), groups


def _bin_images(labels, probabilities, positive: int | None) -> np.ndarray:
    """Calibration bin `[n]` of each image. Equal probabilities share a bin."""
    probability, _ = _stated_and_true(labels, probabilities, positive)
    edges = np.quantile(probability, np.linspace(0, 1, BINS + 1)[1:-1])
    return np.unique(np.searchsorted(edges, probability), return_inverse=True)[1]


def _describe_calibration(labels, probabilities, positive: int | None) -> dict:
    """The "calibration" of the report."""
    probability, outcome = _stated_and_true(labels, probabilities, positive)
    bins = _bin_images(labels, probabilities, positive)
    images = np.bincount(bins)
    mean_probability, fraction = (np.bincount(bins, weights=values) / images for values in (probability, outcome))
    rows = [
        {"mean_probability": float(p), "fraction_positive": float(f), "images": int(n)}
        for p, f, n in zip(mean_probability, fraction, images, strict=True)
    ]
    return {"bins": rows, "n_bins": len(rows), "binning": "equal mass"}


def _stated_and_true(labels, probabilities, positive: int | None) -> tuple[np.ndarray, np.ndarray]:
    if positive is None:
        return probabilities.max(axis=1), (probabilities.argmax(axis=1) == labels).astype(float)
    return probabilities[:, positive], (labels == positive).astype(float)


def _tabulate(labels, probabilities, predicted, groups, bins, positive: int | None) -> _Tables:
    k, n_groups = probabilities.shape[1], int(groups.max()) + 1
    probability, outcome = _stated_and_true(labels, probabilities, positive)

    def group_sums(column: np.ndarray, n_columns: int, values: np.ndarray | None = None) -> np.ndarray:
        cells = np.bincount(groups * n_columns + column, weights=values, minlength=n_groups * n_columns)
        return cells.reshape(n_groups, n_columns).astype(np.float64)

    squares = (probabilities - np.eye(k)[labels]) ** 2
    brier = squares.sum(axis=1) if positive is None else squares[:, positive]
    stated = np.maximum(probabilities[np.arange(len(labels)), labels], np.finfo(np.float64).eps)
    ranked = range(k) if positive is None else [positive]
    return _Tables(
        counts=group_sums(labels * k + predicted, k * k),
        brier=group_sums(0, 1, brier)[:, 0],
        log_loss=group_sums(0, 1, -np.log(stated))[:, 0],
        gaps=group_sums(bins, int(bins.max()) + 1, probability - outcome),
        rankings=[rank_images(probabilities[:, c], labels == c, groups) for c in ranked],
        line=None if positive is None else fit_line(probability, labels == positive, groups),
    )


def _figures(tables, weights, k: int, positive: int | None, prevalence: float | None) -> dict[Hashable, np.ndarray]:
    """Every figure `[draws]` for weights `[draws, groups]`. Keys: a metric's name, or (class index, name)."""
    counts = (weights @ tables.counts).reshape(-1, k, k)
    images = counts.sum(axis=(1, 2))
    rates = class_rates(counts)
    ranked = [ranking_figures(ranking, weights) for ranking in tables.rankings]
    if positive is None:
        figures = _many_class_figures(rates, counts)
        aurocs = [auroc for auroc, _ in ranked]
        figures["auroc"] = np.mean(aurocs, axis=0)
    else:
        figures = _two_class_figures(rates, positive)
        figures["auroc"], figures["auprc"] = ranked[0]
        figures |= line_figures(tables.line, weights)
        aurocs = [figures["auroc"]] * 2
    figures["accuracy"] = ratio(np.trace(counts, axis1=1, axis2=2), images)
    figures["balanced_accuracy"] = rates["sensitivity"].mean(axis=1)
    figures["mcc"] = matthews_correlation(counts)
    figures["brier"] = ratio(weights @ tables.brier, images)
    figures["ece"] = ratio(np.abs(weights @ tables.gaps).sum(axis=1), images)
    figures["log_loss"] = ratio(weights @ tables.log_loss, images)
    for c in range(k):
        figures |= {(c, rate): rates[rate][:, c] for rate in RATES} | {(c, "auroc"): aurocs[c]}
    if prevalence is not None:
        sensitivity, specificity = figures["sensitivity"], figures["specificity"]
        ill, well = prevalence, 1 - prevalence
        called, cleared = ill * sensitivity, well * specificity
        figures["prevalence", "ppv"] = ratio(called, called + well * (1 - specificity))
        figures["prevalence", "npv"] = ratio(cleared, cleared + ill * (1 - sensitivity))
    return figures


def _two_class_figures(rates: dict[str, np.ndarray], positive: int) -> dict[Hashable, np.ndarray]:
    figures = {name: rates[name][:, positive] for name in (*RATES, "npv")}
    figures["ppv"] = figures["precision"]
    with np.errstate(divide="ignore", invalid="ignore"):  # infinite ratios are kept: they rank above all others
        figures["lr_positive"] = figures["sensitivity"] / (1 - figures["specificity"])
        figures["lr_negative"] = (1 - figures["sensitivity"]) / figures["specificity"]
    return figures


def _many_class_figures(rates: dict[str, np.ndarray], counts: np.ndarray) -> dict[Hashable, np.ndarray]:
    share = counts.sum(axis=2) / counts.sum(axis=(1, 2))[:, None]
    figures = {f"macro_{rate}": rates[rate].mean(axis=1) for rate in RATES}
    for rate in RATES:  # a class without images has no weight, defined or not
        figures[f"weighted_{rate}"] = np.where(share > 0, share * rates[rate], 0.0).sum(axis=1)
    return figures


def _reasons(matrix: np.ndarray, classes: tuple[str, ...], positive: int | None) -> dict[Hashable, str]:
    """Why each figure would be undefined, in words, by its key in `_figures`."""
    true, called = matrix.sum(axis=1), matrix.sum(axis=0)
    absent = [name for name, images in zip(classes, true, strict=True) if not images]
    missing = f"no image of class {absent[0]}" if absent else "one class has no image"
    reasons: dict[Hashable, str] = dict.fromkeys(("balanced_accuracy", "auroc", "auprc"), missing)
    reasons["mcc"] = "all images are of one class" if (true > 0).sum() == 1 else "all images were decided as one class"
    for c, name in enumerate(classes):
        others = (
            f"no image of class {classes[1 - c]}" if len(classes) == 2 else f"no image of a class other than {name}"
        )
        reasons[c, "sensitivity"] = f"no image of class {name}"
        reasons[c, "specificity"] = others
        reasons[c, "precision"] = f"no image was decided as class {name}"
        reasons[c, "f1"] = f"no image of class {name} and none decided as it"
        reasons[c, "auroc"] = others if true[c] else f"no image of class {name}"
    if positive is None:
        unused = [name for name, images in zip(classes, called, strict=True) if not images]
        never = f"no image was decided as class {unused[0]}" if unused else "no image was decided as one of the classes"
        for rate in RATES:
            reasons[f"macro_{rate}"] = reasons[f"weighted_{rate}"] = missing
        reasons["macro_precision"] = reasons["weighted_precision"] = never
        return reasons
    reasons |= {rate: reasons[positive, rate] for rate in RATES}
    reasons["ppv"], reasons["npv"] = reasons[positive, "precision"], reasons[1 - positive, "precision"]
    overlap = "the classes' probabilities do not overlap, so the slope has no end"
    reasons["calibration_slope"], reasons["calibration_intercept"] = missing if absent else overlap, missing
    reasons["lr_positive"] = missing if absent else "specificity is 1, so the ratio divides by zero"
    reasons["lr_negative"] = missing if absent else "specificity is 0, so the ratio divides by zero"
    for name in ("ppv", "npv"):
        reasons["prevalence", name] = missing if absent else reasons[name]
    return reasons


def as_metric(key: Hashable, value: float, left_out: np.ndarray, why_undefined: str, n_groups: int, over: str) -> dict:
    """{"value", "low", "high"} of a figure and what it is with each group left out; None with a "reason"."""
    if not np.isfinite(value):
        return {"value": None, "low": None, "high": None, "reason": why_undefined}
    scale = SCALES.get(key, SHARE)
    low, high, reason = jackknife_interval(
        value, left_out, n_groups, unit=over, scale=scale, why_undefined=why_undefined
    )
    if key == "ece" and reason is None:
        low, high, reason = _bound_ece(high, n_groups, over)
    return {"value": value, "low": low, "high": high} | ({"reason": reason} if reason else {})


def _bound_ece(high: float, n_groups: int, over: str) -> tuple[None, float | None, str]:
    """Noise in the bins adds to ECE, the more the fewer patients, and never takes from it: its low end is too high."""
    if n_groups < LEAST_FOR_ECE:
        return None, None, f"no bound below {LEAST_FOR_ECE} {over}: most of it may be noise"
    return None, high, "only an upper bound: noise makes it too large, never too small"


def _spread(rows: list[dict], positive: int | None) -> dict:
    """Median, quartiles, smallest and largest over the patients in whom a figure is defined; None where in none."""
    spread = {}
    for name in ("accuracy",) if positive is None else ("accuracy", "sensitivity", "specificity", "auroc"):
        values = [row[name] for row in rows if row[name] is not None]
        quartiles = np.quantile(values, [0.5, 0.25, 0.75, 0, 1]).tolist() if values else [None] * 5
        spread[name] = dict(zip(("median", "q1", "q3", "min", "max"), quartiles, strict=True)) | {
            "patients": len(values)
        }
    return spread


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
