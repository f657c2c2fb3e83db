"""The fit loop: one network compiled and trained in epochs, from the beginning or from a checkpoint."""

import functools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import keras
import numpy as np

from cancernet import InputError
from cancernet.config import Experiment
from cancernet.data.images import ImageStore
from cancernet.data.splits import Fold
from cancernet.storage import check_space, recover_folder
from cancernet.training import batch_normalization, distribution, pipeline, precision
from cancernet.training.checkpoints import Recorder, Workspace, check_checkpoint, defer_signals, read_precision
from cancernet.training.feature_cache import FeatureCache
from cancernet.training.tensorboard import EventWriter

_STATISTICS_BATCHES = 50  # for the final batch normalisation: 1,600 images at a batch size of 32
_REPORT_BYTES = 20 * 10**6  # with its pictures and predictions.csv, roughly


class TrainingData(NamedTuple):
    """What networks are trained and evaluated on: the n images of a dataset."""

    images: ImageStore
    labels: np.ndarray  # class index [n]
    class_weights: np.ndarray  # in the loss [classes]
    cache: FeatureCache
    features: np.ndarray | None = None  # [n, views, f], computed elsewhere; replaces the images
    head_folds: Sequence[Fold] | None = None  # of the training images, to choose the strength of a head; None: members


class TrainingResult(NamedTuple):
    """What a training returns besides the weights, which are in the model."""

    history: dict[str, list[float]]  # one value per epoch; empty for a linear head, which has no epochs
    kept_epochs: tuple[int, int] | None  # first and last (from 1) of the epochs whose weights were averaged
    seconds: float  # including validation
    images_per_second: float | None  # training images over the time of all epochs except the first
    precision: str = "float32"  # of the computations during training
    strength: float | None = None  # of the linear head: inverse of its L2 penalty; None without such a head


