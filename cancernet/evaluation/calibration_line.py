"""Calibration slope and intercept, for many weightings of the same images at once.

Van Calster et al. 2019, "Calibration: the Achilles heel of predictive analytics", BMC Medicine 17:230, after Cox 1958,
"Two further applications of a model for binary regression", Biometrika 45:562. Of two classes, with log-odds
L = log(probability / (1 - probability)):
- slope: b of the logistic regression log-odds(truth) = a + b L. 1 is ideal; below 1 the probabilities are
  overconfident, above 1 underconfident.
- intercept: a of log-odds(truth) = a + L, with the slope fixed at 1 (calibration in the large). 0 is ideal; below 0
  the probabilities are too high on average, above 0 too low.
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from cancernet.evaluation.rates import ratio

SMALLEST = np.finfo(np.float64).eps  # least distance of a probability from 0 and 1


class CalibrationLine(NamedTuple):
    """Fits to all images, and the sums over the images of each group that one Newton step from them needs.

    A fit's gradient is (sum of truth - p, sum of (truth - p) L), its curvature the sums of v, v L and v L^2, with p the
    fitted probability and v = p (1 - p).
    """

    slope: float  # NaN where the classes do not overlap
    intercept: float  # NaN with one class only
    images: np.ndarray  # [groups, 2] negative, positive
    slope_sums: np.ndarray  # [groups, 5] gradient, curvature
    intercept_sums: np.ndarray  # [groups, 2] gradient, curvature


def fit_line(probability: np.ndarray, is_positive: np.ndarray, groups: np.ndarray) -> CalibrationLine:
    """Fit slope and intercept. probability, is_positive, groups: `[n]`; groups are indices from 0."""
    log_odds = logit(np.clip(probability, SMALLEST, 1 - SMALLEST))
    slope, line = _fit_slope(log_odds, is_positive)
    intercept = _fit_intercept(log_odds, is_positive)

    def sums(*columns: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(groups, weights=column) for column in columns], axis=1)

    error, spread = is_positive - expit(line), expit(line) * expit(-line)
    moved = log_odds + intercept
    return CalibrationLine(
        slope=slope,
        intercept=intercept,
        images=sums(~is_positive, is_positive),
        slope_sums=sums(error, error * log_odds, spread, spread * log_odds, spread * log_odds**2),
        intercept_sums=sums(is_positive - expit(moved), expit(moved) * expit(-moved)),
    )


class WeightedLine(NamedTuple):
    """Calibration slope and intercept `[rows]`; NaN in rows whose weights leave one class only."""

    slope: np.ndarray
    intercept: np.ndarray


def weigh_line(line: CalibrationLine, weights: np.ndarray) -> WeightedLine:
    """Compute slope and intercept for weights `[rows, groups]`.

    One Newton step from the fit to all images: exact where all weights are 1, and close where one group of many is left
    out (the one-step estimate of Pregibon 1981, Annals of Statistics 9:705).
    """
    both = (weights @ line.images > 0).all(axis=1)
    first, second, v, vl, vll = (weights @ line.slope_sums).T
    slope = line.slope + ratio(second * v - first * vl, v * vll - vl**2)
    error, spread = (weights @ line.intercept_sums).T
    intercept = line.intercept + ratio(error, spread)
    return WeightedLine(np.where(both, slope, np.nan), np.where(both, intercept, np.nan))


def _fit_slope(log_odds: np.ndarray, is_positive: np.ndarray) -> tuple[float, np.ndarray]:
    """Slope and fitted log-odds `[n]`; NaN where the classes do not overlap, so that no finite slope fits best."""
    positive, negative = log_odds[is_positive], log_odds[~is_positive]
    if not len(positive) or not len(negative):
        return np.nan, np.full(len(log_odds), np.nan)
    if positive.min() >= negative.max() or positive.max() <= negative.min():
        return np.nan, np.full(len(log_odds), np.nan)
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10)
    model.fit(log_odds[:, None], is_positive)
    return float(model.coef_[0, 0]), model.decision_function(log_odds[:, None])


def _fit_intercept(log_odds: np.ndarray, is_positive: np.ndarray) -> float:
    share = is_positive.mean()
    if share in (0, 1):
        return np.nan
    farthest = np.abs(log_odds).max() + abs(logit(share))
    return float(brentq(lambda shift: expit(log_odds + shift).mean() - share, -farthest - 1, farthest + 1, xtol=1e-10))
