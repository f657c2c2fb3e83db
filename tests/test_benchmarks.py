"""The benchmark of recipes: its rows and its table, worked out by hand; no training."""

import argparse
import subprocess
import sys

import pytest
from conftest import ROOT

from benchmarks.recipes import format_table, parse_row, summarise


def trained(*figures):
    return [dict(zip(("seed", "epochs", "seconds", "auroc"), each)) for each in figures]


TRAININGS = {
    "tutorial": trained((1, 40, 300.0, 0.90), (2, 40, 200.0, 0.88), (3, 40, 220.0, 0.92)),
    "a long name": trained((1, 16, 90.4, 0.95), (2, 12, 80.0, 0.91), (3, 16, 99.0, 0.93)),
    "undefined": trained((1, 1, 5.0, 0.5), (2, 1, 5.0, None), (3, 1, 5.0, 0.5)),
}


def test_the_table_gives_each_seed_mean_spread_and_difference_to_the_first_row():
    assert format_table(TRAININGS).splitlines() == [
        "row          epochs  seconds  seed 1  seed 2  seed 3   mean  spread  difference",
        "tutorial         40      220   0.900   0.880   0.920  0.900   0.020      +0.000",
        "a long name      16       90   0.950   0.910   0.930  0.930   0.020      +0.030",
        "undefined         1        5   0.500     n/a   0.500    n/a     n/a         n/a",
    ]


def test_one_seed_has_no_spread():
    row = summarise({"a": trained((1, 3, 9.0, 0.7)), "b": trained((1, 3, 9.0, 0.6))})["b"]
    assert row == {"epochs": 3, "seconds": 9.0, "mean": 0.6, "spread": None, "difference": pytest.approx(-0.1)}


def test_a_row_is_a_name_and_arguments():
    assert parse_row("small: --epochs 1 --weights 'a file'") == ("small", ["--epochs", "1", "--weights", "a file"])
    for text in ("--epochs 1", ": --epochs 1"):
        with pytest.raises(argparse.ArgumentTypeError, match="takes 'NAME: arguments"):
            parse_row(text)


def test_what_a_script_says_when_it_fails_is_shown(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks/recipes.py"), "--source", str(tmp_path / "nowhere")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "nowhere" in done.stderr
    assert "Building the dataset of seed 1 failed with exit status 2" in done.stderr
