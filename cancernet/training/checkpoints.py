"""What a training keeps while it runs: its history, the best or mean weights, and a checkpoint to resume from."""

import contextlib
import functools
import json
import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import keras
import numpy as np
from typing_extensions import TypedDict

from cancernet import CancerNetError, InputError, StorageError, TrainingDiverged, progress
from cancernet.cli import ENDING
from cancernet.config import Experiment
from cancernet.storage import fresh_folder, hash_file, read_json
from cancernet.training import distribution
from cancernet.training.pipeline import count_steps

# A training has diverged when so many validation losses in a row exceed so many times that of chance. A single one may:
# the statistics of batch normalisation lag behind in early epochs. A training that ended well had one of 63 times.
_DIVERGED_EPOCHS, _DIVERGED = 3, 20
_LAST, _KEPT, _EPOCH, _STATE = "last.keras", "kept.npz", "epoch.npz", "state.json"
_SECONDS_BETWEEN_CHECKPOINTS = 60
_MAX_SECONDS_BETWEEN = 120  # where writing a checkpoint takes more than _SHARE_OF_TIME of the training
_SHARE_OF_TIME = 0.02
_ADVICE = "Repeat the command with --force: it trains this network from the beginning."


class Workspace(NamedTuple):
    """Where a training works, and what goes with it."""

    folder: Path  # of checkpoints and large temporary files
    fingerprint: str  # text that identifies settings, versions and hardware: a checkpoint with another is not resumed
    say: Callable[[str], None]  # receives progress messages, one line each
    force: bool = False  # begin anew where the checkpoint is damaged
    events: Path | None = None  # folder for TensorBoard's event files; None writes none


class _State(TypedDict):
    """state.json of a checkpoint."""

    fingerprint: str  # of the training
    precision: str  # dtype policy
    kept_epochs: tuple[int, int]
    epochs: list[dict[str, float]]
    step: int  # finished steps of the epoch after those
    seconds: float  # of these steps
    sha256: dict[str, str]  # of the other files


