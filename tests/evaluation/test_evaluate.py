"""Every metric against scikit-learn's or a number worked out by hand, and the results as they are reported."""

import json
import time
import tracemalloc

import numpy as np
import pytest
from made_up_predictions import predictions_of, two_class_predictions
from scipy import stats
from scipy.special import expit, logit
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression

from cancernet import InputError
from cancernet.evaluation import evaluate as evaluation
from cancernet.evaluation.comparison import compare_figures
from cancernet.evaluation.evaluate import evaluate_points
from cancernet.evaluation.intervals import CORRELATION
from cancernet.evaluation.metrics import METRICS, Metric, list_metrics
from cancernet.evaluation.results import (
    CalibrationBin,
    Estimate,
    Interval,
    PatientRow,
    Spread,
    TwoClassPatientRow,
    as_json,
)
from cancernet.evaluation.tables import EvaluatedImages, WeightedImages

TWO = {"classes": ("0", "1"), "positive": "1"}
THREE = {"classes": ("benign", "malignant", "normal"), "positive": None}


def two_classes(n=400, n_patients=12, seed=0, decimals=2):
    """Labels, probabilities with ties (rounded), decisions at 0.4 and patients."""
    random = np.random.default_rng(seed)
    labels = (random.random(n) < 0.35).astype(int)
    probability = np.round(1 / (1 + np.exp(-random.normal(loc=2 * labels - 1, scale=1.2))), decimals)
    patients = [f"p{number:02}" for number in random.integers(n_patients, size=n)]
    return labels, np.stack([1 - probability, probability], axis=1), (probability >= 0.4).astype(int), patients


def three_classes(n=300, seed=1):
    random = np.random.default_rng(seed)
    labels = random.choice(3, size=n, p=[0.5, 0.3, 0.2])
    probabilities = random.dirichlet(np.ones(3), size=n) + 0.5 * np.eye(3)[labels]
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return labels, probabilities, probabilities.argmax(axis=1), [f"p{i}" for i in random.integers(10, size=n)]


def evaluate(labels, probabilities, predicted, patients, **settings):
    return evaluation.evaluate(predictions_of(labels, probabilities, predicted, patients), **settings)


def values(report) -> dict:
    return {name: metric.value for name, metric in report.metrics.items()}


def ece_by_loop(probability, outcome, edges) -> float:
    """Images are in the bin whose upper edge is the first that is not below their probability."""
    total = 0.0
    for low, high in zip([-1.0, *edges], [*edges, 2.0], strict=True):
        inside = [i for i, p in enumerate(probability) if low < p <= high]
        if inside:
            total += abs(sum(probability[i] for i in inside) - sum(outcome[i] for i in inside))
    return total / len(probability)


def sklearn_two_class_figures(labels, probability, predicted, edges) -> dict:
    positive, negative = sk.class_likelihood_ratios(labels, predicted)
    return {
        "accuracy": sk.accuracy_score(labels, predicted),
        "sensitivity": sk.recall_score(labels, predicted),
        "specificity": sk.recall_score(labels, predicted, pos_label=0),
        "precision": sk.precision_score(labels, predicted),
        "ppv": sk.precision_score(labels, predicted),
        "npv": sk.precision_score(labels, predicted, pos_label=0),
        "lr_positive": positive,
        "lr_negative": negative,
        "f1": sk.f1_score(labels, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
        "mcc": sk.matthews_corrcoef(labels, predicted),
        "auroc": sk.roc_auc_score(labels, probability),
        "auprc": sk.average_precision_score(labels, probability),
        "brier": sk.brier_score_loss(labels, probability),
        "ece": ece_by_loop(probability, labels, edges),
        "log_loss": sk.log_loss(labels, np.clip(probability, 1e-15, 1 - 1e-15)),
    }


def sklearn_three_class_figures(labels, probabilities, predicted, edges) -> dict:
    figures = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
        "mcc": sk.matthews_corrcoef(labels, predicted),
        "auroc": sk.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro"),
        "brier": np.mean(np.sum((probabilities - np.eye(3)[labels]) ** 2, axis=1)),  # scikit-learn 1.7 has it, too
        "ece": ece_by_loop(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels, edges),
        "log_loss": sk.log_loss(labels, probabilities),
    }
    specificities = [sk.recall_score(labels != c, predicted != c) for c in range(3)]
    figures["macro_specificity"] = np.mean(specificities)
    figures["weighted_specificity"] = np.average(specificities, weights=np.bincount(labels))
    for mean in ("macro", "weighted"):
        figures[f"{mean}_precision"] = sk.precision_score(labels, predicted, average=mean)
        figures[f"{mean}_sensitivity"] = sk.recall_score(labels, predicted, average=mean)
        figures[f"{mean}_f1"] = sk.f1_score(labels, predicted, average=mean)
    return figures


