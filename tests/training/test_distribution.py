"""One training in several processes: their shares are the whole, and two of them train as one does."""

import os
import socket
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
from conftest import ROOT

import build_dataset
from cancernet import InputError
from cancernet.config import Augmentation, Experiment
from cancernet.data.images import ImageStore
from cancernet.data.sample import write_sample
from cancernet.training import distribution, fitting, pipeline

CHANGED = Experiment(
    epochs=1, batch_size=4, image_size=8, augmentation=Augmentation(shift=0.2, horizontal_flip=True, stain_jitter=0.1)
)


class Noise(ImageStore):
    """Ten images of noise, in memory."""

    def __init__(self):
        super().__init__(["-"] * 10, image_size=8, channels=3)
        self._images[:] = np.random.default_rng(0).integers(0, 256, self._images.shape)
        self._ready[:] = True


def take_shares(monkeypatch, make, processes=2):
    """What `make` returns in each of the processes."""
    taken = []
    for process in range(processes):
        monkeypatch.setattr(distribution, "share", lambda process=process: distribution.Share(process, processes))
        taken.append([[part.numpy() for part in batch] for batch in make()])
    monkeypatch.undo()
    return taken


def test_the_shares_of_a_training_are_the_whole(monkeypatch):
    targets, weights = np.arange(10, dtype=np.float32)[:, None], np.arange(10) + 1

    def make():
        return pipeline.training_batches(Noise(), targets, CHANGED, weights=weights)

    whole = [[part.numpy() for part in batch] for batch in make()]
    shares = take_shares(monkeypatch, make)
    assert [[len(images) for images, *_ in share] for share in shares] == [[2, 2, 2], [2, 2, 2]]
    joined = [[np.concatenate(parts) for parts in zip(*steps, strict=True)] for steps in zip(*shares, strict=True)]
    for step in (0, 1):
        for part, expected in zip(joined[step], whole[step], strict=True):
            np.testing.assert_allclose(part, expected, atol=0.01)
    (_, last, of_last), (_, expected, of_expected) = joined[2], whole[2]
    assert last[:, 0].tolist() == [*expected[:, 0], *whole[0][1][:2, 0]]  # filled up with the epoch's first two
    assert of_last.tolist() == [*(2 * of_expected), 0, 0]  # the mean of four is that of the two


def test_the_shares_of_a_validation_have_its_mean(monkeypatch):
    targets = np.arange(10, dtype=np.float32)[:, None]
    shares = take_shares(monkeypatch, lambda: pipeline.evaluation_batches(Noise(), batch_size=4, targets=targets))
    assert [answers[:, 0].tolist() for _, answers, _ in shares[0]] == [[0, 1], [4, 5], [8, 9]]
    assert [answers[:, 0].tolist() for _, answers, _ in shares[1]] == [[2, 3], [6, 7], [0, 1]]
    summed = sum(float((answers[:, 0] * weights).sum()) for share in shares for _, answers, weights in share)
    assert summed / 12 == pytest.approx(4.5)  # of 12 rows the mean of the ten
    assert shares[1][2][2].tolist() == [0, 0]


def test_each_scores_equally_many_rows(monkeypatch):
    rows = []
    for process in range(2):
        share = distribution.Share(process, 2)
        monkeypatch.setattr(distribution, "_count_processes", lambda share=share: share)
        rows.append(distribution.own_rows(5).tolist())
    assert rows == [[0, 1, 2], [3, 4, 0]]
    monkeypatch.undo()
    assert distribution.own_rows(5).tolist() == [0, 1, 2, 3, 4]


def test_rows_that_fill_up_do_not_count_as_right():
    accuracy = fitting.FilledAccuracy()
    sure = np.eye(2)[[0, 1, 0, 0]]
    accuracy.update_state(np.eye(2)[[0, 0, 1, 0]], sure, sample_weight=np.array([3.0, 1, 1, 0]))
    assert float(accuracy.result()) == pytest.approx(1 / 3)


def test_a_batch_must_go_evenly_into_the_devices(monkeypatch):
    monkeypatch.setattr(distribution, "count_devices", lambda: 3)
    with pytest.raises(InputError, match="3 devices cannot share a batch of 4 images evenly"):
        fitting.fit_network(None, CHANGED, None, None, None)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="on JAX it joins")
def test_tensorflow_is_refused():
    with pytest.raises(InputError, match="--distributed needs Keras on JAX, not on tensorflow"), distribution.joined():
        pass


