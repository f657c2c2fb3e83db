"""The fit loop: one network compiled and trained in epochs, from the beginning or from a checkpoint."""

import functools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import keras
import numpy as np

from cancernet import InputError, progress
from cancernet.config import Experiment
from cancernet.data.images import ImageStore
from cancernet.storage import check_space, recover_folder
from cancernet.training import batch_normalization, distribution, pipeline, precision
from cancernet.training.checkpoints import Recorder, Workspace, check_checkpoint, defer_signals, read_precision
from cancernet.training.results import TrainingResult
from cancernet.training.tensorboard import EventWriter

_STATISTICS_BATCHES = 50  # for the final batch normalisation: 1,600 images at a batch size of 32
_REPORT_BYTES = 20 * 10**6  # with its pictures and predictions.csv, roughly


class LabelledImages(NamedTuple):
    """Images with their classes."""

    images: ImageStore
    labels: np.ndarray  # class index [n]


def fit_network(
    model: keras.Model,
    experiment: Experiment,
    training: LabelledImages,
    validation: LabelledImages,
    class_weights: np.ndarray,
    workspace: Workspace,
) -> TrainingResult:
    """Compile and train a network, and leave in it the weights that `experiment.kept_weights` names.

    Mean weights get new statistics of batch normalisation (stochastic weight averaging: Izmailov et al. 2018). A crash
    loses at most two minutes and one validation: training resumes from the checkpoint in `workspace` to the same
    numbers.

    Raises:
        InputError: an image cannot be read, the devices cannot share a batch, or the checkpoint has other settings.
        StorageError: the disk is full, or the checkpoint is damaged.
        TrainingDiverged: the loss is not finite, or far above that of chance.
    """
    devices = distribution.count_devices()
    if experiment.batch_size % devices:
        found = f"{devices} devices cannot share a batch of {experiment.batch_size} images evenly"
        raise InputError(f"{found}. Give a --batch-size that is a multiple of {devices}.")
    steps = pipeline.count_steps(len(training.labels), experiment.batch_size)
    targets, validation_targets = (
        keras.utils.to_categorical(each.labels, len(class_weights)) for each in (training, validation)
    )
    weights = class_weights[training.labels]
    make_batches = functools.partial(pipeline.training_batches, training.images, targets, experiment, weights)
    if distribution.is_first():
        check_space(workspace.folder, estimate_size(model, experiment))
        recover_folder(workspace.folder)
        check_checkpoint(workspace)
    distribution.wait()
    batch_normalization.set_momentum(model, experiment.statistics_momentum)
    batch_normalization.fuse_batch_normalization(model)
    with pipeline.reraise_file_errors(training.images, validation.images):
        with distribution.spread(model) as network:
            policy = precision.SINGLE
            if experiment.mixed_precision:
                policy = _choose_precision(network, experiment, make_batches(), workspace)
            compile_model(network, experiment, steps_per_epoch=steps)
            recorder = Recorder(workspace, policy, experiment, steps)
            size = experiment.batch_size * max(1, 128 // experiment.batch_size)
            left_out = pipeline.evaluation_batches(validation.images, batch_size=size, targets=validation_targets)
            reports: list[keras.callbacks.Callback] = [_EpochReport(recorder, len(training.labels))]
            if workspace.events and distribution.is_first():
                reports.append(EventWriter(workspace.events))
            seconds = _run_epochs(network, recorder, make_batches, left_out, reports)
        if experiment.kept_weights == "mean":
            last_epoch = make_batches(first_epoch=experiment.epochs - 1).take(min(steps, _STATISTICS_BATCHES))
            batch_normalization.recompute_statistics(model, last_epoch)
    precision.set_precision(model, precision.SINGLE)  # the saved model computes in float32
    steady = recorder.epochs[1:] or recorder.epochs  # decoding and tracing slow the first epoch down
    rate = len(training.labels) * len(steady) / max(sum(epoch["seconds"] for epoch in steady), 1e-9)
    history = {key: [epoch[key] for epoch in recorder.epochs] for key in recorder.epochs[0]}
    return TrainingResult(history, recorder.kept_epochs, seconds, rate, policy)


class _EpochReport(keras.callbacks.Callback):
    """Says a line about each epoch, and reports each step to the live display."""

    def __init__(self, recorder: Recorder, images: int):
        super().__init__()
        self.recorder, self.images = recorder, images
        self._header = f"{'epoch':>9}{'loss':>9}{'accuracy':>10}{'val_loss':>10}{'val_accuracy':>14}{'images/s':>10}"
        self._epoch, self._skipped, self._started, self._rate = 0, 0, 0.0, 0.0

    def on_epoch_begin(self, epoch: int, logs=None) -> None:
        self._epoch, self._skipped, self._started = epoch, self.recorder.first_step, time.perf_counter()

    def on_train_batch_begin(self, batch: int, logs=None) -> None:
        if batch:  # not at the end of a step: Keras would wait for its result
            self._report(self._skipped + batch)

    def on_test_begin(self, logs=None) -> None:
        self._report(self.recorder.steps_per_epoch)

    def _report(self, step: int) -> None:
        experiment, size = self.recorder.experiment, self.recorder.experiment.batch_size
        images = min(step * size, self.images) - self._skipped * size
        self._rate = images / max(time.perf_counter() - self._started, 1e-9)
        done = (self._epoch + step / self.recorder.steps_per_epoch) / experiment.epochs
        progress.report(done, f"epoch {self._epoch + 1} of {experiment.epochs}, {self._rate:,.0f} images/s")

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        value = dict.fromkeys(("loss", "accuracy", "val_loss", "val_accuracy"), float("nan")) | (logs or {})
        row = f"{f'{epoch + 1}/{self.recorder.experiment.epochs}':>9}{value['loss']:>9.4f}{value['accuracy']:>10.4f}"
        row += f"{value['val_loss']:>10.4f}{value['val_accuracy']:>14.4f}{self._rate:>10,.0f}"
        self.recorder.workspace.say(f"{self._header}\n{row}" if self._header else row)
        self._header = ""


def _choose_precision(model: keras.Model, experiment: Experiment, batches: Iterable, workspace: Workspace) -> str:
    """Set the model to the faster precision, or to that of its checkpoint, and return it."""
    if begun := read_precision(workspace.folder):
        precision.set_precision(model, begun)
        return begun
    images, targets, _ = (np.asarray(part) for part in next(iter(batches)))
    prepare = functools.partial(compile_model, model, experiment, steps_per_epoch=1)
    seconds = precision.choose_precision(model, prepare, images, targets)
    measured = " and ".join(f"{1000 * value:.3g} ms in {name}" for name, value in seconds.items())
    workspace.say(f"A training step takes {measured}: training in {precision.select_faster(seconds)}.")
    return precision.select_faster(seconds)


def _run_epochs(
    model: keras.Model,
    recorder: Recorder,
    make_batches: Callable[..., Iterable],
    validation: Iterable,
    reports: Sequence[keras.callbacks.Callback],
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
            callbacks=[*recorder.others, *reports, recorder],
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
    slots = {"adagrad": 1}.get(experiment.optimizer, 2)  # values that the optimizer keeps for each weight
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
