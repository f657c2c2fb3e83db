"""A training in phases: of the whole model, of the head of a frozen backbone, or of the head and then of all."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from cancernet.config import Experiment
from cancernet.data.images import ImageStore
from cancernet.learning import fused, pipeline, precision, training
from cancernet.learning.models.structure import split_model

Inputs = ImageStore | np.ndarray  # images of a store, or features [n * views, f], the views of an image together


class Material(NamedTuple):
    """What networks are trained on and scored on: n images, of all splits."""

    images: ImageStore
    labels: np.ndarray  # class index [n]
    weights: dict[int, float]  # class index -> weight in the loss
    features: np.ndarray | None = None  # [n, views, f] float32 of a backbone that is not trained at first


def fit_phases(
    model: keras.Model,
    experiment: Experiment,
    material: Material,
    rows: Mapping[str, np.ndarray],
    settings: Mapping,
    work: Path,
) -> training.Training:
    """Train a model by the phases of the experiment's strategy, and leave in it the weights that are kept.

    Args:
        model: uncompiled.
        experiment: all settings of the training.
        material: with features where the strategy is frozen or two-phase.
        rows: of `material`, those of `training` and of `validation`.
        settings: of the training, as JSON takes them; a checkpoint that was begun with others is refused.
        work: folder for the checkpoints.

    Raises:
        InputError: a file cannot be used, or as `training.fit_model`.
    """
    trained = None
    if material.features is not None:
        _, head = split_model(model)
        given = {split: (_line_up(material.features[of]), material.labels[of]) for split, of in rows.items()}
        trained = _fit_phase(head, experiment, given, material.weights, settings, work / "checkpoint_head")
        if experiment.strategy == "frozen":
            return trained
        experiment = dataclasses.replace(experiment, learning_rate=experiment.learning_rate / 10)
    given = {split: (material.images.select(of), material.labels[of]) for split, of in rows.items()}
    everything = _fit_phase(model, experiment, given, material.weights, settings, work / "checkpoint")
    return training.join(trained, everything) if trained else everything


def _fit_phase(
    model: keras.Model,
    experiment: Experiment,
    given: Mapping[str, tuple[Inputs, np.ndarray]],
    weights: dict[int, float],
    settings: Mapping,
    checkpoint: Path,
) -> training.Training:
    """Compile and fit one network on the inputs, and the class index [n] of each image, of training and validation."""
    inputs = {split: each for split, (each, _) in given.items()}
    targets = {}
    for split, (each, labels) in given.items():
        labels = np.repeat(labels, len(each) // len(labels))  # the views of an image lie together
        targets[split] = keras.utils.to_categorical(labels, len(weights))
    steps = pipeline.steps_per_epoch(len(inputs["training"]), experiment.batch_size)

    def make_batches(first_epoch: int) -> Iterable:
        return pipeline.training_batches(inputs["training"], targets["training"], experiment, first_epoch=first_epoch)

    def prepare() -> None:
        training.compile_model(model, experiment, classes=len(weights), steps_per_epoch=steps)

    training.set_statistics_momentum(model, experiment.statistics_momentum)
    fused.fuse_batch_normalization(model)
    chosen = _choose_precision(model, prepare, make_batches, checkpoint) if experiment.mixed_precision else "float32"
    prepare()
    trained = training.fit_model(
        model,
        training.Batches(
            make_batches,
            pipeline.evaluation_batches(inputs["validation"], batch_size=128, targets=targets["validation"]),
            images=len(given["training"][1]),
            steps_per_epoch=steps,
        ),
        experiment,
        weights=weights,
        checkpoint=checkpoint,
        settings={**settings, "training_precision": chosen},
    )
    precision.set_precision(model, precision.SINGLE)  # what is saved answers in float32
    return trained._replace(precision=chosen)


def _line_up(features: np.ndarray) -> np.ndarray:
    """Features [n, views, f] as rows [n * views, f]."""
    return features.reshape(-1, features.shape[-1])


def _choose_precision(model: keras.Model, prepare: Callable[[], None], make_batches: Callable, checkpoint: Path) -> str:
    """Set the model to the faster precision, or to the one its checkpoint was begun in; return and print which."""
    begun = training.read_checkpoint_settings(checkpoint)
    if begun:
        precision.set_precision(model, begun["training_precision"])
        return begun["training_precision"]
    seconds = precision.choose_precision(model, prepare, *next(make_batches(0).as_numpy_iterator()))
    measured = " and ".join(f"{1000 * value:.3g} ms in {name}" for name, value in seconds.items())
    print(f"A training step takes {measured}: {precision.faster(seconds)} is used.")
    return precision.faster(seconds)
