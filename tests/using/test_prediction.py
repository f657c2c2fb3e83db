"""A run applied to images without a known truth. The network goes by the mean red: log-odds (150 - red) / 10."""

import io
from pathlib import Path

import cv2
import keras
import numpy as np
import pytest

from cancernet import InputError
from cancernet.data.grid import smooth_scores
from cancernet.judging.decision import Decision
from cancernet.run import Classifier
from cancernet.using import prediction

CLASSES = ("0", "1")


def make_decision(**changed):
    settings = {
        "classes": CLASSES,
        "positive": "1",
        "temperature": 1.0,
        "bias": (0.0, 0.0),
        "threshold": 0.5,
        "operating_point": "balanced",
        "neighbour_sigma": 0.0,
        "fitted_on": {"images": 1, "patients": 1},
        "expected_on_validation": None,
        "curve": None,
    }
    return Decision(**(settings | changed))


@pytest.fixture(scope="module")
def network():
    model = keras.Sequential(
        [keras.Input((48, 48, 3)), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2, activation="softmax")]
    )
    model.layers[-1].set_weights([np.array([[0, -0.1], [0, 0], [0, 0]]), np.array([0, 15.0])])
    return model


@pytest.fixture
def loaded(network):
    config = {"experiment": {"views": "one"}, "mpp": 4.0, "class_names": {"0": "benign", "1": "IDC"}}
    return Classifier(network, make_decision(), config, Path("run"))


def patch(red, height=50, width=50, channels=3):
    image = np.zeros((height, width, channels), np.uint8)
    image[..., 0] = red
    return image


def log_odds(scores):
    return scores[:, 1] - scores[:, 0]


def test_images_of_any_size_are_scored_in_order_and_counted(loaded):
    reds = [100 + i for i in range(2 * prediction.BATCH + 3)]
    told = []
    images = (patch(red, *((50, 50), (9, 120))[red % 2]) for red in reds)
    scores = prediction.score_images(loaded, images, progress=told.append)
    np.testing.assert_allclose(log_odds(scores), [(150 - red) / 10 for red in reds], atol=1e-4)
    assert told == [prediction.BATCH, prediction.BATCH, 3]
    assert prediction.score_images(loaded, []).shape == (0, 2)


def test_a_grey_image_is_taken_as_grey_in_all_channels(loaded):
    scores = prediction.score_images(loaded, [patch(140, channels=1)])
    assert log_odds(scores)[0] == pytest.approx(1, abs=1e-4)


def test_views_in_prediction_are_those_of_the_run(loaded, monkeypatch):
    asked = []
    monkeypatch.setattr(prediction, "_network", lambda model, views: asked.append((model, views)) or model)
    loaded.config["experiment"]["views"] = "mirror"
    prediction.score_images(loaded, [patch(1)])
    assert asked == [(loaded.model, "mirror")]


