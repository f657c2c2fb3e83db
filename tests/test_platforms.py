"""The commands without what only POSIX has, inside a Jupyter cell, and with settings of Keras that others made."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_slides

REPOSITORY = Path(__file__).parents[1]
# Windows: these names do not exist, and processes are started afresh.
WITHOUT_POSIX = """
import multiprocessing, os, signal
for module, names in ((signal, ("SIGHUP", "SIGKILL", "pthread_sigmask")), (os, ("O_NONBLOCK", "fork", "sync",
                      "sched_getaffinity", "O_DIRECTORY", "geteuid", "killpg", "mkfifo"))):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
multiprocessing.set_start_method("spawn")
"""
TRAIN = ["--model", "simple_cnn", "--image-size", "24", "--epochs", "2", "--batch-size", "16"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("platforms")
    write_slides(folder / "source", patients=20)
    return folder / "source"


def run_all(folder, source, **environment):
    """Build, train and predict in processes of their own; return what the training printed."""
    printed = []
    for command in (
        ["build_dataset.py", "--source", source, "--output", folder / "dataset"],
        ["train_model.py", "--dataset", folder / "dataset", "--output", folder / "run", *TRAIN],
        ["-m", "cancernet", "predict", folder / "run", source, "--output", folder / "predictions"],
    ):
        found = subprocess.run(
            [sys.executable, *map(str, command)],
            cwd=REPOSITORY,
            env=os.environ | environment,
            capture_output=True,
            text=True,
        )
        assert found.returncode == 0, found.stderr
        assert "Traceback" not in found.stderr
        printed.append(found.stdout)
    assert (folder / "run/confusion_matrix.png").is_file()
    assert (folder / "predictions/predictions.csv").is_file()
    return printed[1]


@pytest.mark.slow
def test_without_what_only_posix_has(source, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_POSIX)
    run_all(tmp_path, source, PYTHONPATH=str(tmp_path))


@pytest.mark.slow
def test_with_the_settings_of_a_notebook_and_of_another_program(source, tmp_path):
    (tmp_path / "keras.json").write_text(json.dumps({"image_data_format": "channels_first", "floatx": "float16"}))
    run_all(tmp_path, source, MPLBACKEND="module://matplotlib_inline.backend_inline", KERAS_HOME=str(tmp_path))
