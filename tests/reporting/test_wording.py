"""Numbers, key results and warnings in words."""

from dataclasses import replace

import pytest
from made_reports import make_learning_curve, make_report, make_report_of_three, undefined, without_interval

from cancernet.evaluation.decision import FittedOn
from cancernet.evaluation.results import (
    AtPrevalence,
    Estimate,
    Interval,
    NetBenefit,
    Referral,
    Referred,
    RiskPoint,
    TwoClassPatientRow,
)
from cancernet.reporting.printed import report_text
from cancernet.reporting.schema import SplitCounts, ValidationRates
from cancernet.reporting.wording import (
    class_word,
    describe_calibration,
    describe_counts,
    describe_decision,
    describe_fit,
    describe_learning_curve,
    describe_net_benefit,
    describe_out_of_distribution,
    describe_referral,
    describe_sample_size,
    describe_split,
    interval,
    key_results,
    list_warnings,
    number,
    percent,
    plural,
    shown_names,
    signed,
    signed_interval,
    warn_of_change,
)


@pytest.fixture
def report():
    return make_report()


@pytest.fixture
def many():
    return make_report_of_three()


def texts(report):
    return [result.text for result in key_results(report)]


def test_of_many_classes_the_lowest_and_the_highest_sensitivity_are_named(many):
    assert texts(many) == [
        "The model classifies 50% of images correctly (accuracy, 95% interval 20% to 80%).",
        "Sensitivity is lowest for benign (25%, 95% interval 10% to 40%).",
        "Sensitivity is highest for normal (67%, 95% interval 25% to 100%).",
    ]
    classes = many.per_class
    for equal in (classes["normal"], classes["malignant"]):  # all the same, or one class alone
        assert len(texts(replace(many, per_class=classes | {"benign": equal}))) == 1


def test_braces_in_the_name_of_a_class_are_left_as_they_are(report):
    names = {name: f"{name} {{}} {{x}}^2" for name in report.classes}
    found = texts(replace(report, class_names=names))
    assert all("{x}^2" in text for text in found)
    assert not any("{{" in text for text in found)


def test_patients_of_whom_nothing_was_detected_and_those_with_false_alarms_come_first(report):
    benign = [TwoClassPatientRow(f"b{n}", 10, 0, n, 10 - n, 0, 1 - n / 10, None, 1 - n / 10, None) for n in range(5)]
    with_idc, without = key_results(replace(report, patients=[*report.patients, *benign]))[:2]
    assert with_idc.estimate.value == 0.5
    # 4 of 5 by Clopper and Pearson's own table: 0.284 to 0.995
    assert without.text == (
        "In 4 of 5 patients without IDC, at least one image was classified as IDC (95% interval 28% to 99%). Most: b4 "
        "(4 of 10 images), b3 (3 of 10 images), b2 (2 of 10 images)."
    )
    assert (without.estimate.low, without.estimate.high) == pytest.approx((0.2836, 0.9949), abs=1e-4)
    quiet = key_results(replace(report, patients=benign[:1]))[0]
    assert quiet.text == (
        "In 0 of 1 patient without IDC, at least one image was classified as IDC (95% interval 0% to 98%)."
    )
    assert texts(replace(report, patients=[]))[0].startswith("The model detects")


def test_key_results_give_ppv_here_and_at_the_given_prevalence_and_say_what_is_undefined(report):
    report = replace(
        report,
        prevalence=AtPrevalence(0.1, Estimate(0.2, 0.1, 0.3), Estimate(0.9, 0.8, 1.0)),
        metrics=report.metrics | {"sensitivity": undefined("no image of class 1")},
    )
    assert texts(report) == [
        "In 1 of 2 patients with IDC, all of it was missed (95% interval 1% to 99%). Lowest sensitivity: 8864 (0 "
        "of 1 image), 8863 (1 of 1 image).",
        "Sensitivity for IDC is undefined: no image of class 1.",
        "It correctly classifies 67% of benign images as benign (specificity, 95% interval 25% to 100%).",
        "At this prevalence (40%), 50% of the images classified as IDC are IDC (PPV, 95% interval 0% to 100%).",
        "At a prevalence of 10%, 20% of the images classified as IDC are IDC (PPV, 95% interval 10% to 30%).",
    ]
    assert key_results(report)[1].estimate is None
    assert "PPV at prevalence 0.1          0.200  0.100 to 0.300" in report_text(report)


