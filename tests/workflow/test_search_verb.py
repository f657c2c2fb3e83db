"""The search script: it trains as train_model.py does, reads no test patient, is shared, and goes on after a kill."""

import concurrent.futures
import csv
import dataclasses
import importlib.util
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, write_slides

import build_dataset
import train_model
from cancernet import InputError, StorageError
from cancernet.__main__ import main
from cancernet.cli import parse_options
from cancernet.config import TrainingOptions
from cancernet.data.dataset import Patch, read_manifest
from cancernet.training.experiments import choose_experiment

pytest.importorskip("optuna")
from cancernet.workflow import trials

SMALL = ["--model", "simple_cnn", "--image-size", "24", "--views", "one", "--epochs", "1", "--folds", "2"]
SPACE = {"learning_rate": {"low": 0.001, "high": 0.1, "log": True}, "dropout": {"low": 0.1, "high": 0.7}}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A built dataset whose test images are destroyed, so that nothing can read them, and a table of settings."""
    folder = tmp_path_factory.mktemp("searched")
    write_slides(folder / "source", patients=12)
    build_dataset.main(["--source", str(folder / "source"), "--output", str(folder / "whole")])
    shutil.copytree(folder / "whole", folder / "dataset")
    for patch in read_manifest(folder / "dataset"):
        if patch.split == "testing":
            (folder / "dataset" / patch.file).write_bytes(b"not to be read")
    (folder / "space.json").write_text(json.dumps(SPACE))
    return folder


def choose(options):
    return choose_experiment(parse_options(TrainingOptions, options, prog="train_model.py", about=""))


def arguments(made, output, *options):
    given = ["--dataset", str(made / "dataset"), "--output", str(output), "--space", str(made / "space.json")]
    return [*given, *SMALL, *map(str, options)]


@pytest.mark.slow
def test_a_search_ends_with_a_recipe_that_training_takes(made, tmp_path, capsys):
    output = tmp_path / "search"
    main(["tune", *arguments(made, output, "--trials", 1)])
    main(["tune", *arguments(made, output, "--trials", 2)])  # one more
    said = capsys.readouterr().out
    assert "Trial 0, fold 1: log-loss 0." in said
    assert "Trial 1, fold 2: log-loss 0." in said
    assert "2 trials (2 finished)" in said
    assert "Test patients were not used." in said
    assert {"recipe.json", "trials.csv", "search.txt", "search.html", "search.png"} <= {
        path.name for path in output.iterdir()
    }
    with (output / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    best = min(rows, key=lambda row: float(row["log_loss"]))
    recipe = choose(["--recipe", str(output / "recipe.json")])
    assert recipe.learning_rate == pytest.approx(float(best["learning_rate"]))
    assert recipe.dropout == pytest.approx(float(best["dropout"]))
    usual = choose(SMALL)
    assert dataclasses.replace(recipe, learning_rate=usual.learning_rate, dropout=usual.dropout) == usual
    assert "Training simple_cnn on" in (output / "logs/0000.txt").read_text()


@pytest.mark.slow
def test_trials_are_judged_by_all_their_folds_as_training_trains_them(made, tmp_path):
    main(["tune", *arguments(made, tmp_path / "search", "--trials", 1)])
    known = [patch for patch in read_manifest(made / "dataset") if patch.split != "testing"]
    with np.load(tmp_path / "search/trials/0000.npz") as kept:
        own = kept["probabilities"][np.arange(len(known)), [int(patch.label) for patch in known]]
    with (tmp_path / "search/trials.csv").open() as file:
        assert float(next(csv.DictReader(file))["log_loss"]) == pytest.approx(-np.log(own).mean())
    # A cross-validation of the same patients by train_model.py gives the same probabilities.
    source = tmp_path / "known"
    for patch in known:
        path = source / patch.file.partition("/")[2]
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(made / "dataset" / patch.file, path)
    split = "patient,split\n" + "".join({f"{patch.patient},{patch.split}\n" for patch in known})
    (tmp_path / "split.csv").write_text(split)
    options = ["--output", str(tmp_path / "d"), "--split-file", str(tmp_path / "split.csv")]
    build_dataset.main(["--source", str(source), *options])
    train_model.main(["--dataset", str(tmp_path / "d"), "--output", str(tmp_path / "run"), *SMALL])
    with (tmp_path / "run/predictions.csv").open() as file:
        judged = {row["file"]: float(row["probability_1"]) for row in csv.DictReader(file)}
    with np.load(tmp_path / "search/trials/0000.npz") as kept:
        found = {patch.file: share for patch, share in zip(known, kept["probabilities"][:, 1], strict=True)}
    assert judged == pytest.approx(found)


@pytest.mark.slow
def test_a_frozen_backbone_is_searched_on_kept_features_and_no_test_image_is_read(made, tmp_path, capsys):
    (tmp_path / "space.json").write_text('{"class_weight": {"choices": ["balanced", "none"]}}')
    options = ["--model", "mobilenetv3small", "--weights", "none", "--image-size", "40", "--members", "2"]
    given = [
        "--dataset",
        str(made / "dataset"),
        "--output",
        str(tmp_path / "s"),
        "--space",
        str(tmp_path / "space.json"),
    ]
    main(["tune", *given, *options, "--folds", "2", "--trials", "2"])
    assert "2 trials (2 finished)" in capsys.readouterr().out
    logs = [(tmp_path / "s/logs" / f"{number:04}.txt").read_text() for number in (0, 1)]
    with (made / "dataset/manifest.csv").open() as file:
        known = [row for row in csv.DictReader(file) if row["split"] != "testing"]
    assert f"Computing the features of {len(known)} images once" in logs[0]
    assert "Computing" not in logs[1]
    (features,) = made.glob("dataset.without_testing.features/mobilenetv3small-40-*/features.npy")
    assert len(np.load(features)) == len(known)
    assert not (made / "dataset.features").exists()


@pytest.mark.parametrize(("patient", "from_whom"), [("p", " from 1 patient"), ("", "")])
def test_the_data_of_a_search_are_described(patient, from_whom):
    patches = [Patch(f"{n}.png", "0", patient, None, None, "training", "") for n in range(2)]
    plan = SimpleNamespace(dataset=SimpleNamespace(patches=patches))
    said = trials.Trainer(plan, [patches], Path("out")).describe()
    assert said == f"cross-validated in 1 fold over the 2 images{from_whom} of training and validation"


def start(made, output, *options):
    command = [sys.executable, "-m", "cancernet", "tune", *arguments(made, output, *options)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def test_processes_that_start_at_the_same_moment_make_one_folder(tmp_path, monkeypatch):
    write, begun, written = trials.write_json, threading.Event(), []

    def write_slowly(path, value):
        written.append(path)
        (path.parent / ".search.json.cancernet-new").write_text("{")
        begun.set()
        time.sleep(0.2)
        write(path, value)

    monkeypatch.setattr(trials, "write_json", write_slowly)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        first = pool.submit(trials.prepare_folder, tmp_path / "search", {"seed": 1})
        assert begun.wait(10)
        trials.prepare_folder(tmp_path / "search", {"seed": 1})
        first.result()
    assert written == [tmp_path / "search/search.json"]
    assert {path.name for path in (tmp_path / "search").iterdir()} == {"search.json", "trials", "logs"}


@pytest.mark.slow
def test_two_processes_share_a_search_and_one_that_was_killed_goes_on(made, tmp_path):
    output = tmp_path / "search"
    doomed, other = start(made, output, "--trials", 3), start(made, output, "--trials", 3)
    while not list(output.glob(f"processes/*-{doomed.pid}-*/*")):
        assert doomed.poll() is None
        time.sleep(0.05)
    doomed.send_signal(signal.SIGKILL)  # within a fold
    doomed.communicate()
    said, errors = other.communicate(timeout=600)
    assert other.returncode == 0, errors
    again = start(made, output, "--trials", 3)
    said, errors = again.communicate(timeout=600)
    assert again.returncode == 0, errors
    with (output / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    ended = [row for row in rows if row["state"] != "interrupted"]
    assert len(ended) == 3
    assert len(rows) == 4  # the killed one's trial
    assert len({(row["learning_rate"], row["dropout"]) for row in ended}) == 3
    assert "3 trials (" in said
    assert not list((output / "processes").iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trials", "0"], "argument --trials: takes a whole number of at least 1, not '0'"),
        (["--timeout", "2"], "--timeout takes a time such as 90s, 30m or 2h, not '2'"),
        (["--timeout", "0h"], "--timeout takes a time such as 90s"),
        (["--only-folds", "1"], "unrecognized arguments: --only-folds 1"),
        (["--features", "f.npy"], "unrecognized arguments: --features f.npy"),
        (["--model", "vgg"], "--model takes cancernet"),
        (["--space", "none.json"], "There is no none.json"),
        (["--folds", "60"], "folds"),
    ],
)
def test_what_is_wrong_is_said_at_once(made, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        main(["tune", *arguments(made, tmp_path / "search", *options)])
    assert not (tmp_path / "search").exists()


def test_what_a_frozen_backbone_does_not_use_is_not_searched(made, tmp_path):
    options = ["--model", "mobilenetv3small", "--weights", "none", "--image-size", "32"]
    given = ["--dataset", str(made / "dataset"), "--output", str(tmp_path / "s"), "--space", str(made / "space.json")]
    with pytest.raises(InputError, match="learning_rate is for networks trained in epochs"):
        main(["tune", *given, *options])


def test_more_members_than_patients_are_refused_before_the_first_trial(made, tmp_path):
    (tmp_path / "space.json").write_text('{"members": {"low": 2, "high": 40}}')
    with pytest.raises(InputError, match=r"patient\(s\) and"):
        main(["tune", *arguments(made, tmp_path / "s", "--space", tmp_path / "space.json")])
    assert not (tmp_path / "s").exists()


def test_a_folder_of_something_else_is_not_taken(made, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_text("")
    with pytest.raises(InputError, match="other contains other files, not a search. Choose another output folder."):
        main(["tune", *arguments(made, tmp_path / "other")])


def test_a_missing_optuna_is_named_with_what_to_do(made, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs Optuna, which is not installed: pip install \"\.\[search\]\""):
        main(["tune", *arguments(made, tmp_path / "search")])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 damaged"])
def test_a_damaged_trial_is_named_with_what_to_do(tmp_path, content):
    patches = [Patch(f"{label}.png", label, label, None, None, "training", "") for label in "01"]
    plan = SimpleNamespace(dataset=SimpleNamespace(patches=patches))
    (tmp_path / trials.TRIALS).mkdir()
    (tmp_path / trials.TRIALS / "0003.npz").write_bytes(content)
    with pytest.raises(StorageError, match=r"0003.npz is damaged. Delete it; the next search trains this trial again."):
        trials.Trainer(plan, [], tmp_path).predict(SimpleNamespace(number=3), tmp_path)
