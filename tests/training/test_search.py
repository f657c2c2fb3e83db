"""A search that several processes share, without a training: trials are evaluated by a formula."""

import math
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from conftest import ROOT

pytest.importorskip("optuna")
from cancernet import InputError, TrainingDiverged
from cancernet.config import Range
from cancernet.training import search

SPACE = {"learning_rate": Range(0.01, 1.0, log=True), "optimizer": Range(choices=("adam", "adagrad"))}
DEFAULT = {"learning_rate": 0.1, "optimizer": "adagrad"}
ASKED = {"seed": 1, "folds": 3}
# What a process of a search does; each trial takes so many seconds.
PROCESS = """
import sys, time
from pathlib import Path
sys.path[:0] = [{root!r}, {root!r} + "/tests", {root!r} + "/tests/training"]
from test_search import ASKED, DEFAULT, SPACE, search
with search.join_search(Path(sys.argv[1]), None, SPACE, DEFAULT, ASKED) as found:
    while trial := search.take_trial(found, int(sys.argv[2])):
        print(trial.number, flush=True)
        time.sleep(float(sys.argv[3]))
        search.evaluate_trial(found, trial, [(trial.params["learning_rate"], 1)] * 3, until=float("inf"))
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "s").mkdir()
    return tmp_path / "s"


def join(folder, **changes):
    return search.join_search(folder, None, SPACE, DEFAULT, ASKED | changes)


def run(found, trials, evaluate=lambda trial: [(trial.params["learning_rate"], 1)] * 3):
    while trial := search.take_trial(found, trials):
        search.evaluate_trial(found, trial, evaluate(trial), until=math.inf)


def start(folder, trials, seconds):
    code = PROCESS.format(root=str(ROOT))
    command = [sys.executable, "-c", code, str(folder), str(trials), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def states(found):
    return [trial.state.name for trial in found.study.get_trials()]


def test_the_default_is_first_and_the_best_is_found(folder):
    with join(folder) as found:
        run(found, 4)
        assert search.find_importance(found.study) == {}  # of four trials it would be chance
        run(found, 20)
        trials = found.study.get_trials()
        assert trials[0].params == DEFAULT
        assert trials[0].value == pytest.approx(0.1)
        assert found.study.best_value < 0.1
        assert search.count_finished(found.study) == 20
        assert set(search.find_importance(found.study)) == {"learning_rate", "optimizer"}
    assert not list((folder / "processes").iterdir())


def test_the_same_seed_tries_the_same_settings_also_after_an_interruption(tmp_path):
    tried = []
    for name, stops in (("a", [8]), ("b", [3, 8])):
        (tmp_path / name).mkdir()
        for most in stops:
            with join(tmp_path / name) as found:
                run(found, most)
                settings = [trial.params for trial in found.study.get_trials()]
        tried.append(settings)
    assert tried[0] == tried[1]
    (tmp_path / "c").mkdir()
    with join(tmp_path / "c", seed=2) as found:
        run(found, 8)
        assert [trial.params for trial in found.study.get_trials()] != tried[0]


def test_a_trial_worse_than_the_median_after_a_fold_is_pruned_but_never_the_default(folder):
    with join(folder) as found:
        run(found, 6, lambda trial: [(0.5, 1), (0.5, 1)])
        asked = []

        def evaluate(trial):
            for loss in (0.6, 0.1):
                asked.append(loss)
                yield loss, 1

        run(found, 7, evaluate)
        assert states(found)[6] == "PRUNED"
        assert asked == [0.6]  # the second fold was not trained
        found.study.enqueue_trial(DEFAULT)
        run(found, 8, evaluate)
        assert states(found)[7] == "COMPLETE"


def test_the_log_loss_of_folds_is_weighted_by_their_images(folder):
    with join(folder) as found:
        run(found, 1, lambda trial: [(10.0, 10), (90.0, 30)])
        assert found.study.get_trials()[0].value == pytest.approx(2.5)


def test_a_training_that_diverges_is_one_bad_trial(folder):
    def evaluate(trial):
        raise TrainingDiverged("The training has diverged.")
        yield

    with join(folder) as found:
        run(found, 2, evaluate)
        assert states(found) == ["PRUNED", "PRUNED"]
        assert found.study.get_trials()[0].user_attrs["diverged"] == "The training has diverged."


@pytest.mark.parametrize("error", [InputError("a file is damaged"), KeyboardInterrupt()])
def test_what_interrupts_a_trial_gives_it_back(folder, error):
    def evaluate(trial):
        raise error
        yield

    with pytest.raises(type(error)), join(folder) as found:
        run(found, 2, evaluate)
    with join(folder) as found:
        assert states(found) == ["FAIL", "WAITING"]
        run(found, 2)
        assert states(found) == ["FAIL", "COMPLETE", "COMPLETE"]
        assert found.study.get_trials()[1].params == DEFAULT


def test_a_trial_that_time_is_over_for_is_given_back(folder):
    with join(folder) as found:
        search.evaluate_trial(found, search.take_trial(found, 2), [(0.5, 1), (0.5, 1)], until=time.monotonic() - 1)
        assert states(found) == ["FAIL", "WAITING"]
        search.evaluate_trial(found, search.take_trial(found, 2), [(0.5, 1)], until=time.monotonic() - 1)
        assert states(found) == ["FAIL", "COMPLETE"]  # it had no fold left


def test_two_processes_share_a_study_without_a_lost_or_double_trial(folder):
    processes = [start(folder, 16, 0.1) for _ in range(2)]
    evaluated = [list(map(int, process.communicate(timeout=120)[0].split())) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(evaluated[0] + evaluated[1]) == list(range(16))
    with join(folder) as found:
        assert set(states(found)) <= {"COMPLETE", "PRUNED"}
        settings = [tuple(trial.params.values()) for trial in found.study.get_trials()]
        assert len(set(settings)) == 16


def test_the_trial_of_a_killed_process_is_tried_again(folder):
    process = start(folder, 4, 60)
    assert process.stdout.readline() == "0\n"
    with join(folder) as found:
        trial = search.take_trial(found, 1)
        assert trial is None  # the only one is running: it is not taken for dead
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with join(folder) as found:
        run(found, 4)
        assert states(found) == ["FAIL", *["COMPLETE"] * 4]
        assert found.study.get_trials()[1].params == DEFAULT
    assert not list((folder / "processes").iterdir())


def test_a_search_that_was_begun_for_something_else_is_refused(folder):
    with join(folder):
        pass
    with (
        pytest.raises(InputError, match="was begun with another folds. Choose another --output."),
        join(folder, folds=5),
    ):
        pass


def test_a_journal_on_a_shared_disk_is_a_storage(folder, tmp_path):
    for most in (2, 3):
        with search.join_search(folder, str(tmp_path / "s.journal"), SPACE, DEFAULT, ASKED) as found:
            run(found, most)
            assert states(found) == ["COMPLETE"] * most
    assert (tmp_path / "s.journal").is_file()
    assert not (folder / "study.db").exists()


def test_a_locked_storage_is_told_in_one_line(folder, monkeypatch):
    monkeypatch.setattr(search, "SECONDS_FOR_STORAGE", 0.1)
    with join(folder):
        pass
    other = sqlite3.connect(folder / "study.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(InputError) as error, join(folder):
        pass
    other.close()
    assert "study.db cannot be used: database is locked. Try again" in str(error.value).replace(
        "(sqlite3.OperationalError) ", ""
    )
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("storage", ["nonsense", "mongodb://x", "sqlite:////no/such/folder/study.db"])
def test_a_storage_that_is_none_is_told_in_one_line(folder, storage):
    with (
        pytest.raises(InputError, match=f"^The storage {storage} cannot be used: "),
        search.join_search(folder, storage, SPACE, DEFAULT, ASKED),
    ):
        pass
