"""Leaving patients out, and the intervals that this gives: by hand, and whether they cover."""

import numpy as np
import pytest
from made_up_predictions import predictions_of
from scipy.stats import norm

from cancernet.evaluation.evaluate import evaluate
from cancernet.evaluation.intervals import CORRELATION, MOST_PARTS, POSITIVE, SHARE, jackknife, jackknife_interval

# --- jackknife ---


def mean_of(values):
    return lambda weights: {"mean": weights @ values / weights.sum(axis=1)}


def test_each_group_is_left_out_once():
    left_out = jackknife(mean_of(np.array([1.0, 2.0, 6.0])), 3, 10)["mean"]
    assert sorted(left_out) == [1.5, 3.5, 4.0]


def test_of_many_groups_parts_are_left_out_and_the_standard_error_stays():
    values = np.random.default_rng(0).normal(size=5 * MOST_PARTS + 3)
    left_out = jackknife(mean_of(values), len(values), len(values))["mean"]
    assert len(left_out) == MOST_PARTS
    error = np.sqrt((MOST_PARTS - 1) / MOST_PARTS * ((left_out - left_out.mean()) ** 2).sum())
    assert error == pytest.approx(1 / np.sqrt(len(values)), rel=0.08)


@pytest.mark.parametrize(("scale", "value"), [(SHARE, 0.3), (CORRELATION, -0.3), (POSITIVE, 3.0)])
def test_a_scale_comes_back_and_its_slope_is_its_own(scale, value):
    assert scale.back(scale.forward(value)) == pytest.approx(value)
    assert scale.slope(value) == pytest.approx((scale.forward(value + 1e-6) - scale.forward(value - 1e-6)) / 2e-6)


def interval_of(value, left_out, scale=SHARE):
    return jackknife_interval(
        value, np.array(left_out), len(left_out), unit="patients", scale=scale, why_undefined="no image of class 1"
    )


def test_a_group_that_holds_most_of_the_figure_widens_the_interval():
    even = interval_of(0.5, [0.48, 0.52] * 8)
    # the same standard error from one group alone: about 1.6 effective groups, not 16
    deviation = np.sqrt(16 * 0.02**2 * 16 / 15)
    one = interval_of(0.5, [0.5 + deviation, *[0.5] * 15])
    assert 0 < one[0] < even[0] < even[1] < one[1] < 1


def test_an_interval_stays_within_what_the_figure_can_be():
    low, high, _ = interval_of(0.99, [0.985, 0.999, 0.98, 0.99, 0.995, 0.99])
    assert 0.5 < low < 0.97 < 0.99 < high < 1
    low, high, _ = interval_of(-0.9, [-0.85, -0.95, -0.9, -0.92, -0.88, -0.8], scale=CORRELATION)
    assert -1 < low < -0.9 < high < 1


@pytest.mark.parametrize(
    ("value", "left_out", "reason"),
    [
        (0.5, [0.5] * 5, "too few patients for an interval"),
        (0.5, [0.5] * 5 + [np.nan], "no interval: without some of the patients, no image of class 1"),
        (1.0, [1.0] * 6, "interval not estimable: all patients have the same value"),
        (0.5, [0.5] * 6, "interval not estimable: all patients have the same value"),
    ],
)
def test_where_nothing_can_be_told_there_is_no_interval(value, left_out, reason):
    assert interval_of(value, left_out) == (None, None, reason)


# --- coverage ---


def simulated_patients(random, *, n_patients=60, between=0.8, distance=1.8):
    """Patients of 10 to 40 patches with shares of IDC from near 0 to near 1; a patient's scores move together."""
    _, groups = np.unique(np.repeat(np.arange(n_patients), random.integers(10, 41, n_patients)), return_inverse=True)
    share, shift = random.beta(1.2, 3, n_patients), random.normal(0, between, n_patients)
    labels = (random.random(len(groups)) < share[groups]).astype(int)
    log_odds = shift[groups] + distance * (labels - 0.5) + random.normal(size=len(groups))
    probability = 1 / (1 + np.exp(-log_odds))
    arguments = labels, np.stack([1 - probability, probability], axis=1), (log_odds >= 0).astype(int)
    return arguments, [str(group) for group in groups]


@pytest.mark.slow
def test_intervals_over_patients_cover_and_those_over_images_do_not():
    # scores of a class are normal with variance 1 + 0.8^2 over all patients, so the true figures are known
    spread = np.sqrt(1 + 0.8**2)
    half = norm.cdf(0.9 / spread)
    truth = {"sensitivity": half, "accuracy": half, "auroc": norm.cdf(1.8 / (spread * np.sqrt(2)))}

    def coverage(simulations, *, known) -> dict:
        covered = []
        for seed in range(simulations):
            arguments, patients = simulated_patients(np.random.default_rng(seed))
            named = patients if known else [""] * len(patients)
            metrics = evaluate(predictions_of(*arguments, named), classes=["0", "1"], positive="1").metrics
            covered.append([metrics[name].low <= true <= metrics[name].high for name, true in truth.items()])
        return dict(zip(truth, np.mean(covered, axis=0), strict=True))

    over_patients, over_images = coverage(500, known=True), coverage(150, known=False)
    for name in truth:
        assert 0.91 <= over_patients[name] <= 0.98, f"{name} over patients: {over_patients[name]}"
        assert over_images[name] <= 0.80, f"{name} over images: {over_images[name]}"
