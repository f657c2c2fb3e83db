"""Comparisons from folders of predictions to sentences, pictures and page."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from evaluated_runs import make_predictions, write_run

from cancernet import InputError
from cancernet.evaluation import metrics
from cancernet.evaluation.comparison import compare_figures
from cancernet.evaluation.results import as_json
from cancernet.reporting import comparison, comparison_plots


def test_runs_are_named_by_as_much_of_their_path_as_makes_them_different(tmp_path):
    assert comparison.name_runs([tmp_path / "one", tmp_path / "two"]) == ["one", "two"]
    assert comparison.name_runs([tmp_path / "a/fold_1", tmp_path / "b/fold_1"]) == ["a/fold_1", "b/fold_1"]


def test_the_lines_say_which_is_better_and_where_that_is_inconclusive(folders):
    compared, _ = comparison.compare_runs(folders)
    strong, mine = comparison.key_differences(compared)
    assert [line.difference and line.difference.verdict for line in strong.lines] == [*["better"] * 4, None]
    assert [line.difference and line.difference.verdict for line in mine.lines] == [*["unclear"] * 4, None]
    weak, better = (run.metrics["auroc"].value for run in compared.runs[:2])
    change = compared.differences[0].metrics["auroc"]
    assert change.value == pytest.approx(better - weak)
    lines = {line.text.split(":")[0]: line for line in strong.lines}
    assert lines["AUROC"].text == (
        f"AUROC: {better:.3f} for strong and {weak:.3f} for weak; difference +{change.value:.3f} (95% interval "
        f"+{change.low:.3f} to +{change.high:.3f})."
    )
    loss = lines["Log-loss"]
    assert re.match(r"Log-loss: 0\.\d{3} for strong and 0\.\d{3} for weak; difference -0\.\d{3} \(", loss.text)
    assert loss.text.endswith("Lower is better.")
    assert 0 < loss.difference.low < loss.difference.value < loss.difference.high  # right is better
    assert strong.reach == max(line.difference.high for line in strong.lines[:4])
    rows = compared.differences[0].patients
    better, worse = sum(row.difference > 0 for row in rows), sum(row.difference < 0 for row in rows)
    equal = 12 - better - worse
    assert (
        strong.lines[4].text == f"strong is more accurate for {better} patients, less for {worse}, equal for {equal}."
    )
    text = comparison.comparison_text(compared)
    assert "\nBetter. AUROC: " in text
    assert "\nInconclusive. AUROC: " in text


def test_a_metric_of_one_entry_in_the_table_appears_in_the_comparison(folders, monkeypatch, tmp_path):
    accuracy = metrics.METRICS["accuracy"]
    added = replace(accuracy, name="luck", label="good luck", shown_in=("comparison text", "comparison plot"))
    monkeypatch.setitem(metrics.METRICS, "luck", added)
    compared, predictions = comparison.compare_runs(folders[:2])
    figures = comparison_plots.draw_figures(compared, predictions)
    comparison.write_comparison(tmp_path, compared, figures)
    text = (tmp_path / "comparison.txt").read_text()
    assert len(re.findall("^Better. Good luck: |^good luck ", text, re.M)) == 2
    assert "<td>good luck</td>" in (tmp_path / "comparison.html").read_text()
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert found["differences"][0]["metrics"]["luck"] == found["differences"][0]["metrics"]["accuracy"]
    assert "good luck" in [label.get_text() for label in figures["comparison"].axes[0].get_yticklabels()]


def test_the_text_has_every_metric_warnings_once_and_no_line_too_long(folders):
    text = comparison.comparison_text(comparison.compare_runs(folders)[0])
    assert text.startswith(
        "All 3 runs were evaluated on the same 120 images from 12 patients.\n\nWARNING: weak, strong: Beware of "
    )
    assert "WARNING: $mine: Only here." in text
    assert re.search(r"^strong vs weak +first run +this run +difference +95% interval$", text, re.M)
    assert re.search(r"^AUROC +0\.\d{3} +0\.\d{3} +\+0\.\d{3} +\+0\.\d{3} to \+0\.\d{3} +better$", text, re.M)
    assert re.search(r"^calibration error \(ECE\) .* none$", text, re.M)
    assert "are for this model and threshold" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 100


def test_unknown_patients_are_counted_apart(tmp_path):
    runs = []
    for number, strength in enumerate((0.5, 2.5)):
        predictions = make_predictions(number, strength)
        patches = [patch._replace(patient="") if row < 30 else patch for row, patch in enumerate(predictions.patches)]
        runs.append(write_run(tmp_path / str(number), replace(predictions, patches=patches)))
    compared, _ = comparison.compare_runs(runs)
    assert compared.statement == "Both runs were evaluated on the same 120 images (90 from 9 known patients)."
    assert len(compared.differences[0].patients) == 9


def test_images_that_a_run_refers_to_a_person_count_and_it_says_so(tmp_path):
    none, band = ({"value": None, "low": None, "high": None, "reason": "no error"} for _ in range(2))
    referral = {"curve": [], "table": [], "band": {"share": 0.12, "caught": none, "error": band}}
    first = write_run(tmp_path / "weak", make_predictions(0, 0.5), referral=referral | {"band": None})
    second = write_run(tmp_path / "strong", make_predictions(1, 2), referral=referral)
    assert comparison.compare_runs([first, second])[0].statement == (
        "Both runs were evaluated on the same 120 images from 12 patients. Images that a run refers to a person "
        "(strong: 12%) count with their predicted class."
    )


def test_the_page_and_the_json_hold_what_was_compared(folders, tmp_path):
    compared, predictions = comparison.compare_runs(folders)
    output = tmp_path / "out"
    output.mkdir()
    comparison.write_comparison(output, compared, comparison_plots.draw_figures(compared, predictions))
    assert {path.name for path in output.iterdir()} == {
        *("comparison.json", "comparison.txt", "comparison.html", "comparison.png", "patients.png")
    }
    assert json.loads((output / "comparison.json").read_text()) == as_json(compared)
    page = (output / "comparison.html").read_text()
    assert "<h1>strong, $mine compared with weak</h1>" in page
    assert page.count("<img") == 2
    assert page.index("<strong>Better.</strong> AUROC: 0") < page.index("<h2>Overview</h2>")
    assert page.index("Results by patient") < page.index("00_idx5")
    assert "one per fold" in page
    for text in (page, (output / "comparison.json").read_text()):
        assert str(tmp_path) not in text


def test_by_a_column_the_runs_are_compared_on_the_images_of_each_value(tmp_path):
    runs, sites = {}, ["n"] * 70 + ["s"] * 40 + [""] * 10
    for name, strength, more in (("weak", 0.5, []), ("strong", 2.5, sites)):
        predictions = make_predictions(1, strength)
        if more:  # the other run is of a version that did not write the column
            patches = [patch._replace(more=(("site", site),)) for patch, site in zip(predictions.patches, more)]
            predictions = replace(predictions, patches=patches)
        runs[write_run(tmp_path / name, predictions)] = predictions
    compared, predictions = comparison.compare_runs(list(runs), "site")
    rows = np.arange(70)
    (expected,) = compare_figures([run.take(rows) for run in runs.values()], classes=["0", "1"], positive="1")
    (pair,) = compared.differences
    assert list(pair.groups) == ["n", "s", ""]
    assert pair.groups["n"] == {name: expected[name] for name in ("sensitivity", "specificity", "auroc")}
    assert pair.groups["n"]["auroc"].verdict == "better"
    assert pair.groups["s"]["auroc"].reason == "too few patients for an interval"
    assert [each.images for each in compared.runs[0].groups.values] == [70, 40, 10]
    text = comparison.comparison_text(compared)
    assert max(map(len, text.splitlines())) <= 100
    assert re.search(
        r"BY SITE\nstrong vs weak +first run .*\nn: 70 images from 7 patients, prevalence 50.0%\nsens", text
    )
    assert re.search(r"^no site: 10 images from 1 patient, .*\n.*\n.*\nAUROC .* none$", text, re.M)
    (tmp_path / "out").mkdir()
    comparison.write_comparison(tmp_path / "out", compared, {})
    html = (tmp_path / "out/comparison.html").read_text()
    assert (
        '<tr class="hit"><td class="name">n</td><td class="left" data-heading="images">70 from 7 patients</td>' in html
    )
    assert "&ndash;: too few patients for an interval.</p>" in html
    written = json.loads((tmp_path / "out/comparison.json").read_text())
    assert written["differences"][0]["groups"] == as_json(pair.groups)
    with pytest.raises(
        InputError, match="^predictions.csv of these runs has no column age, only site. Evaluate one of"
    ):
        comparison.compare_runs(list(runs), "age")


def test_without_known_patients_there_is_no_part_on_them(tmp_path):
    runs = []
    for number, strength in enumerate((0.5, 2.5)):
        predictions = make_predictions(number, strength)
        predictions = replace(predictions, patches=[patch._replace(patient="") for patch in predictions.patches])
        runs.append(write_run(tmp_path / str(number), predictions))
    compared, predictions = comparison.compare_runs(runs)
    figures = comparison_plots.draw_figures(compared, predictions)
    assert list(figures) == ["comparison"]
    (tmp_path / "out").mkdir()
    comparison.write_comparison(tmp_path / "out", compared, figures)
    assert "Results by patient" not in (tmp_path / "out/comparison.html").read_text()
    assert "more accurate for" not in comparison.comparison_text(compared)
    assert compared.interval.over == "images"
