"""Batch normalisation: fused, its outputs, statistics and gradients are those of Keras; statistics are recomputed."""

import keras
import numpy as np
import pytest

from cancernet.training.batch_normalization import fuse_batch_normalization, recompute_statistics, set_momentum

needs_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the one operation is TensorFlow's; other backends use Keras' own"
)


def make_pair(layers):
    """The same network twice, the second fused."""
    pair = []
    for _ in range(2):
        keras.utils.set_random_seed(3)
        pair.append(keras.Sequential([keras.Input((6, 6, 4)), *layers()]))
    return *pair, fuse_batch_normalization(pair[1])


IMAGES = 5 + 3 * np.random.default_rng(0).normal(size=(8, 6, 6, 4)).astype(np.float32)


@needs_tensorflow
def test_outputs_and_statistics_are_keras():
    plain, fused, layers = make_pair(lambda: [keras.layers.BatchNormalization(momentum=0.9)])
    assert layers == 1
    for _ in range(3):
        np.testing.assert_allclose(plain(IMAGES, training=True), fused(IMAGES, training=True), atol=1e-5)
    for one, two in zip(plain.get_weights(), fused.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5)
    np.testing.assert_allclose(fused.layers[0].moving_mean, 5 * (1 - 0.9**3), rtol=0.1)
    np.testing.assert_allclose(plain(IMAGES, training=False), fused(IMAGES, training=False), atol=1e-6)


@needs_tensorflow
def test_a_step_of_training_moves_the_weights_alike():
    def layers():
        return [
            keras.layers.Conv2D(3, 3),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dense(1),
        ]

    plain, fused, _ = make_pair(layers)
    for model in (plain, fused):
        model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
        model.fit(IMAGES, np.arange(8.0), batch_size=8, epochs=2, shuffle=False, verbose=0)
    for one, two in zip(plain.get_weights(), fused.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-4)


@needs_tensorflow
@pytest.mark.parametrize(
    "layers",
    [
        lambda: [keras.layers.BatchNormalization(axis=1)],
        lambda: [keras.layers.BatchNormalization(scale=False)],
        lambda: [keras.layers.Flatten(), keras.layers.BatchNormalization()],
    ],
)
def test_what_the_operation_cannot_do_is_left_alone(layers):
    assert make_pair(layers)[2] == 0


@needs_tensorflow
def test_frozen_statistics_stay():
    _, fused, _ = make_pair(lambda: [keras.layers.BatchNormalization()])
    fused.trainable = False
    before = fused.get_weights()
    fused(IMAGES, training=True)
    for one, two in zip(before, fused.get_weights(), strict=True):
        assert np.array_equal(one, two)


@needs_tensorflow
def test_the_saved_model_is_plain_keras(tmp_path):
    _, fused, _ = make_pair(lambda: [keras.layers.BatchNormalization()])
    fused(IMAGES, training=True)
    fused.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.layers[0]) is keras.layers.BatchNormalization
    np.testing.assert_allclose(loaded(IMAGES), fused(IMAGES), atol=1e-6)


def test_the_momentum_of_statistics_reaches_the_layers():
    layer = keras.layers.BatchNormalization()
    model = keras.Sequential([keras.Input((1,)), layer])
    set_momentum(keras.Sequential([model]), 0.25)
    model(np.array([[4.0], [4.0]], np.float32), training=True)
    assert layer.momentum == 0.25
    assert layer.moving_mean.numpy() == pytest.approx([3])  # three quarters of the way from 0
    assert layer.moving_variance.numpy() == pytest.approx([0.25])  # and from 1 to 0


def test_settled_statistics_are_those_of_all_images():
    layer = keras.layers.BatchNormalization(momentum=0.9)
    model = keras.Sequential([keras.Input((1,)), layer])
    batches = [(np.array([[1.0], [3.0]], np.float32), None), (np.array([[4.0], [10.0]], np.float32), None)]
    recompute_statistics(model, batches)
    assert layer.moving_mean.numpy() == pytest.approx([4.5])  # of 2 and 7
    # the mean of 1 and 9 is 5, the variance of 2 and 7 is 6.25: that of 1, 3, 4 and 10 about 4.5
    assert layer.moving_variance.numpy() == pytest.approx([11.25])
    assert layer.momentum == 0.9


def test_statistics_of_sub_models_are_settled_but_not_fixed_ones():
    layer, fixed = keras.layers.BatchNormalization(), keras.layers.BatchNormalization(trainable=False)
    image = keras.Input((1,))
    model = keras.Model(image, keras.Sequential([keras.Input((1,)), fixed, layer])(image))
    fixed.moving_mean.assign([1.0])
    fixed.moving_variance.assign([1.0 - fixed.epsilon])
    recompute_statistics(model, [(np.array([[1.0], [3.0]], np.float32), None)])
    assert layer.moving_mean.numpy() == pytest.approx([1])
    assert fixed.moving_mean.numpy() == pytest.approx([1])
    nothing_to_settle = keras.Sequential([keras.Input((1,)), fixed])
    recompute_statistics(nothing_to_settle, None)  # no batch is made
