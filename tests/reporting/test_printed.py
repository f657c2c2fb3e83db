"""The printed text: the answer first, and no more than a screen."""

import numpy as np
import pytest
from made_reports import make_report, make_report_of_three, metric

from cancernet.reporting.printed import report_text


def lines_of(report: dict) -> list[str]:
    return [" ".join(line.split()) for line in report_text(report).splitlines()]


def test_the_answer_comes_first_then_the_main_figures_then_how_they_came_about():
    report = make_report()
    report["metrics"]["auroc"] = metric(0.8, reason="too few patients")
    lines = [line for line in lines_of(report) if line]
    assert lines == [
        "Figures from 5 images of 2 patients that training has not seen (testing).",
        "Of 100 IDC images it finds 50 (95% interval 0 to 100).",
        "Of 100 benign images it clears 67 (95% interval 25 to 100).",
        "Where 40 in 100 images are IDC, as here, 50 of 100 that it calls IDC are so (95% interval 0 to 100).",
        "CONFUSION MATRIX (rows: true class, columns: predicted class)",
        "true 0 (benign) 1 (IDC)",
        "0 (benign) 2 1",
        "1 (IDC) 1 1",
        "FIGURES value 95% interval over patients",
        "sensitivity (recall) 0.500 0.000 to 1.000",
        "specificity 0.667 0.250 to 1.000",
        "AUROC 0.800 too few patients",
        "An image is called IDC from a probability of 0.500: the highest balanced accuracy to be expected,",
        "fixed on 4 validation images of 2 patients.",
        "Trained 2 epochs in 3 seconds on CPU; epoch 1 is judged.",
        "Source images 1,234: rejected 3, left out 1,202; split by patient.",
        "The intervals hold the model and its threshold fixed: what another training, or other validation",
        "patients, would change comes on top.",
    ]


def test_images_outside_come_before_all_else():
    report = make_report() | {"outside": {"images": 5, "outside": 1, "furthest": []}}
    assert " ".join(lines_of(report)[:2]).startswith(
        "WARNING: 1 of 5 images (20.0%) lie outside what this run was made for, by their colours"
    )
    report["outside"]["outside"] = 5
    assert lines_of(report)[0].startswith("WARNING: All 5 images lie outside what this run was made for")
    report["outside"]["outside"] = 0
    assert lines_of(report) == lines_of(make_report())
    assert "is not known" in report_text(report | {"outside": None}).split("\n\n")[0]


def test_how_the_threshold_was_chosen_what_was_trained_and_for_how_long_is_said_of_every_kind_of_run():
    report = make_report()
    report["decision"] |= {"operating_point": "sensitivity=0.95", "neighbour_sigma": 1.0}
    report["decision"]["fitted_on"]["patients"] = None
    report["training"] |= {"kept_epochs": [2, 4], "seconds": 180.0}
    text = " ".join(report_text(report).split())
    assert "of 0.500: sensitivity=0.95, fixed on 4 validation images. Neighbours on a slide" in text
    assert "a Gaussian of 1 patch." in text
    assert "in 3 minutes on CPU; the mean of epochs 2 to 4 is judged." in text
    report["training"] = {"seconds": 4.2, "device": "CPU", "head_strength": 0.01}
    assert "A head was fitted to features in 4 seconds." in report_text(report)
    report |= {"training": None, "decision": None}  # pooled folds
    assert "Trained" not in report_text(report)


def test_of_several_classes_each_has_its_own_line():
    report = make_report_of_three() | {"decision": make_report()["decision"]}
    lines = lines_of(report)
    assert "accuracy 0.500 0.200 to 0.800" in lines
    assert "BY CLASS images sensitivity (recall) specificity" in lines
    assert "benign 1 0.250 (0.10-0.40) 0.500 (0.00-1.00)" in lines
    assert "malignant 0 n/a 0.500 (0.00-1.00)" in lines
    assert "n/a: no image of class malignant" in lines
    assert "Probabilities were fitted on 4 validation images of 2 patients." in " ".join(lines)


def test_text_fits_a_hundred_columns_however_many_the_classes():
    many = make_report_of_three()
    names = [f"a_class_with_a_name_that_goes_on_and_on_for_{i}_pages" for i in range(12)]
    many["classes"] = names
    many["per_class"] = dict.fromkeys(names, many["per_class"]["normal"])
    many["confusion_matrix"] = np.full((12, 12), 1234567).tolist()
    many["warnings"] = ["A long warning, " * 20]
    many["metrics"]["auroc"] = metric(None, reason="a reason " * 20)
    text = report_text(many)
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("1,234,567") == 144


@pytest.mark.parametrize("name", ["pneumonia_bacteria", "pneumonia_virus"])
def test_class_names_are_whole_in_the_confusion_matrix(name):
    report = make_report_of_three()
    report["classes"] = [name, "benign", "malignant"]
    report["per_class"][name] = report["per_class"].pop("normal")
    assert f"{name} " in report_text(report).partition("CONFUSION")[2].partition("FIGURES")[0]
