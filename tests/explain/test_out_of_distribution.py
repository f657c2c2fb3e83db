"""Distances of images from validation images: made-up colours and features at known positions."""

import keras
import numpy as np
import pytest

from cancernet.explain import out_of_distribution
from cancernet.explain.out_of_distribution import OutOfDistributionDetector as Detector
from cancernet.models import image_features
from cancernet.models.joining import join_members
from cancernet.models.structure import split_model

RNG = np.random.default_rng(0)
PINK, BLACK, GREY = (225, 150, 190), (0, 0, 40), (128, 128, 128)


def paint(colour, n=60):
    noise = RNG.normal(0, 12, (n, 16, 16, 3)) + RNG.normal(0, 12, (n, 1, 1, 1))
    return np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)


def make_network(name="tiny"):
    layers = [keras.Input((16, 16, 3)), keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(6, 3, activation="relu")]
    layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2, activation="softmax")]
    return keras.Sequential(layers, name=name)


def make_transfer_model(extractor=None):
    image = keras.Input((16, 16, 3))
    if extractor is None:
        features = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(6, 3)(image))
        extractor = keras.Model(image, features, name="extractor")
    head = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2, activation="softmax")], name="head")
    return keras.Model(image, head(extractor(image)))


def learn(network, images, patients=None, views="one"):
    described = out_of_distribution.average_over_views(image_features.add_image_features(network), views)
    values = described.predict(images, verbose=0)[1:]
    patients = np.arange(len(images)) // 6 if patients is None else patients
    return out_of_distribution.fit_detector([(each, patients) for each in values], channels=3)


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(3)
    return make_network()


@pytest.fixture(scope="module")
def detector(network):
    return learn(network, paint(PINK))


def test_colours_are_means_deviations_and_hues():
    image = np.zeros((1, 2, 2, 3), np.uint8)
    image[0, 0] = (255, 0, 0)  # two of four pixels red, two black
    colours = image_features.build_colour_statistics((2, 2, 3)).predict(image, verbose=0)
    np.testing.assert_allclose(colours, [[0.5, 0, 0, 0.5, 0, 0, 1 / 3, 1 / 6, 1 / 6]], atol=1e-6)


def test_probabilities_are_those_of_the_model_and_other_images_are_out_of_distribution(network, detector):
    with_distance = out_of_distribution.add_detector(network, detector, "mirror")
    fresh = paint(PINK, 40)
    probabilities, distances = with_distance.predict(fresh, verbose=0)
    np.testing.assert_allclose(
        probabilities, out_of_distribution.average_over_views(network, "mirror").predict(fresh, verbose=0)
    )
    assert (distances > 1).mean() < 0.1
    for colour in (BLACK, GREY):
        assert (with_distance.predict(paint(colour, 20), verbose=0)[1] > 1).all()


def test_a_limit_leaves_its_share_of_left_out_images_outside(network):
    """Measured against a distribution that they are part of, fewer would be outside than of new images."""
    images = paint(PINK, 400)
    distances = out_of_distribution.add_detector(network, learn(network, images), "one").predict(images, verbose=0)[1]
    assert 0 < (distances > 1).mean() <= 0.02


def test_without_a_detector_distances_are_unknown(network):
    probabilities, distances = out_of_distribution.add_detector(network, None, "one").predict(paint(PINK, 3), verbose=0)
    assert np.isnan(distances).all()
    assert np.isfinite(probabilities).all()


@pytest.mark.parametrize(("images", "patients"), [(29, np.arange(29)), (60, np.zeros(60))])
def test_too_few_images_or_one_patient_make_none(network, images, patients):
    assert learn(network, paint(PINK, images), patients) is None


def test_the_distance_of_several_members_is_the_mean_of_theirs():
    networks = [make_network(f"n{number}") for number in range(2)]
    model, images = join_members(networks), paint(PINK)
    output, *values = image_features.add_image_features(model).predict(images, verbose=0)
    np.testing.assert_allclose(output, model.predict(images, verbose=0), atol=1e-6)
    for own, each in zip(networks, values, strict=True):
        np.testing.assert_allclose(
            each, image_features.add_image_features(own).predict(images, verbose=0)[1], atol=1e-6
        )
    detector = learn(model, images)
    told = out_of_distribution.add_detector(model, detector, "one").predict(images, verbose=0)[1]
    alone = [
        out_of_distribution.add_detector(own, Detector((reference,)), "one").predict(images, verbose=0)[1]
        for own, reference in zip(networks, detector.references, strict=True)
    ]
    np.testing.assert_allclose(told, np.mean(alone, axis=0), rtol=1e-4)


def test_a_backbone_is_known_by_its_extractor_also_beside_another_network():
    transfer = make_transfer_model()
    images = paint(PINK, 8)
    features = split_model(transfer)[0].predict(images, verbose=0)
    colours = image_features.build_colour_statistics((16, 16, 3)).predict(images, verbose=0)
    values = image_features.add_image_features(transfer).predict(images, verbose=0)[1]
    np.testing.assert_allclose(values, np.hstack([colours, features]), atol=1e-6)
    both = image_features.add_image_features(join_members([make_network(), transfer])).predict(images, verbose=0)
    np.testing.assert_allclose(both[2], values, atol=1e-6)


def test_references_of_another_network_are_refused(network, detector):
    out_of_distribution.check_detector(network, detector)
    reference = detector.references[0]
    broken = {"finite": [reference._replace(limit=np.nan)], "zip": []}
    broken["shapes"] = [reference._replace(mean=reference.mean[1:])]
    broken |= {"the shapes": [reference._replace(mean=reference.mean.astype(np.float64))]}
    for message, references in broken.items():
        with pytest.raises(ValueError, match=message):
            out_of_distribution.check_detector(network, Detector(tuple(references)))


def test_at_most_some_rows_are_taken(monkeypatch):
    monkeypatch.setattr(image_features, "MAX_IMAGES", 3)
    assert image_features.thin_out(np.arange(8)).tolist() == [0, 3, 6]
    assert image_features.thin_out(np.arange(3)).tolist() == [0, 1, 2]
    assert image_features.thin_out(np.arange(0)).tolist() == []
