"""A learning curve in figures: means over draws, intervals over patients, and the change at its end."""

import numpy as np
import pytest
from made_up_predictions import predictions_of
from sklearn.metrics import log_loss, roc_auc_score

from cancernet.evaluation.evaluate import evaluate
from cancernet.evaluation.learning_curve import trace_learning_curve

LABELS = np.tile([0, 1], 60)
PATCHES = predictions_of(LABELS, np.zeros((120, 2)), LABELS, [f"p{row // 10}" for row in range(120)]).patches


def score(noise, seed):
    logit = 2 * LABELS - 1 + np.random.default_rng(seed).normal(scale=noise, size=120)
    return np.stack([-np.logaddexp(0, logit), -np.logaddexp(0, -logit)], axis=1)


def trace(*subsets):
    return trace_learning_curve(subsets, PATCHES, ["0", "1"], "1")


def test_a_point_is_the_mean_of_its_draws_with_the_interval_of_an_evaluation():
    draws, most = [score(2.0, 1), score(2.0, 2)], score(0.8, 3)
    fewer, last = trace((4.0, draws), (8.5, [most])).points
    assert (fewer.patients, last.patients) == (4.0, 8.5)
    assert fewer.auroc.value == pytest.approx(np.mean([roc_auc_score(LABELS, each[:, 1]) for each in draws]))
    assert fewer.log_loss.value == pytest.approx(np.mean([log_loss(LABELS, np.exp(each)) for each in draws]))
    probabilities, patients = np.exp(most), [patch.patient for patch in PATCHES]
    whole = predictions_of(LABELS, probabilities, probabilities.argmax(axis=1), patients)
    expected = evaluate(whole, classes=["0", "1"], positive="1").metrics["auroc"]
    assert (last.auroc.low, last.auroc.high) == pytest.approx((expected.low, expected.high))


def test_the_change_is_from_the_last_point_but_one_and_is_better_only_if_its_interval_says_so():
    change = trace((2.0, [score(5, 1)]), (4.0, [score(2.0, 1), score(2.0, 2)]), (8.0, [score(0.8, 3)])).change
    assert change["auroc"].verdict == change["log_loss"].verdict == "better"
    assert change["log_loss"].low < change["log_loss"].value < change["log_loss"].high < 0
    same = trace((4.0, [score(2.0, 1)]), (8.0, [score(2.0, 2)])).change
    assert same["auroc"].verdict == "unclear"
