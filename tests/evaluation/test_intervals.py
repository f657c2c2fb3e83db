"""Leaving patients out, and the intervals that this gives: by hand, and whether they cover."""

import numpy as np
import pytest
from made_up_predictions import predictions_of
from scipy.stats import norm, t

from cancernet.evaluation.evaluate import estimate_metrics
from cancernet.evaluation.intervals import (
    CORRELATION,
    MOST_PARTS,
    PLAIN,
    POSITIVE,
    SHARE,
    Bounds,
    Measured,
    count_needed,
    jackknife,
    jackknife_interval,
)
from cancernet.evaluation.tables import EvaluatedImages

# --- jackknife ---


def mean_of(values):
    return lambda weights: {"mean": weights @ values / weights.sum(axis=1)}


def test_each_group_is_left_out_once():
    left_out = jackknife(mean_of(np.array([1.0, 2.0, 6.0])), 3, 10)["mean"]
    assert sorted(left_out) == [1.5, 3.5, 4.0]


def weights_of(n_groups, n_images=1):
    """The weights with which the jackknife asks for metrics, in the order of their rows."""
    asked = []

    def compute(weights):
        asked.append(weights)
        return {"any": weights.sum(axis=1)}

    jackknife(compute, n_groups, n_images)
    return asked


def test_the_mean_of_six_groups_by_hand():
    # their sum is 27, so without 1, 2, 4, 5, 7 and 8 the mean of the others is (27 - 1) / 5 = 5.2, ... (27 - 8) / 5
    left_out = jackknife(mean_of(np.array([1.0, 2.0, 4.0, 5.0, 7.0, 8.0])), 6, 100)["mean"]
    assert sorted(left_out) == pytest.approx([3.8, 4.0, 4.4, 4.6, 5.0, 5.2])


def test_a_group_left_out_weighs_0_and_the_others_1():
    (weights,) = weights_of(4)
    np.testing.assert_array_equal(weights[np.lexsort(weights.T[::-1])], 1 - np.eye(4))


def test_many_images_are_computed_in_several_steps_with_the_same_weights():
    (together,) = weights_of(10, n_images=1)
    in_steps = weights_of(10, n_images=2**16)  # four rows of weights at once
    assert [len(rows) for rows in in_steps] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate(in_steps), together)
    assert [len(rows) for rows in weights_of(3, n_images=2**30)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("n_groups", "sizes"), [(999, {1: 999}), (1000, {1: 1000}), (1001, {1: 999, 2: 1}), (2300, {2: 700, 3: 300})]
)
def test_more_than_a_thousand_groups_are_dealt_into_a_thousand_parts(n_groups, sizes):
    left_out = np.concatenate(weights_of(n_groups)) == 0
    np.testing.assert_array_equal(left_out.sum(axis=0), np.ones(n_groups))  # each group once
    found = np.bincount(left_out.sum(axis=1))
    assert {size: count for size, count in enumerate(found) if count} == sizes


