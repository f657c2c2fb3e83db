"""Several trained networks as one: the softmax of their mean logits."""

from collections.abc import Sequence

import keras
from keras import layers

from cancernet.models.structure import attach_head, has_backbone, split_model


def shrink_first(network: keras.Sequential, image_size: int) -> keras.Sequential:
    """Let a network take larger images, which it scales down to its own size first.

    Bilinear interpolation at half the side is the mean of four pixels.
    """
    height, width, channels = network.input_shape[1:]
    if image_size == height:
        return network
    first = [keras.Input((image_size, image_size, channels), name="image"), layers.Resizing(height, width)]
    return keras.Sequential([*first, *network.layers], name=network.name)


def join_members(networks: Sequence[keras.Model], temperatures: Sequence[float] | None = None) -> keras.Model:
    """Join networks of the same inputs and classes to one that answers the softmax of their mean logits.

    They stand side by side in a model whose sub-models are `member_1`, `member_2`, ...

    Args:
        temperatures: that the logits of each network are divided by; 1 if not given.
    """
    if len(networks) == 1:
        return networks[0]
    image = keras.Input(networks[0].input_shape[1:], name="image")
    members = [
        _answer_logits(network, f"member_{number}", temperature)
        for number, (network, temperature) in enumerate(
            zip(networks, temperatures or [1] * len(networks), strict=True), 1
        )
    ]
    logits = layers.Average(name="mean_logits")([member(image) for member in members])
    return keras.Model(image, layers.Softmax(name="probabilities")(logits), name=networks[0].name)


def _answer_logits(network: keras.Model, name: str, temperature: float) -> keras.Model:
    """The same network without its softmax, over a temperature, sharing all weights but a copy of the last layer's."""
    if has_backbone(network):
        extractor, head = split_model(network)
        return attach_head(extractor, _answer_logits(head, "head", temperature), name)
    *others, last = network.layers
    if isinstance(last, layers.Softmax):  # joined already
        return keras.Model(network.inputs[0], layers.Rescaling(1 / temperature)(others[-1].output), name=name)
    logits = layers.Dense(last.units, name="logits")
    if isinstance(network, keras.Sequential):
        answering = keras.Sequential([keras.Input(network.input_shape[1:]), *others, logits], name=name)
    else:  # a head with a hidden layer
        answering = keras.Model(network.inputs[0], logits(others[-1].output), name=name)
    logits.set_weights([values / temperature for values in last.get_weights()])
    return answering
