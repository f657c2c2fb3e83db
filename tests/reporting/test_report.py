"""report.json, report.html and their plots."""

import json
import os
import re
from dataclasses import replace

import numpy as np
import pytest
import yaml
from made_reports import (
    make_difference,
    make_groups,
    make_learning_curve,
    make_point_rates,
    make_report,
    make_report_of_three,
    undefined,
    without_interval,
)

from cancernet.evaluation import metrics
from cancernet.evaluation.label_check import SuspiciousLabel
from cancernet.evaluation.predictions import Predictions
from cancernet.evaluation.results import Estimate, NetBenefit, Referral, Referred, RiskPoint, as_json
from cancernet.reporting.plots import plot_confusion_matrix
from cancernet.reporting.printed import report_text
from cancernet.reporting.report import draw_figures, write_report
from cancernet.reporting.schema import (
    CrossValidation,
    Fold,
    LabelCheck,
    OperatingPoint,
    Picture,
    Report,
    ValidationRates,
)
from cancernet.storage import read_json

PROBABILITIES = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4], [0.2, 0.8]])
TRUTH = np.array([0, 0, 0, 1, 1])
PICTURE = plot_confusion_matrix(matrix=[[2, 1], [1, 1]], classes=["0", "1"])


def predictions_of(truth, probabilities):
    return Predictions([], truth, probabilities, probabilities.argmax(axis=1))


@pytest.fixture
def report() -> Report:
    return make_report()


@pytest.fixture
def many() -> Report:
    return make_report_of_three()


def page(folder, report, figures=None) -> str:
    write_report(folder, report, figures or {})
    return (folder / "report.html").read_text(encoding="utf-8")


def test_other_thresholds_are_shown_with_their_results(report, tmp_path):
    rates = make_point_rates(ppv=undefined("no image was classified as 1"))
    point = OperatingPoint(
        **vars(rates), name="balanced (in use)", threshold=0.3, on_validation=ValidationRates(0.75, 0.8)
    )
    html = page(tmp_path, replace(report, operating_points=[point]))
    assert "expected: sensitivity 0.750, specificity 0.800" in html
    assert '<td data-heading="PPV (precision)">n/a<small>–</small></td>' in html
    assert "&ndash;: no image was classified as 1.</p>" in html


def test_the_metrics_have_a_column_for_how_many_patients_a_narrow_interval_needs(report, tmp_path):
    assert "would give an interval of this width" not in page(tmp_path, report)
    report.metrics["ppv"] = replace(report.metrics["ppv"], needed=96)
    html = page(tmp_path, report)
    assert '<td class="left text">96<small>patients with images classified as IDC</small></td>' in html
    assert "40 were evaluated." in html
    assert json.loads((tmp_path / "report.json").read_text())["metrics"]["ppv"]["needed"] == 96


def test_it_says_what_the_intervals_do_not_include(report, tmp_path):
    text = "The intervals are for this model and threshold. They do not include variation from retraining"
    assert text in page(tmp_path, report)
    assert text in " ".join(report_text(report).split())
    bare = replace(report, metrics={name: without_interval(each.value) for name, each in report.metrics.items()})
    html = page(tmp_path, bare)
    assert "The intervals" not in html
    assert "The intervals" not in report_text(bare)
    assert "Evaluated on the testing split: 5 images" in html


def test_neighbours_that_change_nothing_are_a_sentence_and_no_table(report, tmp_path):
    same = {"auroc": without_interval(0.9)}
    effect = {"with": same, "without": same, "difference": {"auroc": make_difference(0.0, reason="too few patients")}}
    html = page(tmp_path, replace(report, neighbours=effect, smoothed_images=3))
    assert "Smoothing the scores of 3 images changed no metric" in html
    assert "with and without it" not in html
    changed = effect | {"difference": {"auroc": make_difference(-0.1, reason="too few patients")}}
    html = page(tmp_path, replace(report, neighbours=changed, smoothed_images=3))
    assert "changed no metric" not in html
    assert "Of the images, 3 are on slides with enough patches" in html
    assert "All images with and without it:" in html
    assert "&ndash;: too few patients.</p>" in html


def test_neighbours_are_described_as_they_were_used(report, tmp_path):
    smooths = replace(report, decision=replace(report.decision, neighbour_sigma=1.0))
    same = {"auroc": without_interval(0.9)}
    effect = {"with": same, "without": same, "difference": {"auroc": make_difference(0.0, reason="too few patients")}}
    unused = page(tmp_path, replace(smooths, neighbours=effect, smoothed_images=0))
    assert "scores of neighbours are averaged (Gaussian, SD 1 patch): no image here is on such a slide." in unused
    assert "Effect of neighbouring patches" not in unused
    used = page(tmp_path, replace(smooths, neighbours=effect, smoothed_images=3))
    assert "scores of neighbours are averaged (Gaussian, SD 1 patch): 3 images here." in used


