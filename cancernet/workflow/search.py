"""Search for better settings by cross-validation over training and validation patients; test patients are not read.

Several processes may work on one search: give them the same command. A search that was stopped resumes. Options of
train_model.py set the default from which the search starts.
"""

import dataclasses
import importlib.util
import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge

from cancernet import InputError, progress
from cancernet.config import RUNS, Experiment, Range, TrainingOptions, option
from cancernet.training import experiments, search_space

if TYPE_CHECKING:
    from cancernet.reporting.search import SearchResult
    from cancernet.workflow.fit import Plan

RECIPE, TABLE, TEXT, PAGE = "recipe.json", "trials.csv", "search.txt", "search.html"


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
    from cancernet.training.search import count_finished, evaluate_trial, join_search, take_trial
    from cancernet.workflow.trials import LOGS, Trainer, conclude, describe_best, prepare_folder

    trainer = Trainer(dataclasses.replace(plan, dataset=dataset), folds, output)
    request = describe_request(plan, space)
    prepare_folder(output, request)
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
