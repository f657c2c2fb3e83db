"""Several thresholds on the same images: by hand, and as the report's own figures."""

import numpy as np
import pytest

from cancernet.evaluation.metrics import evaluate
from cancernet.evaluation.operating_points import RATES, judge_points

CLASSES = {"classes": ("0", "1"), "positive": "1"}


def test_each_points_rates_by_hand():
    labels = np.array([0, 0, 0, 1, 1])
    predicted = {"low": np.array([0, 1, 1, 1, 1]), "high": np.array([0, 0, 0, 0, 0])}
    found = judge_points(labels, predicted, ["a", "a", "b", "b", "b"], **CLASSES)
    low = {rate: found["low"][rate]["value"] for rate in RATES}
    # 2 found, none missed, 2 false alarms, 1 cleared
    expected = {"sensitivity": 1, "specificity": 1 / 3, "ppv": 1 / 2, "f1": 2 / 3, "balanced_accuracy": 2 / 3}
    assert low == pytest.approx(expected)
    assert found["low"]["ppv"]["reason"] == "too few patients for an interval"
    assert found["high"]["ppv"] == {
        "value": None,
        "low": None,
        "high": None,
        "reason": "no image was decided as class 1",
    }
    assert found["high"]["specificity"]["value"] == 1


@pytest.mark.parametrize("positive", ["0", "1"])
def test_a_point_has_the_figures_and_intervals_of_an_evaluation(positive):
    random = np.random.default_rng(0)
    labels = (random.random(300) < 0.4).astype(int)
    probability = 1 / (1 + np.exp(-random.normal(2 * labels - 1)))
    predicted, patients = (probability >= 0.6).astype(int), [str(n % 15) for n in range(300)]
    probabilities = np.stack([1 - probability, probability], axis=1)
    settings = {"classes": ("0", "1"), "positive": positive}
    metrics = evaluate(labels, probabilities, predicted, patients, **settings)["metrics"]
    point = judge_points(labels, {"it": predicted}, patients, **settings)["it"]
    for rate in RATES:
        assert point[rate] == pytest.approx(metrics[rate]), rate
