"""Search for better settings by cross-validation over training and validation patients; test patients are not read.

Several processes may work on one search: give them the same command. A search that was stopped resumes. Options of
train_model.py set the default from which the search starts.
"""

import contextlib
import dataclasses
import importlib.util
import io
import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge

from cancernet import InputError, StorageError, progress
from cancernet.config import RUNS, Experiment, Range, TrainingOptions, option
from cancernet.storage import FolderKind, check_replaceable, lock_folder, write_json
from cancernet.training import experiments, search_space

if TYPE_CHECKING:
    import optuna

    from cancernet.data.dataset import Patch
    from cancernet.evaluation.predictions import Predictions
    from cancernet.reporting.search import SearchResult, TrialRow
    from cancernet.training.fitting import TrainingData
    from cancernet.training.search import Search
    from cancernet.workflow.fit import Plan

REQUEST = "search.json"  # what a search was begun for
RECIPE, TABLE, TEXT, PAGE = "recipe.json", "trials.csv", "search.txt", "search.html"
TRIALS, LOGS = "trials", "logs"  # folders: predictions of each finished trial, and what its training printed


def duration(text: str) -> float:
    """Parse seconds from a number followed by s, m or h."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text, re.ASCII)
    seconds = float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]] if found else 0
    if not seconds:
        raise InputError(f"--timeout takes a time such as 90s, 30m or 2h, not {text!r}.")
    return seconds


_training_option = partial(option, group="training")
_not_an_option = partial(option, help="", on_command_line=False)  # of a training, but not of a search


@dataclasses.dataclass(frozen=True)
class SearchOptions(TrainingOptions):
    """What is searched, how long, and the training from which the search starts."""

    trials: Annotated[int, Ge(1)] = _training_option(50, "Trials in all, of all processes")
    timeout: float = _training_option(
        math.inf, "Time after which no trial is started, such as 90s, 30m or 2h",
        default="none", parse=duration, metavar="TIME",
    )  # fmt: skip
    folds: Annotated[int, Ge(2)] | None = _training_option(5, "Folds of the cross-validation")
    space: Path | None = _training_option(
        None,
        "JSON file of the settings to search and their ranges (see docs/search.md)",
        default="those of the way of training",
    )
    storage: str | None = option(None, "Optuna storage, such as postgresql://...", default="a file in --output")
    output: Path | None = option(RUNS / "search", "Folder of the search")
    features: Path | None = _not_an_option(None)
    prevalence: float | None = _not_an_option(None)
    group: str | None = _not_an_option(None)
    only_folds: tuple[int, ...] | None = _not_an_option(None)
    leave_out: str | None = _not_an_option(None)
    distributed: bool = _not_an_option(False)
    tensorboard: bool = _not_an_option(False)
    force: bool = _not_an_option(False)


def search(options: SearchOptions) -> "SearchResult":
    """Search until the trials or the time are used up; write the best recipe, and print what was found.

    Raises InputError if Optuna is missing, or the options, the dataset or the output folder cannot be used.
    """
    if importlib.util.find_spec("optuna") is None:
        raise InputError('A search needs Optuna, which is not installed: pip install ".[search]"')
    experiment, output = experiments.choose_experiment(options), options.output or RUNS / "search"
    until = time.monotonic() + options.timeout
    from cancernet.workflow.cross_validate import deal_folds
    from cancernet.workflow.fit import check_members, make_plan

    plan = make_plan(options, experiment, output.name)
    space = search_space.choose_space(plan.experiment, options.space, options.settings)
    known = [patch for patch in plan.dataset.patches if patch.split != "testing"]
    folds = deal_folds(plan, known, options.folds or 5)
    check_members(plan, folds, int(max(space["members"].ends)) if "members" in space else 1)
    dataset = dataclasses.replace(plan.dataset, patches=known)
    trainer = Trainer(dataclasses.replace(plan, dataset=dataset), folds, output)
    request = describe_request(plan, space)
    prepare_folder(output, request)
    from cancernet.training.search import count_finished, evaluate_trial, join_search, take_trial

    default = {name: attrgetter(name)(plan.experiment) for name in space}
    print(f"Searching {', '.join(space)}: {options.trials} trials, {trainer.describe()}.")
    print(f"A line follows each fold; what its training prints is in {output / LOGS}.", flush=True)
    with join_search(output, options.storage, space, default, request) as found:
        with progress.show_progress():
            while time.monotonic() < until and (trial := take_trial(found, options.trials)):
                losses = _tell_folds(trainer.evaluate_folds(trial, found.scratch), trial.number)
                with progress.part(count_finished(found.study) + 1, options.trials, "trial"):
                    evaluate_trial(found, trial, losses, until=until)
                ended = count_finished(found.study)
                print(f"{ended} of {options.trials} trials: {describe_best(found)}", flush=True)
        result = conclude(found, trainer)
    print(f"\n{write_outcome(output, result, plan.experiment)}")
    print(f"Train with it: python train_model.py --dataset {options.dataset} --recipe {output / RECIPE}")
    return result


def _tell_folds(losses: Iterator[tuple[float, int]], trial: int) -> Iterator[tuple[float, int]]:
    """Pass on the losses of a trial's folds, and print a line for each."""
    for fold, (loss, images) in enumerate(losses, 1):
        print(f"Trial {trial}, fold {fold}: log-loss {loss / images:.4f}", flush=True)
        yield loss, images