def tenths(probability) -> np.ndarray:
    return np.quantile(probability, np.arange(1, 10) / 10)


# --- figures ---


@pytest.mark.parametrize("decimals", [2, 12])
def test_two_class_figures_equal_those_of_scikit_learn(decimals):
    labels, probabilities, predicted, patients = two_classes(decimals=decimals)
    report = evaluate(labels, probabilities, predicted, patients, **TWO)
    probability = probabilities[:, 1]
    expected = sklearn_two_class_figures(labels, probability, predicted, tenths(probability))
    given = values(report)
    log_odds = logit(np.clip(probability, 1e-15, 1 - 1e-15))[:, None]
    slope = LogisticRegression(C=np.inf, tol=1e-10).fit(log_odds, labels).coef_[0, 0]
    assert given.pop("calibration_slope") == pytest.approx(slope, rel=1e-4)
    intercept = given.pop("calibration_intercept")
    assert expit(log_odds + intercept).mean() == pytest.approx(labels.mean())
    assert list(report.metrics) == [metric.name for metric in list_metrics(two_classes=True)]
    assert given == pytest.approx(expected, rel=1e-12)


def test_three_class_figures_equal_those_of_scikit_learn():
    labels, probabilities, predicted, patients = three_classes()
    report = evaluate(labels, probabilities, predicted, patients, **THREE)
    edges = tenths(probabilities.max(axis=1))
    assert list(report.metrics) == [metric.name for metric in list_metrics(two_classes=False)]
    assert values(report) == pytest.approx(sklearn_three_class_figures(labels, probabilities, predicted, edges))


def test_every_two_class_figure_by_hand():
    # 4 images of class 1, 6 of class 0. At 0.5: tp 3, fn 1, fp 2, tn 4.
    probability = np.array([0.9, 0.8, 0.6, 0.3, 0.7, 0.55, 0.4, 0.35, 0.2, 0.1])
    labels = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    probabilities = np.stack([1 - probability, probability], axis=1)
    report = evaluate(labels, probabilities, (probability >= 0.5).astype(int), [""] * 10, **TWO)
    assert report.confusion_matrix == [[4, 2], [1, 3]]
    given = values(report)
    del given["calibration_slope"], given["calibration_intercept"]  # worked out in test_calibration_line.py
    assert given == pytest.approx(
        {
            "accuracy": 7 / 10,
            "sensitivity": 3 / 4,
            "specificity": 4 / 6,
            "precision": 3 / 5,
            "ppv": 3 / 5,
            "npv": 4 / 5,
            "lr_positive": (3 / 4) / (2 / 6),
            "lr_negative": (1 / 4) / (4 / 6),
            "f1": 6 / 9,
            "balanced_accuracy": (3 / 4 + 4 / 6) / 2,
            "mcc": (3 * 4 - 2 * 1) / np.sqrt(5 * 4 * 6 * 5),
            # pairs won: 0.9 and 0.8 beat all 6, 0.6 beats 5, 0.3 beats 2
            "auroc": 19 / 24,
            # at each IDC image in falling order: 1 of 1, 2 of 2, 3 of 4, 4 of 8 are IDC
            "auprc": (1 + 1 + 3 / 4 + 4 / 8) / 4,
            "brier": (0.01 + 0.04 + 0.16 + 0.49 + 0.49 + 0.3025 + 0.16 + 0.1225 + 0.04 + 0.01) / 10,
            # one image a bin: the mean distance of probability and outcome
            "ece": (0.1 + 0.2 + 0.4 + 0.7 + 0.7 + 0.55 + 0.4 + 0.35 + 0.2 + 0.1) / 10,
            "log_loss": -np.log([0.9, 0.8, 0.6, 0.3, 0.3, 0.45, 0.6, 0.65, 0.8, 0.9]).mean(),
        }
    )


