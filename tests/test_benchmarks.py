"""The benchmarks: their rows and tables, computed by hand; nothing is trained."""

import argparse
import sys
import time

import numpy as np
import pytest

from benchmarks import coverage, recipes
from benchmarks.feeding import time_steps
from benchmarks.recipes import CrossValidation, Recipe, format_tables, parse_recipe
from benchmarks.table import Row, measure_in_turn
from benchmarks.table import format_table as format_ratios
from cancernet.data.dataset import Patch
from cancernet.evaluation.predictions import Predictions


def cross_validate(name, probability, *, folds=(1, 2)) -> CrossValidation:
    """Twelve images of six patients, two images of each class a fold; the same probabilities in every fold."""
    found = {}
    for number in folds:
        labels = np.array([0, 1] * 6)
        patches = [
            Patch(f"{number}_{row}.png", str(label), f"{number}_{row // 2}", None, None, "", "")
            for row, label in enumerate(labels)
        ]
        stated = np.where(labels == 1, probability, 0.2)
        found[number] = Predictions(
            patches, labels, np.stack([1 - stated, stated], axis=1), (stated >= 0.5).astype(int)
        )
    return CrossValidation(Recipe(name, ["--recipe", name]), ["0", "1"], "1", found, seconds=61.4)


def test_the_table_of_recipes_has_figures_and_paired_differences():
    short = cross_validate("short", 0.4, folds=[2])
    lines = format_tables([cross_validate("tutorial", 0.7), cross_validate("tutorial_again", 0.7), short]).splitlines()
    assert lines[0] == (
        "| recipe | folds | patients | AUROC | F1 | balanced accuracy | log-loss | seconds per fold | command |"
    )
    # log-loss -(log .8 + log .7) / 2, and with .4 in place of .7
    command = "`train_model.py --recipe tutorial --folds 5`"
    assert lines[2] == f"| tutorial | 1, 2 | 12 | 1.000 | 1.000 | 1.000 | 0.290 | 61 | {command} |"
    assert lines[4].startswith("| short | 2 | 6 | 1.000 | 0.000 | 0.500 | 0.570 | 61 | ")
    assert lines[6] == "| minus tutorial | folds | AUROC | F1 | balanced accuracy | log-loss |"
    assert lines[8] == "| tutorial_again | 1, 2 | +0.000 | +0.000 | +0.000 | +0.000 |"
    assert lines[9].startswith("| short | 2 | +0.000 | -1.000 | -0.500 | +0.280")


def test_recipes_without_a_common_fold_are_refused():
    with pytest.raises(SystemExit, match="one and tutorial have no fold in common"):
        format_tables([cross_validate("tutorial", 0.7, folds=[1]), cross_validate("one", 0.7, folds=[2])])


def test_a_recipe_is_a_name_and_arguments():
    assert parse_recipe("small: --epochs 1 --weights 'a file'") == ("small", ["--epochs", "1", "--weights", "a file"])
    assert parse_recipe("default:") == ("default", [])
    for text in ("--epochs 1", ": --epochs 1", "../up: --epochs 1"):
        with pytest.raises(argparse.ArgumentTypeError, match="takes 'NAME: options"):
            parse_recipe(text)


def test_the_output_of_a_failed_script_is_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["recipes.py", "--dataset", "nowhere"])
    with pytest.raises(SystemExit, match="(?s)nowhere.*Training 'tutorial' failed with exit status 2"):
        recipes.main()


ROWS = [
    Row("training", "images/s", "the tutorial's code", [300.0, 450.0, 400.0], [200.0, 300.0, 200.0]),
    Row("steps of 32", "images/s", "arrays in memory", [90.0, 94.0], [100.0, 100.0], least=0.95),
    Row("start", "s", "half a second", [0.2], [0.5], most=1.0),
    Row("waiting", "s", "total time", [], [], most=0.05, reason="no GPU"),
]


def test_the_table_gives_each_rounds_ratio_as_median_and_range():
    assert format_ratios(ROWS).splitlines() == [
        "             measured      compared with                      ratio  range         target",
        "training     400 images/s  the tutorial's code  200 images/s  1.50   1.50 to 2.00",
        "steps of 32  92 images/s   arrays in memory     100 images/s  0.92   0.90 to 0.94  >= 0.95  missed",
        "start        0.2 s         half a second        0.5 s         0.40   0.40 to 0.40  <= 1.00  met",
        "waiting      n/a           total time                         n/a    no GPU        <= 0.05",
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


def test_an_interval_covers_the_truth_or_is_on_one_side_of_it():
    intervals = ((0.4, 0.6), (0.6, 0.7), (0.1, 0.2), (None, 0.6), (None, None))
    answers = [coverage.locate_truth(each, 0.5) for each in intervals]
    assert answers == ["in", "below", "above", "in", None]
    assert coverage.share_covered(answers) == "50"
    assert coverage.share_covered(["in", None, None]) == "n/a"


def test_simulated_patients_match_their_description():
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


def test_predicted_sizes_are_tried_on_cohorts_of_that_size():
    sizes = {"auroc": ([30, 40, 60], [0.049, 0.052, 0.06])}
    assert coverage.format_sizes({12: sizes}).splitlines()[2] == "| auroc | 40 (35 to 50) | 5.2 |"
    found = coverage.run_size_studies(12, 4)
    assert len(found["sensitivity"][0]) == 4
    assert 0.01 < found["sensitivity"][1][0] < 0.15
    assert coverage.half_width("sensitivity", 40, 1) > coverage.half_width("sensitivity", 160, 1)


def test_a_difference_of_runs_is_covered_where_its_interval_holds_it():
    first, second = coverage.simulate_pair(np.random.default_rng(3), 40)
    assert (first.labels == second.labels).all()
    assert 0.6 < np.corrcoef(first.probability, second.probability)[0, 1] < 0.95
    truth = coverage.difference((first, second))["auroc"].value
    assert truth < 0
    found = coverage.run_paired_studies(12, 3, {"auroc": truth, "f1": 5.0})
    assert set(found["jackknife"]["f1"]) == {"above"}
    assert len(found["jackknife"]["auroc"]) == 3
