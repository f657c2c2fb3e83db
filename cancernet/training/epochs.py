"""Class weights, compiling, fitting, the weights that are kept, and resuming after a crash."""

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from cancernet import InputError
from cancernet.config import Experiment
from cancernet.storage import check_space, recover_folder
from cancernet.training import distribution
from cancernet.training.checkpoints import Recorder, signals_wait_for

_REPORT_BYTES = 20 * 10**6  # with its pictures and predictions.csv, roughly


class Training(NamedTuple):
    """What came of a training, beside the model's weights."""

    history: dict[str, list[float]]  # one value for each epoch
    kept_epochs: tuple[int, int] | None  # first and last (from 0) of the epochs whose mean weights the model has
    seconds: float  # of fitting, validation included
    images_per_second: float | None  # of the steady state: training images over the time of all epochs but the first
    precision: str = "float32"  # that the network computed in while it trained
    strength: float | None = None  # of the penalty on a linear head's coefficients; None where there is no such head


class Batches(NamedTuple):
    """The batches of a training."""

    # First epoch and, of it, first step (0 if not given) -> all batches from there on: images, targets, weights.
    make: Callable[..., Iterable]
    validation: Iterable  # batches of validation images and targets
    images: int  # in an epoch of training
    steps_per_epoch: int


def class_weights(labels: np.ndarray, n_classes: int, kind: str) -> dict[int, float]:
    """Compute the weight of each class in the loss.

    Args:
        labels: class index of each training image [n].
        n_classes: classes that `labels` may name.
        kind: `ratio`, max(count) / count, as in the tutorial; `balanced`, n / (classes * count), as in scikit-learn;
            `none`, 1 for all.

    Raises:
        InputError: a class has no images.
    """
    counts = np.bincount(labels, minlength=n_classes)
    if not counts.all():
        raise InputError(f"Class number {int(np.argmin(counts))} has no training image. Run build_dataset.py again.")
    weights = {
        "ratio": counts.max() / counts,
        "balanced": len(labels) / (n_classes * counts),
        "none": np.ones(n_classes),
    }[kind]
    return {index: float(weight) for index, weight in enumerate(weights)}


def compile_model(model: keras.Model, experiment: Experiment, *, classes: int, steps_per_epoch: int) -> None:
    """Give the model its optimizer, its loss and its accuracy.

    The loss of two classes is binary cross-entropy on the two softmax outputs, of more categorical cross-entropy.
    The schedules count steps: `inverse_time` is rate / (1 + rate / epochs * step), as the tutorial's
    `decay=rate / epochs` was before Keras 3; `cosine` rises for a twentieth of all steps and then falls to zero
    (Loshchilov & Hutter, "SGDR", 2017, without restarts).

    Args:
        model: compiled in place.
        experiment: its optimizer, learning rate, schedule, weight decay and epochs count.
        classes: outputs of the model.
        steps_per_epoch: batches in an epoch.
    """
    rate, steps = experiment.learning_rate, experiment.epochs * steps_per_epoch
    if experiment.schedule == "inverse_time":
        rate = keras.optimizers.schedules.InverseTimeDecay(rate, 1, experiment.learning_rate / experiment.epochs)
    elif experiment.schedule == "cosine":
        warm_up = steps // 20
        rate = keras.optimizers.schedules.CosineDecay(
            0.0 if warm_up else rate,
            max(steps - warm_up, 1),
            warmup_target=rate if warm_up else None,
            warmup_steps=warm_up,
        )
    make = {"adagrad": keras.optimizers.Adagrad, "adam": keras.optimizers.Adam, "adamw": keras.optimizers.AdamW}
    decay = {"weight_decay": experiment.weight_decay} if experiment.weight_decay else {}
    spread = distribution.share()  # then there are rows of weight 0
    model.compile(
        optimizer=make[experiment.optimizer](rate, **decay),
        loss="binary_crossentropy" if classes == 2 else "categorical_crossentropy",
        metrics=None if spread else [keras.metrics.CategoricalAccuracy(name="accuracy")],
        weighted_metrics=[FilledAccuracy(name="accuracy")] if spread else None,
        # XLA on a processor is slower than TensorFlow without it; JAX would run operation by operation.
        jit_compile=keras.backend.backend() == "jax",
    )


@keras.saving.register_keras_serializable("cancernet")
class FilledAccuracy(keras.metrics.CategoricalAccuracy):
    """Accuracy of all images but those of weight 0, which fill up a batch."""

    def update_state(self, y_true, y_pred, sample_weight=None):
        super().update_state(y_true, y_pred, None if sample_weight is None else sample_weight > 0)


