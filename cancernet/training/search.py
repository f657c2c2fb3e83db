"""A search that several processes share: each takes trials and evaluates them fold by fold.

The study is Optuna's, in any of its storages. A process locks a file of its own in the folder of the search for as long
as it lives. A trial whose process no longer holds its lock has failed, and its settings are tried again.
"""

import contextlib
import os
import platform
import shutil
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import filelock
import numpy as np
import optuna
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from cancernet import InputError, TrainingDiverged
from cancernet.config import Experiment, Range, Setting

FIRST_TRIALS = 5  # are never pruned: the median of fewer is unreliable
LEAST_FOR_IMPORTANCE = 10  # finished trials
SECONDS_FOR_STORAGE = 30  # to wait for a busy file
_ASK, _PROCESSES, _STUDY = "ask.lock", "processes", "study.db"
_COUNTED = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)


class Search(NamedTuple):
    """A study in which this process takes part."""

    study: optuna.Study
    folder: Path
    process: str  # unique name of this process
    space: Mapping[str, Range]
    default: Mapping[str, Setting]  # tried first, and never pruned
    seed: int

    @property
    def scratch(self) -> Path:
        """A folder for this process, removed when it ends."""
        return self.folder / _PROCESSES / self.process


@contextlib.contextmanager
def join_search(
    folder: Path, storage: str | None, space: Mapping[str, Range], default: Mapping[str, Setting], request: Mapping
) -> Iterator[Search]:
    """Begin a search, or join one; InputError if it was begun with another request or the storage cannot be used.

    The study is named after the folder. `storage` is one of Optuna's, or a file `.journal`, also on a network file
    system; None for a file in the folder. `default` has the value of each setting in `space` that is tried first, and
    `request` all that the figures follow from, as JSON, including `seed`.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    process = f"{platform.node()}-{os.getpid()}-{time.time_ns()}"
    lock = filelock.FileLock(folder / _PROCESSES / f"{process}.lock")
    (folder / _PROCESSES / process).mkdir(parents=True)
    try:
        with lock, _translate_errors(storage or str(folder / _STUDY)):
            with filelock.FileLock(folder / _ASK):
                study = _open_study(folder, storage, default, request)
            yield Search(study, folder, process, space, default, request["seed"])
    finally:
        _remove_process(folder, process)


def take_trial(search: Search, trials: int) -> Trial | None:
    """Take the next trial; those of killed processes come first. None if as many as `trials` are finished or running.

    Its settings are a function of the seed, its number and the trials before it (tree-structured Parzen estimator,
    Bergstra et al. 2011).
    """
    with filelock.FileLock(search.folder / _ASK):
        _recover(search)
        known = search.study.get_trials(deepcopy=False)
        if sum(trial.state in _COUNTED for trial in known) >= trials:
            return None
        seed = int(np.random.SeedSequence([search.seed, len(known)]).generate_state(1)[0])
        search.study.sampler = optuna.samplers.TPESampler(seed=seed)
        trial = search.study.ask({name: _distribution(name, tried) for name, tried in search.space.items()})
        trial.set_user_attr("process", search.process)
        return trial


def evaluate_trial(search: Search, trial: Trial, folds: Iterable[tuple[float, int]], *, until: float) -> None:
    """Evaluate a trial fold by fold until it is finished or pruned, or the time is up.

    A trial is pruned if its log-loss after some fold is above the median of the other trials after that fold, or if its
    training diverges. One that still has folds at the time `until` (of `time.monotonic`) is left for another process.
    `folds` yields the sum of the log-losses and the number of images of each fold, which it trains on demand.
    """
    study, loss, images = search.study, 0.0, 0
    try:
        for fold, (of_fold, images_of_fold) in enumerate(folds):
            if fold and time.monotonic() > until:
                return _release(study, study.trials[trial.number])
            loss, images = loss + of_fold, images + images_of_fold
            trial.report(loss / images, fold)
            if trial.params != search.default and trial.should_prune():
                study.tell(trial, state=TrialState.PRUNED)
                return None
        study.tell(trial, loss / images)
    except TrainingDiverged as error:
        trial.set_user_attr("diverged", str(error))
        study.tell(trial, state=TrialState.PRUNED)
    except BaseException:
        _release(study, study.trials[trial.number])
        raise


def count_finished(study: optuna.Study) -> int:
    """Count the trials that are finished or pruned."""
    return sum(trial.state in _COUNTED[1:] for trial in study.get_trials(deepcopy=False))


def list_complete(search: Search) -> tuple[list[FrozenTrial], FrozenTrial | None]:
    """Return the trials that were evaluated on all folds, and that of the default; None if it is not among them."""
    complete = search.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return complete, next((trial for trial in complete if trial.params == search.default), None)


def find_importance(study: optuna.Study) -> dict[str, float]:
    """Return each setting's importance, the largest first (PED-ANOVA, Watanabe et al. 2023); {} below ten trials."""
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(finished) < LEAST_FOR_IMPORTANCE or len({trial.value for trial in finished}) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = optuna.importance.get_param_importances(study)
    return {name: float(share) for name, share in found.items() if np.isfinite(share)}


