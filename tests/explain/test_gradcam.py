"""Grad-CAM against hand-worked networks, and on patches whose evidence lies in one corner."""

from functools import partial

import cv2
import keras
import numpy as np
import pytest
from corner_patches import CORNERS, make_patch_with_corner_tumour
from keras import layers

from cancernet import InputError
from cancernet.config import Experiment
from cancernet.explain import gradcam
from cancernet.explain.gradcam import find_maps_layers, grad_cam, overlay
from cancernet.models.architectures import build_model

IMAGE = np.array([[[[0], [100]], [[40], [60]]]], np.uint8)


def build_tiny_network(strength=1.0):
    """Maps x and 100 - x; their means are a and b; the classes' scores are strength * (a - b) and the reverse."""
    model = keras.Sequential(
        [
            keras.Input((2, 2, 1)),
            layers.Conv2D(2, 1, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(2, activation="softmax"),
        ]
    )
    kernel = np.array([1.0, -1.0]).reshape(1, 1, 1, 2)
    dense = strength * np.array([[1.0, -1.0], [-1.0, 1.0]])
    model.set_weights([kernel, np.array([0.0, 100.0]), dense, np.zeros(2)])
    return model


def test_a_tiny_network_by_hand():
    """The gradient of class 0 is 1/4 at every place of the first map and -1/4 of the second, so that the heat is
    max(0, (x - (100 - x)) / 4): 0, 25, 0 and 5, divided by its largest."""
    heat = grad_cam(build_tiny_network(), IMAGE, 0)
    assert heat.dtype == np.float32
    np.testing.assert_allclose(heat, [[[0, 1], [0, 0.2]]], atol=1e-6)
    np.testing.assert_allclose(grad_cam(build_tiny_network(), IMAGE, 1), [[[1, 0], [0.2, 0]]], atol=1e-6)


def test_a_sure_network_is_explained_by_its_score_before_the_softmax():
    """At this strength the softmax is exactly 0 and 1, and its gradient nothing."""
    image = IMAGE + np.uint8(30)  # the means are 80 and 27.5
    np.testing.assert_allclose(grad_cam(build_tiny_network(100.0), image, 0), grad_cam(build_tiny_network(), image, 0))
    assert grad_cam(build_tiny_network(100.0), image, 0).max() == 1


def test_a_softmax_of_its_own_layer_is_the_same():
    tiny = build_tiny_network()
    for last in (layers.Softmax(), layers.Activation("softmax")):
        model = keras.Sequential([*tiny.layers[:2], layers.Dense(2), last])
        model.build((None, 2, 2, 1))
        model.layers[2].set_weights(tiny.layers[2].get_weights())
        np.testing.assert_allclose(grad_cam(model, IMAGE, 0), [[[0, 1], [0, 0.2]]], atol=1e-6)


def test_a_map_has_one_weight_the_mean_of_its_gradient():
    """Only the first place counts for the score, and there the image is black: the whole map is weighed with 4 / 4."""
    layer_stack = [layers.Conv2D(1, 1), layers.Flatten(), layers.Dense(2, activation="softmax")]
    model = keras.Sequential([keras.Input((2, 2, 1)), *layer_stack])
    dense = np.array([[4.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    model.set_weights([np.ones((1, 1, 1, 1)), np.zeros(1), dense, np.zeros(2)])
    np.testing.assert_allclose(grad_cam(model, IMAGE, 0), [[[0, 1], [0.4, 0.6]]], atol=1e-6)


def test_nothing_for_the_class_is_a_map_of_zeros():
    assert (grad_cam(build_tiny_network(0.0), IMAGE, 0) == 0).all()


def test_the_heat_is_scaled_up_to_the_image():
    model = keras.Sequential(
        [
            keras.Input((8, 12, 1)),
            layers.Conv2D(1, 4, strides=4, activation="relu", kernel_initializer="ones"),
            layers.Flatten(),
            layers.Dense(2, activation="softmax", kernel_initializer="ones"),
        ]
    )
    image = np.zeros((1, 8, 12, 1))
    image[:, :4, 8:] = 200
    heat = grad_cam(model, image, 1)[0]
    assert heat.shape == (8, 12)
    assert heat[0, 11] == heat.max() == 1
    assert heat[7, 0] == heat[7, 11] == heat[0, 0] == 0


@pytest.fixture(scope="module")
def network():
    """A network with every kind of layer that behaves otherwise in training; with a branch within."""
    keras.utils.set_random_seed(3)
    image = keras.Input((12, 12, 3))
    first = layers.Conv2D(4, 3, padding="same", activation="relu")(layers.Rescaling(1 / 255)(image))
    second = layers.Conv2D(4, 3, padding="same")(first)
    joined = layers.Activation("relu")(layers.Add()([first, second]))
    pooled = layers.GlobalAveragePooling2D()(layers.Dropout(0.5)(layers.BatchNormalization()(joined)))
    output = layers.Dense(3, activation="softmax")(layers.Dropout(0.5)(layers.BatchNormalization()(pooled)))
    model = keras.Model(image, output)
    rng = np.random.default_rng(4)
    model.set_weights([np.abs(weight) + rng.normal(0, 0.2, weight.shape) ** 2 for weight in model.get_weights()])
    return model


@pytest.fixture
def images():
    return np.random.default_rng(5).integers(0, 256, (5, 12, 12, 3), dtype=np.uint8)


def nest(flat):
    """The same layers as an extractor and a head within a model, as the transfer models are."""
    features = keras.Input((12, 12, 3))
    maps = layers.Rescaling(1 / 255)(features)
    first = layers.Conv2D(4, 3, padding="same", activation="relu")(maps)
    second = layers.Conv2D(4, 3, padding="same")(first)
    joined = layers.Activation("relu")(layers.Add()([first, second]))
    pooled = layers.GlobalAveragePooling2D()(layers.Dropout(0.5)(layers.BatchNormalization()(joined)))
    extractor = keras.Model(features, pooled)
    head = keras.Sequential(
        [
            keras.Input((4,)),
            layers.BatchNormalization(),
            layers.Dropout(0.5),
            layers.Dense(3, activation="softmax"),
        ]
    )
    image = keras.Input((12, 12, 3))
    nested = keras.Model(image, head(extractor(image, training=False)))
    nested.set_weights(flat.get_weights())
    return nested


def test_a_nested_model_is_explained_as_its_flat_twin(network, images):
    nested = nest(network)
    np.testing.assert_allclose(nested(images), network(images), rtol=1e-5)
    heat = grad_cam(network, images, 1)
    assert heat.max() == 1
    np.testing.assert_allclose(grad_cam(nested, images, 1), heat, atol=1e-5)


def test_the_gradient_is_that_of_small_steps(network, images):
    """Grad-CAM's weight of a map is the change of the score when the whole map grows a little, per place."""
    middle = network.layers.index(find_maps_layers(network)[0])
    pooled = layers.GlobalAveragePooling2D()
    normalise_maps, normalise, dense = network.layers[middle + 1], network.layers[-3], network.layers[-1]
    maps = np.array(keras.Model(network.input, network.layers[middle].output)(images), np.float64)

    def score(maps):
        features = normalise(pooled(normalise_maps(maps, training=False)), training=False)
        return np.array(features @ dense.kernel)[:, 1]

    steps = np.eye(4)[:, None, None] * 0.5
    weights = np.stack([(score(maps + step) - score(maps - step)) for step in steps], axis=1) / 144
    coarse = np.maximum((maps * weights[:, None, None]).sum(axis=-1), 0)
    expected = coarse / coarse.max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(grad_cam(network, images, 1), expected, atol=1e-3)


def test_maps_of_two_sizes_are_added_as_the_score_adds_them():
    """Where averages of two sizes of maps are all that a score is made of, the heat is the score, spread out."""
    keras.utils.set_random_seed(6)
    image = keras.Input((8, 8, 3))
    fine = layers.Conv2D(4, 3, padding="same", activation="relu")(image)
    coarse = layers.Conv2D(5, 3, strides=2, padding="same", activation="relu")(fine)
    pooled = [layers.GlobalAveragePooling2D()(maps) for maps in (fine, coarse)]
    answer = layers.Dense(2, activation="softmax")(layers.Concatenate()(pooled))
    model = keras.Model(image, answer)
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.float32)

    fine, coarse = (np.array(maps) for maps in keras.Model(image, [fine, coarse])(images))
    kernel = np.array(model.layers[-1].kernel)[:, 1]
    spread = (fine @ kernel[:4]) / 64
    spread += np.stack([cv2.resize(each, (8, 8), interpolation=cv2.INTER_LINEAR) for each in coarse @ kernel[4:] / 16])
    expected = np.maximum(spread, 0)
    assert (expected > 0).any(axis=(1, 2)).all()
    np.testing.assert_allclose(
        grad_cam(model, images, 1), expected / expected.max(axis=(1, 2), keepdims=True), atol=1e-5
    )


def test_explaining_changes_nothing(network, images):
    weights, answers = network.get_weights(), np.array(network(images))
    trainable = len(network.trainable_weights)
    first = grad_cam(network, images, 1)
    np.testing.assert_array_equal(grad_cam(network, images, 1), first)  # no dropout
    assert all((before == after).all() for before, after in zip(weights, network.get_weights()))
    np.testing.assert_array_equal(network(images), answers)
    assert len(network.trainable_weights) == trainable
    assert "call" not in vars(find_maps_layers(network)[0])


def test_each_image_may_have_its_own_class_and_batches_do_not_matter(network, images, monkeypatch):
    heats = [grad_cam(network, images, number) for number in range(3)]
    classes = np.array([0, 2, 1, 1, 0])
    monkeypatch.setattr(gradcam, "_BATCH", 2)
    mixed = grad_cam(network, images, classes)
    np.testing.assert_allclose(mixed, [heats[number][i] for i, number in enumerate(classes)], atol=1e-5)
    assert grad_cam(network, images[:0], 0).shape == (0, 12, 12)


slow_case = partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("name", "size", "channels", "maps"),
    [
        ("cancernet", 48, 3, {(24, 24, 64)}),
        ("simple_cnn", 128, 1, {(28, 28, 64)}),
        ("mobilenetv3small", 64, 3, {(16, 16, 16), (8, 8, 24), (4, 4, 48), (2, 2, 576)}),
        slow_case("resnet50", 64, 3, {(16, 16, 256), (8, 8, 512), (4, 4, 1024), (2, 2, 2048)}),
        slow_case("densenet121", 64, 3, {(16, 16, 256), (8, 8, 512), (4, 4, 1024), (2, 2, 1024)}),
        slow_case("efficientnetv2b0", 64, 3, {(16, 16, 32), (8, 8, 192), (4, 4, 672), (2, 2, 1280)}),
    ],
)
def test_every_model_is_explained_by_its_last_large_maps_or_those_that_it_averages(name, size, channels, maps):
    keras.utils.set_random_seed(1)
    model = build_model(Experiment(model=name, image_size=size, channels=channels), classes=2)
    found = find_maps_layers(model)
    assert {(layer.input if len(found) > 1 else layer.output).shape[1:] for layer in found} == maps
    images = np.random.default_rng(0).integers(0, 256, (2, size, size, channels), dtype=np.uint8)
    heat = np.stack([grad_cam(model, images, number) for number in (0, 1)])
    assert heat.shape == (2, 2, size, size)
    assert np.isfinite(heat).all()
    assert heat.min() >= 0
    assert heat.max() == 1


def test_models_it_cannot_explain_are_refused():
    after = [layers.Rescaling(1 / 255), layers.Flatten(), layers.Dense(2, activation="softmax")]
    dense = keras.Sequential([keras.Input((4, 4, 1)), *after])
    with pytest.raises(InputError, match="needs convolutional feature maps"):
        grad_cam(dense, np.zeros((1, 4, 4, 1)), 0)
    linear = keras.Sequential(
        [keras.Input((4, 4, 1)), layers.Conv2D(1, 2), layers.Flatten(), layers.Dense(2, name="last")]
    )
    with pytest.raises(InputError, match="ends in a softmax; .* ends in last, a Dense"):
        grad_cam(linear, np.zeros((1, 4, 4, 1)), 0)


def paint_patches(number, seed):
    """Patches with tumour in one corner, where it is, and the same without: the opposite corner in its place."""
    painted = [make_patch_with_corner_tumour(seed + i, CORNERS[i % 4]) for i in range(number)]
    patches, tumour = (np.stack(part) for part in zip(*painted))
    benign = patches.copy()
    for patch, corner in zip(benign, tumour):
        patch[corner] = patch[::-1, ::-1][corner]
    return patches, tumour, benign


def heat_in_corner(model, patches, tumour):
    """Mean over the patches of the share of the heat that lies on the tumour; a quarter is chance."""
    heat = grad_cam(model, patches, 1)
    return float(np.mean((heat * tumour).sum(axis=(1, 2)) / np.maximum(heat.sum(axis=(1, 2)), 1e-9)))


def test_the_heat_lies_where_the_evidence_is_and_not_once_the_weights_are_random():
    keras.utils.set_random_seed(7)
    patches, _, benign = paint_patches(100, seed=0)
    model = keras.Sequential(
        [
            keras.Input((50, 50, 3)),
            layers.Rescaling(1 / 64, offset=-2.5),
            layers.Conv2D(8, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(16, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(16, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(2, activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.005), "sparse_categorical_crossentropy", metrics=["accuracy"])
    labels = np.repeat([1, 0], 100)
    model.fit(np.concatenate([patches, benign]), labels, epochs=12, batch_size=20, verbose=0)
    unseen, tumour, without = paint_patches(20, seed=5000)
    answers = model.predict(np.concatenate([unseen, without]), verbose=0).argmax(axis=1)
    assert (answers == np.repeat([1, 0], 20)).mean() > 0.9
    assert heat_in_corner(model, unseen, tumour) > 0.7
    peaks = [corner.ravel()[heat.argmax()] for heat, corner in zip(grad_cam(model, unseen, 1), tumour)]
    assert np.mean(peaks) > 0.9
    random = []
    for seed in range(6):
        keras.utils.set_random_seed(seed)
        random.append(heat_in_corner(keras.models.clone_model(model), unseen, tumour))
    assert np.mean(random) < 0.5


def test_the_overlay_leaves_the_image_where_there_is_no_heat():
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    heat = np.zeros((4, 6), np.float32)
    heat[1, 2], heat[3, 4] = 1, 0.01
    result = overlay(image, heat)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result[heat == 0], image[heat == 0])
    yellow = np.array([253, 231, 36])  # the end of viridis
    np.testing.assert_allclose(result[1, 2], 0.3 * image[1, 2] + 0.7 * yellow, atol=1)
    np.testing.assert_allclose(result[3, 4].astype(int), image[3, 4], atol=2)


def test_the_overlay_of_a_grey_image_is_in_colour():
    result = overlay(np.full((2, 2, 1), 100, np.uint8), np.array([[0, 1], [0, 0]]))
    assert result.shape == (2, 2, 3)
    assert (result[1] == 100).all()
    assert len(set(result[0, 1])) == 3
