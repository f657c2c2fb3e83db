"""One network compiled and fitted, in the precision that is faster where that is asked for."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import keras
import numpy as np

from cancernet.config import Experiment
from cancernet.data.images import ImageStore
from cancernet.learning import checkpoints, fused, pipeline, precision, training


def fit_network(
    model: keras.Model,
    experiment: Experiment,
    data: Mapping[str, tuple[ImageStore, np.ndarray]],
    weights: dict[int, float],
    settings: Mapping,
    checkpoint: Path,
) -> training.Training:
    """Compile and fit a network, and leave in it the weights that are kept.

    Args:
        model: uncompiled, flat or a transfer model.
        experiment: all settings of the training.
        data: of `training` and of `validation` the images, and the class index [n] of each.
        weights: class index -> weight in the loss.
        settings: of the training, as JSON takes them; a checkpoint that was begun with others is refused.
        checkpoint: folder of the checkpoint.

    Raises:
        InputError: a file cannot be used, or as `training.fit_model`.
    """
    images, labels = data["training"]
    steps = pipeline.steps_per_epoch(len(images), experiment.batch_size)
    targets = {split: keras.utils.to_categorical(of, len(weights)) for split, (_, of) in data.items()}

    def make_batches(first_epoch: int, first_step: int = 0) -> Iterable:
        return pipeline.training_batches(
            images, targets["training"], experiment, first_epoch=first_epoch, first_step=first_step
        )

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
            pipeline.evaluation_batches(data["validation"][0], batch_size=128, targets=targets["validation"]),
            images=len(labels),
            steps_per_epoch=steps,
        ),
        experiment,
        weights=weights,
        checkpoint=checkpoint,
        settings={**settings, "training_precision": chosen},
    )
    precision.set_precision(model, precision.SINGLE)  # what is saved answers in float32
    return trained._replace(precision=chosen)


def _choose_precision(model: keras.Model, prepare: Callable[[], None], make_batches: Callable, checkpoint: Path) -> str:
    """Set the model to the faster precision, or to the one its checkpoint was begun in; return and print which."""
    begun = checkpoints.read_checkpoint_settings(checkpoint)
    if begun:
        precision.set_precision(model, begun["training_precision"])
        return begun["training_precision"]
    seconds = precision.choose_precision(model, prepare, *next(make_batches(0).as_numpy_iterator()))
    measured = " and ".join(f"{1000 * value:.3g} ms in {name}" for name, value in seconds.items())
    print(f"A training step takes {measured}: {precision.faster(seconds)} is used.")
    return precision.faster(seconds)
