"""Views of an image: its flips and quarter turns, and networks that answer their mean. They need Keras alone."""

import keras


def average_over_views(model: keras.Model, views: str) -> keras.Model:
    """Return a network that shares the model's weights and answers the mean over views of an image, which is square.

    Args:
        model: images to outputs of any kind, or to several.
        views: `one`, the image itself; `mirror`, also its mirror image, left to right; `eight`, all its flips and
            quarter turns.
    """
    if views == "one":
        return model
    network = _answer_views(model, views)
    means = [keras.ops.mean(answers, axis=0) for answers in network.outputs]
    return keras.Model(network.inputs[0], means if len(means) > 1 else means[0])


def extract_views(extractor: keras.Model, views: str) -> keras.Model:
    """Return a network that answers the features of every view of an image, [n, views, f].

    Args:
        extractor: raw images to features [n, f].
        views: of each image, as `average_over_views`.
    """
    network = _answer_views(extractor, views)
    return keras.Model(network.inputs[0], keras.ops.transpose(network.outputs[0], (1, 0, 2)))


def _answer_views(model: keras.Model, views: str) -> keras.Model:
    """Return a network that shares the model's weights and answers each view on its own: [views, n, ...]."""
    inputs = keras.Input(model.input_shape[1:])
    return keras.Model(inputs, keras.ops.map(model, keras.ops.stack(list_views(inputs, views))))


def list_views(images: keras.KerasTensor, views: str) -> list[keras.KerasTensor]:
    """The views, as of `average_over_views`, of square images [n, s, s, c]; the images themselves first."""
    listed = [images]
    if views != "one":
        listed.append(keras.ops.flip(images, 2))
    if views == "eight":
        listed += [keras.ops.flip(view, 1) for view in listed]
        listed += [keras.ops.transpose(view, (0, 2, 1, 3)) for view in listed]
    return listed
