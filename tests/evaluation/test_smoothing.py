"""Scores smoothed over neighbours, its width chosen, and a decision applied to slides and to patches alone."""

from dataclasses import replace
from time import process_time

import numpy as np
import pytest
from made_up_predictions import fit_arrays
from scipy.special import expit, log_softmax, logit
from scipy.stats import norm

from cancernet import InputError
from cancernet.data.dataset import Patch
from cancernet.data.grid import lay_out_patches
from cancernet.evaluation import decision, smoothing
from cancernet.evaluation.predictions import Scores
from cancernet.evaluation.referral import find_uncertain
from cancernet.evaluation.smoothing import (
    MIN_SLIDES,
    SIGMA,
    SIGMAS,
    apply_decision,
    choose_sigma,
    fit_on_validation,
    predict_scores,
    smooth_scores,
)


def layout_of(patients, x, y):
    places = enumerate(zip(patients, x, y))
    return lay_out_patches([Patch(f"patch {i}", "0", *place, "", "") for i, place in places])


def smooth(scores, patients, x, y, sigma):
    return smooth_scores(scores, layout_of(patients, x, y).slides, sigma)


def choose(scores, labels, patients, x, y):
    return choose_sigma(scores, np.asarray(labels), layout_of(patients, x, y).slides)


def full_slide(rows, columns, first=1):
    """x and y of every place of a grid, row after row."""
    y, x = np.divmod(np.arange(rows * columns), columns)
    return 50 * x + first, 50 * y + first