def test_results_by_a_column_are_a_table_with_the_rows_that_differ_marked(report, tmp_path):
    assert "Results by site" not in page(tmp_path, report)
    html = page(tmp_path, replace(report, groups=make_groups()))
    rows = re.findall(r"<tr.*?</tr>", html.partition("<h2>Results by site</h2>")[2].partition("</table>")[0])
    assert [row.startswith('<tr class="hit"><td class="name">Bonn</td>') for row in rows] == [False, True, False, False]
    assert '<td data-heading="prevalence">25.0%</td>' in rows[1]
    assert 'data-heading="difference">+0.250<small>+0.100 to +0.400</small>' in rows[1]
    assert '<td class="name">&lt;Köln&gt;</td><td data-heading="images">20</td>' in rows[2]
    assert '<td class="name">no site</td>' in rows[3]
    assert "&ndash;: too few patients; no image of class 1.</p>" in html
    assert json.loads((tmp_path / "report.json").read_text())["groups"] == as_json(make_groups())
    assert read_json(tmp_path / "report.json", Report, advice="").groups == make_groups()


def test_settings_are_named_without_the_parts_of_the_program(report, tmp_path):
    html = page(tmp_path, replace(report, settings={"run": "other", "of the run.experiment.image_size": 48}))
    assert "<dt>image size</dt><dd>48</dd>" in html


def test_undefined_metrics_are_not_available_with_their_reason(many, tmp_path):
    html = page(tmp_path, many)
    row = re.search(r'<tr><td class="name">malignant</td>(.*?)</tr>', html)[1]
    assert '<td data-heading="images">0</td>' in row
    assert '<td data-heading="sensitivity">n/a<small>–</small></td>' in row
    assert '<p class="kind">&ndash;: no image of class malignant.</p>' in html  # below the table, not in its cells


def test_without_an_interval_there_is_no_bar(report, tmp_path):
    bars = page(tmp_path, report).count('<div class="range"')
    assert bars == 4
    html = page(tmp_path, replace(report, metrics=report.metrics | {"sensitivity": without_interval(1.0)}))
    assert "The model detects 100% of IDC images (sensitivity)." in html
    assert html.count('<div class="range"') == bars - 1


def test_the_width_of_the_smoothing_is_in_patches(report, tmp_path):
    assert "neighbouring" not in page(tmp_path, report)
    for sigma, words in ((1.0, "1 patch"), (0.5, "0.5 patches")):
        html = page(tmp_path, replace(report, decision=replace(report.decision, neighbour_sigma=sigma)))
        assert f"(Gaussian, SD {words})" in html


def test_images_without_a_patient_are_counted_where_patients_are_shown(report, tmp_path):
    assert "without a known patient" not in page(tmp_path, report)
    testing = replace(report.data.splits["testing"], patients=1, images_without_patient=2)
    data = replace(report.data, splits=report.data.splits | {"testing": testing})
    html = page(tmp_path, replace(report, patients=report.patients[:1], data=data))
    assert "2 of 5 images without a known patient are not shown." in html
    assert "Evaluated on the testing split: 5 images (3 from 1 known patient)." in html


def test_what_is_not_available_is_explained_only_if_there_is_such(report, tmp_path):
    explained = "n/a: the patient has no image of a class that the metric needs."
    assert explained in page(tmp_path, report)
    first, second = report.patients
    assert explained not in page(tmp_path, replace(report, patients=[first, replace(second, auroc=0.5)]))


def test_json_is_complete_stable_and_at_full_precision(report, tmp_path):
    page(tmp_path, report)
    path = tmp_path / "report.json"
    first = path.read_bytes()
    read = read_json(path, Report, advice="")
    assert read == report
    assert as_json(read) == json.loads(first)  # nothing is lost
    page(tmp_path, read)
    assert path.read_bytes() == first
    assert b"0.6666666666666666" in first


def test_a_report_of_another_version_is_read_without_what_it_does_not_know_or_lacks(report, tmp_path):
    content = as_json(report) | {"of a later version": {"x": 1}}
    content["metrics"]["accuracy"]["colour"] = "red"
    for missing in ("neighbours", "operating_points", "outside", "class_weights", "expected_on_validation", "training"):
        content.pop(missing, None)
    (tmp_path / "report.json").write_text(json.dumps(content))
    read = read_json(tmp_path / "report.json", Report, advice="")
    assert read == replace(report, class_weights=None, expected_on_validation=None, training=None)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float64("nan")])
