"""The fit loop: class weights, schedules, the weights that are kept, and resuming after a crash."""

import contextlib
import dataclasses
import functools
import json
import os
import shutil
import signal
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import pytest

from cancernet import InputError, StorageError, TrainingDiverged
from cancernet.config import Augmentation, Experiment
from cancernet.data.splits import Fold
from cancernet.training import checkpoints, fitting, pipeline
from cancernet.training.checkpoints import Recorder, Workspace
from cancernet.training.fitting import TrainingData, fit_network

EXPERIMENT = Experiment(
    epochs=4, batch_size=8, image_size=8, augmentation=Augmentation(horizontal_flip=True, vertical_flip=True)
)


ALL = Fold(np.arange(40), np.arange(40))


def make_model(seed=1):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(2, activation="softmax"),
        ]
    )


def make_data(n=40):
    rng = np.random.default_rng(3)
    labels = np.arange(n) % 2
    images = rng.integers(0, 120, (n, 8, 8, 3)) + 100 * labels[:, None, None, None]
    return TrainingData(ArrayStore(images.astype(np.uint8)), labels, np.ones(2), None)


class ArrayStore(pipeline.ImageStore):
    """A store of images that are in memory already."""

    def __init__(self, images):
        super().__init__(["-"] * len(images), image_size=images.shape[1], channels=3)
        self._images[:], self._ready[:] = images, True


def make_workspace(folder, experiment=EXPERIMENT, say=print, force=False):
    return Workspace(folder, f"seed {experiment.seed}", say, force)


def fit(model, checkpoint, experiment=EXPERIMENT, **options):
    return fit_network(model, experiment, make_data(), ALL, make_workspace(checkpoint, experiment, **options))


def make_recorder(folder):
    recorder = Recorder(make_workspace(folder), "float32", EXPERIMENT, 40)
    recorder.set_model(make_model())
    return recorder


def test_class_weights_by_hand():
    labels = np.array([0] * 6 + [1] * 3 + [2])
    assert fitting.compute_class_weights(labels, 3, "ratio").tolist() == [1, 2, 6]
    assert fitting.compute_class_weights(labels, 3, "balanced").tolist() == [10 / 18, 10 / 9, 10 / 3]
    assert fitting.compute_class_weights(labels, 3, "none").tolist() == [1, 1, 1]
    with pytest.raises(InputError, match="Class number 3 has no training images. Build the dataset again"):
        fitting.compute_class_weights(labels, 4, "ratio")


def test_the_tutorials_rate_falls_with_the_step():
    model = make_model()
    fitting.compile_model(model, Experiment(), steps_per_epoch=10)
    rate = model.optimizer._learning_rate
    assert float(rate(0)) == pytest.approx(0.01)
    assert float(rate(4000)) == pytest.approx(0.01 / (1 + 0.01 / 40 * 4000))
    assert model.loss == "binary_crossentropy"


def test_the_cosine_warms_up_and_ends_at_zero():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, activation="softmax")])
    fitting.compile_model(model, Experiment(schedule="cosine", epochs=20), steps_per_epoch=10)
    rate = model.optimizer._learning_rate
    assert float(rate(5)) == pytest.approx(0.005)
    assert float(rate(10)) == pytest.approx(0.01)
    assert float(rate(105)) == pytest.approx(0.005)
    assert float(rate(200)) == pytest.approx(0, abs=1e-9)
    assert model.loss == "categorical_crossentropy"


def test_few_steps_leave_statistics_of_the_weights_they_end_with(tmp_path):
    changes = {"kept_weights": "mean", "epochs": 2, "optimizer": "adam", "learning_rate": 0.1}
    model = make_model()
    experiment = dataclasses.replace(EXPERIMENT, augmentation=Augmentation(), statistics_momentum=0.9, **changes)
    fit(model, tmp_path / "checkpoint", experiment)
    before, layer = model.layers[1], model.layers[2]
    seen = keras.ops.convert_to_numpy(before(model.layers[0](make_data().images.fetch(np.arange(40)))))
    np.testing.assert_allclose(layer.moving_mean, seen.mean((0, 1, 2)), rtol=1e-3)


