"""The order of axes that Keras is set to: channels last, or channels first."""

import keras


def image_shape(height, width, depth):
    """Shape of one image, in the order of axes that Keras is set to."""
    if keras.config.image_data_format() == "channels_first":
        return (depth, height, width)
    return (height, width, depth)


def channel_axis():
    """Axis of the channels in a batch of images: 1 or -1, after the order of axes that Keras is set to."""
    return 1 if keras.config.image_data_format() == "channels_first" else -1
