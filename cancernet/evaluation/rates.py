"""Rates and correlation from confusion matrices: rows are the true class, columns the predicted one."""

from typing import NamedTuple

import numpy as np


class ClassRates(NamedTuple):
    """Rates of each class against all others, `[..., k]`; NaN where undefined."""

    sensitivity: np.ndarray
    specificity: np.ndarray
    precision: np.ndarray
    npv: np.ndarray
    f1: np.ndarray


def class_rates(counts: np.ndarray) -> ClassRates:
    """Compute the rates of each class from confusion matrices `[..., k, k]`, whose counts may be weighted."""
    tp = np.diagonal(counts, axis1=-2, axis2=-1)
    fn = counts.sum(axis=-1) - tp
    fp = counts.sum(axis=-2) - tp
    tn = counts.sum(axis=(-2, -1))[..., None] - tp - fn - fp
    return ClassRates(
        sensitivity=ratio(tp, tp + fn),
        specificity=ratio(tn, tn + fp),
        precision=ratio(tp, tp + fp),
        npv=ratio(tn, tn + fn),
        f1=ratio(2 * tp, 2 * tp + fp + fn),
    )


def matthews_correlation(counts: np.ndarray) -> np.ndarray:
    """Compute the MCC `[...]` from confusion matrices `[..., k, k]` (Gorodkin 2004, his R_K for more than two classes).

    It is NaN where all images have one true or one predicted class.
    """
    true, predicted, total = counts.sum(axis=-1), counts.sum(axis=-2), counts.sum(axis=(-2, -1))
    covariance = np.trace(counts, axis1=-2, axis2=-1) * total - (true * predicted).sum(axis=-1)
    spread = (total**2 - (true**2).sum(axis=-1)) * (total**2 - (predicted**2).sum(axis=-1))
    return ratio(covariance, np.sqrt(spread))


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide elementwise; NaN where the denominator is 0."""
    shape = np.broadcast_shapes(np.shape(numerator), np.shape(denominator))
    return np.divide(numerator, denominator, out=np.full(shape, np.nan), where=np.asarray(denominator) > 0)
