"""What is expected of a network before validation is seen, and how much validation may change it."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import log_loss

from cancernet.evaluation import calibration
from cancernet.evaluation.calibration import apply_calibration, fit_calibration, minimise_log_loss


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


UNCHANGED = (1.0, (0.0, 0.0, 0.0))


def three_classes(n_correct, n, odds=4.0):
    """Scores in which one of three classes has some odds against each other one, and is correct in the first images."""
    labels = np.arange(n) % 3
    favoured = np.where(np.arange(n) < n_correct, labels, (labels + 1) % 3)
    return np.log(odds) * np.eye(3)[favoured], labels


def test_three_classes_are_calibrated_by_hand():
    # square roots of 1, 4 and 9 are 1, 2 and 3; the third counts twice: 1, 2 and 6 of 9
    probabilities = apply_calibration(np.log([[1.0, 4.0, 9.0]]), 2.0, (0.0, 0.0, np.log(2)))
    np.testing.assert_allclose(probabilities, [[1 / 9, 2 / 9, 6 / 9]])


def test_the_temperature_of_three_classes_by_hand():
    # correct in 1 of 2 images, where odds of 4 against each of two others say 2 of 3: odds of 2 against each say 1 of 2
    scores, labels = three_classes(30, 60)
    temperature, bias = fit_calibration(scores, labels, [""] * 60)
    assert temperature == pytest.approx(np.log(4) / np.log(2), rel=1e-3)
    assert bias == pytest.approx((0, 0, 0), abs=1e-3)


def test_a_bias_of_three_classes_is_fitted_where_it_helps_images_left_out():
    # scores tell nothing and half of the images are of class 2: its odds are 2 against each other class
    labels = np.tile([0, 1, 2, 2], 30)
    _, bias = fit_calibration(np.zeros((120, 3)), labels, [""] * 120)
    assert bias == pytest.approx((0.0, 0.0, np.log(2)), abs=1e-3)


@pytest.mark.parametrize(("n_correct", "is_used"), [(30, True), (35, True), (36, False), (59, False)])
def test_a_fit_is_used_only_if_it_lowers_the_log_loss_of_images_left_out(monkeypatch, n_correct, is_used):
    """The fit is replaced by a temperature of 2, whose log-loss is known."""
    # Odds of 4 become 2. The log-loss is log(4 + 2) - p log 4 before and log(2 + 2) - p log 2 after, where p are
    # correct. The second is lower if p < log(6 / 4) / log(4 / 2) = 0.585: with 35 of 60, not with 36
    monkeypatch.setattr(calibration, "minimise_log_loss", lambda scores, labels: np.array([0.5, 0.0, 0.0]))
    found = fit_calibration(*three_classes(n_correct, 60), [""] * 60)
    assert found == ((2.0, (0.0, 0.0, 0.0)) if is_used else UNCHANGED)


def test_a_fit_that_leaves_the_log_loss_as_it_is_is_not_used(monkeypatch):
    # equal scores have a log-loss of log 3 at any temperature
    monkeypatch.setattr(calibration, "minimise_log_loss", lambda scores, labels: np.array([0.5, 0.0, 0.0]))
    assert fit_calibration(np.zeros((30, 3)), np.arange(30) % 3, [""] * 30) == UNCHANGED


def test_images_left_out_are_not_fitted_to(monkeypatch):
    fitted_to = []

    def fit_and_note(scores, labels):
        fitted_to.append(scores[:, 0])
        return minimise_log_loss(scores, labels)

    monkeypatch.setattr(calibration, "minimise_log_loss", fit_and_note)
    scores = np.log(np.random.default_rng(0).dirichlet(np.ones(3), size=30))
    fit_calibration(scores, np.arange(30) % 3, [""] * 30)
    *folds, last = fitted_to
    np.testing.assert_array_equal(last, scores[:, 0])
    left_out = [np.setdiff1d(scores[:, 0], rest) for rest in folds]
    assert [len(each) for each in left_out] == [6] * 5  # two of each class
    np.testing.assert_array_equal(np.sort(np.concatenate(left_out)), np.sort(scores[:, 0]))


@pytest.mark.filterwarnings("error")
def test_a_class_of_two_images_allows_a_cross_validation_and_one_of_a_single_image_does_not():
    scores, labels = three_classes(12, 60, odds=200.0)  # sure and mostly wrong, so that any fit helps
    of_class_2 = np.flatnonzero(labels == 2)
    two, one = (np.delete(np.arange(60), of_class_2[kept:]) for kept in (2, 1))
    assert fit_calibration(scores[two], labels[two], [""] * len(two))[0] > 2
    assert fit_calibration(scores[one], labels[one], [""] * len(one)) == UNCHANGED


def test_a_fit_that_classifies_every_image_correctly_is_not_used():
    # the log-loss, also of images left out, decreases until the probability of the true class is 1
    scores, labels = three_classes(60, 60)
    assert 1 / minimise_log_loss(scores, labels)[0] < 0.2
    assert fit_calibration(scores, labels, [""] * 60) == UNCHANGED
    # with an error in each class the fit is used: odds of 38 against each of two others say 57 of 60
    scores, labels = three_classes(57, 60)
    assert fit_calibration(scores, labels, [""] * 60)[0] == pytest.approx(np.log(4) / np.log(38), rel=1e-3)


def test_a_fit_whose_bias_makes_every_image_correct_is_not_used_either():
    # all scores of class 2 are too high by log 8, so that every image is taken for class 2 until the bias is fitted
    scores, labels = three_classes(60, 60)
    scores = scores + np.array([0.0, 0.0, np.log(8)])
    assert (scores.argmax(axis=1) == 2).all()
    assert fit_calibration(scores, labels, [""] * 60) == UNCHANGED
