import copy
import json
import os
import re

import numpy as np
import pytest
from matplotlib.figure import Figure

from cancernet.judging.smoothing import Predictions
from cancernet.reporting.plots import plot_confusion_matrix
from cancernet.reporting.report import draw_figures, report_text, write_report
from cancernet.reporting.wording import all_warnings, answers, class_word, interval, number, of_hundred

REASON = "no image decided as class 1"
PROBABILITIES = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4], [0.2, 0.8]])
TRUTH = np.array([0, 0, 0, 1, 1])


def predictions_of(truth, probabilities):
    return Predictions([], truth, probabilities, probabilities.argmax(axis=1))


def metric(value, low=None, high=None, reason=None) -> dict:
    return {"value": value, "low": low, "high": high} | ({"reason": reason} if reason else {})


@pytest.fixture
def report() -> dict:
    """Five test images of two patients, at a threshold of 0.5: one of two IDC found, two of three benign cleared."""
    third, half = 2 / 3, 0.5
    benign = {"precision": metric(third, 0.5, 1.0), "sensitivity": metric(third, 0.25, 1.0)}
    benign |= {"specificity": metric(half, 0.0, 1.0), "f1": metric(third, 0.4, 1.0), "auroc": metric(5 / 6, 0.5, 1.0)}
    idc = {"precision": metric(half, 0.0, 1.0), "sensitivity": metric(half, 0.0, 1.0)}
    idc |= {"specificity": metric(third, 0.25, 1.0), "f1": metric(half, 0.0, 1.0), "auroc": metric(5 / 6, 0.5, 1.0)}
    counts = [("training", 20, 8, 15, 5), ("validation", 4, 2, 3, 1), ("testing", 5, 2, 3, 2)]
    return {
        "name": "a_run",
        "created": "2026-01-02",
        "statement": "Figures from 5 images of 2 patients that training has not seen (testing).",
        "evaluated_on": "testing",
        "warnings": [],
        "classes": ["0", "1"],
        "class_names": {"0": "benign", "1": "IDC"},
        "positive": "1",
        "interval": {"level": 0.95, "over": "patients", "groups": 40},
        "data": {
            "source_images": 1234,
            "rejected": 3,
            "left_out": 1202,
            "duplicates_across_patients": 0,
            "split_by": "patient",
            "patients_known": True,
            "splits": {
                split: {"images": images, "patients": patients, "classes": {"0": zeros, "1": ones}}
                for split, images, patients, zeros, ones in counts
            },
        },
        "class_weights": {"0": 1.0, "1": 3.0},
        "metrics": {
            "accuracy": metric(0.6, 0.4, 0.8),
            "sensitivity": metric(half, 0.0, 1.0),
            "specificity": metric(third, 0.25, 1.0),
            "precision": metric(half, 0.0, 1.0),
            "ppv": metric(half, 0.0, 1.0),
            "npv": metric(third, 0.5, 1.0),
            "lr_positive": metric(12.345, 1.5, 20.25),
            "auroc": metric(5 / 6, 0.5, 1.0),
            "auprc": metric(0.8, reason="no interval: too few patients"),
            "ece": metric(0.1, 0.05, 0.2),
            "mcc": metric(None, reason="all images decided as one class"),
        },
        "prevalence": None,
        "per_class": {"0": benign | {"images": 3}, "1": idc | {"images": 2}},
        "confusion_matrix": [[2, 1], [1, 1]],
        "calibration": {
            "bins": [{"mean_probability": 0.44, "fraction_positive": 0.4, "images": 5}],
            "n_bins": 1,
            "binning": "equal mass",
        },
        "patients": [
            {"patient": "8863", "images": 3, "tp": 1, "fp": 1, "tn": 1, "fn": 0}
            | {"accuracy": 2 / 3, "sensitivity": 1.0, "specificity": 0.5, "auroc": 1.0},
            {"patient": "8864", "images": 2, "tp": 0, "fp": 0, "tn": 1, "fn": 1}
            | {"accuracy": 0.5, "sensitivity": 0.0, "specificity": 1.0, "auroc": None},
        ],
        "patient_spread": {"accuracy": {"median": 7 / 12, "q1": 0.54, "q3": 0.625, "min": 0.5, "max": 2 / 3}},
        "decision": {
            "temperature": 1.5,
            "threshold": 0.5,
            "operating_point": "balanced",
            "neighbour_sigma": 0.0,
            "fitted_on": {"images": 4, "patients": 2},
        },
        "expected_on_validation": {"sensitivity": 0.75, "specificity": 0.8},
        "training": {"epochs": 2, "kept_epochs": [1, 1], "seconds": 3.2} | {"images_per_second": 12.6, "device": "CPU"},
        "settings": {"model": "cancernet", "weights": None, "seed": 42},
        "worst_errors": [
            {"file": "testing/0/<b>.png", "label": "0", "predicted": "1", "probability": 0.7},
            {"file": "testing/1/d.png", "label": "1", "predicted": "0", "probability": 0.6},
        ],
    }


