import copy
import json
import os
import re

import numpy as np
import pytest
from made_reports import make_report, make_report_of_three, metric
from matplotlib.figure import Figure

from cancernet.evaluation.predictions import Predictions
from cancernet.reporting.plots import plot_confusion_matrix
from cancernet.reporting.printed import report_text
from cancernet.reporting.report import draw_figures, write_report
from cancernet.reporting.wording import all_warnings, answers, class_word, interval, number, of_hundred

REASON = "no image decided as class 1"
PROBABILITIES = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4], [0.2, 0.8]])
TRUTH = np.array([0, 0, 0, 1, 1])


def predictions_of(truth, probabilities):
    return Predictions([], truth, probabilities, probabilities.argmax(axis=1))


@pytest.fixture
def report() -> dict:
    return make_report()


@pytest.fixture
def many() -> dict:
    return make_report_of_three()


def page(folder, report, figures=None) -> str:
    write_report(folder, report, figures or {})
    return (folder / "report.html").read_text(encoding="utf-8")


def test_other_thresholds_are_shown_with_what_they_gave(report, tmp_path):
    rates = {name: metric(0.5, 0.25, 0.75) for name in ("sensitivity", "specificity", "f1", "balanced_accuracy")}
    row = {"name": "balanced (in use)", "threshold": 0.3, "on_validation": {"sensitivity": 0.75, "specificity": 0.8}}
    report["operating_points"] = [row | rates | {"ppv": metric(None, reason="no image was decided as class 1")}]
    html = page(tmp_path, report)
    assert "on validation: sensitivity 0.750, specificity 0.800" in html
    assert '<td data-heading="PPV">n/a<small>–</small></td>' in html
    assert "&ndash;: no image was decided as class 1.</p>" in html


def test_it_says_what_the_intervals_hold_fixed(report, tmp_path):
    said = "The intervals hold the model and its threshold fixed: what another training"
    assert said in page(tmp_path, report)
    assert said in " ".join(report_text(report).split())
    report["metrics"] = {
        name: metric(each["value"], reason="too few patients") for name, each in report["metrics"].items()
    }
    html = page(tmp_path, report)
    assert "The intervals" not in html
    assert "The intervals" not in report_text(report)
    assert "Judged on the testing split: 5 images" in html


def test_neighbours_that_change_nothing_are_a_sentence_and_no_table(report, tmp_path):
    same = metric(0.9, reason="too few patients")
    report["neighbours"] = {"with": {"auroc": same}, "without": {"auroc": same}}
    report["neighbours"]["difference"] = {"auroc": metric(0.0, reason="too few patients") | {"verdict": "unclear"}}
    html = page(tmp_path, report)
    assert "Neighbours changed no figure" in html
    assert "judged both ways" not in html
    report["neighbours"]["difference"]["auroc"]["value"] = -0.1
    html = page(tmp_path, report)
    assert "Neighbours changed no figure" not in html
    assert "judged both ways" in html
    assert "&ndash;: too few patients.</p>" in html


def test_settings_are_named_without_the_parts_of_the_program(report, tmp_path):
    report["settings"] = {"run": "other", "of the run.experiment.image_size": 48}
    assert "<dt>image size</dt><dd>48</dd>" in page(tmp_path, report)


def test_undefined_figures_are_not_available_with_their_reason(many, tmp_path):
    html = page(tmp_path, many)
    row = re.search(r'<tr><td class="name">malignant</td>(.*?)</tr>', html)[1]
    assert '<td data-heading="images">0</td>' in row
    assert '<td data-heading="sensitivity">n/a<small>–</small></td>' in row
    assert "<td>AUROC" not in html
    assert '<p class="kind">&ndash;: no image of class malignant.</p>' in html  # below the table, not in its cells


def test_where_there_is_no_interval_there_is_no_bar(report, tmp_path):
    bars = page(tmp_path, report).count('<div class="range"')
    assert bars == 3
    report["metrics"]["sensitivity"] = metric(1.0, reason="too few patients")
    html = page(tmp_path, report)
    assert "Of 100 IDC images it finds 100." in html
    assert html.count('<div class="range"') == bars - 1


def test_the_width_of_the_neighbours_is_told_in_patches(report, tmp_path):
    assert "neighbouring" not in page(tmp_path, report)
    report["decision"]["neighbour_sigma"] = 1.0
    assert "weighted by a Gaussian with a standard deviation of 1 patch." in page(tmp_path, report)
    report["decision"]["neighbour_sigma"] = 0.5
    assert "standard deviation of 0.5 patches." in page(tmp_path, report)


def test_images_without_a_patient_are_counted_where_patients_are_shown(report, tmp_path):
    assert "have no known patient" not in page(tmp_path, report)
    report["patients"] = report["patients"][:1]  # of three of the five images
    report["data"]["splits"]["testing"] |= {"patients": 1, "images_without_patient": 2}
    html = page(tmp_path, report)
    assert "2 of 5 images have no known patient and are not shown here." in html
    assert "Judged on the testing split: 5 images, 3 of them of 1 known patient." in html


