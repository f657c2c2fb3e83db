"""An ensemble as one network: the softmax of the mean logits of its members."""

from collections.abc import Sequence

import keras
from keras import layers

from cancernet.models.structure import attach_head, has_backbone, split_model


def downsample_input(network: keras.Sequential, image_size: int) -> keras.Sequential:
    """Let a network take larger images, which it resizes to its own size: half the side is the mean of four pixels."""
    height, width, channels = network.input_shape[1:]
    if image_size == height:
        return network
    first = [keras.Input((image_size, image_size, channels), name="image"), layers.Resizing(height, width)]
    return keras.Sequential([*first, *network.layers], name=network.name)


def join_members(networks: Sequence[keras.Model], temperatures: Sequence[float] | None = None) -> keras.Model:
    """Join networks with the same inputs and classes into one whose output is the softmax of their mean logits.

    The members become sub-models with the names `member_1`, `member_2`, ... A single network is returned as it is. The
    logits of each network are divided by its temperature, 1 by default.
    """
    if len(networks) == 1:
        return networks[0]
    image = keras.Input(networks[0].input_shape[1:], name="image")
    outputs = []
    for number, (network, divisor) in enumerate(zip(networks, temperatures or [1.0] * len(networks), strict=True), 1):
        outputs.append(_output_logits(network, f"member_{number}", divisor)(image))
    logits = layers.Average(name="mean_logits")(outputs)
    return keras.Model(image, layers.Softmax(name="probabilities")(logits), name=networks[0].name)


def _output_logits(network: keras.Model, name: str, temperature: float) -> keras.Model:
    """Return the network without its softmax; it shares all weights except a scaled copy of the last layer's."""
    if has_backbone(network):
        extractor, head = split_model(network)
        return attach_head(extractor, _output_logits(head, "head", temperature), name)
    *others, last = network.layers
    if isinstance(last, layers.Softmax):  # joined already
        return keras.Model(network.inputs[0], layers.Rescaling(1 / temperature)(others[-1].output), name=name)
    logits = layers.Dense(last.units, name="logits")
    network_of_logits = keras.Sequential([keras.Input(network.input_shape[1:]), *others, logits], name=name)
    logits.set_weights([values / temperature for values in last.get_weights()])
    return network_of_logits
