"""Results by a column: values, and differences from all other images with intervals worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest
from made_up_predictions import predictions_of
from made_up_predictions import two_class_predictions as predicted
from scipy.stats import t
from sklearn.metrics import roc_auc_score

from cancernet.evaluation.evaluate import evaluate
from cancernet.evaluation.groups import evaluate_groups

TWO = {"classes": ["0", "1"], "positive": "1"}


def make_two_sites():
    """Two sites of eight patients, who have an image of each class: one and two positive images are missed."""
    labels, patients = [0, 1] * 16, np.repeat([f"p{number:02}" for number in range(16)], 2)
    probability = np.where(np.array(labels) == 1, 0.9, 0.2)
    probability[[1, 17, 19]] = 0.3
    return predicted(labels, probability, patients), ["a"] * 16 + ["b"] * 16


def test_the_interval_of_the_difference_between_two_sites_by_hand():
    predictions, sites = make_two_sites()
    found = evaluate_groups(predictions, "site", sites, **TWO)
    a, b = found.values
    assert (found.column, a.value, b.value, a.images, a.patients, a.prevalence) == ("site", "a", "b", 16, 8, 0.5)
    assert (a.metrics["sensitivity"].value, b.metrics["sensitivity"].value) == (7 / 8, 6 / 8)
    # Without the patient missed in a the difference is 1 - 3/4, without another of a 6/7 - 3/4; without one missed in b
    # 7/8 - 6/7, without another of b 7/8 - 5/7. Their mean is 1/8, and the deviations from it are 7/56, -1/56 (7
    # times), -6/56 (twice) and 2/56 (6 times): the squares add up to 152/56^2, the absolute values to 38/56.
    error = np.sqrt(15 / 16 * 152 / 56**2)
    half = t.ppf(0.975, 38**2 / 152 * np.pi / 2 - 1) * error
    for each, sign in ((a, 1), (b, -1)):
        difference = each.difference["sensitivity"]
        assert difference.value == pytest.approx(sign / 8)
        assert (difference.low, difference.high) == pytest.approx((sign / 8 - half, sign / 8 + half))
        assert difference.verdict == "unclear"
    assert list(a.metrics) == list(a.difference) == ["sensitivity", "specificity", "auroc"]
    alone = evaluate(predictions.take(np.arange(16)), **TWO).metrics
    assert a.metrics == {name: alone[name] for name in a.metrics}


def test_a_patient_of_two_scanners_is_left_out_of_both():
    random = np.random.default_rng(0)
    patients = np.repeat([f"p{number:02}" for number in range(20)], 12)
    labels = np.tile([0, 1, 1], 80)
    scanner = np.where(np.arange(240) % 12 < 6, "new", "old")
    log_odds = random.normal(size=240) + np.where(scanner == "new", 3.0, 0.5) * (labels - 0.5)
    predictions = predicted(labels, 1 / (1 + np.exp(-log_odds)), patients)

    def subtract(kept):
        areas = [
            roc_auc_score(labels[rows], log_odds[rows])
            for rows in (kept & (scanner == name) for name in ("new", "old"))
        ]
        return areas[0] - areas[1]

    left_out = np.array([subtract(patients != name) for name in np.unique(patients)])
    deviations = left_out - left_out.mean()
    error = np.sqrt(19 / 20 * (deviations**2).sum())
    effective = min(np.abs(deviations).sum() ** 2 / (deviations**2).sum() * np.pi / 2, 20)
    (found, _) = evaluate_groups(predictions, "scanner", scanner.tolist(), **TWO).values
    difference = found.difference["auroc"]
    assert difference.value == pytest.approx(subtract(np.ones(240, bool)))
    assert difference.low == pytest.approx(difference.value - t.ppf(0.975, effective - 1) * error)
    assert (difference.verdict, found.patients) == ("better", 20)


def test_few_patients_and_one_value_alone_give_no_interval():
    predictions, _ = make_two_sites()
    few = ["few"] * 10 + ["many"] * 22
    for each in evaluate_groups(predictions, "site", few, **TWO).values:
        assert each.difference["sensitivity"].reason == "too few patients for an interval"
        assert (each.metrics["sensitivity"].low is None) == (each.value == "few")
        assert each.difference["sensitivity"].value == pytest.approx(
            (1 if each.value == "few" else -1) * (4 / 5 - 9 / 11)
        )
    (alone,) = evaluate_groups(predictions, "site", ["a"] * 32, **TWO).values
    assert alone.difference["sensitivity"].reason == "there are no other images"
    assert alone.metrics["sensitivity"].value == 13 / 16


def test_a_side_that_is_the_same_for_all_patients_gives_no_interval():
    predictions, sites = make_two_sites()
    right = predictions.predicted.copy()
    right[1] = 1
    found, _ = evaluate_groups(replace(predictions, predicted=right), "site", sites, **TWO).values
    assert found.metrics["sensitivity"].low == pytest.approx(0.025 ** (1 / 8))  # the exact interval of 8 of 8
    difference = found.difference["sensitivity"]
    assert (difference.value, difference.low, difference.verdict) == (1 / 4, None, "unclear")
    assert difference.reason == "no interval: one of the two is the same for all patients"


def test_images_without_a_value_come_last_and_more_classes_have_accuracy():
    random = np.random.default_rng(1)
    labels, patients = random.integers(3, size=90), [f"p{number % 15}" for number in range(90)]
    probabilities = random.dirichlet(np.ones(3), size=90) + np.eye(3)[labels]
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    predictions = predictions_of(labels, probabilities, probabilities.argmax(axis=1), patients)
    sites = np.array(["", "b", "a"])[np.arange(90) % 3]
    found = evaluate_groups(predictions, "site", sites.tolist(), classes=["0", "1", "2"], positive=None).values
    assert [each.value for each in found] == ["a", "b", ""]
    right = predictions.predicted == labels
    for each in found:
        inside = sites == each.value
        assert (each.images, each.prevalence) == (30, None)
        assert each.metrics["accuracy"].value == pytest.approx(right[inside].mean())
        assert each.difference["accuracy"].value == pytest.approx(right[inside].mean() - right[~inside].mean())
    assert list(found[0].metrics) == ["accuracy", "balanced_accuracy", "macro_f1", "auroc"]