@pytest.fixture
def many(report) -> dict:
    """Three classes, patients unknown, no testing split."""
    per_class = {name: report["per_class"]["0"] | {"images": 1} for name in ("normal", "benign", "malignant")}
    undefined = metric(None, reason="no image of class malignant")
    per_class["malignant"] = per_class["malignant"] | {"sensitivity": undefined, "images": 0}
    per_class["benign"] = per_class["benign"] | {"sensitivity": metric(0.25, 0.1, 0.4)}
    splits = {"validation": {"images": 2, "patients": 0, "classes": {"normal": 1, "benign": 1, "malignant": 0}}}
    return report | {
        "classes": list(per_class),
        "class_names": None,
        "positive": None,
        "evaluated_on": "validation",
        "chose_model": True,
        "data": report["data"] | {"splits": splits, "patients_known": False, "split_by": "given"},
        "class_weights": None,
        "interval": report["interval"] | {"over": "images"},
        "metrics": {"accuracy": metric(0.5, 0.2, 0.8), "auroc": undefined, "ece": metric(0.1, 0.0, 0.2)},
        "per_class": per_class,
        "confusion_matrix": [[1, 0, 0], [1, 0, 0], [0, 0, 0]],
        "patients": [],
        "patient_spread": {},
        "decision": report["decision"] | {"threshold": None, "fitted_on": {"images": 2, "patients": None}},
        "expected_on_validation": None,
        "training": None,
        "worst_errors": [],
    }


def page(folder, report, figures=None) -> str:
    write_report(folder, report, figures or {})
    return (folder / "report.html").read_text(encoding="utf-8")


def test_text_holds_what_was_worked_out_by_hand(report):
    text = report_text(report)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0] == "Figures from 5 images of 2 patients that training has not seen (testing)."
    for expected in (
        "training validation testing",
        "images 20 4 5",
        "patients 8 2 2",
        "class 0 (benign) 15 3 3",
        "class 1 (IDC) 5 1 2",
        "share of 1 (IDC) 25.0% 25.0% 40.0%",
        "Source images 1,234: rejected 3, left out 1,202; split by patient.",
        "Class weights in training: 0 (benign) 1.000, 1 (IDC) 3.000",
        "class 0 (benign) 0.667 0.667 0.500 0.667 3",
        "class 1 (IDC) 0.500 0.500 0.667 0.500 2",
        "true 0 (benign) 1 (IDC)",
        "0 (benign) 2 1",
        "1 (IDC) 1 1",
        "FIGURES value 95% interval over patients",
        "accuracy 0.600 0.400 to 0.800",
        "sensitivity (recall) 0.500 0.000 to 1.000",
        "specificity 0.667 0.250 to 1.000",
        "PPV (precision) 0.500 0.000 to 1.000",
        "LR+ 12.3 1.500 to 20.2",
        "AUPRC 0.800 no interval: too few patients",
        "MCC n/a all images decided as one class",
        "accuracy 0.583 0.540 0.625 0.500 0.667",
        "Of 100 IDC images it finds 50 (95% interval 0 to 100).",
        "Of 100 benign images it clears 67 (95% interval 25 to 100).",
    ):
        assert expected in lines
    assert not [line for line in lines if line.startswith("precision 0")]  # it is the PPV, shown once
    assert "WARNING" not in text


