"""Trainings killed, ended by signals and started twice: nothing is lost, and the figures are those of a quiet one."""

import csv
import json
import os
import random
import re
import shutil
import signal
import time

import pytest
from conftest import KILLS, write_slides
from forking import TRAINER, ForkServer

import build_dataset

pytestmark = pytest.mark.slow

SMALL = ["--views", "one", "--batch-size", "16"]
CNN = [*SMALL, "--model", "simple_cnn", "--image-size", "24"]
BACKBONE = ["--model", "mobilenetv3small", "--weights", "none", "--image-size", "32", "--views", "one"]
KINDS = {
    "scratch": [*SMALL, "--model", "cancernet", "--image-size", "16", "--epochs", "3"],
    "frozen": BACKBONE,
    "two-phase": [*BACKBONE, "--strategy", "two-phase", "--epochs", "4", "--batch-size", "16"],
    "folds": [*CNN, "--folds", "2", "--epochs", "3"],
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    write_slides(folder / "source", patients=12, patches=6)
    build_dataset.main(["--source", str(folder / "source"), "--output", str(folder / "dataset")])
    return folder / "dataset"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Trains with a checkpoint before every step, so that a kill can meet one that is being written."""
    server = ForkServer(TRAINER, tmp_path_factory.mktemp("server"))
    yield server
    server.end()


@pytest.fixture
def start(server, dataset):
    """Start a training of given options."""

    def start(output, options, **how):
        return server.start(["train", "--dataset", dataset, "--output", output, *options], **how)

    return start


def read_history(run):
    """The figures of each epoch, without the time it took; a head that is fitted without epochs has none."""
    with (run / "history.csv").open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    return [{key: float(value) for key, value in row.items() if key not in ("epoch", "seconds")} for row in rows]


def read_figures(run):
    """All that follows from the training, of each fold."""
    files = sorted(file for name in ("predictions.csv", "decision.json") for file in run.rglob(name))
    figures = {file.relative_to(run).as_posix(): file.read_bytes() for file in files}
    assert len(figures) in (2, 5)
    return figures, [read_history(file.parent) for file in sorted(run.rglob("history.csv"))]


def is_writing(work):
    return any(work.rglob(".checkpoint*.cancernet-new/last.keras"))


def kill(process, work, *, seconds, while_writing):
    """Kill a training after so many seconds, or then at the next checkpoint that it writes.

    Returns:
        Whether it was killed before it had ended, and whether it was writing a checkpoint.
    """
    started = time.monotonic()
    while process.poll() is None:
        if time.monotonic() - started > seconds and (not while_writing or is_writing(work)):
            break
        time.sleep(0.005)
    process.kill()
    return process.finish()[0] == -signal.SIGKILL, is_writing(work)


def check_checkpoints(work, whole):
    """See that what a killed training left has the figures of a quiet one, as far as it came."""
    for file in work.rglob("checkpoint*/state.json"):
        if "partial" not in str(file):
            epochs = json.loads(file.read_text())["epochs"]
            expected = read_history(whole / file.parent.parent.relative_to(work))
            assert [epoch | {"seconds": 0} for epoch in epochs] == [e | {"seconds": 0} for e in expected[: len(epochs)]]


def finish(process):
    """Train to the end; the seconds that it took."""
    started, (status, said) = time.monotonic(), process.finish()
    assert status == 0, said
    return time.monotonic() - started


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_killed_at_any_moment_ends_with_the_same_figures(start, dataset, tmp_path, kind):
    """Half of the kills are at any moment, half while a checkpoint is written; each time it goes on from there."""
    options, moment, killed, writing = KINDS[kind], random.Random(kind), 0, 0
    whole, output, work = tmp_path / "whole", tmp_path / "run", tmp_path / "run.unfinished"
    took = finish(start(whole, options))
    shutil.rmtree(f"{dataset}.features", ignore_errors=True)  # so that these are computed again, and killed meanwhile
    for _ in range(3 * KILLS):  # some are through before they are killed
        while_writing = killed % 2 and kind != "frozen"  # heads that are fitted at once have no checkpoint
        started, process = time.monotonic(), start(output, options)
        seconds = moment.uniform(0.3, 0.9) * took * (0.7 if while_writing else 1)
        was_killed, was_writing = kill(process, work, seconds=seconds, while_writing=while_writing)
        killed, writing = killed + was_killed, writing + was_writing
        check_checkpoints(work, whole)
        if output.exists():
            took = min(took, time.monotonic() - started)  # the machine may be less busy than before
            assert read_figures(output) == read_figures(whole)
            shutil.rmtree(output)
        if killed == KILLS:
            break
    finish(start(output, options))
    assert read_figures(output) == read_figures(whole)
    assert sorted(os.listdir(tmp_path)) == ["run", "whole"]
    print(f"{kind}: {killed} killed, {writing} of them while a checkpoint was written")
    assert killed == KILLS


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_training_that_is_ended_writes_its_checkpoint_and_a_second_one_is_refused(start, tmp_path, number):
    options = [*CNN, "--epochs", "3000"]
    seldom = "checkpoints._SECONDS_BETWEEN_CHECKPOINTS = checkpoints._MAX_SECONDS_BETWEEN = 600"
    process = start(tmp_path / "run", options, code=seldom)
    while not re.search("^ *2/", process.read(), re.MULTILINE):  # of the table of epochs: the third has begun
        assert process.poll() is None, process.read()
        time.sleep(0.05)
    status, said = start(tmp_path / "run", options).finish()
    assert status == 2
    assert f"error: Another process is writing {tmp_path / 'run'} (process {process.pid})." in said
    assert os.listdir(tmp_path / "run.unfinished") == ["begun.json"]
    process.kill(number)
    status, said = process.finish()
    assert said.splitlines()[-1] in ("error: ended by SIGTERM.", "error: interrupted.")
    assert status == 128 + number
    (checkpoint,) = (tmp_path / "run.unfinished").glob("checkpoint*")
    assert len(json.loads((checkpoint / "state.json").read_text())["epochs"]) >= 2
    assert os.listdir(tmp_path) == ["run.unfinished"]
