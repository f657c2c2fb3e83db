"""Calibration and threshold: fitted on validation, kept as JSON, applied the same everywhere."""

import dataclasses
import json
import math

import numpy as np
import pytest
from made_up_predictions import fit_arrays
from scipy.special import softmax

from cancernet import InputError, StorageError, TrainingDiverged
from cancernet.data.dataset import Patch
from cancernet.evaluation.decision import (
    OTHER_POINTS,
    Decision,
    FittedOn,
    ValidationRates,
    calibrate,
    decide,
    decide_otherwise,
    expected_rates,
    fit_decision,
    load_decision,
    measure_certainty,
    parse_operating_point,
    save_decision,
)
from cancernet.evaluation.predictions import Scores

CLASSES = ("0", "1")


def scores_of(probability_of_1) -> np.ndarray:
    p = np.asarray(probability_of_1, dtype=float)
    return np.log(np.stack([1 - p, p], axis=1))


def fit(probability_of_1, labels, **settings) -> Decision:
    settings = {"classes": CLASSES, "positive": "1"} | settings
    return fit_arrays(scores_of(probability_of_1), np.array(labels), ["p"] * len(labels), **settings)


# Four images of each class; one benign image lies among the IDC ones, one IDC image among the benign.
# Fitting the temperature moves the probabilities, but not their order: thresholds are checked by what they let through.
PROBABILITY = [0.05, 0.10, 0.20, 0.70, 0.15, 0.60, 0.80, 0.90]
LABELS = [0, 0, 0, 0, 1, 1, 1, 1]


def calls(decision: Decision, probability=PROBABILITY) -> list[int]:
    return decide(decision, calibrate(decision, scores_of(probability))).tolist()


# --- temperature ---


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_that_scaled_the_logits_is_recovered(n_classes, temperature):
    random = np.random.default_rng(3)
    logits = random.normal(scale=2, size=(20_000, n_classes))
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (random.random((len(true), 1)) > true.cumsum(axis=1)).sum(axis=1)
    scaled = logits * temperature
    scores = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    classes = tuple("abcd"[:n_classes])
    positive = "b" if n_classes == 2 else None
    decision = fit_arrays(scores, labels, [""] * len(labels), classes=classes, positive=positive)
    assert decision.temperature == pytest.approx(temperature, rel=0.04)
    np.testing.assert_allclose(calibrate(decision, scores), true, atol=0.02)


def test_separated_validation_leaves_the_temperature_finite():
    assert 0.5 < fit([0.1, 0.4, 0.6, 0.9], [0, 0, 1, 1]).temperature < 2


def test_the_class_weights_are_those_of_the_positive_class():
    settings = {"log_class_weight": np.log(4)}
    assert fit(PROBABILITY, LABELS, **settings).bias[1] < fit(PROBABILITY, LABELS).bias[1] - 0.5
    assert fit(PROBABILITY, LABELS, positive="0", **settings).bias[1] > fit(PROBABILITY, LABELS).bias[1] + 0.5


@pytest.mark.parametrize("temperature", [0.05, 0.7, 3.0, 40.0])
def test_calibration_never_swaps_two_images(temperature):
    logits = np.random.default_rng(1).normal(scale=25, size=(5000, 2)).astype(np.float32)
    softmax = np.exp(logits - logits.max(axis=1, keepdims=True))
    softmax /= softmax.sum(axis=1, keepdims=True)
    scores = np.log(np.maximum(softmax, np.finfo(np.float32).tiny).astype(np.float64))
    decision = dataclasses.replace(fit(PROBABILITY, LABELS), temperature=temperature)
    by_log_odds = np.argsort(scores[:, 1] - scores[:, 0], kind="stable")
    calibrated = calibrate(decision, scores)[by_log_odds]
    assert (np.diff(calibrated[:, 1]) >= 0).all()
    assert (np.diff(calibrated[:, 0]) <= 0).all()
    assert len(np.unique(calibrated[:, 1])) > 100
    np.testing.assert_allclose(calibrated.sum(axis=1), 1)


def test_calibrated_probabilities_by_hand():
    decision = dataclasses.replace(fit(PROBABILITY, LABELS), temperature=2.0, bias=(0.0, 0.0))
    # log-odds of 0.8 are log 4; halved they are log 2: 2 to 1
    np.testing.assert_allclose(calibrate(decision, scores_of([0.8])), [[1 / 3, 2 / 3]])


def test_scores_of_another_number_of_classes_are_refused():
    with pytest.raises(InputError, match=r"shape \[1, 3\] do not match the decision's 2 classes \(0, 1\)"):
        calibrate(fit(PROBABILITY, LABELS), np.zeros((1, 3)))


