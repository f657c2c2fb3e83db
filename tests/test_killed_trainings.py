"""Trainings killed, ended by signals and started twice: nothing is lost, and the figures are those of a quiet one."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, write_slides

import build_dataset

pytestmark = pytest.mark.slow

# A checkpoint before every step, so that many kills meet one that is being written.
EAGER = """
import sys
from cancernet.command_line import run_script
import train_model
def main(argv):
    from cancernet.learning import checkpoints
    checkpoints._SECONDS_BETWEEN_CHECKPOINTS = checkpoints._MOST_SECONDS_BETWEEN = -1
    train_model.main(argv)
run_script(main)
"""
SMALL = ["--model", "simple_cnn", "--image-size", "24", "--views", "one", "--batch-size", "8"]
BACKBONE = ["--model", "densenet121", "--weights", "none", "--image-size", "32", "--views", "one"]
KINDS = {  # how often each is killed, and its options
    "scratch": (9, [*SMALL, "--epochs", "10"]),
    "frozen": (2, [*BACKBONE, "--strategy", "frozen"]),
    "two-phase": (1, [*BACKBONE, "--strategy", "two-phase", "--epochs", "1", "--batch-size", "16"]),
    "folds": (8, [*SMALL, "--folds", "2", "--epochs", "6"]),
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    write_slides(folder / "source", patients=12, patches=6)
    build_dataset.main(["--source", str(folder / "source"), "--output", str(folder / "dataset")])
    return folder / "dataset"


def start(dataset, output, options, *, code=EAGER):
    command = [sys.executable, "-u", "-c", code, "--dataset", dataset, "--output", output, *options]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(
        list(map(str, command)), cwd=ROOT, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}, **streams
    )


def read_figures(run):
    """All that follows from the training, without the time it took."""
    files = sorted(file for name in ("predictions.csv", "decision.json") for file in run.rglob(name))
    figures = {file.relative_to(run).as_posix(): file.read_bytes() for file in files}
    for file in run.rglob("history.csv"):
        with file.open(newline="") as opened:
            rows = [row | {"seconds": None} for row in csv.DictReader(opened)]  # a head without epochs has no row
        figures[file.relative_to(run).as_posix()] = rows
    return figures


def wait_for(process, work, pattern):
    """Whether a file or folder like this came up before the process ended."""
    while process.poll() is None:
        if any(work.rglob(pattern)):
            return True
        time.sleep(0.001)
    return False


def read_state(work):
    """The newest checkpoint as it is now, None where there is none or where it is being replaced."""
    found = sorted(work.rglob("checkpoint*/state.json"))
    try:
        return [file.read_text() for file in found if "partial" not in str(file)]
    except FileNotFoundError:
        return None


def kill(process, work, *, while_writing, seconds):
    """Kill a training after it went on from where it was, so many seconds later or while it writes a checkpoint."""
    before = read_state(work)
    while process.poll() is None and read_state(work) in (None, [], before):
        time.sleep(0.005)
    if while_writing:
        wait_for(process, work, "checkpoint*.partial-*/last.keras")
    else:
        time.sleep(seconds)
    process.kill()
    process.stdout.close()
    return process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_killed_at_any_moment_ends_with_the_same_figures(dataset, tmp_path, kind):
    (kills, options), output = KINDS[kind], tmp_path / "run"
    started, whole = time.monotonic(), start(dataset, tmp_path / "whole", options)
    said = whole.communicate()[0]
    assert whole.returncode == 0, said
    took, moment, killed = time.monotonic() - started, random.Random(kind), 0
    for number in range(kills):
        process = start(dataset, output, options)
        if kind == "frozen":  # heads that are fitted at once have no checkpoint
            time.sleep(moment.uniform(0.3, 0.8) * took)
            process.kill()
            killed += process.wait() == -signal.SIGKILL
        else:
            work = output.with_name("run.unfinished")
            killed += kill(process, work, while_writing=number % 2, seconds=moment.uniform(0, 0.5))
    last = start(dataset, output, options)
    said = last.communicate()[0]
    assert last.returncode == 0 or "holds a finished run" in said, said
    assert killed >= kills / 2
    assert read_figures(output) == read_figures(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path)) == ["run", "whole"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_training_that_is_ended_writes_its_checkpoint_and_a_second_one_is_refused(dataset, tmp_path, number):
    options = [*SMALL, "--epochs", "3000"]
    process = start(dataset, tmp_path / "run", options, code=EAGER.replace("= -1", "= 600"))
    for line in process.stdout:
        if line.startswith("Epoch 3/"):
            break
    second = start(dataset, tmp_path / "run", options)
    said = second.communicate()[0]
    assert second.returncode == 2
    assert f"error: Another training is working on {tmp_path / 'run'} (process {process.pid})." in said
    assert os.listdir(tmp_path / "run.unfinished") == ["begun.json"]
    process.send_signal(number)
    assert process.communicate(timeout=60)[0].splitlines()[-1] in ("error: ended by SIGTERM.", "error: interrupted.")
    assert process.returncode == 128 + number
    (checkpoint,) = (tmp_path / "run.unfinished").glob("checkpoint*")
    assert len(json.loads((checkpoint / "state.json").read_text())["epochs"]) >= 2
    assert os.listdir(tmp_path) == ["run.unfinished"]
