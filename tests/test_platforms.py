"""The commands without what only POSIX has, inside a Jupyter cell, and with settings of Keras that others made."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_slides

REPOSITORY = Path(__file__).parents[1]
# As on Windows, our code finds none of these names, in any process. Libraries, which have code for Windows,
# find them. Processes are started afresh.
WITHOUT_POSIX = """
import multiprocessing, os, signal, sys
MISSING = {
    signal: ("SIGHUP", "SIGKILL", "SIGUSR1", "SIGALRM", "alarm", "setitimer", "pthread_sigmask"),
    os: ("O_NONBLOCK", "O_DIRECTORY", "O_NOFOLLOW", "fork", "sync", "statvfs", "getuid", "geteuid", "getpgid", "killpg",
         "sched_getaffinity", "mkfifo", "fchmod", "uname", "getloadavg"),
}
def hide(module, names):
    kept = {name: getattr(module, name) for name in names if hasattr(module, name)}
    def find(name):
        caller = sys._getframe(1).f_globals
        is_ours = caller["__name__"].partition(".")[0] in ("cancernet", "__main__")
        if name in kept and not is_ours:
            return kept[name]
        raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
    for name in kept:
        delattr(module, name)
    module.__getattr__ = find
for module, names in MISSING.items():
    hide(module, names)
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


def test_only_our_code_misses_what_only_posix_has(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_POSIX)
    ours = "import os, signal; print([hasattr(os, 'fork'), hasattr(signal, 'SIGHUP'), hasattr(os, 'replace')])"
    (tmp_path / "cancernet.py").write_text(ours)
    (tmp_path / "library.py").write_text(ours)
    found = subprocess.run(
        [sys.executable, "-c", "import cancernet, library"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert found.stdout.splitlines() == ["[False, False, True]", "[True, True, True]"], found.stderr


@pytest.mark.slow
def test_without_what_only_posix_has(source, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_POSIX)
    run_all(tmp_path, source, PYTHONPATH=str(tmp_path))


@pytest.mark.slow
def test_with_the_settings_of_a_notebook_and_of_another_program(source, tmp_path):
    (tmp_path / "keras.json").write_text(json.dumps({"image_data_format": "channels_first", "floatx": "float16"}))
    run_all(tmp_path, source, MPLBACKEND="module://matplotlib_inline.backend_inline", KERAS_HOME=str(tmp_path))