# --- operating points ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("balanced", ("balanced", math.nan)),
        ("sensitivity=0.95", ("sensitivity", 0.95)),
        (" specificity = 1 ", ("specificity", 1.0)),
        ("0.5", ("threshold", 0.5)),
    ],
)
def test_operating_points_that_are_understood(text, expected):
    assert parse_operating_point(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "best", "0", "1", "1.5", "-0.2", "nan", "sensitivity", "sensitivity=", "sensitivity=0", "=0.5"),
        *("specificity=1.2", "specificity=nan", "balanced=0.5", "accuracy=0.9", "sensitivity=0.9=0.9", "０.５"),
    ],
)
def test_other_operating_points_are_refused(text):
    with pytest.raises(InputError, match=r"Unknown operating point .* Give balanced, sensitivity=0\.95"):
        parse_operating_point(text)


def test_balanced_is_the_share_of_the_positive_class_that_the_probabilities_expect():
    decision = fit(PROBABILITY, LABELS)
    expected = calibrate(decision, scores_of(PROBABILITY))[:, 1].mean()
    assert decision.threshold == pytest.approx(expected)
    # many patients outvote what is expected beforehand: it is the share seen, 2 of 8
    patients = [str(number) for number in range(8000)]
    scores, labels = scores_of([0.1, 0.2, 0.3, 0.35, 0.5, 0.55, 0.4, 0.9] * 1000), np.array(([0] * 6 + [1] * 2) * 1000)
    decision = fit_arrays(scores, labels, patients, classes=CLASSES, positive="1")
    assert decision.threshold == pytest.approx(0.25, abs=1e-3)


def test_balanced_has_the_highest_balanced_accuracy_that_the_probabilities_expect():
    decision = fit(PROBABILITY, LABELS)
    p = calibrate(decision, scores_of(PROBABILITY))[:, 1]

    def expected(threshold):
        return p[p >= threshold].sum() / p.sum() + (1 - p)[p < threshold].sum() / (1 - p).sum()

    assert expected(decision.threshold) == max(expected(threshold) for threshold in [*p, decision.threshold, 1.0])


def test_balanced_lies_between_classes_that_are_apart():
    decision = fit([0.1, 0.3, 0.8, 0.9], [0, 0, 1, 1])
    assert 0.45 < decision.threshold < 0.6
    assert decision.expected_on_validation == ValidationRates(1.0, 1.0)


