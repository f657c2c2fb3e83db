"""Compare recipes by cross-validation: every patient is evaluated once, by a model that has not seen them.

A recipe is a name and options of train_model.py. Each is trained on the same folds of a built dataset, into
OUTPUT/NAME; finished recipes are not trained again. The others are compared with the first, each on the folds that
both have: --only-folds 1 2 among the options of a recipe trains two of five if all take too long.

    python benchmarks/recipes.py --dataset datasets/idc \
        --recipe "tutorial: --recipe tutorial" --recipe "default:" --recipe "strong: --recipe strong --only-folds 1 2"
"""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from cancernet.evaluation.comparison import align_predictions, compare_figures  # noqa: E402
from cancernet.evaluation.evaluate import evaluate  # noqa: E402
from cancernet.evaluation.predictions import Predictions, pool_predictions  # noqa: E402
from cancernet.evaluation.results import Difference, Estimate  # noqa: E402
from cancernet.run import REPORT, read_predictions, read_report  # noqa: E402

FOLDS = 5
RECIPES = (
    *("tutorial: --recipe tutorial", "default:"),
    "frozen: --model densenet121 --image-size 96",
)
FIGURES = {"auroc": "AUROC", "f1": "F1", "macro_f1": "macro F1", "balanced_accuracy": "balanced accuracy"}
FIGURES |= {"log_loss": "log-loss"}


class Recipe(NamedTuple):
    """A name, and options of train_model.py."""

    name: str
    options: list[str]


class CrossValidation(NamedTuple):
    """The predictions of a recipe for the patients left out, fold by fold."""

    recipe: Recipe
    classes: list[str]
    positive: str | None
    folds: dict[int, Predictions]
    seconds: float  # of training per fold


def parse_recipe(text: str) -> Recipe:
    """Parse `NAME: options of train_model.py`."""
    name, colon, options = text.partition(":")
    if not colon or not name.strip().replace("-", "").replace("_", "").isalnum():
        raise argparse.ArgumentTypeError(f"takes 'NAME: options of train_model.py', not {text!r}")
    return Recipe(name.strip(), shlex.split(options))


def train(recipe: Recipe, dataset: Path, run: Path) -> None:
    """Cross-validate a recipe unless its run exists."""
    if (run / REPORT).is_file():
        print(f"{recipe.name} is finished already.", flush=True)
        return
    print(f"{recipe.name}: training in {run}.unfinished", flush=True)
    fixed = ["--dataset", str(dataset), "--output", str(run), "--folds", str(FOLDS)]
    done = subprocess.run(
        [sys.executable, str(ROOT / "train_model.py"), *fixed, *recipe.options], capture_output=True, text=True
    )
    stop_if_failed(done, f"Training {recipe.name!r}")


def stop_if_failed(done: subprocess.CompletedProcess, what: str) -> None:
    """Exit with the last output of a child process if it failed."""
    if done.returncode:
        sys.exit(f"{done.stdout[-2000:]}{done.stderr}{what} failed with exit status {done.returncode}.")


def read_cross_validation(recipe: Recipe, run: Path) -> CrossValidation:
    """Read the predictions of the folds of a finished cross-validation."""
    folders = {int(path.parent.name.rpartition("_")[2]): path.parent for path in run.glob(f"fold_*/{REPORT}")}
    reports = [read_report(folder, dict) for _, folder in sorted(folders.items())]
    classes = reports[0]["classes"]
    folds = {number: read_predictions(folder, classes) for number, folder in sorted(folders.items())}
    seconds = float(np.mean([report["training"]["seconds"] for report in reports]))
    return CrossValidation(recipe, classes, reports[0]["positive"], folds, seconds)


def pool(run: CrossValidation, numbers: Sequence[int]) -> Predictions:
    """Concatenate the predictions of some folds."""
    return pool_predictions([run.folds[number] for number in numbers])


def format_tables(runs: Sequence[CrossValidation]) -> str:
    """Format Markdown tables: the figures of each recipe, and the paired differences to the first with intervals."""
    first, *others = runs
    shown = [name for name in FIGURES if name in _figures(first, list(first.folds))]
    head = [FIGURES[name] for name in shown]
    absolute = [["recipe", "folds", "patients", *head, "seconds per fold", "command"]]
    for run in runs:
        figures, pooled = _figures(run, list(run.folds)), pool(run, list(run.folds))
        cells = [format_number(figures[name].value) for name in shown]
        patients = len({patch.patient for patch in pooled.patches} - {""})
        command = shlex.join(["train_model.py", *run.recipe.options, "--folds", str(FOLDS)])
        absolute.append(
            [run.recipe.name, _folds(run.folds), str(patients), *cells, f"{run.seconds:.0f}", f"`{command}`"]
        )
    paired = [[f"minus {first.recipe.name}", "folds", *head]]
    for run in others:
        common = [number for number in first.folds if number in run.folds]
        if not common:
            sys.exit(f"{run.recipe.name} and {first.recipe.name} have no fold in common. Train one that both have.")
        pair = align_predictions({each.recipe.name: pool(each, common) for each in (first, run)})
        (difference,) = compare_figures(list(pair.values()), classes=first.classes, positive=first.positive)
        paired.append([run.recipe.name, _folds(common), *(format_difference(difference[name]) for name in shown)])
    tables = [absolute, paired] if others else [absolute]
    return "\n\n".join(format_markdown(table) for table in tables)


def _figures(run: CrossValidation, numbers: Sequence[int]) -> dict[str, Estimate]:
    return evaluate(pool(run, numbers), classes=run.classes, positive=run.positive).metrics


def _folds(numbers) -> str:
    return f"all {FOLDS}" if len(numbers) == FOLDS else ", ".join(map(str, numbers))


def format_number(value: float | None) -> str:
    """Format a number with three decimals, or `n/a`."""
    return "n/a" if value is None else f"{value:.3f}"


def format_difference(difference: Difference) -> str:
    """Format a difference as `+0.015 (+0.004 to +0.027)`, in bold if the interval excludes zero."""
    if difference.value is None:
        return "n/a"
    bounds = "" if difference.low is None else f" ({difference.low:+.3f} to {difference.high:+.3f})"
    text = f"{difference.value:+.3f}{bounds}"
    return text if difference.verdict == "unclear" else f"**{text}**"


def format_markdown(rows: list[list[str]]) -> str:
    """Format a Markdown table whose first row is the header."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--dataset", type=Path, default=Path("datasets/idc"), help="built dataset (default: %(default)s)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/recipes"), help="folder of the runs (default: %(default)s)"
    )
    parser.add_argument(
        "--recipe", type=parse_recipe, action="append", help="'NAME: options of train_model.py'; repeatable"
    )
    arguments = parser.parse_args()
    recipes = arguments.recipe or [parse_recipe(text) for text in RECIPES]
    if len({recipe.name for recipe in recipes}) < len(recipes):
        parser.error("every --recipe needs its own name")
    for recipe in recipes:
        train(recipe, arguments.dataset, arguments.output / recipe.name)
    print(f"\n{format_tables([read_cross_validation(recipe, arguments.output / recipe.name) for recipe in recipes])}")


if __name__ == "__main__":
    main()
