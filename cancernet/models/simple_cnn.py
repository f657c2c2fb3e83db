"""A small plain CNN for larger grey images, such as mammograms."""

import keras
from keras import layers


def build_simple_cnn(size: int, channels: int, classes: int, dropout: float = 0.5) -> keras.Sequential:
    """Build the network: [n, size, size, channels] of 0 to 255 -> [n, classes] softmax, uncompiled.

    Three convolutions of 16, 32 and 64 filters, each with max pooling, precede a dropout and a dense layer of 128. It
    has 1,629,443 parameters for 128x128x1 and three classes; `size` is at least 22 pixels.
    """
    model = keras.Sequential(name="simple_cnn")
    model.add(keras.Input((size, size, channels), name="image"))
    model.add(layers.Rescaling(1 / 255))
    for filters in (16, 32, 64):
        model.add(layers.Conv2D(filters, 3, padding="valid"))
        model.add(layers.Activation("relu"))
        model.add(layers.MaxPooling2D(2))
    model.add(layers.Flatten())
    model.add(layers.Dropout(dropout))
    model.add(layers.Dense(128, activation="relu"))
    model.add(layers.Dense(classes, activation="softmax"))
    return model
