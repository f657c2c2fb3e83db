"""Comparisons from folders of predictions to sentences, pictures and page."""

import dataclasses
import json
import re

import pytest
from judged_runs import make_predictions, write_run

from cancernet.reporting import comparison, comparison_plots


def test_runs_are_told_apart_by_as_much_of_their_path_as_that_needs(tmp_path):
    assert comparison.name_runs([tmp_path / "one", tmp_path / "two"]) == ["one", "two"]
    assert comparison.name_runs([tmp_path / "a/fold_1", tmp_path / "b/fold_1"]) == ["a/fold_1", "b/fold_1"]


def test_the_lines_say_which_is_better_and_where_that_cannot_be_told(folders):
    compared, _ = comparison.compare_runs(folders)
    strong, mine = comparison.answers(compared)
    assert [line["verdict"] for line in strong["lines"]] == [*["Better"] * 4, ""]
    assert [line["verdict"] for line in mine["lines"]] == [*["Cannot be told"] * 4, ""]
    weak, better = (run["metrics"] for run in compared["runs"][:2])
    change = compared["differences"][0]["metrics"]["auroc"]
    assert change["value"] == pytest.approx(better["auroc"]["value"] - weak["auroc"]["value"])
    assert strong["lines"][0]["text"] == (
        f"AUROC: strong {better['auroc']['value']:.3f}, weak {weak['auroc']['value']:.3f}, difference "
        f"+{change['value']:.3f} (95% interval +{change['low']:.3f} to +{change['high']:.3f})."
    )
    loss = strong["lines"][3]
    assert re.match(r"log-loss: strong 0\.\d{3}, weak 0\.\d{3}, difference -0\.\d{3} \(", loss["text"])
    assert loss["text"].endswith("Lower is better.")
    assert 0 < loss["difference"]["low"] < loss["difference"]["value"] < loss["difference"]["high"]  # right is better
    assert strong["reach"] == max(line["difference"]["high"] for line in strong["lines"][:4])
    assert strong["lines"][4]["text"].startswith("Of 12 patients, 1")


def test_the_text_has_every_figure_warnings_once_and_no_line_too_long(folders):
    text = comparison.comparison_text(comparison.compare_runs(folders)[0])
    assert text.startswith("All 3 runs judged the same 120 images of 12 patients.\n\nWARNING: weak, strong: Beware of ")
    assert "WARNING: $mine: Only here." in text
    assert re.search(r"^strong against weak +first +this +difference +95% interval$", text, re.M)
    assert re.search(r"^AUROC +0\.\d{3} +0\.\d{3} +\+0\.\d{3} +\+0\.\d{3} to \+0\.\d{3} +better$", text, re.M)
    assert re.search(r"^calibration error \(ECE\) .* none$", text, re.M)
    assert "hold the model and its threshold fixed" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 100


def test_unknown_patients_are_counted_apart(tmp_path):
    runs = []
    for number, strength in enumerate((0.5, 2.5)):
        predictions = make_predictions(number, strength)
        patches = [patch._replace(patient="") if row < 30 else patch for row, patch in enumerate(predictions.patches)]
        runs.append(write_run(tmp_path / str(number), dataclasses.replace(predictions, patches=patches)))
    compared, _ = comparison.compare_runs(runs)
    assert compared["statement"] == "Both runs judged the same 120 images, of 9 patients and 30 of unknown patients."
    assert len(compared["differences"][0]["patients"]) == 9


def test_the_page_and_the_json_hold_what_was_compared(folders, tmp_path):
    compared, predictions = comparison.compare_runs(folders)
    output = tmp_path / "out"
    output.mkdir()
    comparison.write_comparison(output, compared, comparison_plots.draw_figures(compared, predictions))
    assert {path.name for path in output.iterdir()} == {
        *("comparison.json", "comparison.txt", "comparison.html", "comparison.png", "patients.png")
    }
    assert json.loads((output / "comparison.json").read_text())["differences"] == compared["differences"]
    page = (output / "comparison.html").read_text()
    assert "<h1>strong, $mine against weak</h1>" in page
    assert page.count("<img") == 2
    assert page.index("<strong>Better.</strong> AUROC: strong") < page.index("<h2>One picture</h2>")
    assert page.index("Patient by patient") < page.index("00_idx5")
    assert "each fold&#39;s own" in page
    for text in (page, (output / "comparison.json").read_text()):
        assert str(tmp_path) not in text


def test_without_known_patients_there_is_no_part_on_them(tmp_path):
    runs = []
    for number, strength in enumerate((0.5, 2.5)):
        predictions = make_predictions(number, strength)
        predictions = dataclasses.replace(
            predictions, patches=[patch._replace(patient="") for patch in predictions.patches]
        )
        runs.append(write_run(tmp_path / str(number), predictions))
    compared, predictions = comparison.compare_runs(runs)
    figures = comparison_plots.draw_figures(compared, predictions)
    assert list(figures) == ["comparison"]
    (tmp_path / "out").mkdir()
    comparison.write_comparison(tmp_path / "out", compared, figures)
    assert "Patient by patient" not in (tmp_path / "out/comparison.html").read_text()
    assert "Of 0 patients" not in comparison.comparison_text(compared)
    assert compared["interval"]["over"] == "images"
