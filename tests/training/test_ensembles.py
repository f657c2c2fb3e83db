"""Members dealt, trained, scored on what they left out, and joined; kinds of networks in one."""

import dataclasses
import functools

import keras
import numpy as np
import pytest
from keras import layers
from scipy.special import log_softmax

from cancernet.config import Experiment
from cancernet.data.images import ImageStore
from cancernet.data.splits import Fold
from cancernet.models import image_features
from cancernet.models.architectures import ARCHITECTURES
from cancernet.models.joining import join_members
from cancernet.models.structure import build_head, has_backbone, split_model
from cancernet.models.test_time_augmentation import average_over_views
from cancernet.training import ensembles, feature_cache, scoring
from cancernet.training.checkpoints import Workspace
from cancernet.training.ensembles import average_results, fit_ensemble, fit_temperature
from cancernet.training.feature_cache import FeatureCache
from cancernet.training.fitting import TrainingData, TrainingResult

SIDE = 8
LABELS = np.arange(24) % 2
PAIRS = np.arange(20) // 2 % 2  # so that each part has both classes
MEMBERS = [Fold(np.flatnonzero(part != PAIRS), np.flatnonzero(part == PAIRS)) for part in (0, 1)]
TESTING = np.arange(20, 24)


class ArrayStore(ImageStore):
    """A store of images that are in memory already."""

    def __init__(self, images):
        super().__init__(["-"] * len(images), image_size=SIDE, channels=3)
        self._images[:], self._ready[:] = images, True


def make_data(folder):
    dark = np.random.default_rng(2).integers(0, 120, (24, SIDE, SIDE, 3))
    images = (dark + 100 * LABELS[:, None, None, None]).astype(np.uint8)
    cache = FeatureCache(folder / "d.features", folder, "ab")
    return TrainingData(ArrayStore(images), LABELS, np.ones(2), cache)


def make_network(experiment, classes):
    """A small model with the parts of a transfer model, or a plain one, in the place of `build_model`."""
    image = keras.Input((SIDE, SIDE, 3), name="image")
    maps = layers.Conv2D(4, 3, activation="relu")(layers.Rescaling(1 / 255)(image))
    features = layers.GlobalAveragePooling2D()(maps)
    if experiment.model != "densenet121":
        return keras.Sequential(
            [
                keras.Input((SIDE, SIDE, 3)),
                layers.Rescaling(1 / 255),
                layers.Conv2D(4, 3, activation="relu"),
                layers.GlobalAveragePooling2D(),
                layers.Dense(classes, activation="softmax"),
            ]
        )
    extractor = keras.Model(image, features, name="extractor")
    inputs = keras.Input((SIDE, SIDE, 3), name="image")
    return keras.Model(inputs, build_head(4, classes)(extractor(inputs)))


@pytest.fixture(scope="module")
def fit(tmp_path_factory):
    """Train with some changes; the same changes give the same training, which tests must not alter."""

    @functools.cache
    def run(**changes):
        return fit_again(tmp_path_factory.mktemp("ensemble"), **changes)

    return run


def fit_again(folder, members=MEMBERS, **changes):
    experiment = Experiment(model="densenet121", strategy="frozen", image_size=SIDE, epochs=2, views="mirror")
    data, said = make_data(folder), []
    small = dataclasses.replace(ARCHITECTURES["cancernet"], image_size=SIDE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ensembles, "build_model", make_network)
        patch.setitem(ARCHITECTURES, "cancernet", small)
        workspace = Workspace(folder, "seed 42", said.append)
        fitted = fit_ensemble(dataclasses.replace(experiment, **changes), data, members, workspace)
    assert said
    return fitted, data