def square(side):
    """Places of a complete square slide."""
    return [50 * (i % side) + 1 for i in range(side**2)], [50 * (i // side) + 1 for i in range(side**2)]


def as_scores(odds):
    odds = np.asarray(odds, float)
    return np.stack([-np.log1p(np.exp(odds)), -np.log1p(np.exp(-odds))], axis=1)


def as_prediction(scores, patients, x, y, names=()):
    return prediction.Prediction([*names] or [""] * len(scores), patients, x, y, scores, [], 50)


def test_only_patches_with_neighbours_are_smoothed_and_the_others_judged_by_their_own_decision(loaded):
    alone = make_decision(bias=(0.0, 2.0))
    loaded = loaded._replace(decision=make_decision(neighbour_sigma=1.0, without_neighbours=alone))
    x, y = square(5)
    odds = [-3.0] * 25
    odds[12] = 3.0  # alone in the middle of the slide
    patients = ["full"] * 25 + ["sparse", "sparse", ""]
    x, y, odds = [*x, 1, 501, None], [*y, 1, 501, None], [*odds, -1.0, -3.0, -1.0]
    scores = as_scores(odds)
    found = as_prediction(scores, patients, x, y)
    probabilities, predicted = prediction.decide_prediction(loaded, found)
    expected = np.exp(smooth_scores(scores[:25], patients[:25], x[:25], y[:25], 1.0)[:, 1])
    np.testing.assert_allclose(probabilities[:25, 1], expected)
    assert predicted[12] == 0
    np.testing.assert_allclose(probabilities[25:, 1], 1 / (1 + np.exp([-1.0, 1.0, -1.0])))  # log-odds + 2
    assert predicted[25:].tolist() == [1, 0, 1]
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)

    plain, called = prediction.decide_prediction(loaded, found, neighbours=False)
    np.testing.assert_allclose(plain[:, 1], 1 / (1 + np.exp(-np.array(odds) - 2)))
    assert called[12] == 1
    strict = prediction.decide_prediction(loaded, found, threshold=0.9)[1]
    assert not strict.any()


def test_overlapping_patches_are_named(loaded):
    loaded = loaded._replace(decision=make_decision(neighbour_sigma=1.0))
    found = as_prediction(as_scores([0, 0]), ["s", "s"], [1, 21], [1, 1], names=["a.png", "b.png"])
    with pytest.raises(InputError, match=r"Two patches of slide s overlap: a.png .* and b.png"):
        prediction.decide_prediction(loaded, found)


def test_a_threshold_needs_two_classes(loaded):
    loaded = loaded._replace(decision=make_decision(classes=("a", "b", "c"), positive=None, bias=(0.0, 0.0, 0.0)))
    with pytest.raises(InputError, match="A threshold needs a run of two classes"):
        prediction.decide_prediction(loaded, as_prediction(np.zeros((1, 3)), [""], [None], [None]), threshold=0.5)


def write_picture(path, shape=(300, 400)):
    """White on the left half; on the right stained, not called; a called place at x 300 to 400, y 100 to 200."""
    image = np.full((*shape, 3), 255, np.uint8)
    image[:, 200:] = (200, 90, 160)
    image[100:200, 300:] = (90, 60, 140)
    cv2.imwrite(str(path), image[..., ::-1])
    return path


def test_a_large_image_is_cut_at_the_scale_of_the_run_without_its_background(loaded, tmp_path):
    path = write_picture(tmp_path / "large.png")
    found = prediction.predict_large_image(loaded, path, mpp=2.0, name="large")
    assert list(zip(found.x, found.y)) == [(x, y) for y in (0, 50, 100) for x in (100, 150)]
    assert set(found.names) == set(found.patients) == {"large"}
    assert (found.file_scale, found.mpp, found.thumbnail_pixels) == (2.0, 4.0, 50)
    np.testing.assert_allclose(log_odds(found.scores), [-5, -5, -5, 6, -5, -5], atol=1e-3)
    probabilities, predicted = prediction.decide_prediction(loaded, found)
    assert predicted.tolist() == [0, 0, 0, 1, 0, 0]

    (feature,) = prediction.find_regions(loaded, found, probabilities, predicted)["features"]
    corners = np.array(feature["geometry"]["coordinates"][0])
    assert corners.min(axis=0).tolist() == [300, 100]  # in pixels of the file
    assert corners.max(axis=0).tolist() == [400, 200]
    assert feature["properties"]["classification"]["name"] == "IDC"
    assert feature["properties"]["measurements"]["Area mm^2"] == pytest.approx(0.2**2)  # 100 pixels of 2 micrometres

    table = io.StringIO()
    prediction.write_rows(table, found, probabilities, predicted, CLASSES)
    assert table.getvalue().splitlines()[3].startswith("large,300,100,0.00")
    assert table.getvalue().splitlines()[3].endswith(",1")


def test_what_cannot_be_cut_is_refused_in_words(loaded, tmp_path):
    path = write_picture(tmp_path / "large.png")
    cv2.imwrite(str(tmp_path / "white.png"), np.full((300, 300, 3), 255, np.uint8))
    with pytest.raises(InputError, match="shows no stained tissue"):
        prediction.predict_large_image(loaded, tmp_path / "white.png", mpp=4.0)
    with pytest.raises(InputError, match="does not say how many micrometres"):
        prediction.predict_large_image(loaded, path)
    loaded.config["mpp"] = None
    with pytest.raises(InputError, match="the run knows no scale to cut at"):
        prediction.predict_large_image(loaded, path, mpp=4.0)


def test_regions_of_several_classes_have_a_name_and_colour_each(loaded):
    loaded = loaded._replace(decision=make_decision(classes=("a", "b", "c"), positive=None, bias=(0.0, 0.0, 0.0)))
    found = prediction.Prediction(["f"] * 3, ["s"] * 3, [1, 51, 101], [1, 1, 1], np.zeros((3, 3)), [], 50)
    regions = prediction.find_regions(loaded, found, np.eye(3)[[2, 0, 2]], np.array([2, 0, 2]))["features"]
    kinds = [each["properties"]["classification"] for each in regions]
    assert [kind["name"] for kind in kinds] == ["a", "c", "c"]
    assert kinds[0]["color"] != kinds[1]["color"] == kinds[2]["color"]


def test_the_table_has_full_precision_and_empty_places(loaded):
    found = prediction.Prediction(['a, "b".png', "ü.png"], ["", "7"], [None, 101], [None, 51], np.zeros((2, 2)), [], 50)
    table = io.StringIO()
    prediction.write_header(table, CLASSES)
    prediction.write_rows(table, found, np.array([[1 / 3, 2 / 3], [0.75, 0.25]]), np.array([1, 0]), CLASSES)
    assert table.getvalue() == (
        "file,x,y,probability_0,probability_1,predicted\n"
        '"a, ""b"".png",,,0.3333333333333333,0.6666666666666666,1\n'
        "ü.png,101,51,0.75,0.25,0\n"
    )


def test_arrays_keep_their_names_and_places_and_get_thumbnails_of_one_scale(loaded):
    images = [patch(140), patch(160, 50, 25)]
    found = prediction.predict_arrays(loaded, images, ["a", "b"], ["s", "s"], [1, 3951], [1, 1])  # 80 places
    assert (found.names, found.patients, found.x, found.y) == (["a", "b"], ["s", "s"], [1, 3951], [1, 1])
    assert found.thumbnail_pixels == 20  # 1600 / 80
    assert [each.shape for each in found.thumbnails] == [(20, 20, 3), (20, 10, 3)]
    assert prediction.make_thumbnail(patch(1, 100, 200), 20).shape == (10, 20, 3)
    assert prediction.thumbnail_side([None], [None]) == 50
    assert prediction.thumbnail_side([1, 10**6], [1, 1]) == prediction.LEAST_THUMBNAIL
