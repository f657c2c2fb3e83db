"""The views of an image: in predicting, and in the features of a frozen backbone."""

import cv2
import keras
import numpy as np
import pytest
from keras import layers

from cancernet.classifier import average_over_views, extract_features, predict_scores, score_features
from cancernet.images import ImageStore

SIDE = 4


@pytest.fixture(scope="module")
def model():
    """Answers of an image and of its mirror image have nothing in common."""
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


def seen_as(views, images):
    """The same images in every view, [views, n, side, side, 3], by NumPy alone."""
    mirrored = images[:, :, ::-1]
    if views == "eight":
        return np.stack([np.rot90(each, turns, (1, 2)) for each in (images, mirrored) for turns in range(4)])
    return np.stack({"one": [images], "mirror": [images, mirrored]}[views])


@pytest.mark.parametrize("views", ["one", "mirror", "eight"])
def test_the_mean_is_over_the_views(views, model, images, store):
    expected = np.mean([model(view) for view in seen_as(views, images)], axis=0)
    np.testing.assert_allclose(average_over_views(model, views)(images), expected, rtol=1e-5)
    for batch_size in (128, 3):
        scores = predict_scores(model, store, views=views, batch_size=batch_size)
        np.testing.assert_allclose(np.exp(scores), expected, rtol=1e-5)


@pytest.mark.parametrize("views", ["one", "mirror", "eight"])
def test_features_of_views_are_scored_as_their_images_are(views, model, images, store):
    features = layers.Flatten()
    extractor = keras.Model(model.input, features(model.layers[1].output))
    head = keras.Sequential([keras.Input((3 * SIDE**2,)), model.layers[-1]])
    empty = ImageStore([], image_size=SIDE, channels=3)
    found = extract_features(extractor, {"training": store, "testing": empty}, views=views, batch_size=16)
    assert list(found) == ["training"]
    assert found["training"].shape == (5, len(seen_as(views, images)), 3 * SIDE**2)
    np.testing.assert_allclose(found["training"][:, 0], images.reshape(5, -1) / 255, rtol=1e-5)
    scores = score_features(head, found["training"])
    np.testing.assert_allclose(scores, predict_scores(model, store, views=views), rtol=1e-5)