def test_per_class_figures_equal_those_of_scikit_learn():
    labels, probabilities, predicted, patients = three_classes()
    report = evaluate(labels, probabilities, predicted, patients, **THREE)
    assert list(report.per_class) == ["benign", "malignant", "normal"]
    for c, figures in enumerate(report.per_class.values()):
        assert figures.images == (labels == c).sum()
        assert figures.sensitivity.value == pytest.approx(sk.recall_score(labels == c, predicted == c))
        assert figures.specificity.value == pytest.approx(sk.recall_score(labels != c, predicted != c))
        assert figures.precision.value == pytest.approx(sk.precision_score(labels == c, predicted == c))
        assert figures.f1.value == pytest.approx(sk.f1_score(labels == c, predicted == c))
        assert figures.auroc.value == pytest.approx(sk.roc_auc_score(labels == c, probabilities[:, c]))


def test_the_classes_of_a_pair_mirror_each_other():
    report = evaluate(*two_classes(), **TWO)
    benign, idc, metrics = report.per_class["0"], report.per_class["1"], report.metrics
    assert benign.sensitivity == idc.specificity == metrics["specificity"]
    assert idc.sensitivity == benign.specificity == metrics["sensitivity"]
    assert benign.precision == metrics["npv"]
    assert benign.auroc == idc.auroc == metrics["auroc"]


def test_the_first_class_may_be_the_positive_one():
    labels, probabilities, predicted, patients = two_classes()
    second = evaluate(labels, probabilities, predicted, patients, **TWO)
    first = evaluate(1 - labels, probabilities[:, ::-1], 1 - predicted, patients, classes=("1", "0"), positive="1")
    assert first.metrics == second.metrics
    assert first.patients == second.patients


def test_ppv_and_npv_at_a_prevalence_by_bayes():
    # sensitivity 0.75, specificity 2/3, as worked out above; of 1,000 with a prevalence of 10%:
    # 100 ill, 75 called; 900 well, 300 called; 25 ill and 600 well not called
    probability = np.array([0.9, 0.8, 0.6, 0.3, 0.7, 0.55, 0.4, 0.35, 0.2, 0.1])
    labels = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    probabilities = np.stack([1 - probability, probability], axis=1)
    arguments = (labels, probabilities, (probability >= 0.5).astype(int), [""] * 10)
    given = evaluate(*arguments, **TWO, prevalence=0.1).prevalence
    assert given.value == 0.1
    assert given.ppv.value == pytest.approx(75 / 375)
    assert given.npv.value == pytest.approx(600 / 625)
    assert given.ppv.low < 0.2 < given.ppv.high
    as_sampled = evaluate(*arguments, **TWO, prevalence=0.4)
    assert as_sampled.prevalence.ppv.value == pytest.approx(as_sampled.metrics["ppv"].value)
    assert evaluate(*arguments, **TWO).prevalence is None


# --- calibration ---


def test_calibration_bins_equal_those_of_scikit_learn():
    labels, probabilities, predicted, patients = two_classes(n=997, decimals=12)
    calibration = evaluate(labels, probabilities, predicted, patients, **TWO).calibration
    fraction, mean = calibration_curve(labels, probabilities[:, 1], n_bins=10, strategy="quantile")
    assert (calibration.n_bins, calibration.binning) == (10, "equal mass")
    assert [row.fraction_positive for row in calibration.bins] == pytest.approx(fraction.tolist())
    assert [row.mean_probability for row in calibration.bins] == pytest.approx(mean.tolist())
    assert {row.images for row in calibration.bins} == {99, 100}


def test_equal_probabilities_share_a_bin():
    probability = np.array([0.25] * 20 + [0.75] * 4)
    labels = np.array([0] * 15 + [1] * 5 + [1] * 4)
    probabilities = np.stack([1 - probability, probability], axis=1)
    report = evaluate(labels, probabilities, labels, [""] * 24, **TWO)
    assert report.calibration.bins == [CalibrationBin(0.25, 0.25, 20), CalibrationBin(0.75, 1.0, 4)]
    assert report.calibration.n_bins == 2
    assert report.metrics["ece"].value == pytest.approx(0.25 * 4 / 24)


