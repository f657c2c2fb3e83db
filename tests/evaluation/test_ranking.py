"""Areas under the ROC and precision-recall curves of weighted images: by hand, and against scikit-learn."""

import numpy as np
import pytest
import sklearn.metrics as sk

from cancernet.evaluation.ranking import rank_images


def areas_of(scores, is_positive, groups, weights):
    weigh = rank_images(np.asarray(scores, float), np.asarray(is_positive, bool), np.asarray(groups))
    return weigh(np.atleast_2d(np.asarray(weights, float)))


def areas_of_images(scores, is_positive):
    """Each image is a group of its own and counts once."""
    roc, precision_recall = areas_of(scores, is_positive, range(len(scores)), np.ones(len(scores)))
    return roc[0], precision_recall[0]


def test_both_areas_by_hand():
    # 5 of the 6 pairs: 0.9 and 0.6 exceed 0.5 and 0.2, 0.9 exceeds 0.7
    # precision 1 at 0.9 and 2/3 at 0.6, each with half of the positive images
    areas = areas_of_images([0.9, 0.7, 0.6, 0.5, 0.2], [1, 0, 1, 0, 0])
    assert areas == pytest.approx((5 / 6, 1 / 2 * 1 + 1 / 2 * 2 / 3))


def test_a_tie_of_a_positive_and_a_negative_image_counts_half():
    # pairs: 0.3 exceeds 0.1 and 0.2; 0.2 exceeds 0.1 and ties with 0.2: 3.5 of 4
    # precision 1 at 0.3; at 0.2 three images of which two are positive
    assert areas_of_images([0.1, 0.2, 0.2, 0.3], [0, 1, 0, 1]) == pytest.approx((3.5 / 4, 1 / 2 + 1 / 2 * 2 / 3))


def test_equal_scores_rank_nothing():
    # one threshold, at which 2 of 5 images are positive
    assert areas_of_images([0.4] * 5, [1, 1, 0, 0, 0]) == pytest.approx((1 / 2, 2 / 5))


def test_a_tie_among_positive_images_is_one_threshold():
    # both positive images are at 0.5, below one negative one: precision 2/3 for both
    assert areas_of_images([0.5, 0.5, 0.8, 0.1], [1, 1, 0, 0]) == pytest.approx((2 / 4, 2 / 3))


@pytest.mark.parametrize(("is_positive", "expected"), [([0, 0, 1, 1], (1, 1)), ([1, 1, 0, 0], (0, 5 / 12))])
def test_perfect_and_reversed_orders(is_positive, expected):
    # reversed, precision is 1/3 at the third image and 2/4 at the fourth: (1/3 + 1/2) / 2
    assert areas_of_images([0.1, 0.2, 0.3, 0.4], is_positive) == pytest.approx(expected)


# Three groups of a positive and a negative image each: the positive images score 0.9, 0.5 and 0.3, the
# negative ones 0.5, 0.1 and 0.7.
GROUPED = [0.9, 0.5, 0.5, 0.1, 0.3, 0.7], [1, 0, 1, 0, 1, 0], [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("weights", "roc", "precision_recall"),
    [
        # 0.9 exceeds all three; 0.5 exceeds 0.1 and ties with 0.5; 0.3 exceeds 0.1
        # precision 1 at 0.9, 2/4 at 0.5, 3/5 at 0.3
        ([1, 1, 1], 5.5 / 9, (1 + 1 / 2 + 3 / 5) / 3),
        # positive 0.5 once and 0.3 twice; negative 0.1 once and 0.7 twice: 1 * 1 + 2 * 1 of 3 * 3 pairs
        # precision 1/3 at 0.5 with a third of the positives, 3/5 at 0.3 with two thirds
        ([0, 1, 2], 3 / 9, 1 / 3 * 1 / 3 + 2 / 3 * 3 / 5),
        # positive 0.9 twice and 0.3 once; negative 0.5 twice and 0.7 once: 0.9 wins 2 * 3 pairs, 0.3 none
        # precision 1 at 0.9 with two thirds, 3/6 at 0.3
        ([2, 0, 1], 6 / 9, 2 / 3 + 1 / 3 * 1 / 2),
    ],
)
def test_an_image_counts_as_much_as_its_group(weights, roc, precision_recall):
    areas = areas_of(*GROUPED, weights)
    assert (areas.roc[0], areas.precision_recall[0]) == pytest.approx((roc, precision_recall))


def test_many_weightings_at_once_give_what_each_gives():
    weights = [[1, 1, 1], [0, 1, 2], [0, 0, 0], [2, 0, 1]]
    together = areas_of(*GROUPED, weights)
    alone = [areas_of(*GROUPED, row) for row in weights]
    np.testing.assert_array_equal(together.roc, [areas.roc[0] for areas in alone])
    np.testing.assert_array_equal(together.precision_recall, [areas.precision_recall[0] for areas in alone])


@pytest.mark.parametrize("decimals", [1, 16])
def test_areas_equal_those_of_scikit_learn(decimals):
    """With one decimal most scores tie; with sixteen none does."""
    random = np.random.default_rng(decimals)
    is_positive, groups = random.random(150) < 0.3, random.integers(0, 12, 150)
    scores = np.round(random.random(150) * 0.7 + 0.3 * is_positive, decimals)
    weights = np.vstack([np.ones(12), random.integers(0, 3, (5, 12))])
    areas = areas_of(scores, is_positive, groups, weights)
    for row, roc, precision_recall in zip(weights, *areas, strict=True):
        of_images = row[groups]
        assert roc == pytest.approx(sk.roc_auc_score(is_positive, scores, sample_weight=of_images))
        assert precision_recall == pytest.approx(
            sk.average_precision_score(is_positive, scores, sample_weight=of_images)
        )


def test_one_image_of_each_class_is_enough():
    assert areas_of_images([0.2, 0.1], [1, 0]) == (1, 1)
    assert areas_of_images([0.1, 0.2], [1, 0]) == (0, 1 / 2)  # the threshold of 0.1 takes both images


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("is_positive", [[1, 1, 1], [0, 0, 0]])
def test_areas_are_nan_with_one_class_only(is_positive):
    assert np.isnan(areas_of_images([0.1, 0.2, 0.3], is_positive)).all()


@pytest.mark.filterwarnings("error")
def test_areas_are_nan_only_for_the_weights_that_leave_one_class():
    # group 0 has the only positive image; without it, without the negative ones, and with all of them
    areas = areas_of([0.9, 0.1, 0.2], [1, 0, 0], [0, 1, 1], [[0, 1], [1, 0], [1, 1]])
    np.testing.assert_array_equal(areas.roc, [np.nan, np.nan, 1])
    np.testing.assert_array_equal(areas.precision_recall, [np.nan, np.nan, 1])