def test_warnings_follow_from_the_data_and_come_once(report, many):
    assert list_warnings(report) == []
    data = replace(report.data, split_by="image", duplicates_across_patients=2)
    warned = replace(report, data=data, warnings=["Its own."] * 2)
    own, by_image, duplicates = list_warnings(warned)
    assert own == "Its own."
    assert "so the results are over-optimistic" in by_image
    assert duplicates == "2 groups of identical image files under different patients."
    assert list_warnings(replace(warned, warnings=list_warnings(warned))) == [own, by_image, duplicates]
    one_class, unknown = list_warnings(many)
    assert one_class.startswith("The model classifies every image as normal, so it does not distinguish the classes.")
    for matrix in ([[5, 0, 0], [0, 0, 0], [0, 0, 0]], [[5, 0, 0], [0, 1, 0], [0, 0, 0]]):
        assert one_class not in list_warnings(replace(many, confusion_matrix=matrix))
    assert list_warnings(replace(many, warnings=["Its own."]))[:2] == [one_class, "Its own."]
    assert unknown.startswith("The patients are unknown: ")
    text = report_text(many)
    assert text.index("WARNING: The patients are unknown") < text.index("The model classifies 50%")


@pytest.mark.parametrize(
    ("groups", "warning"),
    [
        (1, ["Only 1 patient was evaluated: too few to estimate how the results vary between patients."]),
        (5, ["Only 5 patients were evaluated: too few to estimate how the results vary between patients."]),
        (
            6,
            [
                "Only 6 patients were evaluated: the intervals are rough, and results on other patients may be quite "
                "different."
            ],
        ),
        (20, []),
    ],
)
def test_few_patients_are_warned_of(report, groups, warning):
    assert list_warnings(replace(report, interval=Interval(0.95, "patients", groups))) == warning


def test_rates_and_calibration_outside_what_validation_expects_are_warned_of():
    low, high = Estimate(0.6, 0.5, 0.7), Estimate(1.4, 1.2, 1.6)
    metrics = {
        "sensitivity": low,
        "specificity": without_interval(0.6),
        "calibration_slope": high,
        "calibration_intercept": Estimate(0.1, -0.1, 0.3),
    }
    sensitivity, slope = warn_of_change(metrics, ValidationRates(0.8, 0.9), FittedOn(4))
    assert sensitivity == (
        "Not as expected from the validation set: sensitivity (recall) is 0.600 (95% interval 0.500 to 0.700), "
        "expected 0.800. More positive images are missed."
    )
    assert (
        "calibration slope is 1.400 (95% interval 1.200 to 1.600), expected 1.000. The probabilities are under" in slope
    )
    assert warn_of_change(metrics, ValidationRates(0.7, 0.0), FittedOn(4)) == [slope]  # an end belongs to the interval
    assert warn_of_change(metrics, None, FittedOn(4)) == [slope]
    assert warn_of_change({}, None, FittedOn(4)) == []
    (pooled, _) = warn_of_change(metrics, ValidationRates(0.8, 0.9), FittedOn(4, 2, out_of_fold=True))
    assert pooled.startswith("Not as expected from out-of-fold predictions of the training and validation images: sens")