def test_other_thresholds_are_shown_with_what_they_gave(report, tmp_path):
    rates = {name: metric(0.5, 0.25, 0.75) for name in ("sensitivity", "specificity", "f1", "balanced_accuracy")}
    row = {"name": "balanced (in use)", "threshold": 0.3, "on_validation": {"sensitivity": 0.75, "specificity": 0.8}}
    report["operating_points"] = [row | rates | {"ppv": metric(None, reason="no image was decided as class 1")}]
    lines = [" ".join(line.split()) for line in report_text(report).splitlines()]
    assert "THRESHOLDS OF VALIDATION threshold sensitivity specificity PPV" in lines
    assert "balanced (in use) 0.300 0.500 (0.25-0.75) 0.500 (0.25-0.75) n/a" in lines
    report["operating_points"][0] |= {"name": "sensitivity=0.95 (in use)", "ppv": rates["f1"]}
    assert max(map(len, report_text(report).splitlines())) <= 100
    report["operating_points"][0]["ppv"] = metric(None, reason="no image was decided as class 1")
    html = page(tmp_path, report)
    assert "on validation: sensitivity 0.750, specificity 0.800" in html
    assert "n/a<small>no image was decided as class 1</small>" in html


def test_it_says_what_the_intervals_hold_fixed(report, tmp_path):
    said = "The intervals hold the model and its threshold fixed: what another training"
    assert said in " ".join(report_text(report).split())
    assert said in page(tmp_path, report)


def test_text_fits_a_hundred_columns_however_many_the_classes(many):
    names = [f"a_class_with_a_name_that_goes_on_and_on_for_{i}_pages" for i in range(12)]
    many["classes"] = names
    many["per_class"] = dict.fromkeys(names, many["per_class"]["normal"])
    many["data"]["splits"]["validation"]["classes"] = dict.fromkeys(names, 1)
    many["confusion_matrix"] = np.full((12, 12), 1234567).tolist()
    many["warnings"] = ["A long warning, " * 20]
    many["metrics"]["mcc"] = metric(None, reason="a reason " * 20)
    text = report_text(many)
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("1,234,567") == 144


def test_undefined_figures_are_not_available_with_their_reason(many, tmp_path):
    text = " ".join(report_text(many).split())
    assert "AUROC n/a no image of class malignant" in text
    assert "n/a: no image of class malignant" in text
    assert "patients n/a class normal" in text
    html = page(tmp_path, many)
    assert re.search(r"<td>malignant</td><td>0</td>.*<td>n/a<small>no image of class malignant</small>", html)


def test_many_classes_name_the_best_and_the_worst(many):
    assert [each["text"] for each in answers(many)] == [
        "Of 100 images it gives 50 their own class (95% interval 20 to 80).",
        "It is worst at benign: of 100 such images it finds 25 (95% interval 10 to 40).",
        "It is best at normal: of 100 such images it finds 67 (95% interval 25 to 100).",
    ]
    many["per_class"]["benign"] = many["per_class"]["normal"]
    assert len(answers(many)) == 1  # of equals none is best
    many["per_class"]["benign"] = many["per_class"]["malignant"]
    assert len(answers(many)) == 1  # one class alone is neither best nor worst