def test_the_weights_of_the_lowest_validation_loss_are_in_the_model(tmp_path):
    model = make_model()
    trained = fit(model, tmp_path / "checkpoint", dataclasses.replace(EXPERIMENT, optimizer="adam", learning_rate=0.1))
    losses = trained.history["val_loss"]
    best = int(np.argmin(losses))
    assert len(losses) == 4
    assert best < 3  # or the last would do
    assert trained.kept_epochs == (best + 1, best + 1)
    images, labels, *_ = make_data()
    again = model.evaluate(pipeline.evaluation_batches(images, batch_size=16, targets=np.eye(2)[labels]), verbose=0)
    assert again[0] == pytest.approx(losses[best], rel=1e-5)


def test_the_mean_weights_of_the_second_half_are_in_the_model(tmp_path, monkeypatch):
    seen, end = [], Recorder.on_epoch_end

    def look(self, epoch, logs=None):
        seen.append(self.model.get_weights())
        end(self, epoch, logs)

    monkeypatch.setattr(Recorder, "on_epoch_end", look)
    model = make_model()
    experiment = dataclasses.replace(EXPERIMENT, epochs=5, kept_weights="mean", optimizer="adam", learning_rate=0.1)
    trained = fit(model, tmp_path / "checkpoint", experiment)
    assert trained.kept_epochs == (3, 5)
    trained_ones = [0, 1, 2, 3, 6, 7]  # 4 and 5 are batch normalisation's statistics
    for index in trained_ones:
        expected = np.mean([weights[index] for weights in seen[2:]], axis=0)
        np.testing.assert_allclose(model.get_weights()[index], expected, rtol=1e-4, atol=1e-6)


CHANGES = [
    {},
    {"kept_weights": "mean", "optimizer": "adamw", "weight_decay": 1e-4},
    {"schedule": "plateau", "early_stopping_patience": 3},
]


