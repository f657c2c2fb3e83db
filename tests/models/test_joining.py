"""Several networks as one: the softmax of their mean logits."""

import keras
import numpy as np
import pytest
from keras import layers

from cancernet.explain.gradcam import grad_cam
from cancernet.models.cancernet import CancerNet
from cancernet.models.joining import downsample_input, join_members
from cancernet.models.simple_cnn import build_simple_cnn
from cancernet.models.structure import build_head, split_model

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 22, 22, 3)).astype(np.float32)


def build_backbone(seed):
    """A transfer model of one convolution, whose head has seen other features than 0 and 1."""
    keras.utils.set_random_seed(seed)
    image = keras.Input((22, 22, 3))
    maps = layers.Conv2D(5, 3, activation="relu")(layers.Rescaling(1 / 255)(image))
    extractor = keras.Model(image, layers.GlobalAveragePooling2D()(maps), name="extractor")
    inputs = keras.Input((22, 22, 3), name="image")
    model = keras.Model(inputs, build_head(5, 3)(extractor(inputs)), name="small")
    return scramble(model, seed)


def scramble(model, seed):
    """Give the head statistics, scales and biases that matter."""
    random = np.random.default_rng(seed)
    head = split_model(model)[1]
    head.set_weights([random.uniform(0.5, 1.5, weight.shape) for weight in head.get_weights()])
    return model


def build_members():
    keras.utils.set_random_seed(3)
    return [build_simple_cnn(22, 3, 3) for _ in range(3)]


def build_two_kinds():
    """A network from scratch that shrinks its images first, beside a backbone."""
    return [downsample_input(CancerNet.build(width=16, height=16, depth=3, classes=3), 22), build_backbone(1)]


@pytest.mark.parametrize(
    ("networks", "factor"),
    [
        (build_members, None),
        (build_two_kinds, 0.5),
        (lambda: [build_backbone(1), build_backbone(2)], None),
        (lambda: [join_members(build_members()[:2]), build_simple_cnn(22, 3, 3)], 0.5),  # joined already
    ],
)
def test_the_joined_network_answers_the_mean_of_the_logits_also_from_its_file(networks, factor, tmp_path):
    networks = networks()
    temperatures = factor and [1 + factor * number for number in range(len(networks))]
    joined = join_members(networks, temperatures)
    logits = [np.log(network(IMAGES)) for network in networks]
    expected = np.exp(np.mean([each / t for each, t in zip(logits, temperatures or [1] * 9)], axis=0))
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(joined(IMAGES), expected, rtol=1e-4)
    joined.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(IMAGES), joined(IMAGES))


def test_one_network_stays_itself():
    (network,) = networks = [build_backbone(1)]
    assert join_members(networks) is network


def test_the_regions_that_members_rest_on_are_added():
    networks = build_members()
    heat = grad_cam(join_members(networks), IMAGES, 1)
    assert heat.shape == (4, 22, 22)
    assert heat.max(axis=(1, 2)).tolist() == pytest.approx([1] * 4)
    one, *_ = (grad_cam(network, IMAGES, 1) for network in networks)
    assert not np.allclose(heat, one)
