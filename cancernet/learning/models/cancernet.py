"""CancerNet: a small VGG-like network of depthwise separable convolutions, for small tissue patches.

After A. Rosebrock, "Breast cancer classification with Keras and Deep Learning" (PyImageSearch, 2019).
"""

import keras
from keras import layers

from cancernet.learning.models.axes import channel_axis, image_shape


class CancerNet:
    """Three blocks of one, two and three separable convolutions, then a dense layer of 256."""

    @staticmethod
    def build(width, height, depth, classes):
        """Build the network for images of `width` x `height` pixels (8 at least) and `depth` channels.

        Returns an uncompiled `keras.Sequential`: [n, height, width, depth] of 0 to 255 (or [n, depth, height, width]
        where Keras is set to channels first) -> [n, classes] softmax. 1,235,133 parameters for 48x48x3 and two classes.
        """
        axis = channel_axis()
        model = keras.Sequential(name="cancernet")
        model.add(keras.Input(image_shape(height, width, depth), name="image"))
        model.add(layers.Rescaling(1 / 255))
        for filters, convolutions in ((32, 1), (64, 2), (128, 3)):
            for _ in range(convolutions):
                model.add(layers.SeparableConv2D(filters, 3, padding="same"))
                model.add(layers.Activation("relu"))
                model.add(layers.BatchNormalization(axis=axis))
            model.add(layers.MaxPooling2D(2))
            model.add(layers.Dropout(0.25))
        model.add(layers.Flatten())
        model.add(layers.Dense(256))
        model.add(layers.Activation("relu"))
        model.add(layers.BatchNormalization())
        model.add(layers.Dropout(0.5))
        model.add(layers.Dense(classes, activation="softmax"))
        return model
