"""CancerNet: a small VGG-like network of depthwise separable convolutions, for small tissue patches.

After A. Rosebrock, "Breast cancer classification with Keras and Deep Learning" (PyImageSearch, 2019).
"""

import keras
from keras import layers


class CancerNet:
    """Three blocks of one, two and three separable convolutions, then a dense layer of 256."""

    @staticmethod
    def build(width: int, height: int, depth: int, classes: int, dropout: float = 0.5) -> keras.Sequential:
        """Build the network: [n, height, width, depth] of 0 to 255 -> [n, classes] softmax, uncompiled.

        It has 1,235,133 parameters for 48x48x3 and two classes; height and width are at least 8 pixels. `dropout` is
        the rate before the last layer; half of it follows each block. If Keras is set to channels first, as in the
        tutorial, the network takes [n, depth, height, width].
        """
        channels_first = keras.config.image_data_format() == "channels_first"
        shape, axis = ((depth, height, width), 1) if channels_first else ((height, width, depth), -1)
        model = keras.Sequential(name="cancernet")
        model.add(keras.Input(shape, name="image"))
        model.add(layers.Rescaling(1 / 255))
        for filters, convolutions in ((32, 1), (64, 2), (128, 3)):
            for _ in range(convolutions):
                model.add(layers.SeparableConv2D(filters, 3, padding="same"))
                model.add(layers.Activation("relu"))
                model.add(layers.BatchNormalization(axis=axis))
            model.add(layers.MaxPooling2D(2))
            model.add(layers.Dropout(dropout / 2))
        model.add(layers.Flatten())
        model.add(layers.Dense(256))
        model.add(layers.Activation("relu"))
        model.add(layers.BatchNormalization())
        model.add(layers.Dropout(dropout))
        model.add(layers.Dense(classes, activation="softmax"))
        return model
