"""What a training keeps while it runs: its history, the weights to keep, and a checkpoint from which it resumes."""

import contextlib
import functools
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import keras
import numpy as np
from typing_extensions import TypedDict

from cancernet import InputError, TrainingDiverged
from cancernet.config import Experiment
from cancernet.storage import fresh_folder, read_json
from cancernet.training import distribution

DIVERGED = 20  # times the loss of a network that answers by chance; healthy first epochs stay below four times
_LAST, _KEPT, _EPOCH, _STATE = "last.keras", "kept.npz", "epoch.npz", "state.json"
_SECONDS_BETWEEN_CHECKPOINTS = 60
_MOST_SECONDS_BETWEEN = 120  # where writing one takes so long that it would be more than a fiftieth of the training
_SHARE_OF_TIME = 0.02


class _State(TypedDict):
    """state.json of a checkpoint."""

    settings: dict  # of the training
    kept_epochs: tuple[int, int]
    epochs: list[dict[str, float]]
    step: int  # of the epoch after those
    seconds: float  # that the steps of that epoch took


class Recorder(keras.callbacks.Callback):
    """Keeps the history, the best or mean weights and a checkpoint; makes dropout a function of seed and epoch."""

    def __init__(self, folder: Path, experiment: Experiment, settings: Mapping, steps_per_epoch: int):
        super().__init__()
        self.folder = folder
        self.seed, self.learning_rate = experiment.seed, experiment.learning_rate
        self.first_averaged = experiment.epochs // 2 if experiment.kept_weights == "mean" else None
        self.settings = settings
        self.steps_per_epoch = steps_per_epoch
        self.epochs: list[dict[str, float]] = []
        self.first_step = 0  # of the epoch after those: where the training resumes
        self.kept_epochs = (0, 0)
        self.kept: list[np.ndarray] = []
        self.others: Sequence[keras.callbacks.Callback] = ()  # of the same training
        self.interrupt: Callable[[], None] | None = None  # answers a signal that came in the middle of a step
        self._within: list[np.ndarray] = []  # values of `_list_variables` at `first_step`
        self._saved, self._pause = time.monotonic(), float(_SECONDS_BETWEEN_CHECKPOINTS)
        self._epoch_started = self._fitted = self._seconds_before = 0.0

    def on_train_begin(self, logs=None) -> None:
        # The state of early stopping and of the plateau is a function of the history: replay it to them.
        rate = float(self.model.optimizer.learning_rate)
        for epoch, past in enumerate(self.epochs):
            for other in self.others:
                other.on_epoch_end(epoch, dict(past))
        if any(isinstance(other, keras.callbacks.ReduceLROnPlateau) for other in self.others):
            self.model.optimizer.learning_rate = rate

    def on_epoch_begin(self, epoch: int, logs=None) -> None:
        if self.epochs and not self.first_step and time.monotonic() - self._saved > self._pause:
            self.save()
        for index, state in enumerate(self._list_seeds()):
            state.assign([self.seed + index, epoch * self.steps_per_epoch])
        for variable, value in zip(self._list_variables(), self._within, strict=bool(self._within)):
            variable.assign(value)
        self._within = []
        self._epoch_started = time.perf_counter()

    def on_train_batch_begin(self, batch: int, logs=None) -> None:
        # Not at the end of a step: a callback that wants to hear of that makes Keras wait for each step's result.
        if batch and (self.interrupt or time.monotonic() - self._saved > self._pause):
            self.save(step=self.first_step + batch)
        if self.interrupt:
            self.interrupt()

    def on_test_begin(self, logs=None) -> None:
        self._fitted = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        record = {key: float(value) for key, value in (logs or {}).items()}
        seconds = self._seconds_before + self._fitted - self._epoch_started
        self.epochs.append(record | {"seconds": seconds})
        self.first_step, self._seconds_before = 0, 0.0
        losses = [past["val_loss"] for past in self.epochs]
        self._refuse_divergence(epoch, "validation loss", losses[-1])
        if self.first_averaged is None:
            if epoch == 0 or losses[-1] < min(losses[:-1]):
                self.kept_epochs, self.kept = (epoch, epoch), self.model.get_weights()
        elif epoch <= self.first_averaged:
            self.kept_epochs, self.kept = (epoch, epoch), self.model.get_weights()
        else:
            number = epoch - self.first_averaged + 1
            pairs = zip(self.kept, self.model.get_weights(), strict=True)
            self.kept = [mean + (weight - mean) / number for mean, weight in pairs]
            self.kept_epochs = (self.first_averaged, epoch)
        if self.interrupt:
            if not self.model.stop_training:  # a training that resumes would do one more epoch
                self.save()
            self.interrupt()

    def save(self, *, step: int = 0) -> None:
        """Write the checkpoint: the model with its optimizer, the weights kept so far and the history.

        Args:
            step: steps that are done of the epoch that is going on; what Keras has summed up of them is saved too.

        Raises:
            InputError: the disk is full, or the loss is not a number: that would be kept in place of something better.
        """
        if not distribution.is_first():
            return
        started = time.monotonic()
        seconds = self._seconds_before + time.perf_counter() - self._epoch_started if step else 0.0
        if step:
            total, count = map(keras.ops.convert_to_numpy, self.model.metrics[0].variables)  # of the loss
            loss = float(total / count)
            self._refuse_divergence(len(self.epochs), f"loss after {step:,} of {self.steps_per_epoch:,} steps", loss)
        state: _State = {
            "settings": dict(self.settings),
            "kept_epochs": self.kept_epochs,
            "epochs": self.epochs,
            "step": step,
            "seconds": seconds,
        }
        with distribution.alone(), fresh_folder(self.folder) as folder:
            self.model.save(folder / _LAST)
            np.savez(folder / _KEPT, *self.kept)
            np.savez(folder / _EPOCH, *(map(keras.ops.convert_to_numpy, self._list_variables()) if step else ()))
            (folder / _STATE).write_text(json.dumps(state), encoding="utf-8")
        self._saved = time.monotonic()
        affordable = (self._saved - started) / _SHARE_OF_TIME
        self._pause = min(max(_SECONDS_BETWEEN_CHECKPOINTS, affordable), _MOST_SECONDS_BETWEEN)

    def restore(self, model: keras.Model) -> None:
        """Put the checkpoint's state into a compiled model and its optimizer.

        Raises:
            InputError: the checkpoint is missing, damaged, or has other settings.
        """
        state = _read_state(self.folder)
        if state["settings"] != json.loads(json.dumps(dict(self.settings))):
            raise InputError(
                f"{self.folder} was made with other settings, versions or hardware. Delete it and start again."
            )
        try:
            last = keras.models.load_model(self.folder / _LAST)
            self.kept, self._within = (_read_arrays(self.folder / name) for name in (_KEPT, _EPOCH))
            self.kept_epochs, self.epochs = state["kept_epochs"], state["epochs"]
            self.first_step, self._seconds_before = state["step"], state["seconds"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.folder} is a damaged checkpoint. Delete it and start again.") from error
        model.set_weights(last.get_weights())
        model.optimizer.build(model.trainable_variables)
        for mine, saved in zip(model.optimizer.variables, last.optimizer.variables, strict=True):
            mine.assign(saved)

    def _list_seeds(self) -> list:
        """The states of dropout, which Keras' model file does not hold."""
        return [v for v in self.model.non_trainable_variables if v.path.endswith("seed_generator_state")]

    def _list_variables(self) -> list:
        """What changes within an epoch beside the weights and the optimizer: dropout's state, the metrics so far."""
        return [*self._list_seeds(), *self.model.metrics_variables]

    def _refuse_divergence(self, epoch: int, what: str, loss: float) -> None:
        by_chance = math.log(self.model.output_shape[-1])
        if math.isfinite(loss) and (loss <= DIVERGED * by_chance or not what.startswith("validation")):
            return
        raise TrainingDiverged(
            f"The training has diverged: the {what} of epoch {epoch + 1} is {loss:.3g}, that of an untrained network "
            f"about {by_chance:.2f}. Start again with a smaller --learning-rate, such as {self.learning_rate / 10:g}."
        )