def _open_study(folder: Path, storage: str | None, default: Mapping[str, Setting], request: Mapping) -> optuna.Study:
    storage = storage or f"sqlite:///{(folder / _STUDY).resolve()}"
    kept: str | JournalStorage | RDBStorage = storage
    if storage.endswith(".journal"):
        kept = JournalStorage(JournalFileBackend(storage))
    elif storage.startswith("sqlite"):
        kept = RDBStorage(storage, engine_kwargs={"connect_args": {"timeout": SECONDS_FOR_STORAGE}})
    pruner = optuna.pruners.MedianPruner(n_startup_trials=FIRST_TRIALS)
    study = optuna.create_study(storage=kept, study_name=folder.resolve().name, pruner=pruner, load_if_exists=True)
    begun = study.user_attrs.get("asked")
    if begun is None:
        begun = dict(request)
        study.set_user_attr("asked", begun)
        study.enqueue_trial(dict(default))
    for name, value in request.items():
        if begun.get(name) != value:
            raise InputError(f"The search {folder} was begun with another {name}. Choose another --output.")
    return study


def _distribution(name: str, tried: Range) -> optuna.distributions.BaseDistribution:
    if tried.choices:
        return optuna.distributions.CategoricalDistribution(tried.choices)
    low, high = tried.low or 0, tried.high or 0
    if type(attrgetter(name)(Experiment())) is int:
        return optuna.distributions.IntDistribution(int(low), int(high), log=tried.log)
    return optuna.distributions.FloatDistribution(low, high, log=tried.log)


def _recover(search: Search) -> None:
    """Release the trials of processes that have ended; processes with another folder release their own."""
    for trial in search.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        process = trial.user_attrs.get("process", "")
        if not process or _is_dead(search.folder / _PROCESSES / f"{process}.lock"):
            _release(search.study, trial)
    for lock in (search.folder / _PROCESSES).glob("*.lock"):
        if _is_dead(lock):
            _remove_process(search.folder, lock.stem)


def _is_dead(lock: Path) -> bool:
    if not lock.is_file():
        return False
    try:
        with filelock.FileLock(lock, blocking=False):
            return True
    except filelock.Timeout:
        return False


def _release(study: optuna.Study, trial: FrozenTrial) -> None:
    """Mark a trial as failed and try its settings again."""
    study.tell(trial.number, state=TrialState.FAIL)
    study.enqueue_trial({**trial.system_attrs.get("fixed_params", {}), **trial.params})


def _remove_process(folder: Path, process: str) -> None:
    shutil.rmtree(folder / _PROCESSES / process, ignore_errors=True)
    (folder / _PROCESSES / f"{process}.lock").unlink(missing_ok=True)


@contextlib.contextmanager
def _translate_errors(storage: str) -> Iterator[None]:
    import sqlalchemy.exc

    try:
        yield
    except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
        told = str(error.__cause__ or error).splitlines()[0]
        advice = "Try again when no other program locks it, or choose another --storage."
        raise InputError(f"The storage {storage} cannot be used: {told}. {advice}") from error