# Keeps the weights of each process, and saves one checkpoint within the second epoch.
PROGRAM = textwrap.dedent("""
    import os, signal, sys, time
    import numpy as np
    import train_model
    from cancernet.cli import run_command
    from cancernet.reporting import illustration, report
    from cancernet.training import checkpoints, ensembles

    name, killed = sys.argv.pop(1), sys.argv.pop(1) == "killed"
    fit_network, begin = ensembles.fit_network, checkpoints.Recorder.on_train_batch_begin

    def fit_and_keep(model, *given, **named):
        np.savez(f"{name}_start", *model.get_weights())
        trained = fit_network(model, *given, **named)
        np.savez(name, *model.get_weights())
        return trained

    def begin_or_die(self, batch, logs=None):
        begin(self, batch, logs)
        if (len(self.epochs), batch) == (1, 2):
            self.save(step=self.first_step + batch)
        if killed and (len(self.epochs), batch) == (1, 3):
            while not self.workspace.folder.exists():  # the first process writes it, and may be behind
                time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGKILL)

    illustration.illustrate = lambda run, evaluated, *_: evaluated.report  # one process draws, after the training
    illustration.draw_augmentation = report.draw_figures = lambda *_, **__: {}
    checkpoints._SECONDS_BETWEEN_CHECKPOINTS = checkpoints._MAX_SECONDS_BETWEEN = 1e9  # no other checkpoint
    checkpoints.Recorder.on_train_batch_begin = begin_or_die
    ensembles.fit_network = fit_and_keep
    run_command(train_model.main)
""")
# At the recipe's rate of 0.01 rounding grows tenfold a step at first, also where only the start differs by rounding.
OPTIONS = {"--image-size": 24, "--epochs": 2, "--batch-size": 32, "--views": "one", "--learning-rate": 1e-5}


def launch(folder, run, processes, *, killed=None):
    """Start a training as a launcher does. Returns exit codes and what was said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    started = []
    for process in range(processes):
        command = [sys.executable, "-c", PROGRAM, f"{run}_{process}", "killed" if process == killed else "whole"]
        command += ["--dataset", "dataset", "--output", run, "--distributed"]
        command += [str(each) for option in OPTIONS.items() for each in option]
        environment = os.environ | {"KERAS_BACKEND": "jax", "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
        environment["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
        environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        if processes > 1:
            environment["KERAS_DISTRIBUTION_JOB_ADDRESSES"] = address
            environment["KERAS_DISTRIBUTION_NUM_PROCESSES"] = str(processes)
            environment["KERAS_DISTRIBUTION_PROCESS_ID"] = str(process)
        with (folder / f"{process}.txt").open("w") as said:
            started.append(subprocess.Popen(command, cwd=folder, env=environment, stderr=said, stdout=said))
    codes = [each.wait(timeout=600) for each in started]
    return codes, [(folder / f"{process}.txt").read_text() for process in range(processes)]


def read_weights(folder, name):
    with np.load(folder / f"{name}.npz") as arrays:
        return [arrays[key] for key in arrays.files]


@pytest.mark.slow
def test_two_processes_of_which_one_was_killed_train_as_one_does(tmp_path):
    """Seven steps an epoch, the last of 8 images in place of 32; one process dies in the second epoch."""
    pytest.importorskip("jax")
    write_sample(tmp_path / "source", seed=1, patients=8, side=350)
    build_dataset.main(["--source", str(tmp_path / "source"), "--output", str(tmp_path / "dataset")])
    codes, said = launch(tmp_path, "one", 1)
    assert codes == [0], said
    codes, said = launch(tmp_path, "two", 2, killed=1)
    assert codes == [2, -9], said
    assert said[0].count("error: Another process of this training has ended") == 1
    assert "Traceback" not in said[0]
    assert list((tmp_path / "two.unfinished").rglob("state.json"))
    codes, said = launch(tmp_path, "two", 2)
    assert codes == [0, 0], said
    start, alone, first, second = (read_weights(tmp_path, name) for name in ("one_0_start", "one_0", "two_0", "two_1"))
    for begun, expected, one, two in zip(start, alone, first, second, strict=True):
        assert np.array_equal(one, two)
        rounding = np.finfo(np.float32).eps * np.linalg.norm(expected)  # of weights that start at 1 and hardly move
        assert np.linalg.norm(one - expected) < 1e-3 * np.linalg.norm(expected - begun) + rounding
    alone, together = (
        np.genfromtxt(tmp_path / run / "predictions.csv", delimiter=",", skip_header=1) for run in ("one", "two")
    )
    np.testing.assert_allclose(together[:, 5:7], alone[:, 5:7], atol=1e-4)