def test_answers_give_ppv_here_and_at_the_given_prevalence_and_say_what_is_undefined(report):
    report["prevalence"] = {"value": 0.1, "ppv": metric(0.2, 0.1, 0.3), "npv": metric(0.9, 0.8, 1.0)}
    report["metrics"]["sensitivity"] = metric(None, reason="no image of class 1")
    assert [each["text"] for each in answers(report)] == [
        "Of 100 IDC images it finds n/a (no image of class 1).",
        "Of 100 benign images it clears 67 (95% interval 25 to 100).",
        "Where 40 in 100 images are IDC, as here, 50 of 100 that it calls IDC are so (95% interval 0 to 100).",
        "Where 10 in 100 images are IDC, 20 of 100 that it calls IDC are so (95% interval 10 to 30).",
    ]
    assert "PPV at prevalence 0.1          0.200  0.100 to 0.300" in report_text(report)


def test_warnings_follow_from_the_data_and_come_once(report, many):
    assert all_warnings(report) == []
    report["data"] |= {"split_by": "image", "duplicates_across_patients": 2}
    report["warnings"] = ["Patients of the run's training are in this set (--allow-seen-patients)."] * 2
    seen, flattered, duplicates = all_warnings(report)
    assert "--allow-seen-patients" in seen
    assert "flatters these figures" in flattered
    assert duplicates == "2 images appear, byte for byte, under two patients."
    assert all_warnings(report | {"warnings": all_warnings(report)}) == [seen, flattered, duplicates]
    one_answer, no_testing, unknown = all_warnings(many)
    assert one_answer.startswith("The network answers normal for every image: it tells no class from another.")
    assert one_answer not in all_warnings(many | {"confusion_matrix": [[5, 0, 0], [0, 0, 0], [0, 0, 0]]})
    assert one_answer not in all_warnings(many | {"confusion_matrix": [[5, 0, 0], [0, 1, 0], [0, 0, 0]]})
    assert "the images that chose the model" in no_testing
    assert "patients are unknown" in unknown
    assert report_text(many).index("WARNING: There is no testing split") < report_text(many).index("DATA")


@pytest.mark.parametrize(
    ("groups", "warning"),
    [
        (5, ["Only 5 patients were judged: too few to say how far the figures may be from those of other patients."]),
        (6, ["Only 6 patients were judged: the intervals are rough, and others may give quite other figures."]),
        (19, ["Only 19 patients were judged: the intervals are rough, and others may give quite other figures."]),
        (20, []),
    ],
)
def test_few_patients_are_warned_of(report, groups, warning):
    report["interval"]["groups"] = groups
    assert all_warnings(report) == warning


@pytest.mark.parametrize(
    ("split_by", "known", "words"),
    [
        ("patient", True, "Split by patient: no patient is in two splits."),
        ("patient", False, "Split by image (patients unknown)."),
        ("image", True, "Split by image."),
        ("given", False, "Split by the source's own folders."),
    ],
)
def test_it_says_by_what_the_images_were_split(report, tmp_path, split_by, known, words):
    report["data"] |= {"split_by": split_by, "patients_known": known}
    assert f"<p>{words}\n" in page(tmp_path, report).replace("&#39;", "'")
    assert f"; {words[0].lower()}{words[1:].partition(':')[0].rstrip('.')}.\n" in report_text(report)


def test_folds_are_shown_without_the_same_figure_twice(report, tmp_path):
    values = dict.fromkeys(("accuracy", "sensitivity", "specificity", "precision", "ppv", "auroc"), 0.9)
    report["cross_validation"] = {"folds": [{"fold": 1, "metrics": values}], "mean": values, "spread": values}
    head = next(line for line in report_text(report).splitlines() if line.startswith("CROSS-VALIDATION"))
    assert head.split("  ")[1:] == ["accuracy", "sensitivity (recall)", "specificity", "PPV (precision)", "AUROC"]
    html = page(tmp_path, report)
    heads = re.search(r"<tr><th>fold</th>(.*?)</tr>", html)[1]
    assert re.findall("<th>(.*?)</th>", heads) == head.split("  ")[1:]
    assert "Every patient was tested once" in html
    report["data"]["split_by"] = "image"
    assert "Every image was tested once" in page(tmp_path, report)