def test_what_is_not_available_is_explained_only_where_there_is_such(report, tmp_path):
    explained = "n/a: the patient has no image of the class that the figure needs."
    assert explained in page(tmp_path, report)
    report["patients"][1]["auroc"] = 0.5
    assert explained not in page(tmp_path, report)


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
    one_answer, unknown = all_warnings(many)
    assert one_answer.startswith("The network answers normal for every image: it tells no class from another.")
    assert one_answer not in all_warnings(many | {"confusion_matrix": [[5, 0, 0], [0, 0, 0], [0, 0, 0]]})
    assert one_answer not in all_warnings(many | {"confusion_matrix": [[5, 0, 0], [0, 1, 0], [0, 0, 0]]})
    assert all_warnings(many | {"warnings": ["Its own."]})[:2] == [one_answer, "Its own."]
    assert "patients are unknown" in unknown
    assert report_text(many).index("WARNING: The patients are unknown") < report_text(many).index("Of 100")


@pytest.mark.parametrize(
    ("groups", "warning"),
    [
        (1, ["Only 1 patient was judged: too few to say how far the figures may be from those of other patients."]),
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
    assert f"; {words[0].lower()}{words[1:].partition(':')[0].rstrip('.')}." in " ".join(report_text(report).split())


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
    assert html.index(">8864</td>") < html.index(">8863</td>")  # the patient it fails on first
    assert "sensitivity 0.750 and specificity 0.800" in html


def test_an_evaluation_bears_its_title(report, tmp_path):
    assert "<h1>a_run</h1>" in page(tmp_path, report)
    report["title"] = "Evaluation of a_run on elsewhere"
    assert "<h1>Evaluation of a_run on elsewhere</h1>" in page(tmp_path, report)
    assert report_text(report).startswith("Evaluation of a_run on elsewhere\n")


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
    assert "+0.030<small>+0.010 to +0.050</small>" in html
    assert "<td>precision</td>" not in html
    assert "fold 2 0.930 mean 0.920" in " ".join(report_text(report).split())


def test_probabilities_that_were_left_as_they_are_are_not_called_calibrated(report, tmp_path):
    calibrated = " ".join(page(tmp_path, report).split())
    assert "Probabilities were calibrated on the 4 validation images of 2 patients (temperature 1.500)." in calibrated
    report["decision"]["temperature"] = 1.0
    own = " ".join(page(tmp_path, report).replace("&#39;", "'").split())
    assert "Probabilities are the network's own: they are not better for a calibration fitted on the 4" in own
    assert "(temperature" not in own


def test_worst_errors_name_their_kind_and_whose_the_probability_is(report, many, tmp_path):
    picture = {"worst_errors": plot_confusion_matrix(matrix=[[2, 1], [1, 1]], classes=["0", "1"])}
    html = page(tmp_path, report, picture)
    assert 'data-heading="error">missed</td><td class="left" data-heading="true class">1 (IDC)</td>' in html
    assert "<th>probability of IDC</th>" in html
    assert "always that of IDC. Look for a pattern: blurred or torn tissue" in html
    many["worst_errors"] = [
        {"file": "a", "kind": "wrong", "label": "normal", "predicted": "benign", "probability": 0.9}
    ]
    many["settings"] = {"images_are_grey": True}
    html = page(tmp_path, many, picture)
    assert "<th>probability of the class predicted</th>" in html
    assert "tissue" not in html.partition("Where it is wrong")[2].partition("What this may not")[0]


def test_draws_every_picture_that_the_numbers_allow(report, many):
    images = [np.zeros((4, 4, 3), np.uint8)] * 2
    history = {"loss": [2.0, 1.0], "val_loss": [1.0, 2.0]}
    figures = draw_figures(report, predictions_of(TRUTH, PROBABILITIES), history=history, error_images=images)
    expected = {"confusion_matrix", "roc", "precision_recall", "reliability", "threshold"}
    assert set(figures) == expected | {"patients", "worst_errors", "history"}
    roc = figures["roc"].axes[0].lines
    assert roc[1].get_label() == "1 (IDC): AUROC 0.833 (0.500 to 1.000)"
    np.testing.assert_allclose(roc[2].get_xydata(), [[1 / 3, 0.5]])  # the decision: 1 - specificity, sensitivity
    assert figures["worst_errors"].texts[0].get_text().startswith("Missed: IDC, called benign; the lowest probability")
    bare = draw_figures(many, predictions_of(np.array([0, 1]), np.full((2, 3), 1 / 3)), error_images=[])
    assert set(bare) == expected - {"threshold"} | {"worst_errors"}


def test_the_report_is_not_changed_by_writing_it(many, tmp_path):
    before = copy.deepcopy(many)
    page(tmp_path, many)
    assert many == before
    assert len(json.loads((tmp_path / "report.json").read_bytes())["warnings"]) == 2
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
