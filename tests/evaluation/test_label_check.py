"""Labels that the predictions contradict."""

import numpy as np
from made_up_predictions import predictions_of, two_class_predictions

from cancernet.evaluation.label_check import SuspiciousLabel, find_suspicious_labels


def test_a_label_is_suspicious_if_another_class_is_as_probable_as_on_average_over_its_images():
    # Mean probability of class 0 over images of class 0: (0.9 + 0.7 + 0.2) / 3 = 0.6; of class 1 over its own: 0.55.
    # Image 2 has 0.8 for class 1, image 5 has 0.9 for class 0.
    found = find_suspicious_labels(
        two_class_predictions([0, 0, 0, 1, 1, 1], [0.1, 0.3, 0.8, 0.9, 0.65, 0.1], ["p", "p", "q", "q", "", ""]), "01"
    )
    np.testing.assert_allclose([each.probability_of_label for each in found], [0.1, 0.2])
    np.testing.assert_allclose([each.probability_of_suggested for each in found], [0.9, 0.8])
    assert [(each.file, each.patient, each.label, each.suggested) for each in found] == [
        ("5.png", "", "1", "0"),
        ("2.png", "q", "0", "1"),
    ]


def test_a_prediction_below_the_mean_of_its_class_contradicts_no_label():
    probability = [0.0, 0.45, 0.95, 0.95, 0.4]  # thresholds: 0.775 of class 0, 0.767 of class 1; the last has 0.6 of 0
    assert find_suspicious_labels(two_class_predictions([0, 0, 1, 1, 1], probability, [""] * 5), "01") == []


def test_the_most_probable_class_is_never_a_suspicious_label_and_a_class_without_images_is_never_suggested():
    # Thresholds: 0.8 of class 0, 0.2 of class 1. Image 1 reaches only that of class 1, but has 0.7 of class 0.
    probabilities = [[0.9, 0.1, 0], [0.7, 0.3, 0], [0.8, 0.1, 0.1], [0.1, 0.3, 0.6], [0.9, 0.1, 0]]
    predictions = predictions_of([0, 0, 0, 1, 1], probabilities, [0, 0, 0, 1, 0], [""] * 5)
    (found,) = find_suspicious_labels(predictions, "012")
    assert found == SuspiciousLabel("4.png", "", "1", "0", 0.1, 0.9)


def test_they_are_those_of_cleanlab_in_its_order():
    # cleanlab 2.9.0: find_label_issues(labels, probabilities, filter_by="confident_learning",
    # return_indices_ranked_by="normalized_margin")
    expected = [266, 169, 283, 109, 37, 172, 3, 22, 240, 15, 72, 292, 225, 286, 44]
    rng = np.random.default_rng(5)
    true = rng.choice(3, 300, p=[0.6, 0.3, 0.1])
    labels = np.where(rng.random(300) < 0.1, rng.integers(0, 3, 300), true)
    odds = np.exp(rng.normal(0, 1, (300, 3)) + 2 * np.eye(3)[true])
    predictions = predictions_of(labels, odds / odds.sum(axis=1, keepdims=True), labels, [""] * 300)
    assert [each.file for each in find_suspicious_labels(predictions, "012")] == [f"{row}.png" for row in expected]