def test_what_is_no_number_is_refused_before_anything_is_written(report, tmp_path, value):
    spoilt = replace(report, metrics=report.metrics | {"f1": Estimate(0.5, value, 0.6)})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_report(tmp_path, spoilt, {})
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
        write_report(tmp_path, replace(report, name="another"), {})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_page_escapes_names_and_needs_nothing_from_elsewhere(report, tmp_path):
    report.class_names["1"] = "<script>alert(1)</script>"
    report.settings["note"] = "<img src=x>"
    html = page(tmp_path, report, {"confusion_matrix": PICTURE})
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


def test_page_begins_with_the_key_results_and_ends_with_the_limitations(report, tmp_path):
    html = page(tmp_path, report)
    result = html.index("The model detects 50% of IDC images (sensitivity, 95% interval 0% to 100%).")
    assert (
        html.index("<h1>")
        < html.index("In 1 of 2 patients with IDC, all of it was missed")
        < result
        < html.index("<h2>")
    )
    assert html.index("<h2>Limitations</h2>") < html.index("diagnosis, treatment or triage of patients")
    assert "1,234 source images" in html
    assert "3 rejected" in html
    assert html.index(">8864</td>") < html.index(">8863</td>")  # the patient with the lowest accuracy first
    assert "sensitivity 0.750 and specificity 0.800" in html


def test_a_run_has_a_model_card_with_the_metadata_of_hubs_and_an_evaluation_has_none(report, tmp_path):
    page(tmp_path, replace(report, name='a "run"', warnings=["Only 2 patients."]))
    _, front, text = (tmp_path / "MODEL_CARD.md").read_text(encoding="utf-8").split("---\n", 2)
    (entry,) = yaml.safe_load(front)["model-index"]
    assert entry["name"] == 'a "run"'
    assert '# a "run"' in text
    values = {each["type"]: each["value"] for each in entry["results"][0]["metrics"]}
    assert values["auroc"] == pytest.approx(5 / 6, abs=1e-4)
    assert "The model detects 50% of IDC images" in text
    assert "- training: 20 images from 8 patients" in text
    assert "- Only 2 patients." in text
    (tmp_path / "other").mkdir()
    page(tmp_path / "other", replace(report, title="Evaluation of a_run on elsewhere"))
    assert not (tmp_path / "other" / "MODEL_CARD.md").exists()


def test_every_section_folds_and_is_in_the_contents_and_printing_unfolds_it(report, tmp_path):
    html = page(tmp_path, report)
    titles = re.findall("<details><summary><h2>(.*?)</h2>", html)
    assert titles[0] == "Data"
    assert titles[-1] == "Limitations"
    assert re.findall('<a href="#([^"]*)">(.*?)</a>\n', html[: html.index("<main>")]) == [
        (title.lower().replace(" ", "-"), title) for title in titles
    ]
    assert set(re.findall('href="#([^"]*)"', html)) <= set(re.findall('<div id="([^"]*)"', html))
    assert html.count("<details>") == html.count("</details>") == html.count("<h2>")
    printing = html[html.index("@media print") : html.index("</style>")]
    assert "details::details-content { content-visibility: visible; block-size: auto; }" in printing
    assert re.findall(r"\n *(.+) \{ white-space: normal", printing) == ['td.left:not([data-heading="created"])']


def test_an_evaluation_has_its_title(report, tmp_path):
    assert "<h1>a_run</h1>" in page(tmp_path, report)
    titled = replace(report, title="Evaluation of a_run on elsewhere")
    assert "<h1>Evaluation of a_run on elsewhere</h1>" in page(tmp_path, titled)
    assert "Evaluation of a_run on elsewhere\n" in report_text(titled)


def test_metrics_of_one_entry_in_the_table_appear_in_text_page_and_json(report, tmp_path, monkeypatch):
    accuracy = metrics.METRICS["accuracy"]
    added = replace(accuracy, name="luck", label="good luck", explanation="as declared", shown_in=("two-class text",))
    monkeypatch.setitem(metrics.METRICS, "luck", added)
    report = replace(report, metrics=report.metrics | {"luck": Estimate(0.125, 0.1, 0.25)})
    html = page(tmp_path, report)
    assert "good luck<small>as declared</small></td><td>0.125</td>" in html
    assert re.search(r"^good luck +0\.125  0\.100 to 0\.250$", report_text(report), re.M)
    assert json.loads((tmp_path / "report.json").read_text())["metrics"]["luck"]["value"] == 0.125


