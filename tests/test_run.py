"""A run folder, loaded or refused; the views of an image, in predicting and in the features of a frozen backbone."""

import json
import shutil

import cv2
import keras
import numpy as np
import pytest
from keras import layers

from cancernet import InputError
from cancernet.data.images import ImageStore
from cancernet.run import average_over_views, extract_features, load_classifier, predict_scores, score_features

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
    np.testing.assert_allclose(np.exp(predict_scores(model, store, views=views)), expected, rtol=1e-5)


@pytest.mark.parametrize("views", ["one", "mirror", "eight"])
def test_features_of_views_are_scored_as_their_images_are(views, model, images, store):
    features = layers.Flatten()
    extractor = keras.Model(model.input, features(model.layers[1].output))
    head = keras.Sequential([keras.Input((3 * SIDE**2,)), model.layers[-1]])
    empty = ImageStore([], image_size=SIDE, channels=3)
    found = extract_features(extractor, {"training": store, "testing": empty}, views=views)
    assert list(found) == ["training"]
    assert found["training"].shape == (5, len(seen_as(views, images)), 3 * SIDE**2)
    np.testing.assert_allclose(found["training"][:, 0], images.reshape(5, -1) / 255, rtol=1e-5)
    scores = score_features(head, found["training"])
    np.testing.assert_allclose(scores, predict_scores(model, store, views=views), rtol=1e-5)


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def rename_classes(content):
    content["classes"] = ["cat", "dog"]
    content["positive"] = "dog"
    if content.get("without_neighbours"):
        rename_classes(content["without_neighbours"])


@pytest.mark.parametrize(
    ("file", "change", "difference"),
    [
        ("decision.json", rename_classes, "decision.json has the classes cat, dog, config.json 0, 1"),
        ("config.json", lambda c: c.update(positive="0"), "the positive class is 1 in decision.json, 0 in config.json"),
        ("config.json", lambda c: c["classes"].append("2"), "model.keras tells 2 classes apart, config.json names 3"),
        (
            "config.json",
            lambda c: c["experiment"].update(channels=1),
            "model.keras takes images of the shape [48, 48, 3], config.json says [48, 48, 1]",
        ),
    ],
)
def test_files_of_different_runs_are_refused_with_the_difference(tiny_run, tmp_path, file, change, difference):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    edit(run / file, change)
    with pytest.raises(InputError) as caught:
        load_classifier(run)
    assert str(caught.value) == f"The files of {run} are not of one run: {difference}. Copy the whole run folder."


@pytest.mark.parametrize(
    "remove",
    [
        *(lambda c, key=key: c.pop(key) for key in ("classes", "positive", "images_are_grey", "usual_size", "seen")),
        *(lambda c, key=key: c["experiment"].pop(key) for key in ("image_size", "channels", "views")),
        lambda c: c["seen"].pop("images"),
    ],
)
def test_a_config_without_what_is_needed_is_damaged(tiny_run, tmp_path, remove):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    edit(run / "config.json", remove)
    with pytest.raises(InputError, match=r"config\.json is missing or damaged"):
        load_classifier(run)


def test_a_model_file_with_a_flipped_byte_is_damaged(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    content = bytearray((run / "model.keras").read_bytes())
    content[content.index(b"config.json") + 100] ^= 1
    (run / "model.keras").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.keras is missing or damaged"):
        load_classifier(run)


def test_a_cross_validation_is_told_from_a_damaged_run(tiny_run, tmp_path):
    for fold in (1, 2):
        shutil.copytree(tiny_run, tmp_path / f"folds/fold_{fold}")
    with pytest.raises(InputError, match=r"folds is a cross-validation, .* Give a run of it: .*folds/fold_1\.$"):
        load_classifier(tmp_path / "folds")
