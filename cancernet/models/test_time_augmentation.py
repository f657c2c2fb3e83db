"""Test-time augmentation: the flips and quarter turns ("views") of an image, and networks that average over them."""

import keras


def average_over_views(model: keras.Model, views: str) -> keras.Model:
    """Return a network that shares the model's weights and outputs the mean over the views of each square image.

    `one` is the image itself; `mirror` is also its horizontal flip; `eight` are all its flips and quarter turns.
    """
    if views == "one":
        return model
    network = _apply_to_views(model, views)
    means = [keras.ops.mean(outputs, axis=0) for outputs in network.outputs]
    return keras.Model(network.inputs[0], means if len(means) > 1 else means[0])


def extract_views(extractor: keras.Model, views: str) -> keras.Model:
    """Return a network that outputs the features [n, views, f] of every view of an image (see `average_over_views`)."""
    network = _apply_to_views(extractor, views)
    return keras.Model(network.inputs[0], keras.ops.transpose(network.outputs[0], (1, 0, 2)))


def _apply_to_views(model: keras.Model, views: str) -> keras.Model:
    """Return a network that shares the model's weights and outputs each view separately: [views, n, ...]."""
    inputs = keras.Input(model.input_shape[1:])
    return keras.Model(inputs, keras.ops.map(model, keras.ops.stack(list_views(inputs, views))))


def list_views(images: keras.KerasTensor, views: str) -> list[keras.KerasTensor]:
    """List the views (see `average_over_views`) of square images [n, s, s, c]; the images themselves come first."""
    listed = [images]
    if views != "one":
        listed.append(keras.ops.flip(images, 2))
    if views == "eight":
        listed += [keras.ops.flip(view, 1) for view in listed]
        listed += [keras.ops.transpose(view, (0, 2, 1, 3)) for view in listed]
    return listed
