"""Scores of a network: log-probabilities, the mean over views, and the features of a frozen backbone."""

import cv2
import keras
import numpy as np
import pytest
from keras import layers

from cancernet import InputError, TrainingDiverged
from cancernet.data.images import ImageStore
from cancernet.models.test_time_augmentation import average_over_views, extract_views
from cancernet.training import scoring
from cancernet.training.scoring import log_scores, predict_scores, score_features

SIDE = 4


@pytest.fixture(scope="module")
def model():
    """A model whose outputs for an image and for its mirror image have nothing in common."""
    keras.utils.set_random_seed(1)
    image = keras.Input((SIDE, SIDE, 3))
    pixels = layers.Flatten()(layers.Rescaling(1 / 255)(image))
    return keras.Model(image, layers.Dense(3, activation="softmax")(pixels))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture
def store(images, tmp_path):
    for number, image in enumerate(images):
        cv2.imwrite(str(tmp_path / f"{number}.png"), image[:, :, ::-1])
    return ImageStore([tmp_path / f"{number}.png" for number in range(len(images))], image_size=SIDE, channels=3)


def views_of(views, images):
    """The same images in every view, [views, n, side, side, 3], by NumPy alone."""
    mirrored = images[:, :, ::-1]
    if views == "eight":
        return np.stack([np.rot90(each, turns, (1, 2)) for each in (images, mirrored) for turns in range(4)])
    return np.stack({"one": [images], "mirror": [images, mirrored]}[views])


def test_scores_are_natural_logarithms():
    scores = log_scores(np.array([[0.2, 0.8], [1.0, 0.0]], dtype=np.float32))
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores[0], [-1.609438, -0.223144], rtol=1e-5)
    np.testing.assert_allclose(scores[1], [0, np.log(np.finfo(np.float32).tiny)])


def test_scores_keep_the_order_of_images_whose_softmax_has_saturated():
    scores = log_scores(np.array([[1e-12, 1.0], [1e-20, 1.0], [0.0, 1.0]], dtype=np.float32))
    assert np.isfinite(scores).all()
    log_odds = scores[:, 1] - scores[:, 0]
    assert (np.diff(log_odds) > 0).all()
    assert log_odds[0] == pytest.approx(12 * np.log(10), rel=1e-6)


def test_scores_of_a_diverged_network_are_refused():
    with pytest.raises(TrainingDiverged, match=r"output is not a number for 1 of 2 images: its training diverged"):
        log_scores(np.array([[0.5, 0.5], [np.nan, 0.5]]))


@pytest.mark.parametrize("views", ["one", "mirror", "eight"])
def test_the_mean_is_over_the_views(views, model, images, store):
    expected = np.mean([model(view) for view in views_of(views, images)], axis=0)
    np.testing.assert_allclose(average_over_views(model, views)(images), expected, rtol=1e-5)
    np.testing.assert_allclose(np.exp(predict_scores(model, store, views=views)), expected, rtol=1e-5)


@pytest.mark.parametrize("views", ["one", "mirror", "eight"])
def test_features_of_views_are_scored_as_their_images_are(views, model, images, store):
    features = layers.Flatten()
    extractor = keras.Model(model.input, features(model.layers[1].output))
    head = keras.Sequential([keras.Input((3 * SIDE**2,)), model.layers[-1]])
    found = scoring.predict(extract_views(extractor, views), store)
    assert found.shape == (5, len(views_of(views, images)), 3 * SIDE**2)
    np.testing.assert_allclose(found[:, 0], images.reshape(5, -1) / 255, rtol=1e-5)
    scores = score_features(head, found, np.arange(5))
    np.testing.assert_allclose(scores, predict_scores(model, store, views=views), rtol=1e-5)


def test_features_are_scored_alike_in_pieces_of_any_size(model, monkeypatch):
    features = np.random.default_rng(3).random((7, 2, 3 * SIDE**2), dtype=np.float32)
    head = keras.Sequential([keras.Input((3 * SIDE**2,)), model.layers[-1]])
    rows = np.array([6, 0, 1, 5, 3])
    whole = score_features(head, features, rows)
    np.testing.assert_array_equal(whole, score_features(head, features[rows], np.arange(5)))
    monkeypatch.setattr(scoring, "_ROWS_AT_ONCE", 3)
    np.testing.assert_allclose(score_features(head, features, rows), whole, rtol=1e-6)


def test_a_file_that_cannot_be_used_is_named(model, store, tmp_path):
    (tmp_path / "3.png").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"3\.png: cannot be decoded"):
        predict_scores(model, store, views="one")