def test_a_perfect_calibration_has_an_error_of_0():
    probability = np.repeat([0.25, 0.75], 400)
    labels = np.tile([1, 0, 0, 0], 100).tolist() + np.tile([1, 1, 1, 0], 100).tolist()
    probabilities = np.stack([1 - probability, probability], axis=1)
    assert evaluate(labels, probabilities, labels, [""] * 800, **TWO).metrics["ece"].value == 0.0


def test_the_error_of_calibration_has_an_upper_bound_from_50_patients():
    arguments = two_classes(n=2000, n_patients=50)
    ece = evaluate(*arguments, **TWO).metrics["ece"]
    assert ece.low is None
    assert ece.value < ece.high < 3 * ece.value
    assert ece.reason == "only an upper bound: noise makes it too large, never too small"
    ece = evaluate(*two_classes(n=2000, n_patients=49), **TWO).metrics["ece"]
    assert (ece.low, ece.high) == (None, None)
    assert ece.reason == "no bound below 50 patients: most of it may be noise"


def test_a_sure_and_wrong_probability_costs_what_it_does_in_scikit_learn():
    labels, probabilities = np.array([1, 0, 1]), np.array([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5]])
    report = evaluate(labels, probabilities, [0, 0, 1], [""] * 3, **TWO)
    assert report.metrics["log_loss"].value == pytest.approx(sk.log_loss(labels, probabilities))


# --- patients ---


def test_the_table_of_patients_by_hand():
    labels = np.array([0, 1, 1, 0, 0, 1])
    probability = np.array([0.6, 0.7, 0.2, 0.1, 0.3, 0.9])
    patients = ["b", "b", "b", "a", "a", ""]
    probabilities = np.stack([1 - probability, probability], axis=1)
    report = evaluate(labels, probabilities, (probability >= 0.5).astype(int), patients, **TWO)
    assert report.patients == [
        TwoClassPatientRow("a", 2, tp=0, fp=0, tn=2, fn=0, accuracy=1.0, sensitivity=None, specificity=1.0, auroc=None),
        TwoClassPatientRow("b", 3, tp=1, fp=1, tn=0, fn=1, accuracy=1 / 3, sensitivity=0.5, specificity=0.0, auroc=0.5),
    ]
    accuracy = report.patient_spread["accuracy"]
    assert (accuracy.median, accuracy.q1, accuracy.q3) == pytest.approx((2 / 3, 1 / 2, 5 / 6))
    assert (accuracy.min, accuracy.max, accuracy.patients) == (1 / 3, 1.0, 2)
    only_b = Spread(0.5, 0.5, 0.5, 0.5, 0.5, patients=1)
    assert report.patient_spread["sensitivity"] == report.patient_spread["auroc"] == only_b


def test_patients_equal_their_own_evaluation():
    labels, probabilities, predicted, patients = two_classes()
    for row in evaluate(labels, probabilities, predicted, patients, **TWO).patients:
        own = np.array(patients) == row.patient
        assert row.auroc == pytest.approx(sk.roc_auc_score(labels[own], probabilities[own, 1]))
        assert row.sensitivity == pytest.approx(sk.recall_score(labels[own], predicted[own]))
        assert [[row.tn, row.fp], [row.fn, row.tp]] == sk.confusion_matrix(labels[own], predicted[own]).tolist()


def test_with_more_classes_a_patient_has_its_share_of_right_images():
    labels, probabilities = np.array([0, 1, 2]), np.eye(3)
    report = evaluate(labels, probabilities, np.array([0, 1, 1]), ["a", "b", "b"], **THREE)
    assert report.patients == [PatientRow("a", 1, 1, 1.0), PatientRow("b", 2, 1, 0.5)]
    assert list(report.patient_spread) == ["accuracy"]
    assert report.confusion_matrix == [[1, 0, 0], [0, 1, 0], [0, 1, 0]]


def test_unknown_patients_give_intervals_over_images_and_no_table():
    labels, probabilities, predicted, _ = two_classes()
    report = evaluate(labels, probabilities, predicted, [""] * len(labels), **TWO)
    assert report.interval == Interval(0.95, "images", 400)
    assert report.patients == []
    assert report.patient_spread["auroc"] == Spread(None, None, None, None, None, patients=0)
    assert evaluate(*two_classes(), **TWO).interval == Interval(0.95, "patients", 12)