def test_parts_are_dealt_at_random_and_the_same_in_every_run():
    first, second = (np.concatenate(weights_of(1100)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    partners = [np.flatnonzero(row == 0) for row in first if (row == 0).sum() == 2]
    assert len({other - one for one, other in partners}) > 50


def test_of_many_groups_parts_are_left_out_and_the_standard_error_stays():
    values = np.random.default_rng(0).normal(size=5 * MOST_PARTS + 3)
    left_out = jackknife(mean_of(values), len(values), len(values))["mean"]
    assert len(left_out) == MOST_PARTS
    error = np.sqrt((MOST_PARTS - 1) / MOST_PARTS * ((left_out - left_out.mean()) ** 2).sum())
    assert error == pytest.approx(1 / np.sqrt(len(values)), rel=0.08)


@pytest.mark.parametrize(
    ("scale", "value", "forward", "slope"),
    [
        (SHARE, 0.8, np.log(4), 6.25),  # log(0.8 / 0.2), 1 / (0.8 * 0.2)
        (SHARE, 0.5, 0.0, 4.0),
        (CORRELATION, 0.6, np.log(2), 1.5625),  # log(1.6 / 0.4) / 2, 1 / (1 - 0.36)
        (CORRELATION, 0.0, 0.0, 1.0),
        (PLAIN, -7.0, -7.0, 1.0),
        (POSITIVE, 4.0, np.log(4), 0.25),
    ],
)
def test_the_scales_by_hand(scale, value, forward, slope):
    assert scale.forward(value) == pytest.approx(forward)
    assert scale.back(forward) == pytest.approx(value)
    assert scale.slope(value) == pytest.approx(slope)


@pytest.mark.parametrize(("scale", "value"), [(SHARE, 0.3), (CORRELATION, -0.3), (POSITIVE, 3.0)])
def test_a_scale_comes_back_and_its_slope_is_its_own(scale, value):
    assert scale.back(scale.forward(value)) == pytest.approx(value)
    assert scale.slope(value) == pytest.approx((scale.forward(value + 1e-6) - scale.forward(value - 1e-6)) / 2e-6)


# --- jackknife_interval ---


def interval_of(value, left_out, scale=SHARE, *, n_groups=None, unit="patients"):
    n_groups = len(left_out) if n_groups is None else n_groups
    measured = Measured(value, np.array(left_out), n_groups, unit)
    return jackknife_interval(measured, scale=scale, why_undefined="no image of class 1")


def test_equal_deviations_count_as_all_groups():
    # deviations of 0.1: standard error sqrt(5/6 * 6 * 0.01) = sqrt(0.05). Kish's number of groups is 0.6^2 / 0.06 = 6,
    # times pi / 2 more than 6, so 6: Student's t of 5 degrees of freedom is 2.5706
    low, high, reason = interval_of(3.0, [2.9, 3.1] * 3, PLAIN)
    assert (low, high) == pytest.approx((3 - 2.5706 * np.sqrt(0.05), 3 + 2.5706 * np.sqrt(0.05)), abs=1e-5)
    assert reason is None


def test_one_group_with_all_of_the_deviation_counts_as_few_by_hand():
    # deviations 5 and five times -1: standard error sqrt(5/6 * 30) = 5. Kish's number is 10^2 / 30, times pi / 2 =
    # 5.236 groups: 4.236 degrees of freedom, between those of 5 (2.571) and 4 (2.776)
    low, high, _ = interval_of(0.0, [6.0, 0, 0, 0, 0, 0], PLAIN)
    quantile = t.ppf(0.975, 100 / 30 * np.pi / 2 - 1)
    assert 2.571 < quantile < 2.776
    assert (low, high) == pytest.approx((-5 * quantile, 5 * quantile))


def test_the_standard_error_is_carried_over_to_the_scale_by_hand():
    # of a share of 0.5 the slope is 4: 2.5706 * 4 * sqrt(0.0005) = 0.2299 on the logit scale, where 0.5 is 0
    low, high, _ = interval_of(0.5, [0.49, 0.51] * 3)
    assert (low, high) == pytest.approx((1 / (1 + np.exp(0.2299)), 1 / (1 + np.exp(-0.2299))), abs=1e-4)
    # of a correlation of 0.6 it is 1 / 0.64, and 0.6 is log 2
    low, high, _ = interval_of(0.6, [0.59, 0.61] * 3, CORRELATION)
    half = 2.5706 / 0.64 * np.sqrt(0.0005)
    assert (low, high) == pytest.approx((np.tanh(np.log(2) - half), np.tanh(np.log(2) + half)), abs=1e-5)


def test_the_interval_is_centred_on_the_metric_and_not_on_the_mean_without_a_group():
    low, high, _ = interval_of(10.0, [2.9, 3.1] * 3, PLAIN)
    assert (low + high) / 2 == pytest.approx(10)


def test_of_groups_in_parts_the_parts_count():
    in_parts = interval_of(3.0, [2.9, 3.1] * 3, PLAIN, n_groups=2000)
    assert in_parts == interval_of(3.0, [2.9, 3.1] * 3, PLAIN)


def test_five_groups_give_no_interval_and_six_do():
    assert interval_of(0.5, [0.4, 0.5, 0.6, 0.5, 0.5]) == (None, None, "too few patients for an interval")
    low, high, reason = interval_of(0.5, [0.4, 0.5, 0.6, 0.5, 0.5, 0.5])
    assert 0 < low < 0.5 < high < 1
    assert reason is None


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
        (0.5, [0.5] * 4 + [np.nan], "too few patients for an interval"),
        (0.5, [0.4, 0.6] * 3 + [np.inf], "no interval: without some of the patients, no image of class 1"),
        (0.0, [0.0] * 5 + [0.1], "interval not estimable: all patients have the same value"),
        (0.5, [0.5] * 5 + [0.5 + 4e-13], "interval not estimable: all patients have the same value"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_where_nothing_can_be_told_there_is_no_interval(value, left_out, reason):
    assert interval_of(value, left_out) == (None, None, reason)
    assert interval_of(value, left_out, unit="images") == (None, None, reason.replace("patients", "images"))


def test_values_are_the_same_if_they_differ_by_no_more_than_rounding():
    assert interval_of(0.5, [0.5] * 5 + [0.5 + 4e-12]).reason is None
    assert interval_of(1000.0, [1000.0] * 5 + [1000 + 4e-10], PLAIN).reason is not None
    assert interval_of(1000.0, [1000.0] * 5 + [1000 + 4e-9], PLAIN).reason is None


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
            images = EvaluatedImages.of(predictions_of(*arguments, named), classes=["0", "1"], positive="1")
            metrics = estimate_metrics(images, truth)
            covered.append([metrics[name].low <= true <= metrics[name].high for name, true in truth.items()])
        return dict(zip(truth, np.mean(covered, axis=0), strict=True))

    over_patients, over_images = coverage(500, known=True), coverage(150, known=False)
    for name in truth:
        assert 0.91 <= over_patients[name] <= 0.98, f"{name} over patients: {over_patients[name]}"
        assert over_images[name] <= 0.80, f"{name} over images: {over_images[name]}"


@pytest.mark.parametrize(
    ("bounds", "n_groups", "needed"),
    [
        (Bounds(0.7, 0.9), 50, 200),  # half as wide needs four times as many
        (Bounds(0.62, 0.77), 32, 72),  # 32 * (.075 / .05)^2
        (Bounds(0.80, 0.8403), 60, 10),  # 60 * .403^2 = 9.7
        (Bounds(0.98, 0.99), 32, 6),  # fewer have no interval
        (Bounds(None, 0.9), 32, None),
        (Bounds(None, None, "too few patients"), 3, None),
    ],
)
def test_how_many_patients_an_interval_of_5_points_needs(bounds, n_groups, needed):
    assert count_needed(bounds, n_groups) == needed