@pytest.mark.parametrize(
    ("operating_point", "sensitivity", "specificity", "called"),
    [
        # the highest threshold that lets 3 of 4 IDC through lies between 0.20 and 0.60
        ("sensitivity=0.75", 0.75, 0.75, [0, 0, 0, 1, 0, 1, 1, 1]),
        ("sensitivity=0.76", 1.0, 0.5, [0, 0, 1, 1, 1, 1, 1, 1]),
        ("sensitivity=0.5", 0.5, 1.0, [0, 0, 0, 0, 0, 0, 1, 1]),
        ("specificity=0.75", 0.75, 0.75, [0, 0, 0, 1, 0, 1, 1, 1]),
        ("specificity=0.76", 0.5, 1.0, [0, 0, 0, 0, 0, 0, 1, 1]),
        ("specificity=0.5", 1.0, 0.5, [0, 0, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_a_sensitivity_or_specificity_asked_for_by_hand(operating_point, sensitivity, specificity, called):
    decision = fit(PROBABILITY, LABELS, operating_point=operating_point)
    assert decision.operating_point == operating_point
    assert decision.expected_on_validation == ValidationRates(sensitivity, specificity)
    assert calls(decision) == called


def test_of_all_thresholds_for_a_sensitivity_the_highest_between_two_images_is_taken():
    # separated: between 0.6 (needed) and 0.3 (the next below); the benign 0.3 bounds it, not the IDC image alone
    told = [0.1, 0.3, 0.6, 0.9]
    for point, lower, upper in (
        *(("sensitivity=1", 0.3, 0.6), ("sensitivity=0.5", 0.6, 0.9)),
        *(("specificity=1", 0.3, 0.6), ("specificity=0.5", 0.1, 0.3)),
    ):
        decision = fit(told, [0, 0, 1, 1], operating_point=point)
        ends = calibrate(decision, scores_of([lower, upper]))[:, 1]
        assert decision.threshold == pytest.approx(ends.mean())


@pytest.mark.parametrize("share", [0.55, 0.95, 0.9, 0.7])
def test_a_share_that_can_be_met_exactly_is_not_missed_by_rounding(share):
    positives = np.linspace(0.51, 0.99, 100)
    labels = [1] * 100 + [0]
    decision = fit([*positives, 0.1], labels, operating_point=f"sensitivity={share}")
    assert decision.expected_on_validation.sensitivity == share


def test_a_number_is_the_threshold_itself_and_equal_is_positive():
    decision = fit(PROBABILITY, LABELS, operating_point="0.7")
    assert decision.threshold == 0.7
    assert decide(decision, np.array([[0.3, 0.7], [0.31, 0.69]])).tolist() == [1, 0]


def test_a_specificity_only_reached_by_calling_nothing_positive():
    decision = fit([0.9, 0.2, 0.6], [0, 0, 1], operating_point="specificity=1")
    assert decision.expected_on_validation == ValidationRates(0.0, 1.0)
    surest = calibrate(decision, scores_of([0.9]))[0, 1]
    assert decision.threshold == pytest.approx((surest + 1) / 2)


def test_neighbouring_floating_point_numbers_are_still_told_apart():
    low = 0.5
    high = np.nextafter(low, 1)
    decision = dataclasses.replace(fit([low, high], [0, 1], operating_point="sensitivity=1"), temperature=1.0)
    assert decision.expected_on_validation == ValidationRates(1.0, 1.0)


def test_the_positive_class_may_be_the_first():
    classes = ("cancer", "normal")
    decision = fit(PROBABILITY, LABELS, classes=classes, positive="cancer", operating_point="sensitivity=1")
    # probability of cancer is 1 - p; 0.70 is the least sure cancer image, so 0.60 (normal) is called cancer too
    assert calls(decision) == [0, 0, 0, 0, 0, 0, 1, 1]
    assert decision.expected_on_validation == ValidationRates(1.0, 0.5)


def test_more_than_two_classes_take_the_most_probable():
    scores = np.log([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.4, 0.35, 0.25]])
    decision = fit_arrays(scores, [0, 1, 2], ["a", "a", ""], classes="abc", positive=None)
    assert (decision.threshold, decision.expected_on_validation, decision.curve) == (None, None, None)
    decision = dataclasses.replace(decision, bias=(0.0, 0.0, 0.0))
    assert decide(decision, calibrate(decision, scores)).tolist() == [0, 1, 0]
    decision = dataclasses.replace(decision, bias=(0.0, 0.0, 2.0))
    assert decide(decision, calibrate(decision, scores)).tolist() == [2, 2, 2]


# --- other points ---


def test_other_points_by_hand():
    decision = fit(PROBABILITY, LABELS)
    assert list(decision.other_points) == list(OTHER_POINTS)
    assert decision.other_points["most probable class"] == 0.5
    for name in ("sensitivity=0.95", "specificity=0.95"):
        assert decision.other_points[name] == fit(PROBABILITY, LABELS, operating_point=name).threshold
    # of 0.05 0.10 0.15+ 0.20 0.60+ 0.70 0.80+ 0.90+: F1 is 2 * 4 / (8 + 2) from 0.15 on, 2 * 3 / (6 + 2) from 0.60 on
    assert calls(decide_otherwise(decision, "highest F1")) == [0, 0, 1, 1, 1, 1, 1, 1]
    assert expected_rates(decision, decision.other_points["highest F1"]) == ValidationRates(1.0, 0.5)


def test_another_point_is_that_of_each_decision_with_and_without_neighbours():
    alone = fit(PROBABILITY, LABELS)
    other = dataclasses.replace(alone, other_points={"highest F1": 0.9}, without_neighbours=alone)
    changed = decide_otherwise(other, "highest F1")
    assert changed.threshold == 0.9
    assert changed.without_neighbours.threshold == alone.other_points["highest F1"]


def test_more_than_two_classes_have_no_other_points():
    decision = fit_arrays(np.log(np.full((3, 3), 1 / 3)), [0, 1, 2], [""] * 3, classes="abc", positive=None)
    assert decision.other_points is None


# --- what is recorded ---


def test_what_it_was_fitted_on_is_recorded():
    patients = ["a", "a", "b", "", "a", "b", "c", ""]
    decision = fit_arrays(scores_of(PROBABILITY), LABELS, patients, classes=CLASSES, positive="1")
    assert decision.fitted_on == FittedOn(images=8, patients=3)
    assert decision.neighbour_sigma == 0
    unknown = fit_arrays(scores_of(PROBABILITY), LABELS, [""] * 8, classes=CLASSES, positive="1")
    assert unknown.fitted_on == FittedOn(images=8, patients=None)


def test_predictions_of_training_images_are_recorded_as_out_of_fold():
    split_of = ("training", "validation", "training", "validation")
    patches = [Patch(f"{n}.png", str(n % 2), "a", None, None, split, "") for n, split in enumerate(split_of)]
    fitted = fit_decision(Scores(patches, scores_of([0.2, 0.8, 0.3, 0.6])), classes=CLASSES, positive="1")
    assert fitted.fitted_on == FittedOn(4, 1, out_of_fold=True)


def test_expected_rates_follow_a_moving_threshold():
    decision = fit([0.101, 0.303, 0.802, 0.903], [0, 1, 0, 1])
    assert expected_rates(decision, decision.threshold) == decision.expected_on_validation
    assert expected_rates(decision, 0.0) == ValidationRates(1.0, 0.0)
    assert expected_rates(decision, 1.0) == ValidationRates(0.0, 1.0)
    calibrated = calibrate(decision, scores_of([0.101, 0.303, 0.802, 0.903]))[:, 1]
    for threshold in np.arange(0, 1, 0.005):
        called = (calibrated >= threshold).astype(int)
        rates = expected_rates(decision, threshold)
        assert rates.sensitivity == pytest.approx((called[1] + called[3]) / 2)
        assert rates.specificity == pytest.approx(1 - (called[0] + called[2]) / 2)


# --- bad input to the fit ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [1, 1, 1], "n": 3}, "All 3 validation images are of class 1; .* Build the dataset again"),
        ({"labels": [], "n": 0}, "No validation images to fit the decision on"),
        ({"positive": None}, "positive class None does not match the classes 0, 1"),
        ({"positive": "tumour"}, "positive class 'tumour' does not match the classes 0, 1"),
        ({"operating_point": "most"}, "Unknown operating point 'most'"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change, message):
    settings = {"classes": CLASSES, "positive": "1", "labels": [0, 1, 1], "n": 3} | change
    n, labels = settings.pop("n"), settings.pop("labels")
    with pytest.raises(InputError, match=message):
        fit_arrays(scores_of([0.3, 0.6, 0.9][:n]), labels, ["a"] * len(labels), **settings)


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(TrainingDiverged, match="not all finite numbers"):
        fit_arrays(np.array([[np.nan, 0], [0, 0]]), [0, 1], ["", ""], classes=CLASSES, positive="1")


def test_a_threshold_for_more_than_two_classes_is_refused():
    with pytest.raises(InputError, match=r"sensitivity=0\.9 needs two classes, and there are 3 \(a, b, c\)"):
        fit_arrays(np.zeros((2, 3)), [0, 1], ["", ""], classes="abc", positive=None, operating_point="sensitivity=0.9")


# --- JSON ---


@pytest.mark.parametrize("positive", ["1", None])
def test_a_saved_decision_is_read_back_the_same(tmp_path, positive):
    if positive:
        decision = fit(PROBABILITY, LABELS, operating_point="specificity=0.75")
        decision = dataclasses.replace(decision, neighbour_sigma=1.5)
    else:
        decision = fit_arrays(
            np.log(np.full((3, 3), 1 / 3)), [0, 1, 2], [""] * 3, classes=["é", "b", "c"], positive=None
        )
    path = tmp_path / "decision.json"
    save_decision(decision, path)
    assert load_decision(path) == decision
    assert [file.name for file in tmp_path.iterdir()] == ["decision.json"]
    save_decision(decision, path)  # over an old one
    assert json.loads(path.read_text(encoding="utf-8"))["classes"] == list(decision.classes)


def test_a_missing_decision_is_named(tmp_path):
    with pytest.raises(InputError, match=r"There is no .*decision\.json\. Train again"):
        load_decision(tmp_path / "decision.json")


@pytest.mark.parametrize("content", [b"", b'{"classes": ["0", "1"', b"\xff\xfe\x00"])
def test_a_broken_file_is_named(tmp_path, content):
    path = tmp_path / "decision.json"
    path.write_bytes(content)
    with pytest.raises(StorageError, match=r"decision\.json is damaged: Invalid JSON"):
        load_decision(path)


def test_a_folder_in_its_place_is_named(tmp_path):
    with pytest.raises(StorageError, match="cannot be read"):
        load_decision(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("classes", ["0"], r"classes is \['0'\]"),
        ("classes", "01", "classes: .* array, not '01'"),
        ("positive", "2", "positive is '2' of classes 0, 1"),
        ("positive", None, "positive is None of classes 0, 1"),
        ("temperature", 0, r"temperature is 0"),
        ("temperature", float("nan"), "temperature: .* finite number, not"),
        ("temperature", "1", "temperature: .* valid number, not '1'"),
        ("temperature", True, "temperature: .* valid number, not 'True'"),
        ("bias", [0.0], r"bias is \[0\.0\]"),
        ("neighbour_sigma", -0.5, r"neighbour_sigma is -0\.5"),
        ("threshold", None, "threshold is None"),
        ("threshold", 1.5, r"threshold is 1\.5"),
        ("fitted_on", {}, r"fitted_on\.images: Field required"),
        ("expected_on_validation", {"sensitivity": 1.0}, r"expected_on_validation\.specificity: Field required"),
        ("expected_on_validation", None, "expected_on_validation is None"),
        ("other_points", {"highest F1": 1.5}, r"other_points is \{'highest F1': 1\.5\}"),
        ("uncertain_below", 1.5, r"uncertain_below is 1\.5"),
        ("curve", None, "its curve is not three lists"),
        ("curve", {"threshold": [], "sensitivity": [], "specificity": []}, "its curve is not three lists"),
        (
            "curve",
            {"threshold": [float("nan")], "sensitivity": [1], "specificity": [0]},
            r"curve\.threshold\.0: .* finite",
        ),
        ("curve", {"threshold": [0], "sensitivity": [1], "specificity": ["x"]}, r"curve\.specificity\.0: .* number"),
        ("curve", {"threshold": [0, 1], "sensitivity": [1], "specificity": [0]}, "its curve is not three lists"),
    ],
)
def test_a_decision_with_a_wrong_field_is_refused(tmp_path, field, value, problem):
    path = tmp_path / "decision.json"
    save_decision(fit(PROBABILITY, LABELS), path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(StorageError, match=f"is damaged: {problem}"):
        load_decision(path)


def test_a_share_of_the_images_fitted_on_is_uncertain_and_all_else_stays_the_same(tmp_path):
    probability, labels = np.linspace(0.02, 0.98, 40), [*[0] * 15, *[1, 0] * 5, *[1] * 15]
    plain, referring = fit(probability, labels), fit(probability, labels, refer=0.1)
    certainty = measure_certainty(referring, calibrate(referring, scores_of(probability)))
    assert (certainty < referring.uncertain_below).sum() == 4
    assert dataclasses.replace(referring, refer=None, uncertain_below=None) == plain
    save_decision(referring, tmp_path / "decision.json")
    assert load_decision(tmp_path / "decision.json") == referring
    of_three = fit_arrays(
        np.log([[0.6, 0.2, 0.2], [0.3, 0.4, 0.3], [0.1, 0.1, 0.8], [0.9, 0.05, 0.05]]),
        [0, 1, 2, 0],
        "pqrs",
        classes=("a", "b", "c"),
        positive=None,
        refer=0.25,
    )
    assert of_three.uncertain_below is not None


@pytest.mark.parametrize("field", ["classes", "temperature", "threshold", "curve"])
def test_a_decision_that_lacks_a_field_is_refused(tmp_path, field):
    path = tmp_path / "decision.json"
    save_decision(fit(PROBABILITY, LABELS), path)
    content = json.loads(path.read_text())
    del content[field]
    path.write_text(json.dumps(content))
    with pytest.raises(StorageError, match=f"is damaged: {field}: Field required"):
        load_decision(path)


def test_a_list_is_not_a_decision(tmp_path):
    path = tmp_path / "decision.json"
    path.write_text("[]")
    with pytest.raises(StorageError, match="is damaged: Input should be an object"):
        load_decision(path)


@pytest.mark.parametrize("classes", [2, 4])
def test_a_known_bias_is_taken_back(classes):
    rng = np.random.default_rng(5)
    logits = 2 * rng.normal(size=(20_000, classes))
    true = softmax(logits, axis=1)
    labels = (true.cumsum(axis=1) < rng.random((20_000, 1))).sum(axis=1)
    shift = np.arange(classes) / 2
    positive = "b" if classes == 2 else None
    decision = fit_arrays(logits + shift, labels, [""] * 20_000, classes="abcd"[:classes], positive=positive)
    np.testing.assert_allclose(decision.bias, -shift, atol=0.1)
    np.testing.assert_allclose(decision.temperature, 1, atol=0.05)


def test_the_decision_without_neighbours_comes_back_too(tmp_path):
    plain = fit(PROBABILITY, LABELS)
    decision = dataclasses.replace(plain, neighbour_sigma=1.5, without_neighbours=plain)
    save_decision(decision, tmp_path / "decision.json")
    assert load_decision(tmp_path / "decision.json") == decision
