"""Runs on the same images: rows in one order or refused, and differences with intervals worked out by hand."""

import numpy as np
import pytest
from made_up_predictions import predictions_of
from made_up_predictions import two_class_predictions as predicted
from scipy.stats import t
from sklearn.metrics import roc_auc_score

from cancernet import InputError
from cancernet.evaluation.comparison import align_predictions, compare_figures, compare_patients
from cancernet.evaluation.metrics import list_metrics
from cancernet.evaluation.results import Difference

TWO = {"classes": ["0", "1"], "positive": "1"}


def many_patients(shift=0.0, seed=0):
    """40 patients of 5 to 20 images; `shift` is added to the log-odds of positive images."""
    random = np.random.default_rng(seed)
    patients = np.repeat([f"p{number:02}" for number in range(40)], random.integers(5, 21, 40))
    labels = (random.random(len(patients)) < 0.3).astype(int)
    log_odds = random.normal(size=len(patients)) + 2 * labels - 1
    return predicted(labels, 1 / (1 + np.exp(-log_odds - shift * labels)), patients)


# --- the same images ---


def test_rows_are_brought_into_the_order_of_the_first():
    first = predicted([0, 1, 1], [0.1, 0.6, 0.9], ["a", "a", "b"])
    turned = first.take(np.array([2, 1, 0]))
    assert [patch.file for patch in turned.patches] == ["2.png", "1.png", "0.png"]
    aligned = align_predictions({"one": first, "other": turned})
    assert list(aligned) == ["one", "other"]
    assert aligned["other"].patches == first.patches
    for column in ("labels", "probabilities", "predicted"):
        np.testing.assert_array_equal(getattr(aligned["other"], column), getattr(first, column))


def test_other_images_are_refused_whichever_run_has_more():
    all_three = predicted([0, 1, 1], [0.1, 0.6, 0.9], ["a", "a", "b"])
    two = predicted([0, 1], [0.1, 0.6], ["a", "a"])
    said = "one evaluated 1 images that other did not, first 2.png. Evaluate both on the same images: evaluate_model.py"
    with pytest.raises(InputError, match=said):
        align_predictions({"one": all_three, "other": two})
    with pytest.raises(InputError, match="other evaluated 1 images that one did not, first 2.png"):
        align_predictions({"one": two, "other": all_three})


@pytest.mark.parametrize(
    ("labels", "patients", "said"),
    [
        ([0, 0], ["a", "a"], "The label of 1.png is 1 in one and 0 in other. Evaluate both"),
        (
            [0, 1],
            ["a", ""],
            "The patient of 1.png is a in one and unknown in other. Evaluate both",
        ),
    ],
)
def test_an_image_of_another_class_or_patient_is_refused(labels, patients, said):
    runs = {
        "one": predicted([0, 1], [0.1, 0.6], ["a", "a"]),
        "other": predicted(labels, [0.1, 0.6], patients),
    }
    with pytest.raises(InputError) as caught:
        align_predictions(runs)
    assert str(caught.value) == f"{said} on the same dataset."


# --- differences ---


def test_the_interval_of_a_difference_by_hand():
    # Eight patients of one image. The first run is right of all, the other wrong of one: accuracy 1 and 7/8.
    labels, patients = [0, 1] * 4, list("abcdefgh")
    right = np.where(np.array(labels) == 1, 0.9, 0.2)
    wrong = right.copy()
    wrong[0] = 0.8
    (found,) = compare_figures([predicted(labels, right, patients), predicted(labels, wrong, patients)], **TWO)
    # Without that patient the difference is 0, without any other -1/7; their mean is -1/8. Squares of the deviations:
    # (1/8)^2 + 7 (1/56)^2 = 1/56, so the standard error is sqrt(7/8 / 56) = 1/8. Sum of the deviations 1/4: it rests on
    # (1/4)^2 / (1/56) * pi / 2 = 5.50 patients.
    half = t.ppf(0.975, 3.5 * np.pi / 2 - 1) / 8
    assert found["accuracy"].value == pytest.approx(-1 / 8)
    assert found["accuracy"].low == pytest.approx(-1 / 8 - half)
    assert found["accuracy"].high == pytest.approx(-1 / 8 + half)
    assert found["accuracy"].verdict == "unclear"
    assert list(found) == [metric.name for metric in list_metrics(two_classes=True)]


def test_what_is_hard_for_both_goes_out_of_the_difference():
    # Every image's probability is .1 nearer to the truth: the Brier score falls by (p^2 - (p - .1)^2), at p = .6 and .2
    labels, patients = [0] * 12, [f"p{number}" for number in range(12)]
    hard = np.array([0.6, 0.2] * 6)
    (found,) = compare_figures([predicted(labels, hard, patients), predicted(labels, hard - 0.1, patients)], **TWO)
    assert found["brier"].value == pytest.approx(-((0.36 - 0.25) + (0.04 - 0.01)) / 2)
    assert found["brier"].high < 0
    assert found["brier"].verdict == "better"  # lower is
    undefined = Difference(None, None, None, "it is undefined for one of the two", verdict="unclear")
    assert found["sensitivity"] == undefined


