"""Single images from Python. The network goes by the mean red: log-odds (150 - red) / 10."""

import cv2
import numpy as np
import pytest
from red_run import make_decision, make_network, make_red_run, patch, three_classes

from cancernet import InputError
from cancernet.inference import prediction
from cancernet.inference.arrays import predict_images


@pytest.fixture(scope="module")
def network():
    return make_network()


@pytest.fixture
def run(network):
    alone = make_decision(bias=(0.0, 2.0), threshold=0.4)
    return make_red_run(network, make_decision(neighbour_sigma=1.0, without_neighbours=alone))


def expect(*reds):
    return [1 / (1 + np.exp(-((150 - red) / 10 + 2))) for red in reds]  # a bias of 2


def test_arrays_of_one_size_any_sizes_and_files_are_predicted_alike(run, tmp_path):
    reds = [130, 160, 170, 180]  # log-odds with the bias: 4, 1, 0, -1
    cv2.imwrite(str(tmp_path / "a.png"), patch(180)[..., ::-1])
    images = [patch(130), patch(160, 9, 120), patch(170, 200, 30), tmp_path / "a.png"]
    found = predict_images(run, images)
    np.testing.assert_allclose(found.probabilities[:, 1], expect(*reds), atol=1e-4)
    assert found.predicted.tolist() == [1, 1, 1, 0]  # at the threshold of single images, 0.4
    assert found.decisions == ["IDC", "IDC", "IDC", "benign"]
    assert (found.classes, found.threshold) == (("benign", "IDC"), 0.4)
    stacked = predict_images(run, np.stack([patch(130), patch(180)]))
    np.testing.assert_allclose(stacked.probabilities[:, 1], expect(130, 180), atol=1e-4)
    strict = predict_images(run, images, threshold=0.6)
    assert strict.predicted.tolist() == [1, 1, 0, 0]
    assert strict.threshold == 0.6


def test_grey_images_need_no_channel(run):
    grey = np.full((40, 60), 160, np.uint8)
    found = predict_images(run, [grey, grey[..., None]])
    np.testing.assert_allclose(found.probabilities[:, 1], expect(160, 160), atol=1e-4)
    assert predict_images(run, np.stack([grey, grey])[..., None]).predicted.tolist() == [1, 1]


def test_no_image_gives_no_prediction(run):
    found = predict_images(run, [])
    assert (found.probabilities.shape, found.predicted.shape, found.decisions) == ((0, 2), (0,), [])


def test_images_beyond_the_limit_are_out_of_distribution(run, monkeypatch):
    scores = np.log([[0.5, 0.5]] * 3)
    monkeypatch.setattr("cancernet.inference.arrays.score_images", lambda *_: (scores, np.array([0.5, 1.0, 1.5])))
    assert predict_images(run, [patch(1)] * 3).out_of_distribution.tolist() == [False, False, True]


def test_of_a_run_that_cannot_measure_them_distances_are_unknown(run):
    found = predict_images(run, [patch(1)])
    assert np.isnan(found.distances).all()
    assert found.out_of_distribution.tolist() == [False]


def test_of_several_classes_the_most_probable_one_is_predicted(monkeypatch, network):
    run = make_red_run(network, three_classes())
    scores = np.log([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    monkeypatch.setattr("cancernet.inference.arrays.score_images", lambda *_: (scores, np.full(2, np.nan)))
    found = predict_images(run, [patch(1)] * 2)
    assert (found.decisions, found.threshold) == (["a", "c"], None)
    with pytest.raises(InputError, match="A threshold needs a run of two classes"):
        predict_images(run, [patch(1)] * 2, threshold=0.5)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            patch(1),
            r"The array of images has the shape \(50, 50, 3\). Give \[n, height, width, 3\], or a list of images",
        ),
        ("a.png", r"Give a list of images, \['a.png'\], not a single path"),
        (
            [patch(1), patch(1).astype(float)],
            "Image 1 is float64. Give uint8 arrays with values from 0 to 255, or paths",
        ),
        ([[1, 2]], "Image 0 is list. Give uint8 arrays"),
        ([np.zeros((5, 5, 4), np.uint8)], r"Image 0 has the shape \(5, 5, 4\). Give \[height, width\]"),
        ([np.zeros((5, 0, 3), np.uint8)], r"Image 0 has the shape \(5, 0, 3\)"),
        ([np.zeros(5, np.uint8)], r"Image 0 has the shape \(5, 1\)|Image 0 has the shape \(5,\)"),
        (["none.png"], "none.png: No such file"),
    ],
)
def test_what_is_no_image_is_an_error(run, images, message):
    with pytest.raises(InputError, match=message):
        predict_images(run, images)


def test_images_are_read_in_batches(run, monkeypatch):
    sizes = []
    real = prediction.score_images

    def count(run, images):
        return real(run, images, progress=sizes.append)

    monkeypatch.setattr("cancernet.inference.arrays.score_images", count)
    predict_images(run, np.zeros((prediction.BATCH + 1, 8, 8, 3), np.uint8))
    assert sizes == [prediction.BATCH, 1]