# --- intervals ---


@pytest.mark.parametrize("by_patient", [True, False])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_weighted_metrics_equal_those_of_repeated_images(n_classes, by_patient):
    labels, probabilities, predicted, patients = two_classes(n=150) if n_classes == 2 else three_classes(n=150)
    stated = probabilities[:, 1] if n_classes == 2 else probabilities.max(axis=1)
    predictions = predictions_of(labels, probabilities, predicted, patients if by_patient else [""] * 150)
    images = EvaluatedImages.of(predictions, **TWO if n_classes == 2 else THREE)
    weights = np.random.default_rng(5).integers(4, size=(8, images.n_groups)).astype(float)
    weighted = WeightedImages(images, weights)
    for number, row in enumerate(weights):
        chosen = np.repeat(np.arange(150), row.astype(int)[images.groups])
        if n_classes == 2:
            arguments = labels[chosen], stated[chosen], predicted[chosen], tenths(stated)
            expected = sklearn_two_class_figures(*arguments)
        else:
            arguments = labels[chosen], probabilities[chosen], predicted[chosen], tenths(stated)
            expected = sklearn_three_class_figures(*arguments)
        found = {name: METRICS[name].compute(weighted)[number] for name in expected}
        assert found == pytest.approx(expected, rel=1e-9)


def test_the_same_input_gives_the_same_report():
    assert evaluate(*two_classes(), **TWO) == evaluate(*two_classes(), **TWO)


def test_an_interval_is_students_t_on_the_logit_of_the_jackknife_by_hand():
    # Six patients of four images of class 1 each. Leaving one out, of 20 are found 14, 15 or 16.
    found = [4, 3, 3, 3, 3, 2]
    labels = np.array([1, 1, 1, 1, 0] * 6)
    predicted = np.concatenate([[1] * n + [0] * (4 - n) + [0] for n in found])
    probabilities = np.stack([1 - predicted, predicted], axis=1) * 0.8 + 0.1
    patients = np.repeat(list("abcdef"), 5)
    sensitivity = evaluate(labels, probabilities, predicted, patients, **TWO).metrics["sensitivity"]
    # deviations 0.05, 0, 0, 0, 0, -0.05: standard error sqrt(5 / 6 * 0.005) = 0.06455, over 18 * 6 / 24^2
    # effective patients 0.1^2 / 0.005 * pi / 2 = 3.1416; Student's t of 2.1416 degrees of freedom: 4.0412
    half = 4.0412 * 0.064550 / 0.1875
    assert sensitivity.value == 0.75
    expected = [1 / (1 + np.exp(-(np.log(3) + sign * half))) for sign in (-1, 1)]
    assert [sensitivity.low, sensitivity.high] == pytest.approx(expected, abs=1e-4)


def test_every_interval_holds_its_value():
    report = evaluate(*two_classes(), **TWO, prevalence=0.2)
    given = [report.prevalence.ppv, report.prevalence.npv]
    assert report.metrics.pop("ece").low is None
    for metric in [*report.metrics.values(), *given]:
        assert metric.low <= metric.value <= metric.high
        assert metric.low < metric.high


# --- undefined ---


def reasons(report) -> dict:
    return {name: metric.reason for name, metric in report.metrics.items() if metric.value is None}


