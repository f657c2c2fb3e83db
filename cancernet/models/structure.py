"""The parts of a built or loaded model that other modules may rely on.

`cancernet` and `simple_cnn` are one flat `keras.Sequential`. A transfer model is

    image -> extractor -> head -> probabilities

`extractor` and `head` are sub-models of these names, and neither has a sub-model in it. The extractor maps the raw
image to features: it preprocesses the image, runs every layer of the backbone and averages its maps of four sizes.
The head maps features to probabilities: `cancernet.models.head`. A saved file keeps these parts, so the
functions here work on a loaded model too.
"""

import keras


def split_model(model: keras.Model) -> tuple[keras.Model, keras.Model]:
    """Return the extractor and the head of a transfer model; they share their weights with `model`.

    The extractor maps raw images to features [n, f] float32, and the head maps these to probabilities. So the features
    of a frozen backbone are computed once, and training the head on them trains `model`.

    Raises:
        ValueError: the model is no transfer model.
    """
    if not has_backbone(model):
        raise ValueError(f"{model.name} is not made of an extractor and a head; only the transfer models are.")
    return model.get_layer("extractor"), model.get_layer("head")


def has_backbone(model: keras.Model) -> bool:
    """Return whether `model` is a transfer model: an extractor followed by a head."""
    return {"extractor", "head"} <= {layer.name for layer in model.layers}


def attach_head(extractor: keras.Model, head: keras.Model, name: str) -> keras.Model:
    """Make a transfer model, or a part of one, of an extractor and a head, whose weights it shares."""
    image = keras.Input(extractor.input_shape[1:], name="image")
    return keras.Model(image, head(extractor(image)), name=name)
