"""The benchmarks: their rows and tables, worked out by hand; no training."""

import argparse
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT

from benchmarks import coverage
from benchmarks.feeding import time_steps
from benchmarks.recipes import format_table, parse_row, summarise
from benchmarks.table import Row, measure_in_turn
from benchmarks.table import format_table as format_ratios


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


ROWS = [
    Row("training", "images/s", "the tutorial's way", [300.0, 450.0, 400.0], [200.0, 300.0, 200.0]),
    Row("steps of 32", "images/s", "arrays in memory", [90.0, 94.0], [100.0, 100.0], least=0.95),
    Row("start", "s", "half a second", [0.2], [0.5], most=1.0),
    Row("waiting", "s", "all of the time", [], [], most=0.05, reason="no GPU here"),
]


def test_the_table_gives_each_rounds_ratio_as_median_and_range():
    assert format_ratios(ROWS).splitlines() == [
        "             measured      compared with                     ratio  least to greatest  should be",
        "training     400 images/s  the tutorial's way  200 images/s  1.50   1.50 to 2.00",
        "steps of 32  92 images/s   arrays in memory    100 images/s  0.92   0.90 to 0.94       >= 0.95    missed",
        "start        0.2 s         half a second       0.5 s         0.40   0.40 to 0.40       <= 1.00    met",
        "waiting      n/a           all of the time                   n/a    no GPU here        <= 0.05",
    ]


def test_each_round_measures_all_and_begins_with_another():
    order = []

    def measure(name):
        order.append(name)
        return len(order)

    found = measure_in_turn({name: lambda name=name: measure(name) for name in "abc"}, 2)
    assert order == [*"abc", *"bca"]
    assert found == {"a": [1, 6], "b": [2, 4], "c": [3, 5]}


def test_the_time_of_steps_and_the_wait_for_their_batches_are_apart():
    class Network:
        images = 0

        def train_on_batch(self, images, targets):
            self.images += len(images)
            time.sleep(0.02)

    def slow_batches():
        while True:
            time.sleep(0.01)
            yield [0, 0], [1, 1]

    network = Network()
    seconds, waited = time_steps(network, slow_batches(), 3)
    assert network.images == 6
    assert seconds >= 0.09
    assert 0.03 <= waited <= seconds - 0.06


def test_an_interval_holds_the_truth_or_lies_on_one_side_of_it():
    answers = [coverage.judge(each, 0.5) for each in ((0.4, 0.6), (0.6, 0.7), (0.1, 0.2), (None, 0.6), (None, None))]
    assert answers == ["in", "below", "above", "in", None]
    assert coverage.share_covered(answers) == "50"
    assert coverage.share_covered(["in", None, None]) == "n/a"


def test_simulated_patients_are_as_their_description_says():
    study = coverage.simulate(np.random.default_rng(0), 4000)
    images = np.bincount(study.patients)
    share = np.bincount(study.patients, weights=study.labels) / images
    assert (images.min(), images.max()) == (3, 200)
    assert np.median(images) == pytest.approx(24, abs=1)
    assert np.median(share) == pytest.approx(0.24, abs=0.02)


def test_studies_give_both_methods_intervals():
    found = coverage.run_studies(6, 3, 50, dict.fromkeys(coverage.FIGURES, 0.5))
    assert {len(rows["auroc"]) for rows in found.values()} == {3}
    table = coverage.format_table({6: found}).splitlines()
    assert table[:2] == ["| figure | 6 patients |", "|---|--:|"]
    assert len(table) == 2 + len(coverage.FIGURES)