def test_json_is_complete_stable_and_at_full_precision(report, tmp_path):
    page(tmp_path, report)
    first = (tmp_path / "report.json").read_bytes()
    assert json.loads(first) == report
    page(tmp_path, json.loads(first))
    assert (tmp_path / "report.json").read_bytes() == first
    assert b"0.6666666666666666" in first


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float64("nan")])
def test_what_is_no_number_is_refused_before_anything_is_written(report, tmp_path, value):
    report["per_class"]["1"]["f1"]["low"] = value
    with pytest.raises(ValueError, match=r"report\.per_class\.1\.f1\.low is (nan|inf)"):
        write_report(tmp_path, report, {})
    assert not list(tmp_path.iterdir())


def test_a_figure_needs_a_plain_name(report, tmp_path):
    with pytest.raises(ValueError, match=r"Figure name '\.\./roc'"):
        write_report(tmp_path, report, {"../roc": Figure()})
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_report_as_it_was(report, tmp_path, monkeypatch):
    page(tmp_path, report)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    written = type(tmp_path).write_bytes

    def fill(path, content):
        if "json" in path.name:
            raise OSError(28, "No space left on device")
        return written(path, content)

    monkeypatch.setattr(type(tmp_path), "write_bytes", fill)
    with pytest.raises(OSError, match="No space left"):
        write_report(tmp_path, report | {"name": "another"}, {})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_page_escapes_names_and_needs_nothing_from_elsewhere(report, tmp_path):
    report["class_names"]["1"] = "<script>alert(1)</script>"
    report["settings"]["note"] = "<img src=x>"
    figures = {"confusion_matrix": plot_confusion_matrix(matrix=[[2, 1], [1, 1]], classes=["0", "1"])}
    html = page(tmp_path, report, figures)
    assert "&lt;b&gt;.png" in html
    assert "<b>.png" not in html
    assert "<script" not in html
    assert "<img src=x" not in html
    assert not re.search(
        r"https?:|//[a-z]|@import|url\(|<link", re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", html)
    )
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', html))
    assert html.count("<figure") == 1
    assert (tmp_path / "confusion_matrix.png").read_bytes().startswith(b"\x89PNG")


def test_page_begins_with_the_answer_and_says_what_it_may_not_be_used_for(report, tmp_path):
    html = page(tmp_path, report)
    answer = html.index("Of 100 IDC images it finds 50 (95% interval 0 to 100).")
    assert html.index("<h1>") < answer < html.index("<h2>")
    assert "Diagnosis, treatment, or triage of any patient" in html
    assert "1,234 source images" in html
    assert "3 rejected" in html
    assert html.index("<td>8864</td>") < html.index("<td>8863</td>")  # the patient it fails on first
    assert "sensitivity 0.750 and specificity 0.800" in html


