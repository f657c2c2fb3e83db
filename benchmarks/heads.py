"""Heads on the same features of a frozen backbone, by cross-validation by patient, each less the linear head.

The backbone's features are those that train_model.py keeps. Of every fold the patients that are not tested are dealt to
five members, as in a training, for the heads that CancerNet has; trees are fitted to all of them. No class is weighed,
so that log-losses can be compared.

    python benchmarks/heads.py --dataset datasets/idc --image-size 96
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.recipes import FIGURES, format_difference, format_markdown, format_number  # noqa: E402
from cancernet.cli import quiet_import  # noqa: E402
from cancernet.config import RECIPES  # noqa: E402
from cancernet.data import dataset, splits  # noqa: E402
from cancernet.evaluation.comparison import compare_figures  # noqa: E402
from cancernet.evaluation.evaluate import evaluate  # noqa: E402
from cancernet.evaluation.predictions import Predictions  # noqa: E402

MEMBERS = 5


class Split(NamedTuple):
    """The rows of a fold."""

    known: np.ndarray
    members: list[splits.Fold]  # `known` dealt, as in a training
    testing: np.ndarray


class Set(NamedTuple):
    """A dataset with the features of all its images."""

    patches: list[dataset.Patch]
    labels: np.ndarray  # class index [n]
    features: np.ndarray  # [n, views, f]


Answer = Callable[[Set, Split, int], np.ndarray]  # probabilities [testing, classes]


def list_heads(names: list[str]) -> dict[str, Answer]:
    """What is compared: the heads of CancerNet, and trees with the settings that are usual for so many features."""
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.tree import DecisionTreeClassifier

    def of_kind(kind: str) -> Answer:
        return lambda data, split, seed: answer_by_members(data, split, kind, seed)

    def of_tree(make: Callable) -> Answer:
        def answer(data: Set, split: Split, seed: int) -> np.ndarray:
            means = [np.asarray(data.features[rows]).mean(axis=1) for rows in (split.known, split.testing)]
            return make(seed).fit(means[0], data.labels[split.known]).predict_proba(means[1])

        return answer

    heads = {kind: of_kind(kind) for kind in ("linear", "kernel", "hidden")}
    heads["decision tree"] = of_tree(lambda seed: DecisionTreeClassifier(min_samples_leaf=20, random_state=seed))
    heads["random forest"] = of_tree(
        lambda seed: RandomForestClassifier(300, min_samples_leaf=2, n_jobs=-1, random_state=seed)
    )
    heads["gradient boosting"] = of_tree(
        lambda seed: HistGradientBoostingClassifier(learning_rate=0.05, max_features=0.1, random_state=seed)
    )
    return {name: heads[name] for name in names or heads}


def answer_by_members(data: Set, split: Split, kind: str, seed: int) -> np.ndarray:
    """The softmax of the mean logits of five heads of a kind."""
    from scipy.special import softmax

    from cancernet.training.heads import Examples, fit_heads

    weights = dict.fromkeys(range(data.labels.max() + 1), 1.0)
    with tempfile.TemporaryDirectory() as scratch:
        examples = Examples(data.features, data.labels, weights, Path(scratch))
        fitted = fit_heads(examples, split.members, kind=kind, seed=seed).fitted
    means = np.asarray(data.features[split.testing]).mean(axis=1)
    logits = [np.log(np.maximum(each.predict(means).astype(np.float64), 1e-300)) for each in fitted]
    return softmax(np.mean(logits, axis=0), axis=1)


def read_set(arguments: argparse.Namespace) -> Set:
    """The dataset with its features, which are computed where they are not there."""
    import dataclasses

    from cancernet.models.architectures import build_model
    from cancernet.models.structure import split_model
    from cancernet.training import feature_cache, pipeline

    patches = dataset.read_manifest(arguments.dataset)
    classes = dataset.list_classes(patches)
    experiment = dataclasses.replace(
        RECIPES["transfer"], model=arguments.model, image_size=arguments.image_size, weights=arguments.weights
    )
    extractor, _ = split_model(build_model(experiment, len(classes)))
    images = pipeline.open_store(arguments.dataset, patches, experiment, cache_limit=0)
    manifest = dataset.hash_manifest(arguments.dataset)
    place = feature_cache.Place(feature_cache.name_folder(arguments.dataset), Path(tempfile.gettempdir()), manifest)
    labels = np.array([classes.index(patch.label) for patch in patches])
    return Set(patches, labels, feature_cache.find_features(extractor, experiment, images, place))


def deal(data: Set, folds: int, seed: int) -> list[Split]:
    """The folds of a cross-validation, each with its members."""
    labels, groups = [patch.label for patch in data.patches], splits.list_groups(data.patches, by_patient=True)
    dealt = []
    for assigned in splits.assign_folds(labels, groups, folds=folds, seed=seed):
        own = [patch._replace(split=split) for patch, split in zip(data.patches, assigned, strict=True)]
        is_testing = np.array(assigned) == "testing"
        members = splits.split_members(own, MEMBERS, by_patient=True, seed=seed)
        dealt.append(Split(np.flatnonzero(~is_testing), members, np.flatnonzero(is_testing)))
    return dealt


def judge(data: Set, dealt: list[Split], answer: Answer, seed: int) -> tuple[Predictions, float]:
    """What a head answers of all images, each when it was left out, and the seconds of a fold."""
    started = time.perf_counter()
    probabilities = np.concatenate([answer(data, split, seed) for split in dealt])
    rows = np.concatenate([split.testing for split in dealt])
    patches = [data.patches[row] for row in rows]
    seconds = (time.perf_counter() - started) / len(dealt)
    return Predictions(patches, data.labels[rows], probabilities, probabilities.argmax(axis=1)), seconds


def list_figures(predictions: Predictions, first: Predictions, classes: list[str]) -> dict[str, str]:
    """The figures of a head; of all but the first also the differences to it, with paired intervals."""
    positive = classes[1] if len(classes) == 2 else None
    figures = evaluate(predictions, classes=classes, positive=positive).metrics
    shown = {FIGURES[name]: format_number(figures[name].value) for name in FIGURES if name in figures}
    if predictions is first:
        return shown
    (difference,) = compare_figures([first, predictions], classes=classes, positive=positive)
    return {
        FIGURES[name]: f"{shown[FIGURES[name]]}, {format_difference(difference[name])}"
        for name in FIGURES
        if name in figures
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", type=Path, default=Path("datasets/idc"), help="made by build_dataset.py")
    parser.add_argument("--model", default="densenet121", help="the frozen backbone (%(default)s)")
    parser.add_argument("--image-size", type=int, default=224, help="pixels (%(default)s)")
    parser.add_argument("--weights", default="imagenet", help="as of train_model.py (%(default)s)")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--heads", nargs="+", help="some of them, the first to compare with (all)")
    arguments = parser.parse_args()
    with quiet_import():
        import keras  # noqa: F401
    heads = list_heads(arguments.heads)
    data = read_set(arguments)
    classes, dealt, first = dataset.list_classes(data.patches), deal(data, arguments.folds, arguments.seed), None
    for name, answer in heads.items():
        predictions, seconds = judge(data, dealt, answer, arguments.seed)
        is_first, first = first is None, first or predictions
        row = {"head": name, **list_figures(predictions, first, classes), "seconds a fold": f"{seconds:.0f}"}
        table = format_markdown([list(row), list(row.values())])
        print(table if is_first else table.splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
