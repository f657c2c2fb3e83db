"""Search for settings better than the default, by cross-validation over training and validation patients.

Test patients are not read. Several processes may work on one search: give them the same command. A search that was
ended goes on where it was. Options of train_model.py that set what is trained are taken, too: the search starts there.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import io
import json
import logging
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import train_model
from cancernet import InputError
from cancernet.cli import Parser, at_least, run_script
from cancernet.config import DATASET, RUNS
from cancernet.models.architectures import check_architecture, list_kinds
from cancernet.storage import FolderKind, check_replaceable
from cancernet.training import experiments, search_space

FOLDS = 5
ASKED = "search.json"  # what a search was begun for
RECIPE, TABLE, TEXT = "recipe.json", "trials.csv", "search.txt"
KEPT, LOGS = "trials", "logs"  # folders: predictions of each finished trial, and what its training printed
NOT_TAKEN = ("features", "only_folds", "prevalence", "force")  # of train_model.py's options


def parse_arguments(argv: Sequence[str]):
    """The search's own arguments, and those of the training from which it starts."""
    parser = Parser(prog="tune_model.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("--dataset", type=Path, default=DATASET, help="made by build_dataset.py (%(default)s)")
    parser.add_argument("--output", type=Path, default=RUNS / "search", help="folder of the search (%(default)s)")
    parser.add_argument("--trials", type=at_least(1), default=50, help="in all, of all processes (%(default)s)")
    parser.add_argument("--timeout", type=duration, default=math.inf, help="such as 90s, 30m or 2h (none)")
    parser.add_argument("--folds", type=at_least(2), default=FOLDS, help="of the cross-validation (%(default)s)")
    parser.add_argument("--space", type=Path, help="JSON file of what is searched; see docs/search.md")
    parser.add_argument("--storage", help="Optuna's, such as postgresql://... (a file in --output)")
    arguments, rest = parser.parse_known_args(argv)
    training = train_model.parse_arguments(["--dataset", str(arguments.dataset), *rest])
    for name in NOT_TAKEN:
        if getattr(training, name):
            raise InputError(f"--{name.replace('_', '-')} is for train_model.py; a search does not take it.")
    return arguments, training


def duration(text: str) -> float:
    """Argument type: seconds, from a number with s, m or h behind it."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text, re.ASCII)
    seconds = float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]] if found else 0
    if not seconds:
        raise argparse.ArgumentTypeError(f"takes a time such as 90s, 30m or 2h, not {text!r}")
    return seconds


def main(argv: Sequence[str]) -> None:
    arguments, training = parse_arguments(argv)
    if importlib.util.find_spec("optuna") is None:
        raise InputError('A search needs Optuna, which is not installed: pip install ".[search]"')
    experiment = train_model.choose_experiment(training)
    until = time.monotonic() + arguments.timeout
    plan, patches, summary = train_model.make_plan(training, experiment, arguments.output.name)
    space = choose_space(arguments.space, training, plan.experiment)
    known = [patch for patch in patches if patch.split != "testing"]
    folds = train_model.deal_folds(plan, known, arguments.folds)
    train_model.check_members(plan, folds, max(space["members"].ends) if "members" in space else 1)
    trainer = Trainer(plan, known, folds, summary, arguments.output)
    asked = describe_search(plan, space, arguments.folds)
    prepare_folder(arguments.output, asked)
    from tqdm import tqdm

    from cancernet.training import search

    default = {name: search_space.get_setting(plan.experiment, name) for name in space}
    print(f"Searching {', '.join(space)}: {arguments.trials} trials, {trainer.describe()}.", flush=True)
    with search.join_search(arguments.output, arguments.storage, space, default, asked) as found:
        with tqdm(total=arguments.trials, unit=" trials", disable=None) as bar:
            while time.monotonic() < until and (trial := search.take_trial(found, arguments.trials)):
                search.judge_trial(found, trial, trainer.judge_folds(trial, found.scratch), until=until)
                bar.n = search.count_finished(found.study)
                bar.set_postfix_str(describe_best(found, default))
        outcome = conclude(found, trainer)
    print(f"\n{write_outcome(arguments.output, outcome, plan.experiment)}")
    print(f"Train with it: python train_model.py --dataset {plan.dataset} --recipe {arguments.output / RECIPE}")


def choose_space(file: Path | None, training, base) -> dict:
    """What is searched, checked: every value at an end of a range can be trained with. The default is within it.

    Raises:
        InputError: a range that makes no sense, or a setting that this training does not use.
    """
    space = search_space.read_space(file) if file else search_space.choose_space(base)
    search_space.check_space(space, base)
    for name, of in space.items():
        for value in of.ends:
            changed = search_space.apply_settings(base, {name: value})
            for kind in list_kinds(changed):
                architecture = check_architecture(kind)
            if architecture.family == "transfer" and "+" not in base.model:
                experiments.check_backbone(training, changed, base)
    return search_space.widen_to(space, base)


def describe_search(plan: train_model.Plan, space: Mapping, folds: int) -> dict:
    """What the figures of a search follow from, as JSON gives it back."""
    asked = {
        "dataset": plan.manifest_sha256,
        "model": plan.experiment.model,
        "default": dataclasses.asdict(plan.experiment),
        "space": {name: dataclasses.asdict(of) for name, of in space.items()},
        "folds": folds,
        "positive": plan.positive,
        "neighbours": plan.neighbours,
        "seed": plan.experiment.seed,
    }
    return json.loads(json.dumps(asked))


def prepare_folder(output: Path, asked: Mapping) -> None:
    """Make the folder of a search; one that is there goes on.

    Raises:
        InputError: something else is there.
    """
    check_replaceable(output, FolderKind.SEARCH, force=True)  # `join_search` refuses a search for something else
    output.mkdir(parents=True, exist_ok=True)
    if not (output / ASKED).is_file():
        (output / ASKED).write_text(json.dumps(asked, indent=1) + "\n", encoding="utf-8")
    for folder in (KEPT, LOGS):
        (output / folder).mkdir(exist_ok=True)


class Trainer:
    """Trains the folds of trials as train_model.py does, on training and validation patients alone."""

    def __init__(self, plan: train_model.Plan, patches, folds: Sequence[Sequence], summary, output: Path):
        self.plan, self.patches, self.folds, self.summary, self.output = plan, patches, folds, summary, output
        self._materials = {}  # image size -> material, whose images are decoded once

    def describe(self) -> str:
        """On what trials are judged."""
        patients = len({patch.patient for patch in self.patches} - {""})
        return (
            f"cross-validated in {len(self.folds)} folds over {len(self.patches):,} images of {patients} patients of "
            "training and validation"
        )

    def judge_folds(self, trial, scratch: Path) -> Iterator[tuple[float, int]]:
        """Train a trial's folds, each when it is asked for; its predictions are kept when all are judged.

        Yields:
            Of each fold, the sum of the log-losses of its images, and their number.
        """
        import numpy as np

        from cancernet.storage import write_whole

        experiment = search_space.apply_settings(self.plan.experiment, trial.params)
        probabilities = np.empty((len(self.patches), len({patch.label for patch in self.patches})))
        predicted = np.empty(len(self.patches), int)
        for number, patches in enumerate(self.folds, 1):
            rows = np.flatnonzero([patch.split == "testing" for patch in patches])
            path = self.output / LOGS / f"{trial.number:04}.txt"
            with path.open("a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
                told = self._judge_fold(experiment, patches, rows, scratch / f"{trial.number}_{number}")
            probabilities[rows], predicted[rows] = told.probabilities, told.predicted
            own = told.probabilities[np.arange(len(rows)), told.labels]
            yield float(-np.log(np.maximum(own, np.finfo(np.float64).eps)).sum()), len(rows)
        content = io.BytesIO()
        np.savez(content, probabilities=probabilities, predicted=predicted)
        write_whole(self.output / KEPT, {f"{trial.number:04}.npz": content.getvalue()})

    def predict(self, trial, scratch: Path):
        """The predictions of a finished trial; trained again where another machine has them."""
        import numpy as np

        from cancernet.data import dataset
        from cancernet.evaluation.smoothing import Predictions

        path = self.output / KEPT / f"{trial.number:04}.npz"
        if not path.is_file():
            list(self.judge_folds(trial, scratch))
        classes = dataset.list_classes(self.patches)
        labels = np.array([classes.index(patch.label) for patch in self.patches])
        with np.load(path) as kept:
            return Predictions(self.patches, labels, kept["probabilities"], kept["predicted"])

    def _judge_fold(self, experiment, patches, rows, work: Path):
        """Train a fold, and predict the patients that it left out with the decision that it fixed."""
        work.mkdir(parents=True)
        plan = dataclasses.replace(self.plan, experiment=experiment)
        material = self._open(plan)
        from cancernet.data.grid import lay_out_patches
        from cancernet.evaluation.smoothing import predict_split
        from cancernet.training import pipeline

        finished, fitted, _, _ = train_model.fit_run(plan, material, patches, self.summary, work)
        left_out = [patches[row] for row in rows]
        with pipeline.naming_bad_files(material.images):
            scores = fitted.score(rows)
        return predict_split(finished.decision, left_out, scores, lay_out_patches(left_out))

    def _open(self, plan: train_model.Plan):
        size = plan.experiment.image_size
        if size not in self._materials:
            material = train_model.open_material(plan, self.patches, self.output)
            from cancernet.training import feature_cache

            logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it warns of every new network
            # Features of all but test patients are a set of their own: those of a training hold test patients', too.
            place = material.place._replace(
                folder=feature_cache.name_folder(Path(f"{plan.dataset}.without_testing")),
                manifest_sha256=f"{plan.manifest_sha256} without testing",
            )
            self._materials[size] = material._replace(place=place)
        return self._materials[size]


def describe_best(found, default: Mapping) -> str:
    """The best log-loss so far, and the default's, for the bar."""
    finished = [trial for trial in found.study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    if not finished:
        return "nothing finished yet"
    own = [f", default {trial.value:.4f}" for trial in finished if trial.params == default]
    return f"best {min(trial.value for trial in finished):.4f}{own[0] if own else ''}"


def conclude(found, trainer: Trainer):
    """What came of the search so far.

    Raises:
        InputError: no trial, or not the default, has been finished.
    """
    from cancernet.data import dataset
    from cancernet.evaluation.comparison import compare_figures
    from cancernet.reporting.search import Outcome
    from cancernet.training import search

    trials = found.study.get_trials()
    finished = [trial for trial in trials if trial.state.name == "COMPLETE"]
    default = next((trial for trial in finished if trial.params == found.default), None)
    if default is None:
        raise InputError(
            "The default settings have not been judged to the end. Go on with a longer --timeout, or "
            "wait for the process that judges them."
        )
    best = min(finished, key=lambda trial: (trial.value, trial.params != found.default))
    difference = None
    if best.value < default.value:
        pair = [trainer.predict(trial, found.scratch) for trial in (default, best)]
        classes = dataset.list_classes(trainer.patches)
        difference = compare_figures(pair, classes=classes, positive=trainer.plan.positive)[0]["log_loss"]
    else:
        best = default
    ended = {trial.number: describe_trial(trial) for trial in trials if trial.state.is_finished()}
    return Outcome(
        rows=list(ended.values()),
        best=ended[best.number],
        default=ended[default.number],
        difference=difference,
        importance=search.find_importance(found.study),
        data=trainer.describe(),
        running=sum(trial.state.name == "RUNNING" for trial in trials),
    )


def describe_trial(trial):
    """A trial that has ended, as it is reported."""
    from cancernet.reporting.search import TrialRow

    diverged = "diverged" in trial.user_attrs
    state = {"COMPLETE": "finished", "PRUNED": "diverged" if diverged else "pruned", "FAIL": "given back"}
    losses = trial.intermediate_values
    last = losses[max(losses)] if losses else None
    seconds = trial.duration.total_seconds() if trial.duration else 0.0
    return TrialRow(trial.number, state[trial.state.name], last, len(losses), seconds, trial.params)


def write_outcome(output: Path, outcome, base) -> str:
    """Write recipe.json, trials.csv, search.txt and search.png. Returns what is to be printed."""
    from cancernet.reporting import search as words
    from cancernet.reporting.report import draw_pictures
    from cancernet.storage import write_whole

    best = search_space.apply_settings(base, outcome.best.settings)
    text = words.tell_search(outcome)
    files = {
        RECIPE: json.dumps(dataclasses.asdict(best), indent=1) + "\n",
        TABLE: words.write_table(outcome),
        TEXT: text + "\n",
    }
    pictures = draw_pictures({"search": words.plot_search(outcome)})
    write_whole(output, pictures | {name: content.encode("utf-8") for name, content in files.items()})
    return text


if __name__ == "__main__":
    run_script(main)