class Whole(NamedTuple):
    """An undisturbed training, what it said, and the folder of its checkpoint and events."""

    experiment: Experiment
    model: keras.Model
    trained: fitting.TrainingResult
    said: list[str]
    folder: Path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Trainings with the rows of CHANGES, with a checkpoint before every step."""

    @functools.cache
    def train(row):
        model, experiment = make_model(), dataclasses.replace(EXPERIMENT, **CHANGES[row])
        folder, said, data = tmp_path_factory.mktemp("whole"), [], make_data()
        workspace = make_workspace(folder / "checkpoint", say=said.append)._replace(events=folder / "events")
        with pytest.MonkeyPatch.context() as patch:
            save_before_every_step(patch)
            trained = fit_network(model, experiment, data, ALL, workspace)
        return Whole(experiment, model, trained, said, folder)

    return train


def save_before_every_step(monkeypatch):
    monkeypatch.setattr(checkpoints, "_SECONDS_BETWEEN_CHECKPOINTS", -1)
    monkeypatch.setattr(checkpoints, "_MAX_SECONDS_BETWEEN", -1)


def test_another_seed_gives_other_numbers(whole, tmp_path):
    experiment = dataclasses.replace(whole(0).experiment, epochs=1)
    assert fit(make_model(2), tmp_path / "c", experiment).history["loss"] != whole(0).trained.history["loss"][:1]


def crash_at(monkeypatch, epoch, step, how):
    """Do `how` before a step of an epoch, once."""
    begin, crashed = Recorder.on_train_batch_begin, []

    def crash(self, batch, logs=None):
        if (len(self.epochs), self.first_step + batch) == (epoch, step) and not crashed:
            crashed.append(True)
            how()
        begin(self, batch, logs)

    monkeypatch.setattr(Recorder, "on_train_batch_begin", crash)


def crash():
    raise ZeroDivisionError


def press_ctrl_c():
    signal.raise_signal(signal.SIGINT)


@pytest.fixture
def eager(monkeypatch):
    """A checkpoint before every step."""
    save_before_every_step(monkeypatch)


def check_resumed(folder, whole):
    experiment, undisturbed, expected, *_ = whole
    resumed = make_model(seed=99)  # its weights come from the checkpoint
    trained = fit(resumed, folder, experiment)
    for key in ("loss", "accuracy", "val_loss"):
        assert trained.history[key] == expected.history[key]
    assert trained.kept_epochs == expected.kept_epochs
    for one, two in zip(resumed.get_weights(), undisturbed.get_weights(), strict=True):
        assert np.array_equal(one, two)


@pytest.mark.parametrize(
    ("row", "epoch", "step"),
    [
        *((row, *place) for row, place in enumerate([(1, 4), (0, 2), (2, 1)])),
        *(pytest.param(row, *place, marks=pytest.mark.slow) for row in range(3) for place in [(0, 4), (2, 2), (3, 1)]),
    ],
)
def test_a_training_that_crashed_goes_on_to_the_same_numbers(whole, tmp_path, monkeypatch, eager, row, epoch, step):
    experiment, *_ = whole(row)  # before anything crashes
    crash_at(monkeypatch, epoch, step, crash)
    with pytest.raises(ZeroDivisionError):
        fit(make_model(), tmp_path / "checkpoint", experiment)
    assert json.loads((tmp_path / "checkpoint/state.json").read_text())["step"] == step - 1
    check_resumed(tmp_path / "checkpoint", whole(row))


def test_a_signal_waits_until_the_checkpoint_is_written(whole, tmp_path, monkeypatch):
    """Within an epoch, between two, in a validation and in the last step of one; the training resumes each time."""
    begun = []

    def begin(self, logs=None):
        begun.append(len(self.epochs))
        if begun == [0, 1]:
            press_ctrl_c()

    def interrupt(seed):
        with pytest.raises(KeyboardInterrupt):
            fit(make_model(seed), tmp_path / "checkpoint", whole(0).experiment)
        state = json.loads((tmp_path / "checkpoint/state.json").read_text())
        return len(state["epochs"]), state["step"]

    whole(0)  # before anything is interrupted
    monkeypatch.setattr(Recorder, "on_test_begin", begin)
    crash_at(monkeypatch, 0, 3, press_ctrl_c)
    assert interrupt(seed=1) == (0, 3)
    crash_at(monkeypatch, 1, 0, press_ctrl_c)
    assert interrupt(seed=99) == (1, 0)
    assert interrupt(seed=99) == (2, 0)
    crash_at(monkeypatch, 2, 4, press_ctrl_c)
    assert interrupt(seed=99) == (2, 4)
    check_resumed(tmp_path / "checkpoint", whole(0))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_signal_is_answered_at_once(tmp_path, monkeypatch):
    crash_at(monkeypatch, 0, 0, lambda: (press_ctrl_c(), press_ctrl_c()))
    with pytest.raises(KeyboardInterrupt):
        fit(make_model(), tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.slow
def test_a_training_that_had_stopped_early_does_not_go_on(tmp_path, monkeypatch):
    changes = {"epochs": 30, "early_stopping_patience": 2, "learning_rate": 1e-12, "optimizer": "adam"}
    experiment = dataclasses.replace(EXPERIMENT, **changes)
    expected = fit(make_model(), tmp_path / "c", experiment)
    last = len(expected.history["loss"]) - 1
    crash_at(monkeypatch, last, 2, press_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        fit(make_model(), tmp_path / "checkpoint", experiment)
    trained = fit(make_model(99), tmp_path / "checkpoint", experiment)
    assert trained.history["val_loss"] == expected.history["val_loss"]


def test_the_pause_between_checkpoints_follows_from_their_cost(tmp_path, monkeypatch):
    recorder = make_recorder(tmp_path / "checkpoint")
    for seconds, pause in ((0.1, 60), (2.0, 100), (30, 120)):
        times = iter((0.0, seconds))
        monkeypatch.setattr(checkpoints.time, "monotonic", lambda times=times: next(times))
        recorder.save()
        assert recorder._pause == pytest.approx(pause)


def test_a_checkpoint_that_was_being_replaced_is_found(whole, tmp_path, monkeypatch, eager):
    experiment, *_ = whole(0)
    crash_at(monkeypatch, 2, 3, crash)
    with pytest.raises(ZeroDivisionError):
        fit(make_model(), tmp_path / "checkpoint", experiment)
    (tmp_path / "checkpoint/.cancernet-provisional.json").write_text("")
    (tmp_path / "checkpoint").rename(tmp_path / ".checkpoint.cancernet-old")
    (tmp_path / ".checkpoint.cancernet-new").mkdir()
    check_resumed(tmp_path / "checkpoint", whole(0))
    assert json.loads((tmp_path / "checkpoint/state.json").read_text())["epochs"]


def test_a_checkpoint_with_other_settings_is_refused(whole, tmp_path):
    shutil.copytree(whole(0).folder / "checkpoint", tmp_path / "checkpoint")
    with pytest.raises(InputError, match="was made with other settings, versions or hardware"):
        fit(make_model(), tmp_path / "checkpoint", dataclasses.replace(EXPERIMENT, seed=7))
    for damaged in ("{", "[" * 100_000, '{"fingerprint": "", "step": 1}', '{"fingerprint": 1e400}'):
        (tmp_path / "checkpoint/state.json").write_text(damaged)
        with pytest.raises(StorageError, match=r"state\.json is damaged: .* with --force"):
            fit(make_model(), tmp_path / "checkpoint")


def test_a_damaged_checkpoint_is_refused_and_begun_anew_with_force(whole, tmp_path):
    shutil.copytree(whole(0).folder / "checkpoint", tmp_path / "checkpoint")
    for name in ("kept.npz", "last.keras", "epoch.npz"):
        content = (tmp_path / "checkpoint" / name).read_bytes()
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        said = rf"checkpoint is damaged: {name} has changed. Repeat .* with --force"
        for damaged in (b"", flipped):
            (tmp_path / "checkpoint" / name).write_bytes(damaged)
            with pytest.raises(StorageError, match=said):
                fit(make_model(), tmp_path / "checkpoint")
        (tmp_path / "checkpoint" / name).write_bytes(content)
    (tmp_path / "checkpoint/kept.npz").write_bytes(b"")
    again = fit(make_model(), tmp_path / "checkpoint", force=True)
    assert again.history["loss"] == whole(0).trained.history["loss"]


def test_a_loss_that_is_no_number_ends_the_training(tmp_path):
    with pytest.raises(
        TrainingDiverged,
        match="has diverged: the validation loss of epoch 1 is nan; an untrained network has about 0.69",
    ):
        fit(make_model(), tmp_path / "c", dataclasses.replace(EXPERIMENT, learning_rate=1e38, optimizer="adam"))


@pytest.mark.parametrize(  # 20 times log 2 is 13.86; a single large loss is usual where batch normalisation lags behind
    ("losses", "ends"),
    [((13.9, 13.9, 13.8), False), ((13.9, 13.9, 13.9), True), ((43.7,), False), ((13.8, 99, 1.5e31, 99), True)],
)
def test_three_validation_losses_far_above_that_of_chance_end_the_training(tmp_path, losses, ends):
    recorder = make_recorder(tmp_path / "checkpoint")
    for epoch, loss in enumerate(losses[:-1]):
        recorder.on_epoch_end(epoch, {"loss": 0.7, "val_loss": loss})
    said = rf"epoch {len(losses)} is {losses[-1]}; .* about 0.69. Start again with .* --learning-rate, such as 0.001."
    with pytest.raises(TrainingDiverged, match=said) if ends else contextlib.nullcontext():
        recorder.on_epoch_end(len(losses) - 1, {"loss": 0.7, "val_loss": losses[-1]})


def test_a_loss_that_is_no_number_is_not_saved_within_an_epoch(tmp_path, eager):
    diverging = dataclasses.replace(EXPERIMENT, learning_rate=1e38, optimizer="adam")
    with pytest.raises(TrainingDiverged, match=r"the loss after \d of 5 steps of epoch 1 is nan"):
        fit(make_model(), tmp_path / "checkpoint", diverging)


def test_the_size_is_that_of_all_copies():
    model = make_model()
    model.compile("adam", "mse")
    # The model; and twice in a checkpoint its weights, what the optimizer keeps of each, and the weights kept.
    for optimizer, copies in (("adagrad", 7), ("adam", 9)):
        size = fitting.estimate_size(model, dataclasses.replace(EXPERIMENT, optimizer=optimizer))
        assert size == copies * 4 * model.count_params() + 20_000_000


def test_a_training_that_does_not_fit_on_the_disk_is_told_before_it_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "_REPORT_BYTES", 2**60)
    with pytest.raises(StorageError, match=r"checkpoint needs about .* GB; .* are free\. Choose another"):
        fit(make_model(), tmp_path / "checkpoint")
    assert os.listdir(tmp_path) == []


def test_early_stopping_stops(tmp_path):
    changes = {"epochs": 30, "early_stopping_patience": 2, "learning_rate": 1e-12, "optimizer": "adam"}
    trained = fit(make_model(), tmp_path / "c", dataclasses.replace(EXPERIMENT, **changes))
    assert len(trained.history["loss"]) < 30


def test_a_checkpoint_tells_the_precision_it_was_begun_in(tmp_path):
    checkpoint = tmp_path / "checkpoint"
    assert checkpoints.read_precision(checkpoint) is None
    checkpoint.mkdir()
    state = {
        "fingerprint": "",
        "precision": "mixed_bfloat16",
        "kept_epochs": [0, 0],
        "epochs": [],
        "step": 1,
        "seconds": 0.5,
        "sha256": {},
    }
    (checkpoint / "state.json").write_text(json.dumps(state))
    assert checkpoints.read_precision(checkpoint) == "mixed_bfloat16"
    (checkpoint / "state.json").write_text('{"precision"')
    with pytest.raises(StorageError, match=r"state\.json is damaged: .* Repeat the command with --force"):
        checkpoints.read_precision(checkpoint)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    store = pipeline.ImageStore([tmp_path / "missing.png"] * 8, image_size=8, channels=3)
    data, rows = TrainingData(store, np.arange(8) % 2, np.ones(2), None), np.arange(8)
    with pytest.raises(InputError, match=r"missing\.png"):
        fit_network(make_model(), EXPERIMENT, data, Fold(rows, rows), make_workspace(tmp_path / "checkpoint"))


def test_the_faster_precision_is_said_and_kept_when_training_resumes(tmp_path, monkeypatch, eager):
    seconds, said = {"float32": 0.02, "mixed_bfloat16": 0.01}, []
    monkeypatch.setattr(fitting.precision, "_time_step", lambda model, *_: seconds[model.layers[0].dtype_policy.name])
    mixed = dataclasses.replace(EXPERIMENT, mixed_precision=True)
    assert fit(make_model(), tmp_path / "checkpoint", mixed, say=said.append).precision == "mixed_bfloat16"
    measured = "A training step takes 20 ms in float32 and 10 ms in mixed_bfloat16: training in mixed_bfloat16."
    assert said[0] == measured
    seconds["float32"] = 0.001
    assert fit(make_model(), tmp_path / "checkpoint", mixed, say=said.append).precision == "mixed_bfloat16"
    assert said.count(measured) == 1


def test_each_epoch_is_one_line_of_a_table(whole):
    said, history = whole(0).said, whole(0).trained.history
    header, first = said[0].split("\n")
    assert header.split() == ["epoch", "loss", "accuracy", "val_loss", "val_accuracy", "images/s"]
    for number, line in enumerate([first, *said[1:]]):
        figures = [f"{history[name][number]:.4f}" for name in ("loss", "accuracy", "val_loss", "val_accuracy")]
        assert line.split()[:-1] == [f"{number + 1}/4", *figures]
    assert len(said) == 4


def test_event_files_have_the_history_without_the_package_tensorboard(whole):
    import tensorflow as tf

    events, history = whole(0).folder / "events", whole(0).trained.history
    for part, prefix in (("training", ""), ("validation", "val_")):
        (file,) = (events / part).iterdir()
        records = [tf.compat.v1.Event.FromString(each.numpy()) for each in tf.data.TFRecordDataset(str(file))]
        found = [(each.step, value.tag, value) for each in records for value in each.summary.value]
        assert {value.metadata.plugin_data.plugin_name for _, _, value in found} <= {"scalars", ""}
        for name in ("loss", "accuracy"):
            values = [(step, float(tf.make_ndarray(value.tensor))) for step, tag, value in found if tag == name]
            assert values == [(step, pytest.approx(value)) for step, value in enumerate(history[prefix + name], 1)]


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's determinism")
def test_training_with_deterministic_operations_gives_the_same_weights_twice(tmp_path):
    pipeline.framework.enable_op_determinism()
    try:
        models = [make_model(), make_model()]
        for number, model in enumerate(models):
            keras.utils.set_random_seed(1)
            fit(model, tmp_path / str(number), dataclasses.replace(EXPERIMENT, epochs=1))
    finally:
        pipeline.framework.disable_op_determinism()
    for one, other in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_array_equal(one, other)
