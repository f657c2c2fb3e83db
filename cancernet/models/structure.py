"""The parts of a built or loaded model that other modules rely on.

`cancernet` and `simple_cnn` are one flat `keras.Sequential`. A transfer model is

    image -> extractor -> head -> probabilities

`extractor` and `head` are sub-models with these names, without sub-models of their own. The extractor maps raw images
to features: it preprocesses them, runs the backbone and averages its feature maps. The head maps features to
probabilities (`build_head`). A saved file keeps these parts, so these functions work on loaded models too.
"""

import keras
from keras import layers


def split_model(model: keras.Model) -> tuple[keras.Model, keras.Model]:
    """Return the extractor and the head of a transfer model; they share their weights with `model`.

    So the features [n, f] of a frozen backbone can be computed once, and training the head on them trains `model`.
    """
    return model.get_layer("extractor"), model.get_layer("head")


def has_backbone(model: keras.Model) -> bool:
    """Return whether `model` is a transfer model: an extractor followed by a head."""
    return {"extractor", "head"} <= {layer.name for layer in model.layers}


def list_layers(model: keras.Model) -> list[keras.Layer]:
    """List the layers of a model and of its sub-models, in the order of the graph."""
    nested = [list_layers(layer) if isinstance(layer, keras.Model) else [layer] for layer in model.layers]
    return [layer for layers in nested for layer in layers]


def build_head(features: int, classes: int) -> keras.Sequential:
    """Build a head from features [n, features] to probabilities [n, classes], with random weights."""
    normalised = [keras.Input((features,), name="features"), layers.Dropout(0.5), layers.BatchNormalization()]
    return keras.Sequential([*normalised, layers.Dense(classes, activation="softmax")], name="head")


def add_head(extractor: keras.Model, classes: int, name: str) -> keras.Model:
    """Add a new head to an extractor: [n, size, size, channels] of 0 to 255 -> [n, classes] softmax."""
    return attach_head(extractor, build_head(extractor.output_shape[-1], classes), name)


def attach_head(extractor: keras.Model, head: keras.Model, name: str) -> keras.Model:
    """Join an extractor and a head into a transfer model that shares their weights."""
    image = keras.Input(extractor.input_shape[1:], name="image")
    return keras.Model(image, head(extractor(image)), name=name)