def test_folds_are_shown_without_the_same_metric_twice(report, tmp_path):
    values = dict.fromkeys(("accuracy", "sensitivity", "specificity", "precision", "ppv", "auroc"), 0.9)
    folds = replace(report, cross_validation=CrossValidation([Fold(1, values)], values, values))
    head = next(line for line in report_text(folds).splitlines() if line.startswith("CROSS-VALIDATION"))
    labels = ["accuracy", "sensitivity (recall)", "specificity", "PPV (precision)", "AUROC"]
    assert re.split("  +", head)[1:] == labels
    html = page(tmp_path, folds)
    assert re.findall("<th>(.*?)</th>", re.search(r"<tr><th>fold</th>(.*?)</tr>", html)[1]) == labels
    assert "Every patient was tested once" in html
    by_image = replace(folds, data=replace(report.data, split_by="image"))
    assert "Every image was tested once" in page(tmp_path, by_image)


def test_optional_sections_come_only_with_their_data(report, many, tmp_path):
    titles = {
        "Slides",
        "Explanations (Grad-CAM)",
        "Effect of neighbouring patches",
        "Cross-validation",
        "Learning curve",
    }

    def shown(html: str) -> set[str]:
        return titles & set(re.findall("<h2>(.*?)</h2>", html))

    assert shown(page(tmp_path, report)) == set()
    assert "Results by patient" not in page(tmp_path, many)
    for name in ("8864.jpg", "8867.jpg", "gradcam.jpg"):
        (tmp_path / name).write_bytes(b"\xff\xd8" + b"\0" * 9)
    sides = {"with": Estimate(0.98, 0.9, 1), "without": Estimate(0.95, 0.9, 1)}
    sides["difference"] = make_difference(0.03, 0.01, 0.05, "better")
    full = replace(
        report,
        slides=[Picture("Slide 8864", "8864.jpg"), Picture("Slide 8867", "8867.jpg")],
        gradcam=[Picture("Confident error", "gradcam.jpg")],
        smoothed_images=5,
        neighbours={side: dict.fromkeys(("precision", "ppv", "auroc"), each) for side, each in sides.items()},
        cross_validation=CrossValidation(
            [Fold(1, {"auroc": 0.91}), Fold(2, {"auroc": 0.93})], {"auroc": 0.92}, {"auroc": 0.014}
        ),
        learning_curve=make_learning_curve(),
    )
    html = page(tmp_path, full)
    assert shown(html) == titles
    assert html.count('<img src="data:image/jpeg;base64,') == 3
    assert "<td>precision</td>" not in html
    text = " ".join(report_text(full).split())
    assert "fold 2 0.930 mean 0.920" in text
    assert text.endswith("log-loss -0.010 (-0.030 to +0.010).")


def test_confident_errors_name_their_kind_and_the_class_of_the_probability(report, many, tmp_path):
    html = page(tmp_path, report, {"worst_errors": PICTURE})
    assert 'data-heading="error">missed</td><td class="left" data-heading="true class">1 (IDC)</td>' in html
    assert "<th>probability of IDC</th>" in html
    assert "with the probability of IDC. Look for a pattern: blurred, torn or folded tissue" in html
    error = replace(report.worst_errors[0], kind="wrong", label="normal", predicted="benign")
    grey = replace(many, worst_errors=[error], settings={"images_are_grey": True})
    html = page(tmp_path, grey, {"worst_errors": PICTURE})
    assert "<th>probability of the predicted class</th>" in html
    assert "tissue" not in html.partition("<h2>Errors</h2>")[2].partition("<h2>Limitations</h2>")[0]


def test_near_duplicates_are_counted_in_the_data(report, tmp_path):
    assert "Near-duplicates" not in page(tmp_path, report)
    html = page(tmp_path, replace(report, data=replace(report.data, near_duplicates=2)))
    assert "brightness or size): 2 groups of images of different patients; dataset.json lists them." in html