@pytest.mark.parametrize(
    ("slope", "words"),
    [
        (
            Estimate(1.1, 0.9, 1.3),
            "The probabilities can be used as they are: no miscalibration was found (calibration slope 1.100 (0.900 to "
            "1.300; ideal 1), calibration intercept -0.200 (-0.500 to 0.100; ideal 0)).",
        ),
        (
            Estimate(1.5, 1.2, 1.7),
            "The probabilities are underconfident. Use their order and the classes, but not the probabilities before "
            "they are recalibrated (calibration slope 1.500 (1.200 to 1.700; ideal 1), calibration intercept -0.200 "
            "(-0.500 to 0.100; ideal 0)).",
        ),
        (without_interval(1.1), "Whether the probabilities can be used as they are is unknown: too few patients."),
    ],
)
def test_one_sentence_says_whether_the_probabilities_can_be_used(report, slope, words):
    report.metrics["calibration_slope"] = slope
    assert describe_calibration(report) == words


def test_of_several_classes_the_calibration_is_its_error(many):
    assert describe_calibration(many) == "Mean difference between predicted probability and observed share: 0.100."


def test_out_of_fold_predictions_are_not_called_validation(report):
    fitted_on = FittedOn(4677, 128, out_of_fold=True)
    pooled = replace(report, decision=replace(report.decision, fitted_on=fitted_on))
    assert describe_decision(pooled).startswith(
        "Probabilities were calibrated (temperature 1.500) on out-of-fold predictions of the training and validation "
        "images (4,677 images from 128 patients). Each image was predicted by an ensemble member that was trained "
        "without its patient. An image is"
    )
    by_image = replace(pooled, data=replace(report.data, split_by="image"))
    assert "that was trained without it. An" in describe_decision(by_image)


@pytest.mark.parametrize(
    ("counts", "noun", "text"),
    [
        ((0, 5), "image", ""),
        ((1, 1), "image", "The only image is out of distribution: "),
        ((5, 5), "patch", "All 5 patches are out of distribution: "),
        ((2, 2000), "image", "2 of 2,000 images (0.1%) are out of distribution: "),
        (None, "patch", "It is unknown whether any patch is out of distribution"),
    ],
)
def test_out_of_distribution_images_are_counted(counts, noun, text):
    found = describe_out_of_distribution(counts, noun)
    assert found.startswith(text)
    assert bool(found) == bool(text)
    assert ("Of the images it was validated on, 1.5% are." in found) == (counts == (2, 2000))


@pytest.mark.parametrize(
    ("split_by", "known", "words"),
    [
        ("patient", True, "patient"),
        ("patient", False, "image (patients unknown)"),
        ("image", True, "image"),
        ("given", False, "the folders of the source"),
        ("file", True, "a given list"),
    ],
)
def test_it_says_how_the_images_were_split(report, split_by, known, words):
    data = replace(report.data, split_by=split_by, patients_known=known)
    assert describe_split(data) == words
    assert f"split by {words}." in " ".join(report_text(replace(report, data=data)).split())


def test_tables_leave_out_a_metric_that_equals_another_one():
    assert shown_names({"auroc": 0, "precision": 0, "ppv": 0, "accuracy": 0}) == ["accuracy", "ppv", "auroc"]


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "0%"), (1, "100%"), (0.5, "50%"), (0.9999, "99.9%"), (0.996, "99.6%"), (0.0001, "0.1%"), (0.004, "0.4%")],
)
def test_none_and_all_are_written_only_where_it_is_exactly_so(value, words):
    assert percent(value) == words


def test_numbers_and_words():
    values = (None, 0.12345, -0.5, 9.9994, 12.345)
    assert [number(value) for value in values] == ["n/a", "0.123", "-0.500", "9.999", "12.3"]
    assert [signed(value) for value in (None, 0.5, -0.5, 0.0)] == ["n/a", "+0.500", "-0.500", "0.000"]
    assert interval(without_interval(0.5, "one patient")) == "one patient"
    assert interval(Estimate(0.1, None, 0.25, "only an upper bound")) == "at most 0.250"
    assert signed_interval(Estimate(0.1, -0.1, 0.25)) == "-0.100 to +0.250"
    assert class_word(None, "1") == "class 1"
    assert class_word(None, "malignant") == "malignant"
    counted = [plural(1, "image"), plural(2000, "image"), plural(1.0, "patch"), plural(0.5, "patch")]
    assert counted == ["1 image", "2,000 images", "1 patch", "0.5 patches"]
    assert describe_counts(SplitCounts(1, 1, {})) == "1 image from 1 patient"
    assert describe_counts(SplitCounts(60, 16, {}, 31)) == "60 images (29 from 16 known patients)"
    assert describe_counts(SplitCounts(60, 0, {}, 60)) == "60 images"


