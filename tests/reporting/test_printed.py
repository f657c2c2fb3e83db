"""The printed text: the key results first, and no more than a screen."""

from dataclasses import replace

import numpy as np
import pytest
from made_reports import make_groups, make_report, make_report_of_three, undefined, without_interval

from cancernet.evaluation.results import Estimate
from cancernet.reporting.printed import report_text
from cancernet.reporting.schema import FittedOn, OutOfDistribution, Report, TrainingSummary


def lines_of(report: Report) -> list[str]:
    return [" ".join(line.split()) for line in report_text(report).splitlines()]


def test_the_key_results_come_first_then_the_main_metrics_then_how_they_were_obtained():
    report = make_report()
    report.metrics["auroc"] = without_interval(0.8)
    lines = [line for line in lines_of(report) if line]
    assert lines == [
        "Tested on 5 images from 2 patients that the model was not trained on.",
        "In 1 of 2 patients with IDC, all of it was missed (95% interval 1% to 99%). Lowest sensitivity: 8864",
        "(0 of 1 image), 8863 (1 of 1 image).",
        "The model detects 50% of IDC images (sensitivity, 95% interval 0% to 100%).",
        "It correctly classifies 67% of benign images as benign (specificity, 95% interval 25% to 100%).",
        "At this prevalence (40%), 50% of the images classified as IDC are IDC (PPV, 95% interval 0% to",
        "100%).",
        "CONFUSION MATRIX (rows: true class, columns: predicted class)",
        "true 0 (benign) 1 (IDC)",
        "0 (benign) 2 1",
        "1 (IDC) 1 1",
        "METRICS value 95% interval over patients",
        "sensitivity (recall) 0.500 0.000 to 1.000",
        "specificity 0.667 0.250 to 1.000",
        "AUROC 0.800 too few patients",
        "Probabilities were calibrated (temperature 1.500) on the validation set (4 images from 2 patients).",
        "An image is classified as IDC if its probability is at least 0.500 (operating point: highest",
        "expected balanced accuracy).",
        "Trained for 2 epochs in 3 seconds on CPU (13 images per second). The final model is that of epoch 1.",
        "Source images: 1,234 (3 rejected, 1,202 left out), split by patient.",
        "The intervals are for this model and threshold. They do not include variation from retraining or",
        "from a different validation set.",
    ]


def test_out_of_distribution_images_come_before_all_else():
    report = make_report(title="Evaluation of a_run on elsewhere", outside=OutOfDistribution(5, 1, []))
    assert " ".join(lines_of(report)[:2]).startswith(
        "WARNING: 1 of 5 images (20.0%) is out of distribution: unlike the images the model was validated on, in colour"
    )
    everything = replace(report, outside=OutOfDistribution(5, 5, []))
    assert lines_of(everything)[0].startswith("WARNING: All 5 images are out of distribution: unlike")
    assert "Do not rely on these results." in " ".join(lines_of(everything)[:2])
    assert lines_of(replace(report, outside=OutOfDistribution(5, 0, [])))[0] == report.title
    assert lines_of(replace(report, outside=None))[0].startswith("WARNING: It is unknown whether any image is out of")
    assert "out of distribution" not in report_text(make_report())  # a training does not measure it


