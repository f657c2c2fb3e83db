"""A search that several processes share: trials are taken, judged fold by fold, and given back if one is killed.

The study is Optuna's, in any of its storages. A process holds the lock of its own file in the search's folder for as
long as it lives, however it ends: a trial whose process holds its lock no more is failed and tried again.
"""

import contextlib
import os
import platform
import shutil
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import filelock
import numpy as np
import optuna
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from cancernet import InputError, TrainingDiverged
from cancernet.config import Range, Setting
from cancernet.training.search_space import is_whole

FIRST_TRIALS = 5  # that are not pruned: a median of fewer is chance
LEAST_FOR_IMPORTANCE = 10  # finished trials
SECONDS_FOR_STORAGE = 30  # that a busy file is waited for
_ASK, _PROCESSES, _STUDY = "ask.lock", "processes", "study.db"
_COUNTED = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)


class Search(NamedTuple):
    """A study that this process takes part in."""

    study: optuna.Study
    folder: Path
    process: str  # this one's name, unlike every other's
    space: Mapping[str, Range]
    default: Mapping[str, Setting]  # what is tried first, and never pruned
    seed: int

    @property
    def scratch(self) -> Path:
        """A folder for this process, removed when it ends or is found to be dead."""
        return self.folder / _PROCESSES / self.process