class Recorder(keras.callbacks.Callback):
    """Keeps the history, the best or mean weights and a checkpoint; makes dropout a function of seed and epoch.

    It says a line about each epoch, and reports each step to the live display.
    """

    def __init__(self, workspace: Workspace, precision: str, experiment: Experiment, images: int):
        super().__init__()
        self.workspace, self.precision, self.experiment, self.images = workspace, precision, experiment, images
        self.first_averaged = experiment.epochs // 2 if experiment.kept_weights == "mean" else None
        self.steps_per_epoch = count_steps(images, experiment.batch_size)
        self.epochs: list[dict[str, float]] = []
        self.first_step = 0  # of the epoch after those: where training resumes
        self.kept_epochs = (0, 0)  # first and last, from 1
        self.kept: list[np.ndarray] = []
        self.others: list[keras.callbacks.Callback] = []  # that see the same training
        if experiment.schedule == "plateau":
            self.others.append(keras.callbacks.ReduceLROnPlateau(factor=0.5, patience=5, min_lr=1e-7))
        if experiment.early_stopping_patience:
            self.others.append(keras.callbacks.EarlyStopping(patience=experiment.early_stopping_patience))
        self.interrupt: Callable[[], object] | None = None  # handles a signal that came during a step
        self._resumed: list[np.ndarray] = []  # values of `_list_variables` at `first_step`
        self._saved, self._pause = time.monotonic(), float(_SECONDS_BETWEEN_CHECKPOINTS)
        self._epoch_started = self._fitted = self._seconds_before = 0.0
        self._header = f"{'epoch':>9}{'loss':>9}{'accuracy':>10}{'val_loss':>10}{'val_accuracy':>14}{'images/s':>10}\n"

    def on_train_begin(self, logs=None) -> None:
        # The states of early stopping and of the plateau schedule follow from the history: replay it.
        rate = float(self.model.optimizer.learning_rate)
        for epoch, past in enumerate(self.epochs):
            for other in self.others:
                other.on_epoch_end(epoch, dict(past))
        if any(isinstance(other, keras.callbacks.ReduceLROnPlateau) for other in self.others):
            self.model.optimizer.learning_rate = rate

    def on_epoch_begin(self, epoch: int, logs=None) -> None:
        for index, state in enumerate(self._list_seeds()):
            state.assign([self.experiment.seed + index, epoch * self.steps_per_epoch])
        for variable, value in zip(self._list_variables(), self._resumed, strict=bool(self._resumed)):
            variable.assign(value)
        self._resumed = []
        self._epoch_started = time.perf_counter()

    def on_train_batch_begin(self, batch: int, logs=None) -> None:
        # Not at the end of a step: with such a callback Keras waits for each step's result.
        if batch:
            self._report(self.first_step + batch)
        step = self.first_step + batch
        if (step or self.epochs) and (self.interrupt or time.monotonic() - self._saved > self._pause):
            self.save(step=step)
        if self.interrupt:
            self.interrupt()

    def on_test_begin(self, logs=None) -> None:
        self._fitted = time.perf_counter()
        self._report(self.steps_per_epoch)

    def _report(self, step: int) -> None:
        seconds = self._seconds_before + time.perf_counter() - self._epoch_started
        rate = min(step * self.experiment.batch_size, self.images) / max(seconds, 1e-9)
        epoch, epochs = len(self.epochs), self.experiment.epochs
        done = (epoch + step / self.steps_per_epoch) / epochs
        progress.report(done, f"epoch {epoch + 1} of {epochs}, {rate:,.0f} images/s")

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        record = {key: float(value) for key, value in (logs or {}).items()}
        seconds = self._seconds_before + self._fitted - self._epoch_started
        value = dict.fromkeys(("loss", "accuracy", "val_loss", "val_accuracy"), math.nan) | record
        row = f"{f'{epoch + 1}/{self.experiment.epochs}':>9}{value['loss']:>9.4f}{value['accuracy']:>10.4f}"
        row += f"{value['val_loss']:>10.4f}{value['val_accuracy']:>14.4f}{self.images / max(seconds, 1e-9):>10,.0f}"
        self.workspace.say(self._header + row)
        self._header = ""  # only above the first
        self.epochs.append(record | {"seconds": seconds})
        self.first_step, self._seconds_before = 0, 0.0
        losses = [past["val_loss"] for past in self.epochs]
        self._refuse_divergence(epoch, "validation loss", losses)
        if self.first_averaged is not None and epoch > self.first_averaged:
            number = epoch - self.first_averaged + 1
            pairs = zip(self.kept, self.model.get_weights(), strict=True)
            self.kept = [mean + (weight - mean) / number for mean, weight in pairs]
            self.kept_epochs = (self.first_averaged + 1, epoch + 1)
        elif self.first_averaged is not None or losses[-1] < min(losses[:-1], default=math.inf):
            self.kept_epochs, self.kept = (epoch + 1, epoch + 1), self.model.get_weights()
        if self.interrupt:
            if not self.model.stop_training:  # after resuming there would be one more epoch
                self.save()
            self.interrupt()

    def save(self, *, step: int = 0) -> None:
        """Write the checkpoint: the model with its optimizer, the weights kept so far and the history.

        `step` is the number of finished steps of the current epoch; the metrics summed over them are saved too. Raises
        TrainingDiverged if the loss is not finite: a checkpoint of that would replace a better one.
        """
        if not distribution.is_first():
            return
        started = time.monotonic()
        seconds = self._seconds_before + time.perf_counter() - self._epoch_started if step else 0.0
        if step:
            total, count = map(keras.ops.convert_to_numpy, self.model.metrics[0].variables)  # of the loss
            loss = float(total / count)
            self._refuse_divergence(len(self.epochs), f"loss after {step:,} of {self.steps_per_epoch:,} steps", [loss])
        with distribution.alone(), fresh_folder(self.workspace.folder) as folder:
            self.model.save(folder / _LAST)
            np.savez(folder / _KEPT, *self.kept)
            np.savez(folder / _EPOCH, *(map(keras.ops.convert_to_numpy, self._list_variables()) if step else ()))
            state: _State = {
                "fingerprint": self.workspace.fingerprint,
                "precision": self.precision,
                "kept_epochs": self.kept_epochs,
                "epochs": self.epochs,
                "step": step,
                "seconds": seconds,
                "sha256": {name: hash_file(folder / name) for name in (_LAST, _KEPT, _EPOCH)},
            }
            (folder / _STATE).write_text(json.dumps(state), encoding="utf-8")
        self._saved = time.monotonic()
        affordable = (self._saved - started) / _SHARE_OF_TIME
        self._pause = min(max(_SECONDS_BETWEEN_CHECKPOINTS, affordable), _MAX_SECONDS_BETWEEN)

    def restore(self, model: keras.Model) -> None:
        """Put the checkpoint's state into a compiled model and its optimizer; StorageError if it is damaged."""
        folder = self.workspace.folder
        state = _read_state(folder)
        try:
            last = keras.models.load_model(folder / _LAST)
            self.kept, self._resumed = (_read_arrays(folder / name) for name in (_KEPT, _EPOCH))
            self.kept_epochs, self.epochs = state["kept_epochs"], state["epochs"]
            self.first_step, self._seconds_before = state["step"], state["seconds"]
        except Exception as error:  # for a damaged file, zip, NumPy and Keras raise many kinds
            raise StorageError(f"The checkpoint {folder} is damaged. {_ADVICE}") from error
        model.set_weights(last.get_weights())
        for mine, saved in zip(model.optimizer.variables, last.optimizer.variables, strict=True):
            mine.assign(saved)

    def _list_seeds(self) -> list:
        """List the states of dropout, which Keras' model file does not contain."""
        return [v for v in self.model.non_trainable_variables if v.path.endswith("seed_generator_state")]

    def _list_variables(self) -> list:
        """List what changes within an epoch besides weights and optimizer: the states of dropout and the metrics."""
        return [*self._list_seeds(), *self.model.metrics_variables]

    def _refuse_divergence(self, epoch: int, what: str, losses: list[float]) -> None:
        by_chance = math.log(self.model.output_shape[-1])
        recent = losses[-_DIVERGED_EPOCHS:]
        if math.isfinite(losses[-1]) and (len(recent) < _DIVERGED_EPOCHS or min(recent) <= _DIVERGED * by_chance):
            return
        raise TrainingDiverged(
            f"Training has diverged: the {what} of epoch {epoch + 1} is {losses[-1]:.3g}; an untrained network has "
            f"about {by_chance:.2f}. Start again with a smaller --learning-rate, such as "
            f"{self.experiment.learning_rate / 10:g}."
        )


