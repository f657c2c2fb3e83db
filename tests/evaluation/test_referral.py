"""Which images are uncertain, and what referring them to a person would achieve, worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest
from made_up_predictions import predictions_of, two_class_predictions

from cancernet.data.dataset import Patch
from cancernet.data.grid import lay_out_patches
from cancernet.evaluation.decision import Decision, FittedOn, bound_uncertain, measure_certainty
from cancernet.evaluation.intervals import SHARE, Measured, exact_interval, jackknife_interval
from cancernet.evaluation.referral import Certainty, evaluate_referral, find_uncertain

# Twenty images, from the least certain at a threshold of 0.5; of the four least certain two are wrong, then one more.
PROBABILITY = np.array([0.49, 0.48, 0.53, 0.54, 0.26, *np.linspace(0.75, 0.95, 6), *np.linspace(0.15, 0.05, 9)])
LABELS = np.array([1, 0, 0, 1, 1, *[1] * 6, *[0] * 9])
TWO = {"classes": ["0", "1"], "positive": "1"}
DECISION = Decision(("0", "1"), "1", 1.0, (0.0, 0.0), 0.2, "0.2", 0.0, FittedOn(9), None, None, uncertain_below=0.3)


def refer(probability=PROBABILITY, labels=LABELS, uncertain=None):
    predictions = two_class_predictions(labels, probability, [f"p{row:02}" for row in range(len(labels))])
    return evaluate_referral(predictions, Certainty(np.abs(2 * np.asarray(probability) - 1), uncertain), **TWO)


def as_columns(probability):
    return np.stack([1 - np.array(probability), probability], axis=1)


def test_certainty_is_the_distance_from_the_threshold_relative_to_the_room_on_its_side():
    probabilities = as_columns([0, 0.1, 0.2, 0.6, 1])
    assert measure_certainty(DECISION, probabilities) == pytest.approx([1, 0.5, 0, 0.5, 1])
    assert measure_certainty(DECISION, probabilities, 0.6) == pytest.approx([1, 5 / 6, 2 / 3, 0, 1])
    assert measure_certainty(DECISION, probabilities, 1.0) == pytest.approx([1, 0.9, 0.8, 0.4, 0])
    of_three = replace(DECISION, classes=("a", "b", "c"), positive=None, threshold=None)
    assert measure_certainty(of_three, np.array([[0.2, 0.5, 0.3], [0.9, 0.05, 0.05]])).tolist() == [0.5, 0.9]


def test_images_are_uncertain_between_two_probabilities():
    assert bound_uncertain(DECISION) == pytest.approx((0.14, 0.44))
    of_two = as_columns([0.13, 0.15, 0.2, 0.43, 0.45])
    assert find_uncertain(DECISION, of_two, ()).uncertain.tolist() == [False, True, True, True, False]
    of_three = replace(DECISION, classes=("a", "b", "c"), positive=None, threshold=None, uncertain_below=0.45)
    assert bound_uncertain(of_three) == (0, 0.45)
    assert find_uncertain(of_three, np.array([[0.4, 0.3, 0.3], [0.5, 0.3, 0.2]]), ()).uncertain.tolist() == [
        True,
        False,
    ]
    assert bound_uncertain(replace(DECISION, uncertain_below=None)) is None


def test_the_table_by_hand():
    five, ten, twenty = refer().table
    assert (five.share, ten.share, twenty.share) == (0.05, 0.1, 0.2)
    assert [each.caught.value for each in (five, ten, twenty)] == pytest.approx([1 / 3, 1 / 3, 2 / 3])
    assert [each.error.value for each in (five, ten, twenty)] == pytest.approx([2 / 19, 2 / 18, 1 / 16])
    rates = [(each.sensitivity.value, each.specificity.value, each.ppv.value) for each in (five, ten, twenty)]
    np.testing.assert_allclose(rates, [(7 / 8, 10 / 11, 7 / 8), (7 / 8, 9 / 10, 7 / 8), (6 / 7, 1, 1)])
    assert (twenty.specificity.low, twenty.specificity.high) == exact_interval(9, 9)[:2]


def test_the_curve_and_its_interval_follow_the_same_share_of_the_other_patients():
    curve = {round(20 * each.coverage): each.error for each in refer().curve}
    errors = [0] * 15 + [1, 1, 2, 2, 3]  # among the 1, 2, ... 20 most certain images
    assert [curve[kept].value for kept in range(1, 21)] == pytest.approx([errors[n - 1] / n for n in range(1, 21)])

    wrong = np.isin(np.arange(20), (0, 2, 4))[::-1]  # the most certain image first
    left_out = []
    for patient in range(20):
        rest, kept = np.delete(wrong, patient), 0.8 * 19  # 15 images and a fifth of the next
        left_out.append((rest[:15].sum() + 0.2 * rest[15]) / kept)
    expected = jackknife_interval(Measured(1 / 16, np.array(left_out), 20, "patients"), scale=SHARE, why_undefined="")
    assert (curve[16].low, curve[16].high) == pytest.approx(expected[:2])
    assert (curve[4].low, curve[4].high) == exact_interval(0, 4)[:2]


def test_images_of_equal_certainty_at_a_cut_count_in_part_whatever_their_order():
    probability = [0.51, 0.49, *np.linspace(0.6, 0.95, 18)]
    for labels in ([0, 0, *[1] * 18], [1, 1, *[1] * 18]):  # one of the first two is wrong
        assert refer(probability, labels).table[0].error.value == pytest.approx(0.5 / 19)


def test_a_band_keeps_the_images_that_are_not_uncertain():
    uncertain = np.isin(np.arange(20), (0, 1, 5))
    band = refer(uncertain=uncertain).band
    assert (band.share, band.caught.value, band.error.value) == pytest.approx((0.15, 1 / 3, 2 / 17))
    assert (band.sensitivity.value, band.specificity.value) == pytest.approx((6 / 7, 9 / 10))
    left_out = [(2 - (row in (2, 4))) / (17 - (not uncertain[row])) for row in range(20)]
    expected = jackknife_interval(Measured(2 / 17, np.array(left_out), 20, "patients"), scale=SHARE, why_undefined="")
    assert (band.error.low, band.error.high) == pytest.approx(expected[:2])
    assert refer().band is None


def test_without_errors_or_images_the_reason_is_given():
    perfect = refer(labels=(PROBABILITY >= 0.5).astype(int), uncertain=np.ones(20, dtype=bool))
    assert perfect.table[0].caught.reason == "no image was classified wrongly"
    assert (perfect.table[0].error.value, perfect.band.error.reason) == (0, "no image is kept")
    assert perfect.band.ppv.reason == "no image that is kept was classified as positive"


def test_several_classes_have_errors_alone():
    probabilities = [[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.0, 0.1, 0.9], [0.6, 0.2, 0.2]] * 5
    predictions = predictions_of([1, 1, 2, 0] * 5, probabilities, [0, 1, 2, 0] * 5, [f"p{row}" for row in range(20)])
    certainty = Certainty(np.max(probabilities, axis=1), None)
    found = evaluate_referral(predictions, certainty, classes=["a", "b", "c"], positive=None)
    assert found.curve[0].error.value == 0.25
    assert found.table[2].error.value == pytest.approx(
        1 / 16
    )  # four of the five least certain, equal ones are referred
    assert found.table[2].caught.value == pytest.approx(0.8)
    assert found.table[2].sensitivity is None


def test_each_patch_is_as_uncertain_as_the_decision_that_it_is_decided_by_says():
    whole = [Patch(f"a_{x}_{y}", "", "a", 50 * x, 50 * y, "", "") for x in range(3) for y in range(3)]
    patches = [*whole, Patch("b", "", "b", 0, 0, "", "")]
    slides, probabilities = lay_out_patches(patches, 50).slides, as_columns([0.25] * 10)
    smoothing = replace(
        DECISION, neighbour_sigma=1.0, threshold=0.5, uncertain_below=0.6, without_neighbours=DECISION
    )  # the slide has a certainty of 0.5, the single patch of 0.0625
    found = find_uncertain(smoothing, probabilities, slides)
    assert found.values == pytest.approx([0.5] * 9 + [0.0625])
    assert found.uncertain.tolist() == [True] * 10
    narrow = replace(smoothing, uncertain_below=0.4)
    assert find_uncertain(narrow, probabilities, slides).uncertain.tolist() == [False] * 9 + [True]
    assert find_uncertain(narrow, probabilities, slides, threshold=0.9).uncertain.tolist() == [False] * 10


def test_images_out_of_distribution_are_uncertain_where_the_decision_refers_images():
    distances = np.array([0.9, 1.1, np.nan, 1.1])
    probabilities = as_columns([0.9, 0.9, 0.9, 0.2])
    assert find_uncertain(DECISION, probabilities, (), distances=distances).uncertain.tolist() == [
        False,
        True,
        False,
        True,
    ]
    without = replace(DECISION, uncertain_below=None)
    assert find_uncertain(without, probabilities, (), distances=distances).uncertain is None
