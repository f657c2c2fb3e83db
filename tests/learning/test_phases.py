"""Trainings in phases, on a small model with the parts of a transfer model."""

import functools

import keras
import numpy as np
import pytest
from keras import layers

from cancernet.config import Augmentation, Experiment
from cancernet.data.images import ImageStore
from cancernet.learning import phases, pipeline, precision
from cancernet.learning.models.structure import split_model
from cancernet.learning.scoring import predict_scores

SIDE, EPOCHS, RATE = 8, 3, 0.05
LABELS = {"training": np.arange(12) % 2, "validation": np.arange(6) % 2, "testing": np.array([], dtype=int)}


class ArrayStore(ImageStore):
    """A store of images that are in memory already."""

    def __init__(self, images):
        super().__init__(["-"] * len(images), image_size=SIDE, channels=3)
        self._images[:], self._ready[:] = images, True


def make_model():
    keras.utils.set_random_seed(1)
    image = keras.Input((SIDE, SIDE, 3))
    maps = layers.Conv2D(4, 3, activation="relu", name="maps")(layers.Rescaling(1 / 255)(image))
    extractor = keras.Model(image, layers.GlobalAveragePooling2D()(maps), name="extractor")
    head = keras.Sequential(
        [keras.Input((4,)), layers.BatchNormalization(), layers.Dense(2, activation="softmax")], name="head"
    )
    image = keras.Input((SIDE, SIDE, 3))
    return keras.Model(image, head(extractor(image)))


def make_material():
    rng = np.random.default_rng(2)
    stores = {}
    for split, labels in LABELS.items():
        dark = rng.integers(0, 120, (len(labels), SIDE, SIDE, 3))
        stores[split] = ArrayStore((dark + 100 * labels[:, None, None, None]).astype(np.uint8))
    return phases.Material(stores, LABELS, {0: 1.0, 1: 1.0})


def fit(folder, model, **changes):
    settings = {
        "strategy": "all",
        "optimizer": "adam",
        "schedule": "constant",
        "learning_rate": RATE,
        "statistics_momentum": 0.5,
        "epochs": EPOCHS,
        "batch_size": 4,
        "image_size": SIDE,
        "augmentation": Augmentation(flips=True),
        "views": "mirror",
    }
    experiment = Experiment(**(settings | changes))
    return phases.fit_phases(model, experiment, make_material(), {"seed": experiment.seed}, folder)


def rate_of(model):
    return float(model.optimizer.learning_rate)


def kernels(model):
    extractor, head = split_model(model)
    return extractor.get_layer("maps").get_weights()[0], head.layers[-1].get_weights()[0]


@pytest.fixture(scope="module")
def trained_by(tmp_path_factory):
    """Of a strategy the model, its kernels before, the training and the function that scores a split."""

    @functools.cache
    def train(strategy):
        model = make_model()
        before = kernels(model)
        return model, before, *fit(tmp_path_factory.mktemp("work"), model, strategy=strategy)

    return train


@pytest.mark.parametrize(
    ("strategy", "epochs", "maps_change", "head_changes"),
    [("all", EPOCHS, True, True), ("frozen", EPOCHS, False, True), ("two-phase", 2 * EPOCHS, True, True)],
)
def test_a_strategy_trains_its_parts_for_its_epochs(trained_by, strategy, epochs, maps_change, head_changes):
    model, before, trained, score = trained_by(strategy)
    assert len(trained.history["loss"]) == epochs
    changes = [not np.array_equal(old, new) for old, new in zip(before, kernels(model), strict=True)]
    assert changes == [maps_change, head_changes]
    assert trained.history["loss"][-1] < trained.history["loss"][0]
    assert trained.precision == "float32"
    scores = score("validation")
    assert scores.shape == (6, 2)
    expected = predict_scores(model, make_material().stores["validation"], views="mirror")
    np.testing.assert_allclose(scores, expected, rtol=1e-4)  # the model has the weights that were judged


def test_the_second_phase_begins_where_the_first_ended_and_is_slower(trained_by):
    (head_only, _, first, _), (model, _, both, _) = trained_by("frozen"), trained_by("two-phase")
    assert both.history["val_loss"][:EPOCHS] == first.history["val_loss"]
    assert EPOCHS <= both.kept_epochs[0] <= both.kept_epochs[1] < 2 * EPOCHS
    assert rate_of(split_model(head_only)[1]) == pytest.approx(RATE)
    assert rate_of(model) == pytest.approx(RATE / 10)


def test_a_view_is_trained_on_with_the_label_of_its_image(tmp_path, monkeypatch):
    given = {}
    make_batches = pipeline.training_batches

    def keep(rows, targets, experiment, *, first_epoch=0):
        given.update(rows=rows, targets=targets)
        return make_batches(rows, targets, experiment, first_epoch=first_epoch)

    monkeypatch.setattr(pipeline, "training_batches", keep)
    model = make_model()
    fit(tmp_path, model, strategy="frozen", epochs=1)
    images = make_material().stores["training"].fetch(np.arange(12))
    views = np.stack([images, images[:, :, ::-1]], axis=1).reshape(24, SIDE, SIDE, 3)
    np.testing.assert_allclose(given["rows"], split_model(model)[0](views), rtol=1e-4)
    assert given["targets"].argmax(axis=1).tolist() == [0, 0, 1, 1] * 6


def test_the_precision_of_the_training_is_told_and_the_model_answers_in_single(tmp_path, monkeypatch):
    def choose(model, prepare, images, targets):
        precision.set_precision(model, precision.MIXED)
        return {precision.SINGLE: 1.0, precision.MIXED: 0.5}

    monkeypatch.setattr(precision, "choose_precision", choose)
    model = make_model()
    trained, _ = fit(tmp_path, model, strategy="two-phase", epochs=1, mixed_precision=True)
    assert trained.precision == "mixed_bfloat16"
    assert {layer.compute_dtype for part in split_model(model) for layer in part.layers} == {"float32"}
