"""Calibration slope and intercept, for many weightings of the same images at once.

Van Calster et al. 2019, "Calibration: the Achilles heel of predictive analytics", BMC Medicine 17:230, after Cox 1958,
"Two further applications of a model for binary regression", Biometrika 45:562. Of two classes, with log-odds
L = log(probability / (1 - probability)):
- slope: b of the logistic regression log-odds(truth) = a + b L. 1 is ideal; below 1 the probabilities are
  overconfident, above 1 underconfident.
- intercept: a of log-odds(truth) = a + L, with the slope fixed at 1 (calibration in the large). 0 is ideal; below 0
  the probabilities are too high on average, above 0 too low.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from cancernet.evaluation.rates import ratio

SMALLEST = np.finfo(np.float64).eps  # least distance of a probability from 0 and 1


class CalibrationLine(NamedTuple):
    """Calibration slope and intercept `[rows]`; NaN in rows whose weights leave one class only."""

    slope: np.ndarray  # NaN also where the classes do not overlap, so that no finite slope fits best
    intercept: np.ndarray


def fit_line(
    probability: np.ndarray, is_positive: np.ndarray, groups: np.ndarray
) -> Callable[[np.ndarray], CalibrationLine]:
    """Fit to images `[n]`, whose groups are indices from 0, and return a function of weights `[rows, groups]`.

    It takes one Newton step from the fit to all images: exact where all weights are 1, and close where one group of
    many is left out (the one-step estimate of Pregibon 1981, Annals of Statistics 9:705).
    """
    log_odds = logit(np.clip(probability, SMALLEST, 1 - SMALLEST))
    positive, negative = log_odds[is_positive], log_odds[~is_positive]
    slope = intercept = np.nan
    line = np.full(len(log_odds), np.nan)
    if len(positive) and len(negative):
        share = is_positive.mean()
        farthest = np.abs(log_odds).max() + abs(logit(share)) + 1
        intercept = brentq(lambda shift: expit(log_odds + shift).mean() - share, -farthest, farthest, xtol=1e-10)
        if positive.min() < negative.max() and positive.max() > negative.min():
            model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10)
            line = model.fit(log_odds[:, None], is_positive).decision_function(log_odds[:, None])
            slope = model.coef_[0, 0]

    def sum_by_group(*columns: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(groups, weights=column) for column in columns], axis=1)

    # With p the fitted probability and v = p (1 - p): the gradient of a fit is the sums of truth - p and (truth - p) L,
    # its curvature the sums of v, v L and v L^2.
    error, v, moved = is_positive - expit(line), expit(line) * expit(-line), log_odds + intercept
    images = sum_by_group(~is_positive, is_positive)
    of_slope = sum_by_group(error, error * log_odds, v, v * log_odds, v * log_odds**2)
    of_intercept = sum_by_group(is_positive - expit(moved), expit(moved) * expit(-moved))

    def weigh(weights: np.ndarray) -> CalibrationLine:
        both = (weights @ images > 0).all(axis=1)
        first, second, v, vl, vll = (weights @ of_slope).T
        error, curvature = (weights @ of_intercept).T
        slopes = slope + ratio(second * v - first * vl, v * vll - vl**2)
        intercepts = intercept + ratio(error, curvature)
        return CalibrationLine(np.where(both, slopes, np.nan), np.where(both, intercepts, np.nan))

    return weigh
