"""A small plain network for larger grey images, such as mammograms."""

import keras
from keras import layers

from cancernet.learning.models.axes import image_shape


def build_simple_cnn(width, height, depth, classes):
    """Three convolutions of 16, 32 and 64 filters, each with max pooling, then a dense layer of 128.

    Returns an uncompiled `keras.Sequential`: [n, height, width, depth] of 0 to 255, 22 pixels a side at least (or
    [n, depth, height, width] where Keras is set to channels first) -> [n, classes] softmax. 1,629,443 parameters for
    128x128x1 and three classes.
    """
    model = keras.Sequential(name="simple_cnn")
    model.add(keras.Input(image_shape(height, width, depth), name="image"))
    model.add(layers.Rescaling(1 / 255))
    for filters in (16, 32, 64):
        model.add(layers.Conv2D(filters, 3, padding="valid"))
        model.add(layers.Activation("relu"))
        model.add(layers.MaxPooling2D(2))
    model.add(layers.Flatten())
    model.add(layers.Dropout(0.5))
    model.add(layers.Dense(128, activation="relu"))
    model.add(layers.Dense(classes, activation="softmax"))
    return model