@contextlib.contextmanager
def signals_wait_for(recorder: Recorder) -> Iterator[None]:
    """Inside it the first signal that would end the work waits for the step to end and the checkpoint to be written.

    The second one is answered at once.
    """
    answers = {}

    def note(number: int, frame) -> None:
        for each, answer in answers.items():
            signal.signal(each, answer)
        recorder.interrupt = functools.partial(answers[number], number, None)

    # One of several processes ends at once: each would leave at another step, and the others would wait for it.
    if threading.current_thread() is threading.main_thread() and not distribution.is_one_of_several():
        answers = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        answers = {each: answer for each, answer in answers.items() if callable(answer)}  # others end or ignore it
    for each in answers:
        signal.signal(each, note)
    try:
        yield
    finally:
        for each, answer in answers.items():
            signal.signal(each, answer)
    if recorder.interrupt:
        recorder.interrupt()


def read_checkpoint_settings(checkpoint: Path) -> dict | None:
    """Return the settings that an unfinished training was begun with; None where there is no checkpoint.

    Raises:
        InputError: the checkpoint is damaged.
    """
    return _read_state(checkpoint)["settings"] if checkpoint.exists() else None


def _read_state(checkpoint: Path) -> _State:
    return read_json(checkpoint / _STATE, _State, advice=f"Delete {checkpoint} and start again.")


def _read_arrays(path: Path) -> list[np.ndarray]:
    with np.load(path) as arrays:
        return [arrays[name] for name in arrays.files]