def test_one_class_only_leaves_undefined_what_needs_the_other():
    probabilities = np.array([[0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    report = evaluate([0, 0, 0], probabilities, [0, 1, 0], ["a", "b", "c"], **TWO, prevalence=0.1)
    missing = "no image of class 1"
    names = ("sensitivity", "lr_positive", "lr_negative", "balanced_accuracy", "auroc", "auprc")
    names += ("calibration_slope", "calibration_intercept")
    assert reasons(report) == dict.fromkeys(names, missing) | {"mcc": "all images are of one class"}
    assert report.metrics["specificity"].value == pytest.approx(2 / 3)
    assert report.metrics["precision"].value == 0.0  # one was called, wrongly: that is defined
    assert report.prevalence.ppv == Estimate(None, None, None, missing)
    assert report.per_class["0"].auroc.reason == missing
    assert report.per_class["0"].specificity.reason == missing
    json.dumps(as_json(report), allow_nan=False)


def test_no_image_called_positive():
    probabilities = np.array([[0.8, 0.2], [0.7, 0.3], [0.6, 0.4], [0.9, 0.1]])
    report = evaluate([0, 1, 1, 0], probabilities, [0, 0, 0, 0], ["a", "b", "c", "d"], **TWO)
    assert reasons(report) == {
        "precision": "no image was classified as class 1",
        "ppv": "no image was classified as class 1",
        "lr_positive": "specificity is 1, so the ratio divides by zero",
        "calibration_slope": "the classes' probabilities do not overlap, so no finite slope fits",
        "mcc": "all images were classified as one class",
    }
    assert report.metrics["f1"].value == 0.0
    assert report.metrics["lr_negative"].value == 1.0


def test_every_image_called_positive():
    probabilities = np.array([[0.2, 0.8], [0.3, 0.7], [0.4, 0.6], [0.1, 0.9]])
    report = evaluate([0, 1, 1, 0], probabilities, [1, 1, 1, 1], ["a", "b", "c", "d"], **TWO)
    assert reasons(report) == {
        "npv": "no image was classified as class 0",
        "lr_negative": "specificity is 0, so the ratio divides by zero",
        "calibration_slope": "the classes' probabilities do not overlap, so no finite slope fits",
        "mcc": "all images were classified as one class",
    }


def test_one_class_and_the_other_never_called():
    report = evaluate([0, 0], np.array([[0.9, 0.1], [0.8, 0.2]]), [0, 0], ["a", "b"], **TWO)
    assert reasons(report)["f1"] == "no image of class 1 and none classified as it"
    assert reasons(report)["precision"] == "no image was classified as class 1"


def test_a_class_without_images_among_three():
    labels, probabilities = np.array([0, 1, 0, 1]), np.array([[6, 3, 1], [2, 7, 1], [4, 5, 1], [1, 8, 1]]) / 10
    report = evaluate(labels, probabilities, probabilities.argmax(axis=1), ["a", "b", "c", "d"], **THREE)
    missing = "no image of class normal"
    expected = dict.fromkeys(("balanced_accuracy", "macro_sensitivity", "auroc"), missing)
    expected["macro_precision"] = "no image was classified as class normal"
    expected["macro_f1"] = missing
    assert reasons(report) == expected
    assert report.metrics["weighted_precision"].value == pytest.approx((1 + 2 / 3) / 2)
    assert report.per_class["normal"].sensitivity.reason == missing
    assert report.per_class["normal"].images == 0


@pytest.mark.parametrize("n_patients", [1, 5])
def test_few_patients_have_values_but_no_interval(n_patients):
    labels, probabilities, predicted, _ = two_classes()
    patients = [f"p{number % n_patients}" for number in range(len(labels))]
    report = evaluate(labels, probabilities, predicted, patients, **TWO)
    for metric in report.metrics.values():
        assert metric.value is not None
        assert (metric.low, metric.high) == (None, None)
        assert metric.reason == "too few patients for an interval"


def test_few_images_of_unknown_patients_have_no_interval_either():
    labels, probabilities, predicted, _ = two_classes(n=5)
    report = evaluate(labels, probabilities, predicted, [""] * 5, **TWO)
    assert report.metrics["brier"].reason == "too few images for an interval"


@pytest.mark.parametrize(("patients", "groups"), [([""] * 20, 16), ([f"p{n % 4}" for n in range(20)], 4)])
def test_a_share_of_0_or_1_has_the_exact_interval_over_the_patients_or_images_that_it_is_of(patients, groups):
    labels = np.array([1] * 16 + [0] * 4)
    report = evaluate(labels, np.full((20, 2), 0.5), np.ones(20, int), patients, **TWO)
    # Clopper-Pearson: all of n leaves a share whose n-th power is 0.025: 0.794 of 16
    low, high = 0.025 ** (1 / groups), 1 - 0.025 ** (1 / 4)  # four benign images, of one patient each
    assert report.metrics["sensitivity"] == Estimate(1.0, pytest.approx(low), 1.0)
    assert report.per_class["0"].specificity == report.metrics["sensitivity"]
    assert report.metrics["specificity"] == Estimate(0.0, 0.0, pytest.approx(high))
    assert report.metrics["npv"].reason == "no image was classified as class 0"
    (point,) = evaluate_points(
        predictions_of(labels, np.full((20, 2), 0.5), [1] * 20, patients), {"all": np.ones(20, int)}, **TWO
    ).values()
    assert point.sensitivity == report.metrics["sensitivity"]


def test_of_many_classes_accuracy_and_rates_of_1_have_exact_intervals():
    labels = np.array([0, 1, 2, 2])
    report = evaluate(
        labels, np.full((4, 3), 1 / 3), labels, ["a", "b", "c", "d"], classes=["x", "y", "z"], positive=None
    )
    assert report.metrics["accuracy"].low == pytest.approx(0.025 ** (1 / 4))
    assert report.per_class["z"].precision.low == pytest.approx(0.025 ** (1 / 2))


def test_a_figure_that_never_changes_and_is_no_share_has_no_interval():
    labels, probabilities, _, patients = two_classes()
    report = evaluate(labels, probabilities, labels, patients, **TWO)
    assert report.metrics["f1"] == Estimate(1.0, None, None, "interval not estimable: all patients have the same value")


def test_a_class_of_one_patient_alone_has_no_interval():
    labels, probabilities, predicted, patients = two_classes()
    labels = np.where(np.array(patients) == "p03", labels, 0)
    metrics = evaluate(labels, probabilities, predicted, patients, **TWO).metrics
    assert metrics["auroc"].reason == "no interval: without some of the patients, one class has no image"
    assert metrics["specificity"].low < metrics["specificity"].value < metrics["specificity"].high


# --- bad input ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [], "predicted": [], "patients": [], "probabilities": np.zeros((0, 2))}, "No images to evaluate"),
        ({"probabilities": [[0.5, np.nan], [0.5, 0.5]]}, "A probability is not between 0 and 1"),
        ({"probabilities": [[-0.5, 1.5], [0.5, 0.5]]}, "A probability is not between 0 and 1"),
        ({"positive": None}, "positive class None does not match the classes 0, 1"),
        ({"positive": "x"}, "positive class 'x' does not match the classes 0, 1"),
        (
            {"prevalence": 1.0},
            r"Prevalence 1\.0 cannot be used: it needs two classes \(2 here\) and a value",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_refused(change, message):
    arguments = {"labels": [0, 1], "probabilities": [[0.7, 0.3], [0.2, 0.8]], "predicted": [0, 1]}
    with pytest.raises(InputError, match=message):
        evaluate(**(arguments | {"patients": ["a", "b"]} | TWO | change))


def test_a_prevalence_for_more_than_two_classes_is_refused():
    with pytest.raises(InputError, match=r"Prevalence 0\.1 cannot be used: it needs two classes \(3 here\)"):
        evaluate(*three_classes(), **THREE, prevalence=0.1)


# --- speed ---


@pytest.mark.slow
@pytest.mark.parametrize("n_patients", [279, 55_000])
def test_the_intervals_of_55000_images_are_quick(n_patients):
    random = np.random.default_rng(0)
    arguments = two_classes(n=55_000, decimals=12)[:3]
    patients = [str(i) for i in random.integers(279, size=55_000)] if n_patients == 279 else [""] * 55_000
    start = time.perf_counter()
    evaluate(*arguments, patients, **TWO)
    assert time.perf_counter() - start < 15  # 1.2 and 2.4 s on two idle cores


def test_memory_does_not_grow_with_the_parts_left_out():
    labels, probabilities, predicted, _ = two_classes(n=20_000, decimals=12)
    tracemalloc.start()
    evaluate(labels, probabilities, predicted, [""] * 20_000, **TWO)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60e6  # bytes; all parts at once would be 160 MB an array


# --- several thresholds ---


def test_the_rates_of_each_threshold_by_hand():
    predictions = predictions_of([0, 0, 0, 1, 1], np.full((5, 2), 0.5), [0] * 5, ["a", "a", "b", "b", "b"])
    decided = {"low": np.array([0, 1, 1, 1, 1]), "high": np.array([0, 0, 0, 0, 0])}
    found = evaluate_points(predictions, decided, **TWO)
    # 2 detected, none missed, 2 false alarms, 1 correctly negative
    low = found["low"]
    assert (low.sensitivity.value, low.specificity.value, low.ppv.value) == pytest.approx((1, 1 / 3, 1 / 2))
    assert (low.f1.value, low.balanced_accuracy.value) == pytest.approx((2 / 3, 2 / 3))
    assert low.ppv.reason == "too few patients for an interval"
    assert found["high"].ppv == Estimate(None, None, None, "no image was classified as class 1")
    assert found["high"].specificity.value == 1


@pytest.mark.parametrize("positive", ["0", "1"])
def test_a_threshold_has_the_rates_and_intervals_of_an_evaluation(positive):
    predictions = predictions_of(*two_classes())
    settings = {"classes": ("0", "1"), "positive": positive}
    metrics = evaluation.evaluate(predictions, **settings).metrics
    (point,) = evaluate_points(predictions, {"it": predictions.predicted}, **settings).values()
    for rate, estimate in vars(point).items():
        assert estimate == metrics[rate]


# --- a new metric ---


def test_a_metric_is_one_entry(monkeypatch):
    def youden(weighted):
        return weighted.of_positive("sensitivity") + weighted.of_positive("specificity") - 1

    entry = Metric("youden", "Youden's J", "sensitivity + specificity - 1", youden, classes="two", scale=CORRELATION)
    monkeypatch.setitem(METRICS, "youden", entry)
    report = evaluate(*two_classes(), **TWO)
    found, metrics = report.metrics["youden"], report.metrics
    assert found.value == pytest.approx(metrics["sensitivity"].value + metrics["specificity"].value - 1)
    assert found.low < found.value < found.high
    assert "youden" not in evaluate(*three_classes(), **THREE).metrics
    predictions = predictions_of(*two_classes())
    (differences,) = compare_figures([predictions, predictions], **TWO)
    assert differences["youden"].value == 0


def test_net_benefit_by_hand():
    probability = [0.12, 0.32, 0.62, 0.1, 0.15, 0.25, 0.4, 0.05, 0.05, 0.05]
    predictions = two_class_predictions([1, 1, 1, *[0] * 7], probability, [f"p{row}" for row in range(10)])
    found = evaluation.evaluate(predictions, classes=["0", "1"], positive="1")
    curve = {each.threshold: each for each in found.decision_curve}
    expected = {  # true positives / 10 - false positives / 10 * odds of the threshold; all: 3 and 7 of 10
        0.05: (0.3 - 0.7 / 19, 0.3 - 0.7 / 19, 0),
        0.2: (0.2 - 0.2 / 4, 0.3 - 0.7 / 4, 0.025),
        0.5: (0.1, 0.3 - 0.7, 0.1),  # none is better than all
    }
    for threshold, values in expected.items():
        row = curve[threshold]
        assert (row.model.value, row.all_positive, row.gain.value) == pytest.approx(values), threshold
    # one image in ten counts 1, the others 0: standard error sqrt(0.9 / 90), effective number 1.8^2 / 0.9 * pi / 2
    half = stats.t.ppf(0.975, 1.8**2 / 0.9 * np.pi / 2 - 1) * 0.1
    assert (curve[0.5].model.low, curve[0.5].model.high) == pytest.approx((0.1 - half, 0.1 + half))
    assert [number for number, images in enumerate(found.distribution["1"]) if images] == [2, 6, 12]
    assert [sum(counts) for counts in found.distribution.values()] == [7, 3]


def test_needed_patients_are_those_with_images_that_a_share_is_of():
    labels, probabilities, predicted, patients = two_classes()
    labels = np.where(np.isin(patients, ["p01", "p02", "p03"]), 0, labels)  # 9 of 12 patients have class 1
    report = evaluate(labels, probabilities, predicted, patients, **TWO)
    for name, number in {"sensitivity": 9, "specificity": 12, "auroc": 12}.items():
        metric = report.metrics[name]
        assert metric.needed == round(number * (10 * (metric.high - metric.low)) ** 2)
    assert report.per_class["1"].sensitivity == report.metrics["sensitivity"]
    assert {report.metrics[name].needed for name in ("mcc", "log_loss", "ece", "calibration_slope")} == {None}


def test_a_share_of_1_needs_an_unknown_number_of_patients():
    labels, probabilities, _, patients = two_classes()
    report = evaluate(labels, probabilities, labels, patients, **TWO)
    assert report.metrics["sensitivity"].low < 1
    assert report.metrics["sensitivity"].needed is None