def test_optional_sections_come_only_with_their_data(report, many, tmp_path):
    titles = {"Slides", "What it looked at", "With and without neighbours", "Cross-validation", "More pictures"}

    def shown(html: str) -> set[str]:
        return titles & set(re.findall("<h2>(.*?)</h2>", html))

    assert shown(page(tmp_path, report)) == set()
    assert "Patient by patient" not in page(tmp_path, many)
    picture = plot_confusion_matrix(matrix=[[2, 1], [1, 1]], classes=["0", "1"])
    (tmp_path / "map.png").write_bytes(b"\x89PNG" + b"\0" * 9)
    report["slides"] = [{"title": "Slide 8864", "picture": "slide_8864"}, {"title": "Slide 8867", "picture": "map.png"}]
    report["gradcam"] = [{"title": "Surest error", "picture": "gradcam_1.png"}]
    sides = {"with": metric(0.98, 0.9, 1), "without": metric(0.95, 0.9, 1)}
    sides["difference"] = metric(0.03, 0.01, 0.05) | {"verdict": "better"}
    report["neighbours"] = {side: dict.fromkeys(("precision", "ppv", "auroc"), each) for side, each in sides.items()}
    folds = [{"fold": 1, "metrics": {"auroc": 0.91}}, {"fold": 2, "metrics": {"auroc": 0.93}}]
    report["cross_validation"] = {"folds": folds, "mean": {"auroc": 0.92}, "spread": {"auroc": 0.014}}
    html = page(tmp_path, report, {"slide_8864": picture, "gradcam_1": picture, "surprise": picture})
    assert shown(html) == titles
    assert html.count("<img") == 4
    text = " ".join(report_text(report).split())
    assert "NEIGHBOURS ON THE SLIDE without with difference 95% interval PPV (precision) 0.950 0.980 +0.030 " in text
    assert "AUROC 0.950 0.980 +0.030 +0.010 to +0.050 " in text
    assert "+0.030<small>+0.010 to +0.050</small>" in html
    assert "<td>precision</td>" not in html
    assert "fold 2 0.930 mean 0.920" in text


def test_probabilities_that_were_left_as_they_are_are_not_called_calibrated(report, tmp_path):
    calibrated = " ".join(page(tmp_path, report).split())
    assert "Probabilities were calibrated on the 4 validation images of 2 patients (temperature 1.500)." in calibrated
    report["decision"]["temperature"] = 1.0
    own = " ".join(page(tmp_path, report).replace("&#39;", "'").split())
    assert "Probabilities are the network's own: they are not better for a calibration fitted on the 4" in own
    assert "(temperature" not in own


def test_draws_every_picture_that_the_numbers_allow(report, many):
    images = [np.zeros((4, 4, 3), np.uint8)] * 2
    history = {"loss": [2.0, 1.0], "val_loss": [1.0, 2.0]}
    figures = draw_figures(report, predictions_of(TRUTH, PROBABILITIES), history=history, error_images=images)
    expected = {"confusion_matrix", "roc", "precision_recall", "reliability", "threshold"}
    assert set(figures) == expected | {"patients", "worst_errors", "history"}
    roc = figures["roc"].axes[0].lines
    assert roc[1].get_label() == "1 (IDC): AUROC 0.833 (0.500 to 1.000)"
    np.testing.assert_allclose(roc[2].get_xydata(), [[1 / 3, 0.5]])  # the decision: 1 - specificity, sensitivity
    assert "said: 1 (IDC)" in figures["worst_errors"].axes[0].texts[0].get_text()
    bare = draw_figures(many, predictions_of(np.array([0, 1]), np.full((2, 3), 1 / 3)), error_images=[])
    assert set(bare) == expected - {"threshold"} | {"worst_errors"}


def test_the_report_is_not_changed_by_writing_it(many, tmp_path):
    before = copy.deepcopy(many)
    page(tmp_path, many)
    assert many == before
    assert len(json.loads((tmp_path / "report.json").read_bytes())["warnings"]) == 3
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "0"),
        (1, "100"),
        (0.5, "50"),
        (0.9999, "99.9"),
        (0.996, "99.6"),
        (0.0001, "0.1"),
        (0.004, "0.4"),
        (0.844, "84"),
    ],
)
def test_of_hundred_says_all_and_none_only_where_it_is_so(value, words):
    assert of_hundred(value) == words


def test_numbers_and_words():
    assert [number(value) for value in (None, 0.12345, -0.5, 9.9994, 12.345)] == [
        "n/a",
        "0.123",
        "-0.500",
        "9.999",
        "12.3",
    ]
    assert interval(metric(0.5, reason="one patient")) == "one patient"
    assert interval(metric(0.1, high=0.25, reason="only an upper bound")) == "at most 0.250"
    assert class_word({}, "1") == "class 1"
    assert class_word({"class_names": None}, "malignant") == "malignant"