def fit_network(
    model: keras.Model, experiment: Experiment, data: TrainingData, fold: Fold, workspace: Workspace
) -> TrainingResult:
    """Train a network on a fold, and leave in it the weights that `experiment.kept_weights` names.

    Mean weights get new statistics of batch normalisation (stochastic weight averaging: Izmailov et al. 2018). A crash
    loses at most two minutes and one validation: training resumes from the checkpoint in `workspace` to the same
    numbers. Raises InputError if an image cannot be read, the devices cannot share a batch, or the checkpoint has other
    settings; StorageError if the disk is full, or the checkpoint is damaged; TrainingDiverged if the loss is not
    finite, or far above that of chance.
    """
    devices = distribution.count_devices()
    if experiment.batch_size % devices:
        found = f"{devices} devices cannot share a batch of {experiment.batch_size} images evenly"
        raise InputError(f"{found}. Give a --batch-size that is a multiple of {devices}.")
    training, validation = (data.images.select(rows) for rows in fold)
    steps = pipeline.count_steps(len(training), experiment.batch_size)
    targets = keras.utils.to_categorical(data.labels, len(data.class_weights))
    weights = data.class_weights[data.labels[fold.training]]
    make_batches = functools.partial(pipeline.training_batches, training, targets[fold.training], experiment, weights)
    if distribution.is_first():
        check_space(workspace.folder, estimate_size(model, experiment))
        recover_folder(workspace.folder)
        check_checkpoint(workspace)
    distribution.wait()
    batch_normalization.set_momentum(model, experiment.statistics_momentum)
    batch_normalization.fuse_batch_normalization(model)
    with pipeline.reraise_file_errors(data.images):
        with distribution.spread(model) as network:
            prepare = functools.partial(compile_model, network, experiment, steps_per_epoch=steps)
            policy = precision.SINGLE
            if experiment.mixed_precision:
                policy = read_precision(workspace.folder) or precision.choose_precision(
                    network, prepare, next(iter(make_batches())), workspace.say
                )
                precision.set_precision(network, policy)
            prepare()
            recorder = Recorder(workspace, policy, experiment, len(training))
            size = experiment.batch_size * max(1, 128 // experiment.batch_size)
            left_out = pipeline.evaluation_batches(validation, batch_size=size, targets=targets[fold.validation])
            writers = [EventWriter(workspace.events)] if workspace.events and distribution.is_first() else []
            seconds = _run_epochs(network, recorder, make_batches, left_out, writers)
        if experiment.kept_weights == "mean":
            last_epoch = make_batches(first_epoch=experiment.epochs - 1).take(min(steps, _STATISTICS_BATCHES))
            batch_normalization.recompute_statistics(model, last_epoch)
    precision.set_precision(model, precision.SINGLE)  # the saved model computes in float32
    steady = recorder.epochs[1:] or recorder.epochs  # decoding and tracing slow the first epoch down
    rate = len(training) * len(steady) / max(sum(epoch["seconds"] for epoch in steady), 1e-9)
    history = {key: [epoch[key] for epoch in recorder.epochs] for key in recorder.epochs[0]}
    return TrainingResult(history, recorder.kept_epochs, seconds, rate, policy)


def _run_epochs(
    model: keras.Model,
    recorder: Recorder,
    make_batches: Callable[..., Iterable],
    validation: Iterable,
    writers: Sequence[keras.callbacks.Callback],
) -> float:
    """Train from where the recorder's checkpoint ends, put the kept weights into the model, and return the seconds."""
    experiment = recorder.experiment
    if recorder.workspace.folder.exists():
        recorder.restore(model)
    started = time.perf_counter()

    def fit_until(epochs: int) -> None:
        model.fit(
            make_batches(first_epoch=len(recorder.epochs), first_step=recorder.first_step),
            validation_data=validation,
            epochs=epochs,
            initial_epoch=len(recorder.epochs),
            steps_per_epoch=recorder.steps_per_epoch - recorder.first_step,
            shuffle=False,  # the batches are shuffled already
            callbacks=[*recorder.others, *writers, recorder],
            verbose=0,
        )

    with defer_signals(recorder):
        if recorder.first_step:  # Keras gives all epochs of one call the same number of steps
            # One batch creates the metrics, whose values are restored.
            model.test_on_batch(*map(np.asarray, next(iter(validation))))
            fit_until(len(recorder.epochs) + 1)
        if len(recorder.epochs) < experiment.epochs and not (recorder.epochs and model.stop_training):
            fit_until(experiment.epochs)
    model.set_weights(recorder.kept)
    return time.perf_counter() - started


def compile_model(model: keras.Model, experiment: Experiment, *, steps_per_epoch: int) -> None:
    """Compile the model with the experiment's optimizer, its loss and accuracy.

    The loss is binary cross-entropy on the two softmax outputs of two classes, otherwise categorical cross-entropy.
    Schedules count steps: `inverse_time` is rate / (1 + rate / epochs * step), the `decay=rate / epochs` that Keras had
    before version 3 and the tutorial uses; `cosine` rises linearly for a twentieth of all steps, then falls to zero
    (Loshchilov & Hutter, "SGDR", 2017, without restarts).
    """
    rate, steps = experiment.learning_rate, experiment.epochs * steps_per_epoch
    schedules = keras.optimizers.schedules
    if experiment.schedule == "inverse_time":
        rate = schedules.InverseTimeDecay(rate, 1, experiment.learning_rate / experiment.epochs)
    elif experiment.schedule == "cosine":
        warm_up = steps // 20
        first, target = (0.0, rate) if warm_up else (rate, None)
        rate = schedules.CosineDecay(first, max(steps - warm_up, 1), warmup_target=target, warmup_steps=warm_up)
    optimizers = {"adagrad": keras.optimizers.Adagrad, "adam": keras.optimizers.Adam, "adamw": keras.optimizers.AdamW}
    decay = {"weight_decay": experiment.weight_decay} if experiment.weight_decay else {}
    is_spread = distribution.share()  # batches are then filled up with rows of weight 0
    model.compile(
        optimizer=optimizers[experiment.optimizer](rate, **decay),
        loss="binary_crossentropy" if model.output_shape[-1] == 2 else "categorical_crossentropy",
        metrics=None if is_spread else [keras.metrics.CategoricalAccuracy(name="accuracy")],
        weighted_metrics=[FilledAccuracy(name="accuracy")] if is_spread else None,
        # XLA on a CPU is slower than TensorFlow without it; JAX would run operation by operation.
        jit_compile=keras.backend.backend() == "jax",
    )
    model.optimizer.build(model.trainable_variables)  # otherwise TensorFlow traces the step twice (2 s)


@keras.saving.register_keras_serializable("cancernet")
class FilledAccuracy(keras.metrics.CategoricalAccuracy):
    """Accuracy of all images except those of weight 0, which fill up a batch."""

    def update_state(self, y_true, y_pred, sample_weight=None):
        super().update_state(y_true, y_pred, None if sample_weight is None else sample_weight > 0)


def estimate_size(model: keras.Model, experiment: Experiment) -> int:
    """Estimate the bytes of a run during training: model and report, and the checkpoint twice while it is replaced."""
    slots = 1 if experiment.optimizer == "adagrad" else 2  # values that the optimizer keeps for each weight
    copies = 1 + 2 * (2 + slots)
    return copies * 4 * model.count_params() + _REPORT_BYTES


def compute_class_weights(labels: np.ndarray, n_classes: int, kind: str) -> np.ndarray:
    """Compute the weight of each class in the loss [n_classes] from the class indices [n] of the training images.

    It is max(count) / count for `ratio`, n / (classes * count) for `balanced`, as in scikit-learn, and 1 for `none`.
    """
    counts = np.bincount(labels, minlength=n_classes)
    if not counts.all():
        raise InputError(f"Class number {int(np.argmin(counts))} has no training images. Build the dataset again.")
    balanced = len(labels) / (n_classes * counts)
    return {"ratio": counts.max() / counts, "balanced": balanced, "none": np.ones(n_classes)}[kind]
