"""Calibration slope and intercept: by hand, against scikit-learn, and with patients left out."""

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from cancernet.evaluation.calibration_line import fit_line


def figures(probability, is_positive, groups=None, weights=None) -> tuple[float, float]:
    groups = np.zeros(len(probability), dtype=int) if groups is None else groups
    weights = np.ones((1, groups.max() + 1)) if weights is None else weights
    found = fit_line(np.array(probability), np.array(is_positive, dtype=bool), groups)(weights)
    return found.slope[0], found.intercept[0]


def test_by_hand():
    # log-odds are -log 4 and log 4, those of the truth -log 3 (1 of 4) and log 3 (3 of 4)
    slope, intercept = figures([0.2] * 4 + [0.8] * 4, [1, 0, 0, 0, 1, 1, 1, 0])
    assert slope == pytest.approx(np.log(3) / np.log(4))
    assert intercept == pytest.approx(0.0, abs=1e-8)


def test_the_intercept_is_of_the_line_whose_slope_is_1():
    # each probability is that of the truth with 1.5 taken from its log-odds
    truth = np.repeat([0.1, 0.5, 0.9], 10)
    labels = np.concatenate([[1] * n + [0] * (10 - n) for n in (1, 5, 9)])
    slope, intercept = figures(expit(logit(truth) - 1.5), labels)
    assert (slope, intercept) == pytest.approx((1.0, 1.5))


def test_probabilities_that_are_too_sure_have_a_slope_below_1():
    truth = np.repeat([0.1, 0.5, 0.9], 10)
    labels = np.concatenate([[1] * n + [0] * (10 - n) for n in (1, 5, 9)])
    assert figures(expit(2 * logit(truth)), labels)[0] == pytest.approx(0.5)


def test_leaving_a_patient_out_is_close_to_fitting_again():
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 30)
    log_odds = 2 * random.normal(size=600) + random.normal(size=20)[groups]
    is_positive = random.random(600) < expit(0.6 * log_odds + 0.5)
    weights = np.ones((1, 20))
    weights[0, 7] = 0
    slope, _ = figures(expit(log_odds), is_positive, groups, weights)
    whole, _ = figures(expit(log_odds), is_positive, groups)
    rest = groups != 7
    again = LogisticRegression(C=np.inf, tol=1e-10).fit(log_odds[rest, None], is_positive[rest]).coef_[0, 0]
    assert abs(again - whole) > 0.005
    assert slope == pytest.approx(again, abs=0.1 * abs(again - whole))


def test_probabilities_of_exactly_0_and_1_are_finite():
    assert np.isfinite(figures([0.0, 1.0, 0.5, 1.0], [0, 1, 1, 0])).all()


@pytest.mark.parametrize("labels", [[0, 0, 1, 1], [1, 1, 0, 0]])
def test_without_overlap_there_is_no_slope(labels):
    slope, intercept = figures([0.1, 0.3, 0.6, 0.8], labels)
    assert np.isnan(slope)
    assert np.isfinite(intercept)


def test_one_class_has_neither():
    assert np.isnan(figures([0.1, 0.3], [1, 1])).all()
    left = figures([0.1, 0.3, 0.2, 0.4], [0, 0, 1, 0], np.array([0, 0, 1, 1]), np.array([[1.0, 0.0]]))
    assert np.isnan(left).all()
