"""Comparing runs from the command line: what it refuses, and what it writes."""

import json
import shutil
import subprocess
import sys
import time

import pytest
from evaluated_runs import make_predictions, write_run

from cancernet import CancerNetError
from cancernet.__main__ import main
from cancernet.reporting import comparison_plots


@pytest.fixture
def pair(tmp_path):
    return [write_run(tmp_path / name, make_predictions(i, i + 0.5)) for i, name in enumerate(("weak", "strong"))]


@pytest.fixture
def undrawn(monkeypatch):
    """Comparisons without pictures, which take most of the time."""
    monkeypatch.setattr(comparison_plots, "draw_figures", lambda *_: {})


def compare(*arguments) -> None:
    main(["compare", *map(str, arguments)])


def complaint(*arguments) -> str:
    with pytest.raises(CancerNetError) as caught:
        compare(*arguments)
    return str(caught.value)


def test_it_prints_and_writes(pair, tmp_path, capsys):
    compare(*pair, "--output", tmp_path / "out")
    printed = capsys.readouterr().out
    assert printed.startswith("Both runs were evaluated on the same 120 images from 12 patients.\n\nBetter. F1: ")
    assert printed.endswith(f"The comparison with its pictures: {tmp_path / 'out/comparison.html'}\n")
    assert (tmp_path / "out/comparison.txt").read_text() in printed
    compare(*pair)
    assert "with its pictures" not in capsys.readouterr().out


def test_only_a_comparison_is_replaced_and_only_with_force(pair, tmp_path, undrawn):
    compare(*pair, "--output", tmp_path / "out")
    assert complaint(*pair, "--output", tmp_path / "out").startswith(f"{tmp_path}/out already contains a comparison.")
    compare(*pair, "--output", tmp_path / "out", "--force")
    assert complaint(*pair, "--output", pair[0], "--force") == (
        f"{pair[0]} contains an evaluation report, not a comparison. Choose another output folder."
    )
    assert (pair[0] / "predictions.csv").is_file()


def test_one_run_or_the_same_twice_is_refused(pair):
    assert complaint(pair[0]) == f"One run alone, {pair[0]}, cannot be compared. Give two or more."
    twice = f"{pair[0]} is given twice. Give two or more different runs."
    assert complaint(pair[0], pair[1], f"{pair[0]}/.") == twice


def test_what_is_no_run_is_refused(pair, tmp_path):
    missing = tmp_path / "missing"
    assert complaint(pair[0], missing) == (
        f"There is no folder {missing}. Make one with `cancernet train` or `cancernet evaluate`."
    )
    (pair[1] / "predictions.csv").unlink()
    assert complaint(*pair).startswith(f"{pair[1]} has no report.json with a predictions.csv. Give the output ")
    (pair[1] / "predictions.csv").write_text("file,label\na.png,0\n")
    assert complaint(*pair).startswith(f"{pair[1]}/predictions.csv is missing or damaged. ")
    (pair[1] / "report.json").write_text("{")
    assert complaint(*pair).startswith(f"{pair[1]}/report.json is damaged: ")


def test_other_classes_or_another_positive_class_are_refused_in_one_line(pair, tmp_path):
    three = write_run(tmp_path / "three", make_predictions(0, 1, ("0", "1", "2")), ("0", "1", "2"))
    assert complaint(pair[0], three) == (
        "The classes of weak are 0, 1, those of three 0, 1, 2. Compare runs with the same classes."
    )
    other = write_run(tmp_path / "other", make_predictions(0, 1), positive="0")
    assert complaint(pair[0], other) == (
        "The positive class is 1 in weak and 0 in other. Train both with the same --positive."
    )


def test_a_column_that_no_run_has_is_refused(pair):
    assert complaint(*pair, "--group", "site") == (
        "predictions.csv of these runs has no column site. Evaluate one of them again on a dataset whose manifest has "
        "it: cancernet evaluate RUN --group site --output FOLDER."
    )


def test_other_images_are_refused(pair, tmp_path):
    fewer = shutil.copytree(pair[1], tmp_path / "fewer")
    lines = (fewer / "predictions.csv").read_text().splitlines(keepends=True)
    (fewer / "predictions.csv").write_text("".join(lines[:-1]))
    assert complaint(pair[0], fewer) == (
        "weak evaluated 1 images that fewer did not, first testing/1/119.png. Evaluate both on the same images: "
        "evaluate_model.py RUN --dataset FOLDER --output FOLDER."
    )


def test_a_complaint_is_one_line_and_help_comes_at_once(pair):
    script = [sys.executable, "-m", "cancernet", "compare"]
    done = subprocess.run([*script, str(pair[0])], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    seconds = []
    for _ in range(3):  # the fastest, for other tests run at the same time
        started = time.perf_counter()
        subprocess.run([*script, "--help"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - started)
        if seconds[-1] < 0.5:
            break
    assert min(seconds) < 0.5


def test_the_json_names_classes_and_baseline(pair, tmp_path, undrawn):
    compare(*pair, "--output", tmp_path / "out")
    found = json.loads((tmp_path / "out/comparison.json").read_text())
    assert (found["baseline"], found["positive"], found["classes"]) == ("weak", "1", ["0", "1"])
    assert [run["threshold"] for run in found["runs"]] == [0.5, 0.5]
