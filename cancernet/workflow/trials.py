"""The trials of a search: trained fold by fold, and the best compared with the default."""

import contextlib
import dataclasses
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from optuna.trial import BaseTrial, FrozenTrial

from cancernet import InputError, StorageError, progress
from cancernet.config import Experiment
from cancernet.data.dataset import Patch, list_classes
from cancernet.evaluation.comparison import compare_figures
from cancernet.evaluation.predictions import Predictions, Scores
from cancernet.evaluation.smoothing import predict_scores
from cancernet.reporting.schema import count_split
from cancernet.reporting.search import SearchResult, TrialRow
from cancernet.reporting.wording import describe_counts, plural
from cancernet.storage import FolderKind, check_replaceable, lock_folder, write_files, write_json
from cancernet.training.search import Search, find_importance, list_complete
from cancernet.training.search_space import apply_settings
from cancernet.workflow.fit import Plan, fit_run, open_data

if TYPE_CHECKING:
    from cancernet.training.fitting import TrainingData

REQUEST = "search.json"  # what a search was begun for
TRIALS, LOGS = "trials", "logs"  # folders: predictions of each finished trial, and what its training printed


def prepare_folder(output: Path, request: Mapping[str, object]) -> None:
    """Make the folder of a search; an existing search is resumed. Raises InputError if something else is there."""
    check_replaceable(output, FolderKind.SEARCH, force=True)  # `join_search` refuses a search for something else
    with lock_folder(output, announce=print):  # the processes of a search may start at the same moment
        output.mkdir(parents=True, exist_ok=True)
        if not (output / REQUEST).is_file():
            write_json(output / REQUEST, request)
        for folder in (TRIALS, LOGS):
            (output / folder).mkdir(exist_ok=True)


class Trainer:
    """Trains the folds of trials as train_model.py does, on training and validation patients only.

    The patches of `plan` are those of training and validation; `folds` has the same with their splits in each fold.
    """

    def __init__(self, plan: Plan, folds: Sequence[Sequence[Patch]], output: Path):
        self.plan, self.patches, self.folds, self.output = plan, plan.dataset.patches, folds, output
        self._data: dict[int, TrainingData] = {}  # by image size: its images are decoded once

    def describe(self) -> str:
        """What trials are evaluated on."""
        images = describe_counts(count_split(self.patches))
        return f"cross-validated in {plural(len(self.folds), 'fold')} over the {images} of training and validation"

    def evaluate_folds(self, trial: BaseTrial, scratch: Path) -> Iterator[tuple[float, int]]:
        """Train a trial's folds one by one: yield the sum of the log-losses of each and its number of images.

        The predictions are kept after the last.
        """
        experiment = apply_settings(self.plan.experiment, trial.params)
        probabilities = np.empty((len(self.patches), len({patch.label for patch in self.patches})))
        predicted = np.empty(len(self.patches), int)
        for number, patches in enumerate(self.folds, 1):
            rows = np.flatnonzero([patch.split == "testing" for patch in patches])
            path = self.output / LOGS / f"{trial.number:04}.txt"
            with (
                path.open("a", encoding="utf-8") as log,
                contextlib.redirect_stdout(log),
                progress.part(number, len(self.folds), "fold"),
            ):
                found = self._evaluate_fold(experiment, patches, scratch / f"{trial.number}_{number}")
            probabilities[rows], predicted[rows] = found.probabilities, found.predicted
            own = found.probabilities[np.arange(len(rows)), found.labels]
            yield float(-np.log(np.maximum(own, np.finfo(np.float64).eps)).sum()), len(rows)
        content = io.BytesIO()
        np.savez(content, probabilities=probabilities, predicted=predicted)
        write_files(self.output / TRIALS, {f"{trial.number:04}.npz": content.getvalue()})

    def predict(self, trial: FrozenTrial, scratch: Path) -> Predictions:
        """Return the predictions of a finished trial, trained again where another machine keeps them."""
        path = self.output / TRIALS / f"{trial.number:04}.npz"
        if not path.is_file():
            list(self.evaluate_folds(trial, scratch))
        classes = list_classes(self.patches)
        labels = np.array([classes.index(patch.label) for patch in self.patches])
        try:
            with np.load(path, allow_pickle=False) as kept:
                return Predictions(self.patches, labels, kept["probabilities"], kept["predicted"])
        except Exception as error:  # a damaged file can make NumPy raise anything
            raise StorageError(f"{path} is damaged. Delete it; the next search trains this trial again.") from error

    def _evaluate_fold(self, experiment: Experiment, patches: Sequence[Patch], work: Path) -> Predictions:
        """Train a fold, and predict the patients that it left out with its own decision."""
        work.mkdir(parents=True)
        plan = dataclasses.replace(self.plan, experiment=experiment)
        run, fitted, _, _ = fit_run(plan, self._open(plan), patches, work)
        rows = np.flatnonzero([patch.split == "testing" for patch in patches])
        left_out = [patches[int(row)] for row in rows]
        return predict_scores(run.decision, Scores(left_out, fitted.score(rows), step=run.settings.patch_pixels))

    def _open(self, plan: Plan) -> "TrainingData":
        size = plan.experiment.image_size
        if size not in self._data:
            data = open_data(plan, self.output)
            from cancernet.training.feature_cache import name_cache_folder  # Keras is loaded by now

            # Features of all but test patients are a set of their own: those of a training include test patients.
            cache = data.cache._replace(
                folder=name_cache_folder(Path(f"{plan.dataset.folder}.without_testing")),
                manifest_sha256=f"{plan.dataset.manifest_sha256} without testing",
            )
            self._data[size] = data._replace(cache=cache)
        return self._data[size]


def describe_best(found: Search) -> str:
    """The lowest log-loss so far and the default's."""
    complete, default = list_complete(found)
    best = f"best {found.study.best_value:.4f}" if complete else "nothing finished yet"
    return best + (f", default {default.value:.4f}" if default else "")


def conclude(found: Search, trainer: Trainer) -> SearchResult:
    """Compare the best trial so far with the default; InputError if the default has not been finished."""
    complete, default = list_complete(found)
    if default is None:
        found_no = "The default settings have not been evaluated on all folds yet"
        raise InputError(f"{found_no}. Resume with a longer --timeout, or wait for the process that evaluates them.")
    best = min(complete, key=lambda trial: (trial.value, trial is not default))
    difference = None
    if best is not default:
        pair = [trainer.predict(trial, found.scratch) for trial in (default, best)]
        classes = list_classes(trainer.patches)
        difference = compare_figures(pair, classes=classes, positive=trainer.plan.positive)[0]["log_loss"]
    trials = found.study.get_trials()
    ended = {trial.number: describe_trial(trial) for trial in trials if trial.state.is_finished()}
    return SearchResult(
        rows=list(ended.values()),
        best=ended[best.number],
        default=ended[default.number],
        difference=difference,
        importance=find_importance(found.study),
        data=trainer.describe(),
        running=sum(trial.state.name == "RUNNING" for trial in trials),
    )


def describe_trial(trial: FrozenTrial) -> TrialRow:
    """Return a trial that has ended as the report lists it."""
    diverged = "diverged" in trial.user_attrs
    state = {"COMPLETE": "finished", "PRUNED": "diverged" if diverged else "pruned", "FAIL": "interrupted"}
    losses = trial.intermediate_values
    last, seconds = losses.get(max(losses, default=0)), trial.duration.total_seconds() if trial.duration else 0.0
    return TrialRow(trial.number, state[trial.state.name], last, len(losses), seconds, trial.params)
