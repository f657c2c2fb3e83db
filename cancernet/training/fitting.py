"""One network compiled and fitted, in the precision that is faster where that is asked for."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import keras
import numpy as np

from cancernet import InputError
from cancernet.config import Experiment
from cancernet.data.images import ImageStore
from cancernet.training import checkpoints, distribution, epochs, fused, pipeline, precision

_STATISTICS_BATCHES = 50  # that the last epoch's statistics are taken over: 1,600 images at a batch size of 32


def fit_network(
    model: keras.Model,
    experiment: Experiment,
    data: Mapping[str, tuple[ImageStore, np.ndarray]],
    weights: dict[int, float],
    settings: Mapping,
    checkpoint: Path,
) -> epochs.Training:
    """Compile and fit a network, and leave in it the weights that are kept.

    Mean weights get new statistics of batch normalisation: stochastic weight averaging (Izmailov et al. 2018).

    Args:
        model: uncompiled, flat or a transfer model.
        experiment: all settings of the training.
        data: of `training` and of `validation` the images, and the class index [n] of each.
        weights: class index -> weight in the loss.
        settings: of the training, as JSON takes them; a checkpoint that was begun with others is refused.
        checkpoint: folder of the checkpoint.

    Raises:
        InputError: a file cannot be used, the devices cannot share a batch, or as `epochs.fit_model`.
    """
    _check_shares(experiment.batch_size)
    images, labels = data["training"]
    of_images = np.array([weights[label] for label in labels])
    steps = pipeline.steps_per_epoch(len(images), experiment.batch_size)
    targets = {split: keras.utils.to_categorical(of, len(weights)) for split, (_, of) in data.items()}

    def make_batches(first_epoch: int, first_step: int = 0) -> Iterable:
        begin = {"first_epoch": first_epoch, "first_step": first_step}
        return pipeline.training_batches(images, targets["training"], experiment, weights=of_images, **begin)

    epochs.set_statistics_momentum(model, experiment.statistics_momentum)
    fused.fuse_batch_normalization(model)
    with distribution.spread(model) as network:

        def prepare() -> None:
            epochs.compile_model(network, experiment, classes=len(weights), steps_per_epoch=steps)

        mixed = experiment.mixed_precision
        chosen = _choose_precision(network, prepare, make_batches, checkpoint) if mixed else "float32"
        prepare()
        validation, at_once = data["validation"][0], experiment.batch_size * max(1, 128 // experiment.batch_size)
        trained = epochs.fit_model(
            network,
            epochs.Batches(
                make_batches,
                pipeline.evaluation_batches(validation, batch_size=at_once, targets=targets["validation"]),
                images=len(labels),
                steps_per_epoch=steps,
            ),
            experiment,
            checkpoint=checkpoint,
            settings={**settings, "training_precision": chosen},
        )
    if experiment.kept_weights == "mean":
        epochs.settle_statistics(
            model, itertools.islice(make_batches(experiment.epochs - 1), min(steps, _STATISTICS_BATCHES))
        )
    precision.set_precision(model, precision.SINGLE)  # what is saved answers in float32
    return trained._replace(precision=chosen)


def _check_shares(batch_size: int) -> None:
    devices = distribution.count_devices()
    if batch_size % devices:
        raise InputError(
            f"A batch of {batch_size} images cannot be shared evenly by {devices} devices. Give a "
            f"--batch-size that is a multiple of {devices}."
        )


def _choose_precision(model: keras.Model, prepare: Callable[[], None], make_batches: Callable, checkpoint: Path) -> str:
    """Set the model to the faster precision, or to the one its checkpoint was begun in; return and print which."""
    begun = checkpoints.read_checkpoint_settings(checkpoint)
    if begun:
        precision.set_precision(model, begun["training_precision"])
        return begun["training_precision"]
    images, targets, _ = next(make_batches(0).as_numpy_iterator())
    seconds = precision.choose_precision(model, prepare, images, targets)
    measured = " and ".join(f"{1000 * value:.3g} ms in {name}" for name, value in seconds.items())
    print(f"A training step takes {measured}: {precision.faster(seconds)} is used.")
    return precision.faster(seconds)