def describe_request(plan: "Plan", space: Mapping[str, Range]) -> dict[str, Any]:
    """All that the figures of a search follow from, as JSON gives it back."""
    asked = {
        "dataset": plan.dataset.manifest_sha256,
        "model": plan.experiment.model,
        "default": dataclasses.asdict(plan.experiment),
        "space": {name: dataclasses.asdict(tried) for name, tried in space.items()},
        "folds": plan.options.folds,
        "positive": plan.positive,
        "neighbours": plan.options.neighbours,
        "seed": plan.experiment.seed,
    }
    return json.loads(json.dumps(asked))


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

    def __init__(self, plan: "Plan", folds: "Sequence[Sequence[Patch]]", output: Path):
        self.plan, self.patches, self.folds, self.output = plan, plan.dataset.patches, folds, output
        self._data: dict[int, TrainingData] = {}  # by image size: its images are decoded once

    def describe(self) -> str:
        """What trials are evaluated on."""
        from cancernet.reporting.schema import count_split
        from cancernet.reporting.wording import describe_counts, plural

        images = describe_counts(count_split(self.patches))
        return f"cross-validated in {plural(len(self.folds), 'fold')} over the {images} of training and validation"

    def evaluate_folds(self, trial: "optuna.trial.BaseTrial", scratch: Path) -> Iterator[tuple[float, int]]:
        """Train a trial's folds one by one: yield the sum of the log-losses of each and its number of images.

        The predictions are kept after the last.
        """
        import numpy as np

        from cancernet.storage import write_files

        experiment = search_space.apply_settings(self.plan.experiment, trial.params)
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

    def predict(self, trial: "optuna.trial.FrozenTrial", scratch: Path) -> "Predictions":
        """Return the predictions of a finished trial, trained again where another machine keeps them."""
        import numpy as np

        from cancernet.data import dataset
        from cancernet.evaluation.predictions import Predictions

        path = self.output / TRIALS / f"{trial.number:04}.npz"
        if not path.is_file():
            list(self.evaluate_folds(trial, scratch))
        classes = dataset.list_classes(self.patches)
        labels = np.array([classes.index(patch.label) for patch in self.patches])
        try:
            with np.load(path, allow_pickle=False) as kept:
                return Predictions(self.patches, labels, kept["probabilities"], kept["predicted"])
        except Exception as error:  # a damaged file can make NumPy raise anything
            raise StorageError(f"{path} is damaged. Delete it; the next search trains this trial again.") from error

    def _evaluate_fold(self, experiment: Experiment, patches: "Sequence[Patch]", work: Path) -> "Predictions":
        """Train a fold, and predict the patients that it left out with its own decision."""
        from cancernet.workflow.fit import fit_run

        work.mkdir(parents=True)
        plan = dataclasses.replace(self.plan, experiment=experiment)
        data = self._open(plan)
        import numpy as np

        from cancernet.evaluation.predictions import Scores
        from cancernet.evaluation.smoothing import predict_scores

        run, fitted, _, _ = fit_run(plan, data, patches, work)
        rows = np.flatnonzero([patch.split == "testing" for patch in patches])
        left_out = [patches[int(row)] for row in rows]
        return predict_scores(run.decision, Scores(left_out, fitted.score(rows), step=run.settings.patch_pixels))

    def _open(self, plan: "Plan") -> "TrainingData":
        size = plan.experiment.image_size
        if size not in self._data:
            from cancernet.training import feature_cache
            from cancernet.workflow.fit import open_data

            data = open_data(plan, self.output)
            # Features of all but test patients are a set of their own: those of a training include test patients.
            cache = data.cache._replace(
                folder=feature_cache.name_cache_folder(Path(f"{plan.dataset.folder}.without_testing")),
                manifest_sha256=f"{plan.dataset.manifest_sha256} without testing",
            )
            self._data[size] = data._replace(cache=cache)
        return self._data[size]