def test_the_decision_and_the_training_are_described_for_every_kind_of_run():
    report = make_report()
    decision = replace(report.decision, operating_point="sensitivity=0.95", neighbour_sigma=1.0, fitted_on=FittedOn(4))
    training = replace(report.training, kept_epochs=(2, 4), seconds=180.0, images_per_second=None)
    text = " ".join(report_text(replace(report, decision=decision, training=training)).split())
    assert (
        "on the validation set (4 images). An image is classified as IDC if its probability is at least 0.500" in text
    )
    assert "(operating point: sensitivity=0.95). On a slide with enough of its patches, scores of" in text
    assert "neighbours are averaged (Gaussian, SD 1 patch): no image here is on such a slide." in text
    assert "in 3 minutes on CPU. The final model averages the weights of epochs 2 to 4." in text
    unchanged = report_text(replace(report, decision=replace(report.decision, temperature=1.0)))
    assert "Probabilities are the network's own: calibration on the validation set (4 images from 2" in unchanged
    head = report_text(replace(report, training=TrainingSummary(4.2, "CPU", head_strength=0.01)))
    assert "A classification head was fitted to features in 4 seconds on CPU." in head
    pooled = report_text(replace(report, training=None, decision=None))
    assert "Each fold has its own calibration and threshold" in pooled
    assert "rained for" not in pooled


def test_of_several_classes_each_has_its_own_line():
    lines = lines_of(make_report_of_three(decision=make_report().decision))
    assert "accuracy 0.500 0.200 to 0.800" in lines
    assert "BY CLASS images sensitivity (recall) specificity" in lines
    assert "benign 1 0.250 (0.10-0.40) 0.500 (0.00-1.00)" in lines
    assert "malignant 0 n/a 0.500 (0.00-1.00)" in lines
    assert "n/a: no image of class malignant" in lines
    assert "4 images from 2 patients). Each image is assigned its most probable class." in " ".join(lines)


def test_results_by_a_column_have_a_line_for_each_value_and_metric():
    text = report_text(make_report(groups=make_groups()))
    assert max(map(len, text.splitlines())) <= 100
    lines = [" ".join(line.split()) for line in text.splitlines()]
    start = lines.index("BY SITE value 95% interval minus the others 95% interval")
    assert lines[start + 1 : start + 12] == [
        "Bonn: 1,200 images from 12 patients, prevalence 25.0%",
        "sensitivity (recall) 0.500 0.000 to 1.000 +0.250 +0.100 to +0.400",
        "AUROC 0.667 0.250 to 1.000 -0.125 none",
        "<Köln>: 20 images from 1 patient, prevalence 0.0%",
        "sensitivity (recall) n/a none -0.125 none",
        "AUROC 0.667 0.250 to 1.000 -0.125 none",
        "no site: 1 image, prevalence 100.0%",
        "sensitivity (recall) 0.500 0.000 to 1.000 -0.125 none",
        "AUROC 0.667 0.250 to 1.000 -0.125 none",
        "Significantly different from all other images: Bonn (sensitivity (recall) +0.250).",
        "",
    ]
    groups = make_groups()
    unknown = report_text(make_report(groups=replace(groups, values=groups.values[1:])))
    assert "Whether the results differ by site is unknown: too few patients." in unknown
    groups.values[0].difference["sensitivity"] = replace(groups.values[0].difference["sensitivity"], verdict="unclear")
    assert "No site differs significantly from all other images." in report_text(make_report(groups=groups))


def test_text_fits_a_hundred_columns_whatever_the_number_of_classes():
    names = [f"a_class_with_a_name_that_goes_on_and_on_for_{i}_pages" for i in range(12)]
    many = make_report_of_three(
        classes=names,
        per_class=dict.fromkeys(names, make_report_of_three().per_class["normal"]),
        confusion_matrix=np.full((12, 12), 1234567).tolist(),
        warnings=["A long warning, " * 20],
        metrics={"accuracy": Estimate(0.5, 0.2, 0.8), "auroc": undefined("a reason " * 20)},
    )
    text = report_text(many)
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("1,234,567") == 144


@pytest.mark.parametrize("name", ["pneumonia_bacteria", "pneumonia_virus"])
def test_class_names_are_whole_in_the_confusion_matrix(name):
    three = make_report_of_three()
    per_class = {name: three.per_class["normal"], **three.per_class}
    report = replace(three, classes=[name, "benign", "malignant"], per_class=per_class)
    assert f"{name} " in report_text(report).partition("CONFUSION")[2].partition("METRICS")[0]
