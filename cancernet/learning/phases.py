"""A training in phases: of the whole model, of the head of a frozen backbone, or of the head and then of all."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from cancernet.config import Experiment
from cancernet.data.images import ImageStore
from cancernet.learning import fused, pipeline, precision, scoring, training
from cancernet.learning.models.structure import split_model

Rows = ImageStore | np.ndarray  # images of a store, or features [n * views, f], the views of an image together


class Material(NamedTuple):
    """What a network is trained on and scored on."""

    stores: Mapping[str, ImageStore]  # split -> images
    labels: Mapping[str, np.ndarray]  # split -> class index [n] of each image
    weights: dict[int, float]  # class index -> weight in the loss


def fit_phases(
    model: keras.Model, experiment: Experiment, material: Material, settings: Mapping, work: Path
) -> tuple[training.Training, Callable[[str], np.ndarray]]:
    """Train a model by the phases of the experiment's strategy, and leave in it the weights that are kept.

    Args:
        model: uncompiled.
        experiment: all settings of the training.
        material: images, labels and class weights.
        settings: of the training, as JSON takes them; a checkpoint that was begun with others is refused.
        work: folder for the checkpoints.

    Returns:
        The training, and a function that returns the scores [n, classes] of a split, as `scoring.predict_scores`. For
        a frozen backbone it uses the features that were computed for the training.

    Raises:
        InputError: a file cannot be used, or as `training.fit_model`.
    """
    trained = None
    if experiment.strategy in ("frozen", "two-phase"):
        extractor, head = split_model(model)
        print(f"Computing the features of {sum(map(len, material.stores.values())):,} images, once ...", flush=True)
        features = scoring.extract_features(extractor, material.stores, views=experiment.views)
        rows = {split: views.reshape(-1, views.shape[-1]) for split, views in features.items()}
        trained = _fit_phase(head, experiment, rows, material, settings, work / "checkpoint_head")
        if experiment.strategy == "frozen":
            return trained, lambda split: scoring.score_features(head, features[split])
        experiment = dataclasses.replace(experiment, learning_rate=experiment.learning_rate / 10)
    everything = _fit_phase(model, experiment, material.stores, material, settings, work / "checkpoint")
    trained = training.join(trained, everything) if trained else everything
    return trained, lambda split: scoring.predict_scores(model, material.stores[split], views=experiment.views)


def _fit_phase(
    model: keras.Model,
    experiment: Experiment,
    rows: Mapping[str, Rows],
    material: Material,
    settings: Mapping,
    checkpoint: Path,
) -> training.Training:
    """Compile and fit one network on the rows of training and validation."""
    targets = {}
    for split in ("training", "validation"):
        labels = material.labels[split]
        of_rows = np.repeat(labels, len(rows[split]) // len(labels))
        targets[split] = keras.utils.to_categorical(of_rows, len(material.weights))
    steps = pipeline.steps_per_epoch(len(rows["training"]), experiment.batch_size)

    def make_batches(first_epoch: int) -> Iterable:
        return pipeline.training_batches(rows["training"], targets["training"], experiment, first_epoch=first_epoch)

    def prepare() -> None:
        training.compile_model(model, experiment, classes=len(material.weights), steps_per_epoch=steps)

    training.set_statistics_momentum(model, experiment.statistics_momentum)
    fused.fuse_batch_normalization(model)
    chosen = _choose_precision(model, prepare, make_batches, checkpoint) if experiment.mixed_precision else "float32"
    prepare()
    trained = training.fit_model(
        model,
        training.Batches(
            make_batches,
            pipeline.evaluation_batches(rows["validation"], batch_size=128, targets=targets["validation"]),
            images=len(material.labels["training"]),
            steps_per_epoch=steps,
        ),
        experiment,
        weights=material.weights,
        checkpoint=checkpoint,
        settings={**settings, "training_precision": chosen},
    )
    precision.set_precision(model, precision.SINGLE)  # what is saved answers in float32
    return trained._replace(precision=chosen)


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
