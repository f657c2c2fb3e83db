"""Rates and correlation from confusion matrices: by hand, and against scikit-learn."""

import numpy as np
import pytest
import sklearn.metrics as sk

from cancernet.evaluation.rates import class_rates, matthews_correlation, ratio

# Rows are the true class. Of 20 images 6, 6 and 8 belong to the classes; 7, 6 and 7 are predicted as them.
THREE_CLASSES = np.array([[5, 1, 0], [2, 3, 1], [0, 2, 6]])


def test_the_rates_of_each_class_by_hand():
    # class 0: 5 true positives, 1 false negative, 2 false positives, 12 true negatives
    # class 1: 3, 3, 3 and 11; class 2: 6, 2, 1 and 11
    rates = class_rates(THREE_CLASSES)
    np.testing.assert_allclose(rates.sensitivity, [5 / 6, 3 / 6, 6 / 8])
    np.testing.assert_allclose(rates.specificity, [12 / 14, 11 / 14, 11 / 12])
    np.testing.assert_allclose(rates.precision, [5 / 7, 3 / 6, 6 / 7])
    np.testing.assert_allclose(rates.npv, [12 / 13, 11 / 14, 11 / 13])
    np.testing.assert_allclose(rates.f1, [10 / 13, 6 / 12, 12 / 15])


def test_rates_are_nan_where_a_class_has_no_images_or_is_never_predicted():
    # no image of class 2; class 1 is never predicted
    rates = class_rates(np.array([[3, 0, 1], [2, 0, 0], [0, 0, 0]]))
    np.testing.assert_allclose(rates.sensitivity, [3 / 4, 0, np.nan])
    np.testing.assert_allclose(rates.precision, [3 / 5, np.nan, 0])
    np.testing.assert_allclose(rates.f1, [6 / 9, 0, 0])
    everything_is_class_0 = class_rates(np.array([[4, 0], [0, 0]]))
    np.testing.assert_allclose(everything_is_class_0.specificity, [np.nan, 1])
    np.testing.assert_allclose(everything_is_class_0.npv, [np.nan, 1])
    np.testing.assert_allclose(everything_is_class_0.f1, [1, np.nan])


def test_many_matrices_at_once_give_what_each_gives():
    stacked = np.stack([THREE_CLASSES, THREE_CLASSES.T, 0.5 * THREE_CLASSES])
    for name, together in class_rates(stacked)._asdict().items():
        alone = [getattr(class_rates(counts), name) for counts in stacked]
        np.testing.assert_allclose(together, alone, err_msg=name)
        np.testing.assert_allclose(together[2], together[0], err_msg=f"{name} with half the weight")
    np.testing.assert_allclose(matthews_correlation(stacked), [matthews_correlation(counts) for counts in stacked])


def test_the_mcc_of_two_classes_by_hand():
    # (3 * 4 - 1 * 2) / sqrt((3 + 1) (3 + 2) (4 + 1) (4 + 2)) = 10 / sqrt(600)
    assert matthews_correlation(np.array([[4, 1], [2, 3]])) == pytest.approx(10 / np.sqrt(600))


def test_the_mcc_of_three_classes_by_hand():
    # 14 of 20 are correct: 14 * 20 - (6 * 7 + 6 * 6 + 8 * 7) = 146
    # 400 - (36 + 36 + 64) = 264 of the true classes, 400 - (49 + 36 + 49) = 266 of the predicted ones
    assert matthews_correlation(THREE_CLASSES) == pytest.approx(146 / np.sqrt(264 * 266))


@pytest.mark.parametrize(("counts", "expected"), [([[7, 0], [0, 2]], 1), ([[0, 7], [2, 0]], -1), ([[2, 4], [1, 2]], 0)])
def test_the_mcc_is_1_if_all_are_correct_and_minus_1_if_all_are_wrong(counts, expected):
    assert matthews_correlation(np.array(counts)) == pytest.approx(expected)


@pytest.mark.parametrize("counts", [[[3, 2], [0, 0]], [[3, 0], [2, 0]], [[0, 0], [0, 0]]])
def test_the_mcc_is_nan_where_all_images_have_one_true_or_one_predicted_class(counts):
    assert np.isnan(matthews_correlation(np.array(counts)))


@pytest.mark.parametrize("n_classes", [2, 3, 5])
def test_rates_and_mcc_equal_those_of_scikit_learn(n_classes):
    random = np.random.default_rng(n_classes)
    labels, predicted = random.integers(0, n_classes, (2, 200))
    predicted[::2] = labels[::2]
    weights = random.integers(0, 3, 200)
    weighted = sk.confusion_matrix(labels, predicted, sample_weight=weights)
    expected = sk.precision_recall_fscore_support(labels, predicted, sample_weight=weights)
    rates = class_rates(weighted)
    np.testing.assert_allclose([rates.precision, rates.sensitivity, rates.f1], expected[:3])
    assert matthews_correlation(weighted) == pytest.approx(
        sk.matthews_corrcoef(labels, predicted, sample_weight=weights)
    )


@pytest.mark.filterwarnings("error")
def test_a_ratio_is_nan_where_its_denominator_is_0():
    np.testing.assert_array_equal(ratio(np.array([1, 0, 3]), np.array([2, 0, 0])), [0.5, np.nan, np.nan])
    np.testing.assert_array_equal(ratio(np.array([[1.0], [3.0]]), np.array([2, 0])), [[0.5, np.nan], [1.5, np.nan]])
    assert ratio(np.float64(1), np.float64(4)) == 0.25
