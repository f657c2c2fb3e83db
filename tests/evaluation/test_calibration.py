"""What is expected of a network before validation is seen, and how much validation may change it."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import log_loss

from cancernet.evaluation.calibration import apply_calibration, fit_calibration


def scores_of(log_odds) -> np.ndarray:
    log_odds = np.asarray(log_odds, dtype=float)
    return np.stack([np.zeros_like(log_odds), log_odds], axis=1)


def made_up(n, seed=0, *, shift=0.0, inverse=1.0):
    """Labels, and log-odds that are right after being multiplied by `inverse` and moved by `shift`."""
    random = np.random.default_rng(seed)
    true = random.normal(scale=2, size=n)
    return (random.random(n) < expit(true)).astype(int), (true - shift) / inverse


def test_two_images_by_hand():
    # log-odds 1 and -1, both right: the shift stays 0 and the inverse a has (log a - log 0.7) / 0.49 = 2 a / (1 + e^a)
    temperature, bias = fit_calibration(scores_of([1.0, -1.0]), np.array([1, 0]), ["", ""])
    inverse = 1 / temperature
    assert (np.log(inverse) - np.log(0.7)) / 0.49 == pytest.approx(2 * inverse / (1 + np.exp(inverse)), abs=1e-4)
    assert bias == pytest.approx((0.0, 0.0), abs=1e-6)


def test_the_bias_by_hand():
    # scores that are all 0 tell nothing of the temperature; shift c of one image of class 1: c / 0.25 = 1 / (1 + e^c)
    temperature, bias = fit_calibration(scores_of([0.0]), np.array([1]), [""])
    assert 1 / temperature == pytest.approx(0.7)
    assert 4 * bias[1] == pytest.approx(1 / (1 + np.exp(bias[1])), abs=1e-5)


def test_the_class_weights_are_taken_back_before_anything_is_seen():
    # a weight of 3 adds log 3 to all log-odds; with it taken back these are log-odds of 1 and -1, as above
    plain, _ = fit_calibration(scores_of([1.0, -1.0]), np.array([1, 0]), ["", ""])
    moved = scores_of(np.array([1.0, -1.0]) + np.log(3))
    temperature, bias = fit_calibration(moved, np.array([1, 0]), ["", ""], np.log(3))
    assert temperature == pytest.approx(plain, rel=1e-4)
    assert bias == pytest.approx((0.0, -np.log(3) / temperature), abs=1e-4)


def test_many_images_of_a_patient_count_as_five():
    labels, log_odds = made_up(60)
    patients = [str(number // 10) for number in range(60)]
    once = fit_calibration(scores_of(log_odds), labels, patients)
    thrice = fit_calibration(scores_of(np.tile(log_odds, 3)), np.tile(labels, 3), patients * 3)
    assert np.hstack(thrice) == pytest.approx(np.hstack(once), rel=1e-3)
    all_apart = fit_calibration(scores_of(log_odds), labels, [""] * 60)
    assert abs(all_apart[0] - once[0]) > 0.02


def test_the_classes_may_change_places():
    labels, log_odds = made_up(50, shift=1.0)
    patients = ["a"] * 25 + ["b"] * 25
    one = fit_calibration(scores_of(log_odds), labels, patients, np.log(2))
    other = fit_calibration(scores_of(-log_odds), 1 - labels, patients, -np.log(2))
    assert (other[0], -other[1][1]) == pytest.approx((one[0], one[1][1]), rel=1e-3)


def test_many_patients_outvote_what_was_expected():
    labels, log_odds = made_up(40_000, shift=2.0, inverse=2.5)
    temperature, bias = fit_calibration(scores_of(log_odds), labels, [str(n // 10) for n in range(40_000)])
    assert (1 / temperature, bias[1]) == pytest.approx((2.5, 2.0), rel=0.05)


def test_one_patient_does_not_spoil_probabilities_that_are_right():
    losses = []
    for seed in range(30):
        labels, log_odds = made_up(2040, seed)
        temperature, bias = fit_calibration(scores_of(log_odds[:40]), labels[:40], ["a"] * 40)
        after = apply_calibration(scores_of(log_odds[40:]), temperature, bias)
        losses.append(log_loss(labels[40:], after) - log_loss(labels[40:], expit(log_odds[40:])))
    assert np.mean(losses) < 0.01
    assert np.max(losses) < 0.05


def test_of_three_classes_scores_stay_as_they_are_where_a_fit_does_not_help():
    random = np.random.default_rng(0)
    scores = np.log(random.dirichlet(np.ones(3), size=6))
    assert fit_calibration(scores, np.array([0, 1, 2, 0, 1, 2]), [""] * 6) == (1.0, (0.0, 0.0, 0.0))