def test_a_frozen_backbone_stays_and_its_members_are_one_head(fit):
    fitted, data = fit()
    assert has_backbone(fitted.model)
    assert fitted.model.count_params() == make_network(Experiment(model="densenet121"), 2).count_params()
    keras.utils.set_random_seed(42)
    fresh = split_model(make_network(Experiment(model="densenet121"), 2))[0]
    for before, after in zip(fresh.get_weights(), split_model(fitted.model)[0].get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    assert fitted.training.history == {}
    assert fitted.training.strength is not None
    (folder,) = data.cache.folder.iterdir()
    assert np.load(folder / "features.npy").shape == (24, 2, 4)


def test_scores_from_features_are_those_of_the_images(fit):
    fitted, data = fit()
    of_images = scoring.predict_scores(fitted.model, data.images.select(TESTING), views="mirror")
    np.testing.assert_allclose(fitted.score(TESTING), of_images, atol=1e-5)


def test_features_that_are_there_are_not_computed_again(fit, monkeypatch):
    first, data = fit()
    monkeypatch.setattr(feature_cache, "_compute", None)
    again, _ = fit_again(data.cache.folder.parent)
    np.testing.assert_array_equal(again.left_out, first.left_out)
    np.testing.assert_array_equal(again.score(TESTING), first.score(TESTING))


def test_what_a_member_scores_is_what_it_left_out(fit, tmp_path):
    fitted, _ = fit()
    heads_alone = [fit_again(tmp_path, [member])[0] for member in MEMBERS]
    if all(each.training.strength == fitted.training.strength for each in heads_alone):
        expected = [each.score(m.validation) for each, m in zip(heads_alone, MEMBERS, strict=True)]
        np.testing.assert_allclose(fitted.left_out, np.concatenate(expected), atol=1e-4)
    assert len(fitted.left_out) == 20
    joined = fitted.score(np.concatenate([member.validation for member in MEMBERS]))
    assert not np.allclose(joined, fitted.left_out)


@pytest.mark.parametrize("strategy", ["two-phase", "finetune"])
def test_a_backbone_that_is_trained_moves_and_its_members_stand_side_by_side(fit, strategy):
    fitted, _ = fit(strategy=strategy, learning_rate=0.1, optimizer="adam", schedule="constant")
    names = [layer.name for layer in fitted.model.layers]
    assert {"member_1", "member_2"} <= set(names)
    keras.utils.set_random_seed(42)
    fresh = split_model(make_network(Experiment(model="densenet121"), 2))[0].get_weights()[0]
    moved = [split_model(fitted.model.get_layer(name))[0].get_weights()[0] for name in ("member_1", "member_2")]
    assert not np.allclose(moved[0], fresh)
    assert not np.allclose(moved[0], moved[1])
    assert len(fitted.training.history["loss"]) == 2
    assert (fitted.training.strength is None) == (strategy == "finetune")


def test_images_that_a_network_was_not_trained_on_are_described_as_the_joined_one_does(fit):
    fitted, data = fit(model="cancernet+densenet121", schedule="constant")
    described = average_over_views(image_features.add_image_features(fitted.model), "mirror")
    _, *values = described.predict(data.images.fetch(np.arange(24)), verbose=0)
    apart = [rows.tolist() for rows, _ in fitted.held_out]
    of_members = [member.validation.tolist() for member in MEMBERS]
    assert apart == [*of_members, [*of_members[0], *of_members[1]]]  # the backbone was trained on none of them
    for (rows, own), each in zip(fitted.held_out, values, strict=True):
        np.testing.assert_allclose(own, each[rows], atol=1e-5)


def test_the_results_of_members_are_averaged_by_hand():
    first = TrainingResult({"loss": [4.0, 2.0], "val_loss": [3.0, 1.0]}, (2, 2), 10.0, 100.0)
    second = TrainingResult({"loss": [2.0, 1.0, 0.5], "val_loss": [1.0, 2.0, 3.0]}, (1, 3), 5.0, 300.0)
    both = average_results([first, second])
    assert both.history == {"loss": [3.0, 1.5, 0.5], "val_loss": [2.0, 1.5, 3.0]}
    assert (both.kept_epochs, both.seconds, both.images_per_second) == ((1, 3), 15.0, 200.0)


@pytest.mark.parametrize("factor", [0.5, 1, 3])
def test_the_temperature_takes_back_what_makes_a_network_too_sure(factor):
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, 50_000)
    labels = (random.random(len(logits)) < 1 / (1 + np.exp(-logits))).astype(int)
    scores = log_softmax(np.stack([0 * logits, factor * logits], axis=1), axis=1)
    assert fit_temperature(scores, labels, np.ones(2)) == pytest.approx(factor, rel=0.03)


def test_two_kinds_answer_the_mean_of_their_logits(fit):
    fitted, data = fit(model="cancernet+densenet121", schedule="constant")
    alone = [
        fit(model=name, strategy=strategy, schedule="constant")[0]
        for name, strategy in (("cancernet", "all"), ("densenet121", "frozen"))
    ]
    images = data.images.fetch(TESTING)
    labels = data.labels[np.concatenate([rows.validation for rows in MEMBERS])]
    temperatures = [fit_temperature(each.left_out, labels, data.class_weights) for each in alone]
    assert temperatures[0] != pytest.approx(temperatures[1], rel=0.1)
    expected = join_members([each.model for each in alone], temperatures)(images)
    np.testing.assert_allclose(fitted.model(images), expected, atol=1e-4)
    np.testing.assert_allclose(
        fitted.left_out[:, 1] - fitted.left_out[:, 0],
        np.mean([(each.left_out[:, 1] - each.left_out[:, 0]) / t for each, t in zip(alone, temperatures)], axis=0),
        atol=1e-4,
    )
    np.testing.assert_allclose(np.exp(fitted.left_out).sum(axis=1), 1)
    assert fitted.training.strength == alone[1].training.strength