@contextlib.contextmanager
def defer_signals(recorder: Recorder) -> Iterator[None]:
    """Defer the first signal that would end the process until a step is finished and the checkpoint is written."""
    handlers: dict[signal.Signals, Callable[[int, FrameType | None], object]] = {}

    def defer(number: int, frame: FrameType | None) -> None:
        for each, handler in handlers.items():
            signal.signal(each, handler)
        recorder.interrupt = functools.partial(handlers[signal.Signals(number)], number, None)

    # One of several processes ends at once: each would end at another step, and the others would wait for it.
    if threading.current_thread() is threading.main_thread() and not distribution.is_one_of_several():
        for each in (signal.SIGINT, *ENDING):
            if callable(handler := signal.getsignal(each)):  # otherwise the signal ends the process or is ignored
                handlers[each] = handler
    for each in handlers:
        signal.signal(each, defer)
    try:
        yield
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
    if recorder.interrupt:
        recorder.interrupt()


def check_checkpoint(workspace: Workspace) -> None:
    """Raise an error unless a checkpoint, if any, is of this training and as it was written; `force` deletes it."""
    folder = workspace.folder
    if not folder.exists():
        return
    try:
        state = _read_state(folder)
        if state["fingerprint"] != workspace.fingerprint:
            raise InputError(f"{folder} was made with other settings, versions or hardware. {_ADVICE}")
        for name, sha256 in state["sha256"].items():
            if not (folder / name).is_file() or hash_file(folder / name) != sha256:
                raise StorageError(f"The checkpoint {folder} is damaged: {name} has changed. {_ADVICE}")
    except CancerNetError:
        if not workspace.force:
            raise
        workspace.say(f"The checkpoint {folder} cannot be used: this network is trained from the beginning.")
        shutil.rmtree(folder)


def read_precision(checkpoint: Path) -> str | None:
    """Return the dtype policy of an unfinished training; None if there is no checkpoint."""
    return _read_state(checkpoint)["precision"] if checkpoint.exists() else None


def _read_state(checkpoint: Path) -> _State:
    return read_json(checkpoint / _STATE, _State, advice=_ADVICE)


def _read_arrays(path: Path) -> list[np.ndarray]:
    with np.load(path) as arrays:
        return [arrays[name] for name in arrays.files]