def describe_best(found: "Search") -> str:
    """The lowest log-loss so far and the default's."""
    from cancernet.training.search import list_complete

    complete, default = list_complete(found)
    best = f"best {found.study.best_value:.4f}" if complete else "nothing finished yet"
    return best + (f", default {default.value:.4f}" if default else "")


def conclude(found: "Search", trainer: Trainer) -> "SearchResult":
    """Compare the best trial so far with the default; InputError if the default has not been finished."""
    from cancernet.data import dataset
    from cancernet.evaluation.comparison import compare_figures
    from cancernet.reporting.search import SearchResult
    from cancernet.training.search import find_importance, list_complete

    complete, default = list_complete(found)
    if default is None:
        found_no = "The default settings have not been evaluated on all folds yet"
        raise InputError(f"{found_no}. Resume with a longer --timeout, or wait for the process that evaluates them.")
    best = min(complete, key=lambda trial: (trial.value, trial is not default))
    difference = None
    if best is not default:
        pair = [trainer.predict(trial, found.scratch) for trial in (default, best)]
        classes = dataset.list_classes(trainer.patches)
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


def describe_trial(trial: "optuna.trial.FrozenTrial") -> "TrialRow":
    """Return a trial that has ended as the report lists it."""
    from cancernet.reporting.search import TrialRow

    diverged = "diverged" in trial.user_attrs
    state = {"COMPLETE": "finished", "PRUNED": "diverged" if diverged else "pruned", "FAIL": "interrupted"}
    losses = trial.intermediate_values
    last, seconds = losses.get(max(losses, default=0)), trial.duration.total_seconds() if trial.duration else 0.0
    return TrialRow(trial.number, state[trial.state.name], last, len(losses), seconds, trial.params)


def write_outcome(output: Path, result: "SearchResult", base: Experiment) -> str:
    """Write recipe.json, trials.csv, search.txt, search.html and search.png. Returns the text to print."""
    from cancernet.reporting import search as words
    from cancernet.reporting.report import draw_pictures, write_pages

    best = search_space.apply_settings(base, result.best.settings)
    text = words.search_text(result)
    pictures = draw_pictures({"search": words.plot_search(result)})
    files = {
        RECIPE: json.dumps(dataclasses.asdict(best), indent=1) + "\n",
        TABLE: words.trials_csv(result),
        TEXT: text + "\n",
        PAGE: words.search_page(result, output.name, pictures),
    }
    write_pages(output, pictures, files)
    return text