def test_the_size_of_the_validation_set_is_described():
    assert describe_fit(FittedOn(456, 14)) == "456 images from 14 patients"
    assert describe_fit(FittedOn(1456)) == "1,456 images"


@pytest.mark.parametrize(
    ("lows", "words"),
    [
        ([0.1, 0.1, -0.1], "than that of classifying all images or none as IDC at thresholds from 0.1 to 0.2."),
        ([0.1, -0.1, 0.1], "at 2 of 3 thresholds from 0.1 to 0.3."),
        ([-0.1, -0.1, -0.1], "At no threshold is the net benefit of the model significantly higher than"),
        ([None, None, None], "Whether the model is useful is unknown: too few patients."),
    ],
)
def test_net_benefit_says_at_which_thresholds_the_model_is_useful(lows, words):
    def estimate(low):
        return Estimate(0.1, low, low and 0.3, None if low else "too few patients")

    rows = zip((0.1, 0.2, 0.3), lows, strict=True)
    curve = [NetBenefit(threshold, estimate(low), 0.05, estimate(low)) for threshold, low in rows]
    assert words in describe_net_benefit(curve, "IDC")


def test_referring_images_is_described_by_what_it_achieves():
    rows = [Referred(share, Estimate(0.34, 0.25, 0.43), Estimate(0.09, 0.06, 0.13)) for share in (0.05, 0.1, 0.2)]
    referral = Referral([RiskPoint(1.0, Estimate(0.123, 0.1, 0.15))], rows)
    assert describe_referral(referral) == (
        "If the least certain 10% of the images were referred to a person, 34% of the errors would be among them (95% "
        "interval 25% to 43%), and 9% of the other images would be classified wrongly instead of 12%."
    )
    perfect = [replace(row, caught=undefined("no image was classified wrongly")) for row in rows]
    assert describe_referral(replace(referral, table=perfect)).startswith("Every image was classified correctly")


def test_the_sample_size_names_the_patients_that_a_share_is_of(report):
    assert describe_sample_size(report) == ""
    report.metrics["sensitivity"] = Estimate(0.5, 0.4, 0.6, needed=1967)
    report.metrics["auroc"] = Estimate(0.9, 0.88, 0.92, needed=38)
    assert describe_sample_size(report) == (
        "An interval of ±5 points would need about 2,000 patients with IDC images for sensitivity (recall), 38 "
        "patients for AUROC (40 patients evaluated here)."
    )
    images = replace(report, interval=Interval(0.95, "images", 1))
    assert describe_sample_size(images).endswith(
        "about 2,000 IDC images for sensitivity (recall), 38 images for AUROC (1 image evaluated here)."
    )


def test_the_sample_size_of_many_classes(many):
    many.metrics["accuracy"] = Estimate(0.5, 0.4, 0.6, needed=123)
    assert describe_sample_size(many) == (
        "An interval of ±5 points would need about 120 images for accuracy (40 images evaluated here)."
    )


def test_more_patients_help_only_if_the_last_step_was_significant():
    curve = make_learning_curve()
    assert describe_learning_curve(curve) == (
        "More training patients would probably help. From 77 to 102 patients: AUROC +0.004 (+0.001 to +0.007), "
        "log-loss -0.010 (-0.030 to +0.010)."
    )
    unclear = {name: replace(each, verdict="unclear") for name, each in curve.change.items()}
    text = describe_learning_curve(replace(curve, change=unclear))
    assert text.startswith(
        "Whether more training patients would help is unclear. From 77 to 102 patients: AUROC +0.004 "
    )