def test_better_and_worse_follow_the_figure():
    first, better = many_patients(), many_patients(shift=1.0)
    found, turned = (compare_figures(pair, **TWO)[0] for pair in ([first, better], [better, first]))
    for name in ("auroc", "sensitivity", "log_loss"):
        assert (found[name].verdict, turned[name].verdict) == ("better", "worse")
        assert found[name].value == pytest.approx(-turned[name].value)
        assert (found[name].low, found[name].high) == pytest.approx((-turned[name].high, -turned[name].low))
    areas = [roc_auc_score(run.labels, run.probabilities[:, 1]) for run in (first, better)]
    assert found["auroc"].value == pytest.approx(areas[1] - areas[0])
    assert found["calibration_slope"].verdict == "unclear"  # best at 1, neither above nor below


def test_the_same_run_again_differs_in_nothing():
    (found,) = compare_figures([many_patients(), many_patients()], **TWO)
    assert found["auroc"].value == 0
    assert found["auroc"].reason == "no interval: both are the same, whichever of the patients are left out"
    assert {difference.verdict for difference in found.values()} == {"unclear"}


def test_a_calibration_error_has_no_interval_and_five_patients_have_none():
    (found,) = compare_figures([many_patients(), many_patients(shift=1.0)], **TWO)
    assert found["ece"].low is None
    assert found["ece"].reason == "no interval: noise increases both errors, by different amounts"
    labels, patients = [0, 1] * 5, list("aabbccddee")
    runs = [predicted(labels, np.linspace(low, 0.9, 10), patients) for low in (0.1, 0.3)]
    assert compare_figures(runs, **TWO)[0]["auroc"].low is None


def test_an_infinite_ratio_gives_no_interval():
    # Of the first run, specificity is 1 as soon as patient "a" is left out; LR+ is then infinite.
    labels, patients = [0, 1] * 6, list("aabbccddeeff")
    first = np.where(np.array(labels) == 1, 0.9, 0.2)
    first[0] = 0.8
    other = first.copy()
    other[2] = 0.7
    found = compare_figures([predicted(labels, first, patients), predicted(labels, other, patients)], **TWO)[0][
        "lr_positive"
    ]
    assert found.value == pytest.approx(1 / (2 / 6) - 1 / (1 / 6))
    assert (found.low, found.high, found.verdict) == (None, None, "unclear")


def test_three_classes_and_three_runs():
    random = np.random.default_rng(3)
    labels = random.integers(3, size=120)
    patients = [f"p{number % 12}" for number in range(120)]
    runs = []
    for strength in (0.5, 1.0, 4.0):
        probabilities = random.dirichlet(np.ones(3), size=120) + strength * np.eye(3)[labels]
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        runs.append(predictions_of(labels, probabilities, probabilities.argmax(axis=1), patients))
    found = compare_figures(runs, classes=["a", "b", "c"], positive=None)
    assert [list(each) for each in found] == [[metric.name for metric in list_metrics(two_classes=False)]] * 2
    accuracy = [(run.predicted == labels).mean() for run in runs]
    assert [each["accuracy"].value for each in found] == pytest.approx([a - accuracy[0] for a in accuracy[1:]])
    assert found[1]["macro_f1"].verdict == "better"
    rows = compare_patients(runs[0], runs[2], classes=["a", "b", "c"], positive=None)
    assert sum(row.only_other - row.only_first for row in rows) == 120 * (accuracy[2] - accuracy[0])


# --- patients ---


def test_patients_come_with_the_surest_difference_first():
    patients = ["few"] * 2 + ["many"] * 9 + ["same"] * 2 + [""] * 2
    labels = [1] * 15
    first = [0.1, 0.9] + [0.1] * 4 + [0.9] * 5 + [0.1, 0.9] + [0.1, 0.1]
    other = [0.9, 0.9] + [0.9] * 4 + [0.9] * 4 + [0.1] + [0.9, 0.1] + [0.9, 0.9]
    rows = compare_patients(predicted(labels, first, patients), predicted(labels, other, patients), **TWO)
    shown = [(row.patient, row.images, row.only_first, row.only_other) for row in rows]
    # McNemar: (4 - 1)^2 / 5 = 1.8, 1^2 / 1 = 1, 0
    assert shown == [("many", 9, 1, 4), ("few", 2, 0, 1), ("same", 2, 1, 1)]
    assert [row.difference for row in rows] == pytest.approx([3 / 9, 1 / 2, 0])
    assert (rows[0].first.sensitivity, rows[0].other.sensitivity) == pytest.approx((5 / 9, 8 / 9))