def find_statistics(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """The layers of batch normalisation whose moving statistics training changes, in sub-models too."""
    found: list[keras.layers.BatchNormalization] = []
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            found += find_statistics(layer)
        elif isinstance(layer, keras.layers.BatchNormalization) and layer.trainable:
            found.append(layer)
    return found


def set_statistics_momentum(model: keras.Model, momentum: float) -> None:
    """Set the momentum of batch normalisation's moving statistics: 0 to 1, nearer to 1 is slower."""
    for layer in find_statistics(model):
        layer.momentum = momentum


def settle_statistics(model: keras.Model, batches: Iterable) -> None:
    """Replace the moving statistics of batch normalisation by those of all images of some batches of training.

    While the weights change, the moving mean and variance lag behind; after few steps they do not fit the network. The
    weights stay as they are (Wu & Johnson, "Rethinking 'Batch' in BatchNorm", 2021, section 3). The variance of all
    images is the mean of the batches' variances and the variance of their means, for batches of equal size.

    Args:
        model: changed in place; its sub-models, too.
        batches: images first, then anything.
    """
    layers = find_statistics(model)
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    set_statistics_momentum(model, 0.0)  # so that the statistics are those of the last batch
    found = []
    for images, *_ in batches:
        model(np.asarray(images), training=True)
        found.append([(np.array(layer.moving_mean), np.array(layer.moving_variance)) for layer in layers])
    for layer, momentum, batches_of_layer in zip(layers, momenta, zip(*found, strict=True), strict=True):
        means, variances = np.array(batches_of_layer, dtype=np.float64).swapaxes(0, 1)
        layer.moving_mean.assign(means.mean(axis=0))
        layer.moving_variance.assign(variances.mean(axis=0) + means.var(axis=0))
        layer.momentum = momentum


def fit_model(
    model: keras.Model,
    batches: Batches,
    experiment: Experiment,
    *,
    checkpoint: Path,
    settings: Mapping,
) -> Training:
    """Train, and leave in the model the weights that `experiment.kept_weights` names.

    They are `best`, of the epoch with the lowest validation loss, or `mean`, over the second half of the epochs.

    A crash loses two minutes and one validation at most. If the folder `checkpoint` exists, the training resumes from
    it and ends with the same numbers as without the crash.

    Args:
        model: compiled.
        batches: of training and of validation.
        experiment: all settings of the training.
        checkpoint: folder of the checkpoint, which holds all that a training needs to resume.
        settings: of the training, as JSON takes them; a checkpoint with others is refused.

    Raises:
        InputError: the checkpoint is damaged or has other settings; the loss diverges.
    """
    recorder = Recorder(checkpoint, experiment, settings, batches.steps_per_epoch)
    callbacks = _callbacks(experiment)
    if distribution.is_first():
        check_space(checkpoint, estimate_size(model, experiment))
        recover_folder(checkpoint)
    distribution.wait()
    if checkpoint.exists():
        recorder.restore(model)
    recorder.others = callbacks
    started = time.perf_counter()

    def fit(epochs: int) -> None:
        """Train from where the recorder is to the end of so many epochs."""
        model.fit(
            batches.make(len(recorder.epochs), recorder.first_step),
            validation_data=batches.validation,
            epochs=epochs,
            initial_epoch=len(recorder.epochs),
            steps_per_epoch=batches.steps_per_epoch - recorder.first_step,
            shuffle=False,  # the batches are shuffled already
            callbacks=[*callbacks, recorder],
            verbose=1 if sys.stdout.isatty() else 2,
        )

    with signals_wait_for(recorder):
        if recorder.first_step:  # Keras gives all epochs of one call the same number of steps
            model.test_on_batch(
                *map(np.asarray, next(iter(batches.validation)))
            )  # makes the metrics, whose values are restored
            fit(len(recorder.epochs) + 1)
        if len(recorder.epochs) < experiment.epochs and not (recorder.epochs and model.stop_training):
            fit(experiment.epochs)
    model.set_weights(recorder.kept)
    return _summarise(recorder, batches.images, time.perf_counter() - started)


def _summarise(recorder: Recorder, n_images: int, seconds: float) -> Training:
    """Sum up a training. Its speed is that after the first epoch, which decoding and tracing slow down."""
    steady = recorder.epochs[1:] or recorder.epochs
    rate = n_images * len(steady) / max(sum(epoch["seconds"] for epoch in steady), 1e-9)
    history = {key: [epoch.get(key) for epoch in recorder.epochs] for key in recorder.epochs[0]}
    return Training(history, recorder.kept_epochs, seconds, rate)


def estimate_size(model: keras.Model, experiment: Experiment) -> int:
    """Estimate the bytes of a run while it trains: its checkpoint, twice while it is replaced, model and report."""
    slots = {"adagrad": 1}.get(experiment.optimizer, 2)  # values that the optimizer keeps of a weight
    copies = 1 + 2 * (2 + slots)
    return copies * 4 * model.count_params() + _REPORT_BYTES


def _callbacks(experiment: Experiment) -> list[keras.callbacks.Callback]:
    callbacks: list[keras.callbacks.Callback] = []
    if experiment.schedule == "plateau":
        callbacks.append(keras.callbacks.ReduceLROnPlateau(factor=0.5, patience=5, min_lr=1e-7))
    if experiment.early_stopping_patience:
        callbacks.append(keras.callbacks.EarlyStopping(patience=experiment.early_stopping_patience))
    return callbacks


def average(trainings: Sequence[Training]) -> Training:
    """Sum up the trainings of several members as one; the seconds are of all.

    A value of the history is the mean over the members that trained so long. The kept epochs are from the first that
    any member kept to the last; the speed is the mean.
    """
    longest = max((each.history for each in trainings), key=lambda history: len(history["loss"]))
    history = {
        key: [
            float(np.mean([each.history[key][epoch] for each in trainings if epoch < len(each.history[key])]))
            for epoch in range(len(values))
        ]
        for key, values in longest.items()
    }
    firsts, lasts = zip(*(each.kept_epochs for each in trainings), strict=True)
    return trainings[0]._replace(
        history=history,
        kept_epochs=(min(firsts), max(lasts)),
        seconds=sum(each.seconds for each in trainings),
        images_per_second=float(np.mean([each.images_per_second for each in trainings])),
    )


def describe(trained: Training, device: str) -> dict:
    """Describe a training for the report; `kept_epochs`, the first and last of those whose mean is judged, from 1.

    Of a linear head alone, which is not fitted by epochs, there is only its strength.
    """
    described = {"seconds": trained.seconds, "device": device}
    if trained.strength is not None:
        described["head_strength"] = trained.strength
    if trained.history:
        described |= {
            "epochs": len(trained.history["loss"]),
            "kept_epochs": [epoch + 1 for epoch in trained.kept_epochs],
            "images_per_second": trained.images_per_second,
        }
    return described