def test_labels_to_check_are_called_a_suspicion_and_a_run_without_them_says_how_to_get_them(report, tmp_path):
    advice = "Train with --members 5 or --folds 5 for a list of images whose label may be wrong."
    without = page(tmp_path, report)
    assert advice in without
    assert "Labels to check" not in without + report_text(report)
    assert advice not in page(tmp_path, replace(report, title="Evaluation"))
    suspicious = SuspiciousLabel("training/1/<b>.png", "8863", "1", "0", 0.0123, 0.9877)
    checked = replace(report, label_check=LabelCheck(200, 13, [suspicious]))
    html = page(tmp_path, checked, {"labels_to_check": PICTURE})
    said = "Labels to check: 13 of 200 images (6.5%). The prediction of a model that was trained without its patient"
    for text in (html, " ".join(report_text(checked).split())):
        assert said in text
        assert "This is a suspicion, not an error: the model may be wrong. labels_to_check.csv lists them" in text
    assert '<td class="file">training/1/&lt;b&gt;.png</td><td class="left" data-heading="patient">8863</td>' in html
    assert '<td data-heading="probability of the label">0.012</td>' in html
    assert 'alt="Most suspicious labels"' in html
    assert advice not in html
    assert read_json(tmp_path / "report.json", Report, advice="").label_check == checked.label_check


def test_draws_every_plot_that_the_report_allows(report, many):
    images = [np.zeros((4, 4, 3), np.uint8)] * 2
    history = {"loss": [2.0, 1.0], "val_loss": [1.0, 2.0]}
    report = replace(report, learning_curve=make_learning_curve())
    figures = draw_figures(report, predictions_of(TRUTH, PROBABILITIES), history=history, error_images=images)
    expected = {"confusion_matrix", "roc", "precision_recall", "reliability", "threshold"}
    assert set(figures) == expected | {"patients", "worst_errors", "history", "learning_curve"}
    roc = figures["roc"].axes[0].lines
    assert roc[1].get_label() == "1 (IDC): AUROC 0.833 (0.500 to 1.000)"
    np.testing.assert_allclose(roc[2].get_xydata(), [[1 / 3, 0.5]])  # 1 - specificity, sensitivity
    assert figures["worst_errors"].texts[0].get_text().startswith("Missed: IDC classified as benign; lowest")
    bare = draw_figures(many, predictions_of(np.array([0, 1]), np.full((2, 3), 1 / 3)), error_images=[])
    assert set(bare) == expected - {"threshold"} | {"worst_errors"}


def test_the_warnings_that_follow_from_the_data_are_written_and_nothing_else_is_left(many, tmp_path):
    page(tmp_path, many)
    assert many == make_report_of_three()
    assert len(json.loads((tmp_path / "report.json").read_bytes())["warnings"]) == 2
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_the_page_has_the_decision_curve_as_a_table(report, tmp_path):
    curve = [NetBenefit(0.025 * step, Estimate(0.25, 0.125, 0.375), -0.5, make_difference(0.1)) for step in (1, 2)]
    html = page(tmp_path, replace(report, decision_curve=curve))
    row = re.search(r"<tr><td>5%</td>(.*?)</tr>", html)[1]
    assert '<td data-heading="this model">0.250<small>0.125 to 0.375</small></td>' in row
    assert '<td data-heading="classify all">-0.500</td>' in row
    assert "Net benefit" not in page(tmp_path, report)


def test_uncertain_images_are_a_section_and_a_few_lines_of_text(report, tmp_path):
    part = [Estimate(value, 0.05, 0.95) for value in (0.25, 0.125, 0.9, 0.8, 0.7)]
    table = [Referred(share, *part) for share in (0.05, 0.1, 0.2)]
    referral = Referral([RiskPoint(1.0, Estimate(0.4, 0.2, 0.6))], table, Referred(0.123, *part))
    decision = replace(report.decision, refer=0.1)
    shown = replace(report, referral=referral, decision=decision)
    html = page(tmp_path, shown)
    row = re.search(r'<tr><td class="text">least certain 20%</td>(.*?)</tr>', html)[1]
    assert '<td data-heading="errors caught">0.250<small>0.050 to 0.950</small></td>' in row
    assert '<td data-heading="PPV (precision)">0.700<small>' in row
    assert "images as uncertain as the least certain 10% of the validation set. Here, these are 12% of the" in html
    assert "--refer 0.1" in page(tmp_path, replace(shown, referral=replace(referral, band=None)))
    lines = report_text(shown).splitlines()
    start = next(row for row, line in enumerate(lines) if line.startswith("REFERRED TO A PERSON"))
    assert [line.split()[-5:] for line in lines[start + 1 : start + 6]] == [
        ["n/a", "40.0%", "0.500", "0.667", "0.500"],
        *[["25.0%", "12.5%", "0.900", "0.800", "0.700"]] * 4,
    ]
    assert lines[start + 5].startswith("uncertain: 12.3%")
    assert "Uncertain images" not in page(tmp_path, report)
