"""A run folder, loaded: image files in, calibrated probabilities out."""

import functools
import json
import operator
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from cancernet import InputError
from cancernet.data.images import ImageStore
from cancernet.judging.decision import Decision, load_decision, log_scores
from cancernet.learning.pipeline import evaluation_batches, naming_bad_files

MODEL, DECISION, CONFIG, REPORT = "model.keras", "decision.json", "config.json", "report.json"
BATCH = 64  # images that a network answers at a time; more is no faster on a CPU and takes memory
_NEEDED = (  # of config.json
    *(("classes",), ("positive",), ("images_are_grey",), ("usual_size",), ("seen", "patients"), ("seen", "images")),
    *(("experiment", name) for name in ("image_size", "channels", "views")),
)


class Classifier(NamedTuple):
    """A trained network with its frozen decision."""

    model: keras.Model
    decision: Decision
    config: dict  # the run's config.json
    run: Path


def write_config(run: Path, config: dict) -> None:
    """Write config.json."""
    (run / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def read_config(run: Path) -> dict:
    """The settings of a run, its config.json.

    Raises:
        InputError: no such run, or a damaged file.
    """
    path = run / CONFIG
    if not run.is_dir():
        raise InputError(f"There is no run {run}. Train one with train_model.py --output {run}.")
    folds = sorted(run.glob(f"fold_*/{MODEL}"))
    if folds and not path.is_file():
        raise InputError(
            f"{run} is a cross-validation, without a model of its own. Give a run of it: {folds[0].parent}."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        for keys in _NEEDED:
            functools.reduce(operator.getitem, keys, config)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is missing or damaged, so {run} is no finished run. Train again.") from error
    return config


def find_runs(folder: Path) -> list[Path]:
    """The finished runs right under a folder, the newest first: what train_model.py wrote last."""
    runs = [path.parent for path in folder.glob(f"*/{MODEL}")]
    runs = [run for run in runs if (run / CONFIG).is_file() and (run / DECISION).is_file()]
    return sorted(runs, key=lambda run: ((run / DECISION).stat().st_mtime, run.name), reverse=True)


def read_report(run: Path) -> dict | None:
    """The run's report.json; None where it has none.

    Raises:
        InputError: a damaged file.
    """
    path = run / REPORT
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged. Train again, or copy the whole run folder.") from error


def load_classifier(run: Path) -> Classifier:
    """Load a run.

    Raises:
        InputError: one of its files is missing or damaged, or they do not belong together.
    """
    config = read_config(run)
    decision = load_decision(run / DECISION)
    path = run / MODEL
    try:
        model = keras.models.load_model(path, compile=False)
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is missing or damaged. Train again, or copy the whole run folder.") from error
    difference = _find_difference(model, decision, config)
    if difference:
        raise InputError(f"The files of {run} are not of one run: {difference}. Copy the whole run folder.")
    return Classifier(model, decision, config, run)


def _find_difference(model: keras.Model, decision: Decision, config: dict) -> str:
    """What the files of a run folder do not agree on; "" for nothing."""
    experiment, classes = config["experiment"], config["classes"]
    shape = [experiment["image_size"], experiment["image_size"], experiment["channels"]]
    if list(model.input_shape[1:]) != shape:
        return f"{MODEL} takes images of the shape {list(model.input_shape[1:])}, {CONFIG} says {shape}"
    if model.output_shape[-1] != len(classes):
        return f"{MODEL} tells {model.output_shape[-1]} classes apart, {CONFIG} names {len(classes)}"
    if list(decision.classes) != classes:
        return f"{DECISION} has the classes {', '.join(decision.classes)}, {CONFIG} {', '.join(classes)}"
    if decision.positive != config["positive"]:
        return f"the positive class is {decision.positive} in {DECISION}, {config['positive']} in {CONFIG}"
    return ""


def predict_scores(model: keras.Model, store: ImageStore, *, views: str, verbose: int = 0) -> np.ndarray:
    """Log-probabilities [n, classes], float64, of every image of a store, in its order.

    Args:
        views: of each image, that the mean is taken over, as `average_over_views`.

    Raises:
        InputError: a file cannot be used, or the model answers something that is not a number.
    """
    return log_scores(predict(average_over_views(model, views), store, verbose=verbose))


def average_over_views(model: keras.Model, views: str) -> keras.Model:
    """The same network, answering the mean over views of an image, which is square.

    The views are, for `one`, the image itself; for `mirror`, it and its mirror image, left to right; for `eight`, all
    its flips and quarter turns.
    """
    if views == "one":
        return model
    network = _answer_views(model, views)
    return keras.Model(network.inputs[0], keras.ops.mean(network.outputs[0], axis=0))


def extract_features(
    extractor: keras.Model, stores: Mapping[str, ImageStore], *, views: str, verbose: int = 0
) -> dict[str, np.ndarray]:
    """Features [n, views, f], float32, of every view of every image of each store that has images, in its order.

    Raises:
        InputError: a file cannot be used.
    """
    network = _answer_views(extractor, views)
    network = keras.Model(network.inputs[0], keras.ops.transpose(network.outputs[0], (1, 0, 2)))
    return {name: predict(network, store, verbose=verbose) for name, store in stores.items() if len(store)}


def score_features(head: keras.Model, features: np.ndarray) -> np.ndarray:
    """Log-probabilities [n, classes], float64, of the features [n, views, f] of n images: of the mean over their views.

    Raises:
        InputError: the head answers something that is not a number.
    """
    n, views, size = features.shape
    answers = head.predict(features.reshape(n * views, size), verbose=0)
    return log_scores(answers.reshape(n, views, -1).mean(axis=1))


def _answer_views(model: keras.Model, views: str) -> keras.Model:
    """The same network, answering one view after the other: [views, n, outputs]."""
    inputs = keras.Input(model.input_shape[1:])
    seen = [inputs]
    if views != "one":
        seen.append(keras.ops.flip(inputs, 2))
    if views == "eight":
        seen += [keras.ops.flip(view, 1) for view in seen]
        seen += [keras.ops.transpose(view, (0, 2, 1, 3)) for view in seen]
    return keras.Model(inputs, keras.ops.map(model, keras.ops.stack(seen)))


def predict(model: keras.Model, store: ImageStore, *, verbose: int = 0) -> np.ndarray:
    """What a network answers for every image of a store, in its order: [n, ...] float32.

    Raises:
        InputError: a file cannot be used.
    """
    with naming_bad_files(store):
        return model.predict(evaluation_batches(store, batch_size=BATCH), verbose=verbose)
