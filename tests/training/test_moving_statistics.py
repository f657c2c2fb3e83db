"""Moving statistics of batch normalisation: their momentum, and recomputing them from some batches."""

import keras
import numpy as np
import pytest

from cancernet.training.moving_statistics import recompute_statistics, set_momentum


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