@contextlib.contextmanager
def join_search(
    folder: Path, storage: str | None, space: Mapping[str, Range], default: Mapping[str, Setting], asked: Mapping
) -> Iterator[Search]:
    """Begin a search, or take part in the one that is there; Optuna's errors are told in one line.

    Args:
        folder: of the search; the study has its name.
        storage: as Optuna takes it, or a file `.journal`, also on a network's disk; a file in `folder` if None.
        space: what is tried.
        default: of each setting in `space`, what is tried first.
        asked: what the figures follow from, as JSON takes it, `seed` among it. Who asks for something else is refused.

    Raises:
        InputError: the study was begun for something else, or the storage cannot be used or is locked.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    process = f"{platform.node()}-{os.getpid()}-{time.time_ns()}"
    lock = filelock.FileLock(folder / _PROCESSES / f"{process}.lock")
    (folder / _PROCESSES / process).mkdir(parents=True)
    try:
        with lock, _telling(storage or str(folder / _STUDY)):
            with filelock.FileLock(folder / _ASK):
                study = _open_study(folder, storage)
                _agree(study, asked, default, folder)
            yield Search(study, folder, process, space, default, asked["seed"])
    finally:
        _remove_process(folder, process)


def take_trial(search: Search, trials: int) -> Trial | None:
    """Take the next trial, its settings chosen; what killed processes left is given back first.

    Its settings are a function of the seed, its number and the trials before it (tree-structured Parzen estimator,
    Bergstra et al. 2011).

    Args:
        trials: how many the study is to have; None is returned where that many are finished or being judged.
    """
    with filelock.FileLock(search.folder / _ASK):
        _recover(search)
        known = search.study.get_trials(deepcopy=False)
        if sum(trial.state in _COUNTED for trial in known) >= trials:
            return None
        seed = int(np.random.SeedSequence([search.seed, len(known)]).generate_state(1)[0])
        search.study.sampler = optuna.samplers.TPESampler(seed=seed)
        trial = search.study.ask({name: _distribution(name, of) for name, of in search.space.items()})
        trial.set_user_attr("process", search.process)
        return trial


def evaluate_trial(search: Search, trial: Trial, folds: Iterable[tuple[float, int]], *, until: float) -> None:
    """Judge a trial fold after fold, until it is finished, pruned, or the time is over.

    It is pruned where, after a fold, its log-loss so far is above the median of the others' after that fold. A
    training that diverges ends as a pruned trial, without a figure.

    Args:
        folds: of each fold, trained when it is asked for, the sum of the log-losses and the number of images.
        until: of `time.monotonic`; a trial with folds left then is given back.
    """
    loss, images = 0.0, 0
    try:
        for fold, (of_fold, images_of_fold) in enumerate(folds):
            if fold and time.monotonic() > until:
                return _give_back(search.study, search.study.trials[trial.number])
            loss, images = loss + of_fold, images + images_of_fold
            trial.report(loss / images, fold)
            if trial.params != search.default and trial.should_prune():
                search.study.tell(trial, state=TrialState.PRUNED)
                return None
        search.study.tell(trial, loss / images)
    except TrainingDiverged as error:
        trial.set_user_attr("diverged", str(error))
        search.study.tell(trial, state=TrialState.PRUNED)
    except BaseException:
        _give_back(search.study, search.study.trials[trial.number])
        raise


def count_finished(study: optuna.Study) -> int:
    """How many trials are finished or pruned."""
    return sum(trial.state in _COUNTED[1:] for trial in study.get_trials(deepcopy=False))


def find_importance(study: optuna.Study) -> dict[str, float]:
    """Share of each setting in what makes trials better than others, the largest first; {} for fewer than ten trials.

    PED-ANOVA (Watanabe, Bansal & Hutter 2023).
    """
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(finished) < LEAST_FOR_IMPORTANCE or len({trial.value for trial in finished}) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = optuna.importance.get_param_importances(study)
    return {name: float(share) for name, share in found.items() if np.isfinite(share)}


def _open_study(folder: Path, storage: str | None) -> optuna.Study:
    if storage is None:
        storage = f"sqlite:///{(folder / _STUDY).resolve()}"
    kept = storage
    if storage.endswith(".journal"):
        kept = JournalStorage(JournalFileBackend(storage))
    elif storage.startswith("sqlite"):
        kept = RDBStorage(storage, engine_kwargs={"connect_args": {"timeout": SECONDS_FOR_STORAGE}})
    pruner = optuna.pruners.MedianPruner(n_startup_trials=FIRST_TRIALS)
    return optuna.create_study(storage=kept, study_name=folder.resolve().name, pruner=pruner, load_if_exists=True)


def _agree(study: optuna.Study, asked: Mapping, default: Mapping[str, Setting], folder: Path) -> None:
    """See that a study was begun for the same; begin it with the default where it is new."""
    begun = study.user_attrs.get("asked")
    if begun is None:
        study.set_user_attr("asked", dict(asked))
        study.enqueue_trial(dict(default))
        return
    for name, value in asked.items():
        if begun.get(name) != value:
            raise InputError(f"The search {folder} was begun with another {name}. Give the same, or another --output.")


def _distribution(name: str, of: Range) -> optuna.distributions.BaseDistribution:
    if of.choices:
        return optuna.distributions.CategoricalDistribution(of.choices)
    if is_whole(name):
        return optuna.distributions.IntDistribution(of.low, of.high, log=of.log)
    return optuna.distributions.FloatDistribution(of.low, of.high, log=of.log)


def _recover(search: Search) -> None:
    """Give back the trials of processes that are no more; those of machines with a folder of their own are theirs."""
    for trial in search.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        process = trial.user_attrs.get("process", "")
        if process and not _is_dead(search.folder / _PROCESSES / f"{process}.lock"):
            continue
        _give_back(search.study, trial)
    for lock in (search.folder / _PROCESSES).glob("*.lock"):
        if _is_dead(lock):
            _remove_process(search.folder, lock.stem)


def _is_dead(lock: Path) -> bool:
    """Whether there was a process with this lock, and it holds it no more."""
    if not lock.is_file():
        return False
    try:
        with filelock.FileLock(lock, blocking=False):
            return True
    except filelock.Timeout:
        return False


def _give_back(study: optuna.Study, trial: FrozenTrial) -> None:
    """Fail a trial and have its settings tried again."""
    study.tell(trial.number, state=TrialState.FAIL)
    study.enqueue_trial({**trial.system_attrs.get("fixed_params", {}), **trial.params})


def _remove_process(folder: Path, process: str) -> None:
    shutil.rmtree(folder / _PROCESSES / process, ignore_errors=True)
    (folder / _PROCESSES / f"{process}.lock").unlink(missing_ok=True)


@contextlib.contextmanager
def _telling(storage: str) -> Iterator[None]:
    import sqlalchemy.exc

    try:
        yield
    except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
        told = str(error.__cause__ or error).splitlines()[0]
        raise InputError(
            f"The storage {storage} cannot be used: {told}. Try again when no other program has it locked, or give "
            "another --storage."
        ) from error