def smooth_slowly(scores, patients, x, y, sigma):
    """The definition, one pair of patches at a time; a kernel reaches 4 sigma along each axis."""
    reach = int(4 * sigma + 0.5)
    smoothed = scores.copy()
    for i in range(len(scores)):
        total, weights = 0, 0
        for j in range(len(scores)):
            if None in (x[i], x[j]) or patients[i] != patients[j] or not patients[i]:
                continue
            across, down = (x[i] - x[j]) / 50, (y[i] - y[j]) / 50
            if abs(across) <= reach and abs(down) <= reach:
                weight = np.exp(-(across**2 + down**2) / (2 * sigma**2))
                total, weights = total + weight * (scores[j] - scores[j].mean()), weights + weight
        if weights:
            smoothed[i] = log_softmax(total / weights)
    return smoothed


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("sigma", [0.5, 1.5, 3.0])
def test_smoothing_equals_the_plain_loop(classes, sigma):
    rng = np.random.default_rng(3)
    places = [rng.choice(12 * 9, 60, replace=False) for _ in "ab"]  # half of the grid is missing
    x = [int(place % 12 * 50 + 1) for both in places for place in both] + [None, 51]
    y = [int(place // 12 * 50 + 101) for both in places for place in both] + [None, 51]
    patients = ["a"] * 60 + ["b"] * 60 + ["a", ""]
    order = rng.permutation(len(x))
    patients, x, y = ([values[i] for i in order] for values in (patients, x, y))
    scores = log_softmax(rng.normal(0, 3, (len(x), classes)), axis=1)
    expected = smooth_slowly(scores, patients, x, y, sigma)
    np.testing.assert_allclose(smooth(scores, patients, x, y, sigma), expected, rtol=1e-10)


def test_two_neighbours_average_their_logit_difference():
    scores = log_softmax([[0.0, 0.0], [0.0, 3.0]], axis=1)
    smoothed = smooth(scores, ["p", "p"], [1, 51], [1, 1], 1.0)
    weight = np.exp(-0.5)
    np.testing.assert_allclose(smoothed[:, 1] - smoothed[:, 0], [3 * weight / (1 + weight), 3 / (1 + weight)])
    np.testing.assert_allclose(np.exp(smoothed).sum(axis=1), 1)


def test_what_has_no_neighbour_or_no_place_stays_as_it_is():
    scores = log_softmax(np.random.default_rng(0).normal(0, 2, (6, 2)), axis=1)
    patients = ["p", "p", "q", "", "", "p"]
    x, y = [1, 51, 1, 1, 51, None], [1, 1, 1, 1, 1, 1]  # q is alone; "" is no slide; the last has no x
    smoothed = smooth(scores, patients, x, y, 1.0)
    np.testing.assert_allclose(smoothed[2], scores[2])
    np.testing.assert_array_equal(smoothed[3:], scores[3:])
    assert not np.allclose(smoothed[:2], scores[:2])
    unchanged = smooth(scores, patients, x, y, 0)
    np.testing.assert_array_equal(unchanged, scores)
    assert unchanged is not scores


def test_smoothing_70_slides_takes_a_second():
    x, y = full_slide(25, 40)
    patients = np.repeat([str(i) for i in range(70)], 1000)
    start = process_time()
    smooth(np.zeros((70_000, 2)), patients, np.tile(x, 70), np.tile(y, 70), 1.5)
    assert process_time() - start < 4  # an eighth of a second on a quiet machine


def blob_slides(noise, patients=3, side=20):
    """A tumour in the middle of each slide, seen by a network whose errors are independent from patch to patch."""
    rng = np.random.default_rng(1)
    x, y = full_slide(side, side)
    label = (np.hypot(x / 50 - side / 2, y / 50 - side / 2) < side / 4).astype(int)
    x, y, labels = np.tile(x, patients), np.tile(y, patients), np.tile(label, patients)
    logits = 2.0 * labels - 1 + rng.normal(0, noise, len(labels))
    names = np.repeat([f"p{i}" for i in range(patients)], side * side)
    return log_softmax(np.column_stack([-logits / 2, logits / 2]), axis=1), labels, names, x, y


def test_the_usual_width_is_kept_where_no_other_is_clearly_better():
    assert choose(*blob_slides(noise=0.5)) == SIGMA


def test_a_wider_one_is_chosen_where_slides_left_out_agree():
    assert choose(*blob_slides(noise=6.0, patients=6)) in (1.5, 2.0, 3.0)


def test_one_slide_cannot_tell_a_width():
    assert choose(*blob_slides(noise=6.0, patients=1)) == SIGMA


def test_no_smoothing_is_chosen_where_neighbours_mislead():
    """A tumour in every second place: a network with few errors needs no neighbours."""
    x, y = full_slide(10, 10)
    labels = np.tile((x // 50 + y // 50) % 2, 3)
    scores = np.log(np.column_stack([0.8 - 0.6 * labels, 0.2 + 0.6 * labels]))
    scores[::17] = scores[::17, ::-1]
    assert choose(scores, labels, np.repeat(["p", "q", "r"], 100), np.tile(x, 3), np.tile(y, 3)) == 0.0


def test_smoothing_is_not_praised_for_curing_overconfidence():
    """Classes without any order in space: smoothing only pulls overconfident scores together."""
    rng = np.random.default_rng(2)
    x, y = full_slide(20, 20)
    labels = rng.integers(0, 2, 1200)
    logits = 40 * (labels - 0.5) + rng.normal(0, 30, 1200)  # right in three of four, and always sure
    scores = log_softmax(np.column_stack([-logits / 2, logits / 2]), axis=1)
    placed = np.repeat(["p", "q", "r"], 400), np.tile(x, 3), np.tile(y, 3)

    def log_loss(sigma):
        return -smooth(scores, *placed, sigma)[np.arange(1200), labels].mean()

    assert log_loss(1.0) < log_loss(0)  # so that log loss alone would choose it
    assert choose(scores, labels, *placed) == 0.0


@pytest.fixture
def choose_by(monkeypatch):
    """Choose a width where the loss of each left-out slide is given: 1 with SIGMA, and less by `gains` with others."""

    def choose_with(n_slides, gains):
        def loss_of(fitted_to, scores, labels):
            sigma, slide = scores[0, 0], labels[0]
            assert fitted_to == set(range(n_slides)) - {slide}  # the other slides, all of them
            return 1.0 - gains.get(sigma, [0.0] * n_slides if sigma == SIGMA else [-1.0] * n_slides)[slide], None

        monkeypatch.setattr(smoothing, "smooth_scores", lambda scores, slides, sigma: np.full_like(scores, sigma))
        monkeypatch.setattr(smoothing, "minimise_log_loss", lambda scores, labels: set(labels))
        monkeypatch.setattr(smoothing, "log_loss", loss_of)
        slides = np.repeat(np.arange(n_slides), 4)
        x, y = (np.tile(each, n_slides) for each in full_slide(2, 2))
        return choose(np.zeros((len(slides), 2)), slides, [f"p{slide}" for slide in slides], x, y)

    return choose_with


def test_the_widths_to_choose_from():
    assert SIGMAS == (0.0, 1.0, 1.5, 2.0, 3.0)
    assert SIGMA == 1.0


@pytest.mark.parametrize("best", [0.0, 1.5, 2.0, 3.0])
def test_of_the_widths_that_clearly_help_the_best_is_chosen(choose_by, best):
    """Neither the smallest nor the largest of them."""
    gains = {sigma: [0.25 + 0.25 * (sigma == best)] * 4 for sigma in SIGMAS if sigma != SIGMA}
    assert choose_by(4, gains) == best


def test_a_width_that_does_not_help_is_not_chosen(choose_by):
    assert choose_by(4, {}) == SIGMA
    assert choose_by(4, {0.0: [0.0] * 4, 3.0: [0.0] * 4}) == SIGMA


@pytest.mark.parametrize(("least", "chosen"), [(-1 / 64, SIGMA), (0.0, SIGMA), (1 / 64, 2.0)])
def test_a_gain_must_exceed_one_standard_error(choose_by, least, chosen):
    # gains of 1, 0, 0 and 0 have the mean 1/4 and the deviations 3/4 and three times -1/4: a standard deviation of
    # sqrt(12 / 16 / 3) = 1/2 and a standard error of 1/2 / sqrt(4) = 1/4, which the mean does not exceed
    assert choose_by(4, {2.0: [1.0, 0.0, least, 0.0]}) == chosen


def test_two_slides_choose_a_width_only_if_both_gain(choose_by):
    # gains a < b have the mean (a + b) / 2 and the standard error (b - a) / 2, which the mean exceeds if a > 0
    assert choose_by(2, {3.0: [0.01, 0.9]}) == 3.0
    assert choose_by(2, {3.0: [-0.01, 0.9]}) == SIGMA


def test_a_clear_gain_is_chosen_before_a_larger_one_that_is_not_clear(choose_by):
    # 3.0 gains 0.25 on average, but on one slide only; 1.5 gains 0.125 on each
    assert choose_by(4, {1.5: [0.125] * 4, 3.0: [1.0, 0.0, 0.0, 0.0]}) == 1.5


def test_of_equally_good_widths_the_smallest_is_chosen(choose_by):
    assert choose_by(4, {1.5: [0.5] * 4, 2.0: [0.5] * 4, 3.0: [0.5] * 4}) == 1.5
    assert choose_by(4, {0.0: [0.5] * 4, 3.0: [0.5] * 4}) == 0.0


@pytest.mark.parametrize(("n_slides", "chosen"), [(0, SIGMA), (1, SIGMA), (2, 2.0)])
def test_fewer_than_two_slides_give_the_usual_width(n_slides, chosen, choose_by):
    assert choose_by(n_slides, {2.0: [0.5] * n_slides}) == chosen


def fit(scores, labels, patients, x, y, **options):
    patches = [
        Patch(f"{i}.png", str(label), patient, int(left), int(top), "validation", "")
        for i, (label, patient, left, top) in enumerate(zip(labels, patients, x, y))
    ]
    given = {"classes": ("0", "1"), "positive": "1", "operating_point": "balanced", "neighbours": True}
    return fit_on_validation(Scores(patches, scores), **given | options), patches


def test_the_decision_with_neighbours_holds_the_one_without():
    smoothed, _ = fit(*blob_slides(noise=2.0, patients=MIN_SLIDES))
    alone, _ = fit(*blob_slides(noise=2.0, patients=MIN_SLIDES), neighbours=False)
    assert smoothed.neighbour_sigma >= SIGMA
    assert smoothed.without_neighbours == alone
    assert smoothed.temperature != alone.temperature  # a calibration of its own
    assert alone.neighbour_sigma == 0
    assert alone.without_neighbours is None


@pytest.mark.parametrize("slides", [1, MIN_SLIDES - 1])
def test_few_slides_steepen_the_calibration_of_patches_alone(slides):
    """The factor is the mode of the posterior on a grid: log-normal, and five images a slide."""
    scores, labels, patients, x, y = blob_slides(noise=2.0, patients=slides)
    few, _ = fit(scores, labels, patients, x, y)
    alone = few.without_neighbours
    middle = logit(decision.calibrate(alone, scores)[:, 1].mean())
    smoothed = smooth(scores, patients, x, y, few.neighbour_sigma)
    log_odds = logit(decision.calibrate(alone, smoothed)[:, 1])
    factors = np.arange(0.5, 5.0, 0.001)
    shares = expit(middle + factors[:, None] * (log_odds - middle))
    likelihood = np.log(np.where(labels, shares, 1 - shares)).sum(axis=1) * 5 / 400
    expected = factors[np.argmax(likelihood + norm.logpdf(np.log(factors), np.log(1.25), 0.35))]
    assert alone.temperature / few.temperature == pytest.approx(expected, abs=0.002)
    assert expected < factors[np.argmax(likelihood)] - 0.1  # without the prior it would be steeper
    np.testing.assert_allclose(  # and the line is fixed at the mean probability
        logit(decision.calibrate(few, smoothed)[:, 1]), middle + expected * (log_odds - middle), atol=0.02
    )


@pytest.mark.parametrize("point", ["balanced", "sensitivity=0.9", "specificity=0.9"])
def test_few_slides_change_probabilities_and_not_decisions(point):
    made_up = blob_slides(noise=2.0, patients=3)
    few, _ = fit(*made_up, operating_point=point)
    before = replace(few.without_neighbours, neighbour_sigma=few.neighbour_sigma)
    assert few.operating_point == point
    assert few.temperature < before.temperature
    assert few.fitted_on == before.fitted_on
    assert few.expected_on_validation == before.expected_on_validation
    slides = layout_of(*made_up[2:]).slides
    np.testing.assert_array_equal(
        apply_decision(few, made_up[0], slides)[1], apply_decision(before, made_up[0], slides)[1]
    )


def test_few_slides_refer_a_share_of_their_smoothed_patches():
    made_up = blob_slides(noise=2.0, patients=3)
    few, _ = fit(*made_up, refer=0.1)
    slides = layout_of(*made_up[2:]).slides
    uncertain = find_uncertain(few, apply_decision(few, made_up[0], slides)[0], slides).uncertain
    assert uncertain.mean() == pytest.approx(0.1, abs=0.001)


def test_few_slides_of_three_classes_keep_the_calibration_of_patches_alone():
    scores, labels, patients, x, y = blob_slides(noise=2.0, patients=2)
    three = log_softmax(np.column_stack([scores, np.full(len(scores), -4.0)]), axis=1)
    labels = np.where(np.arange(len(labels)) % 50 == 0, 2, labels)
    few, _ = fit(three, labels, patients, x, y, classes=("0", "1", "2"), positive=None)
    assert few.neighbour_sigma
    assert few == replace(
        few.without_neighbours, neighbour_sigma=few.neighbour_sigma, without_neighbours=few.without_neighbours
    )


def test_slides_are_smoothed_where_validation_has_only_a_sample_of_each():
    scores, labels, patients, x, y = blob_slides(noise=2.0)
    kept = np.random.default_rng(0).random(len(labels)) < 0.2
    sampled, _ = fit(scores[kept], labels[kept], patients[kept], x[kept], y[kept])
    assert sampled.neighbour_sigma == SIGMA


def test_patches_without_places_are_never_smoothed():
    scores, labels, patients, _, _ = blob_slides(noise=2.0)
    patches = [Patch("", str(label), patient, None, None, "", "") for label, patient in zip(labels, patients)]
    given = {"classes": ("0", "1"), "positive": "1", "operating_point": "balanced", "neighbours": True}
    assert fit_on_validation(Scores(patches, scores), **given).neighbour_sigma == 0


@pytest.fixture(scope="module")
def six():
    """Six slides, the decision that was fitted on them, and their patches."""
    made_up = blob_slides(noise=2.0, patients=6)
    return *made_up, *fit(*made_up)


def test_a_complete_slide_is_smoothed_and_a_sample_is_judged_alone(six):
    scores, _, patients, x, y, fitted, _ = six
    alone = fitted.without_neighbours
    sparse = np.flatnonzero(patients == "p1")[::7]
    kept = np.append(np.flatnonzero(patients == "p0"), sparse)
    layout = layout_of(patients[kept], x[kept], y[kept])
    probabilities, predicted = apply_decision(fitted, scores[kept], layout.slides)
    complete = smooth_scores(scores[kept], layout.slides[:1], fitted.neighbour_sigma)[:400]
    np.testing.assert_array_equal(probabilities[:400], decision.calibrate(fitted, complete))
    np.testing.assert_array_equal(probabilities[400:], decision.calibrate(alone, scores[sparse]))
    np.testing.assert_array_equal(predicted[400:], probabilities[400:, 1] >= alone.threshold)
    np.testing.assert_array_equal(predicted[:400], probabilities[:400, 1] >= fitted.threshold)


def test_a_threshold_given_replaces_both_of_the_decisions(six):
    scores, _, patients, x, y, fitted, _ = six
    probabilities, predicted = apply_decision(fitted, scores, layout_of(patients, x, y).slides, threshold=0.9)
    np.testing.assert_array_equal(predicted, probabilities[:, 1] >= 0.9)


def test_a_threshold_for_several_classes_is_refused():
    scores = np.log([[0.6, 0.3, 0.1], [0.2, 0.6, 0.2], [0.1, 0.3, 0.6]])
    fitted = fit_arrays(scores, [0, 1, 2], ["", "", ""], classes=("a", "b", "c"), positive=None)
    with pytest.raises(InputError, match="A threshold needs a run of two classes"):
        apply_decision(fitted, scores, (), threshold=0.5)


def test_predictions_have_the_true_classes_of_patches_that_have_a_label(six):
    scores, labels, patients, x, y, fitted, patches = six
    found = predict_scores(fitted, Scores(patches, scores))
    np.testing.assert_array_equal(found.labels, labels)
    decided = apply_decision(fitted, scores, layout_of(patients, x, y).slides)
    np.testing.assert_array_equal(found.probabilities, decided[0])
    np.testing.assert_array_equal(found.predicted, decided[1])
    at_high = predict_scores(fitted, Scores(patches, scores), threshold=0.9)
    np.testing.assert_array_equal(at_high.predicted, found.probabilities[:, 1] >= 0.9)
    new = [patch._replace(label="") for patch in patches]
    assert predict_scores(fitted, Scores(new, scores)).true_classes is None
