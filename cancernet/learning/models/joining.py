"""Several trained networks as one: the softmax of their mean logits."""

from collections.abc import Sequence

import keras
import numpy as np
from keras import layers

from cancernet.learning.models.structure import has_backbone, split_model
from cancernet.learning.models.transfer import build_head


def shrink_first(network: keras.Sequential, image_size: int) -> keras.Sequential:
    """Let a network take larger images, which it scales down to its own size first.

    Bilinear interpolation at half the side is the mean of four pixels.
    """
    height, width, channels = network.input_shape[1:]
    if image_size == height:
        return network
    first = [keras.Input((image_size, image_size, channels), name="image"), layers.Resizing(height, width)]
    return keras.Sequential([*first, *network.layers], name=network.name)


def renew_head(model: keras.Model, classes: int) -> keras.Model:
    """Build a transfer model on the extractor of another, which they share, with a head that starts at random."""
    extractor, _ = split_model(model)
    return _attach(extractor, build_head(extractor.output_shape[-1], classes), model.name)


def join_members(networks: Sequence[keras.Model]) -> keras.Model:
    """Join networks of the same inputs and classes to one that answers the softmax of their mean logits.

    Networks that share a frozen extractor become one transfer model: their heads are linear when they answer, and so is
    the mean of them. Others stand side by side in a model whose sub-models are `member_1`, `member_2`, ...
    """
    if len(networks) == 1:
        return networks[0]
    if all(has_backbone(network) for network in networks):
        extractors, heads = zip(*(split_model(network) for network in networks), strict=True)
        if all(extractor is extractors[0] for extractor in extractors):
            return _attach(extractors[0], _average_heads(heads), networks[0].name)
    image = keras.Input(networks[0].input_shape[1:], name="image")
    members = [_answer_logits(network, f"member_{number}") for number, network in enumerate(networks, start=1)]
    logits = layers.Average(name="mean_logits")([member(image) for member in members])
    return keras.Model(image, layers.Softmax(name="probabilities")(logits), name=networks[0].name)


def _attach(extractor: keras.Model, head: keras.Model, name: str) -> keras.Model:
    image = keras.Input(extractor.input_shape[1:], name="image")
    return keras.Model(image, head(extractor(image)), name=name)


def _average_heads(heads: Sequence[keras.Model]) -> keras.Model:
    """One head [features -> probabilities] whose logits are the mean of the given ones', in inference."""
    joined = build_head(heads[0].input_shape[-1], heads[0].output_shape[-1])
    kernels, biases = zip(*map(_flatten_head, heads), strict=True)
    normalisation, dense = joined.layers[-2:]
    size = normalisation.gamma.shape
    variance = np.full(size, 1 - normalisation.epsilon)  # so that what is divided by is 1
    normalisation.set_weights([np.ones(size), np.zeros(size), np.zeros(size), variance])
    dense.set_weights([np.mean(kernels, axis=0), np.mean(biases, axis=0)])
    return joined


def _flatten_head(head: keras.Model) -> tuple[np.ndarray, np.ndarray]:
    """Kernel [f, classes] and bias [classes], float64, of a head's logits in inference."""
    normalisation, dense = head.layers[-2:]
    gamma, beta, mean, variance = (np.asarray(weight, np.float64) for weight in normalisation.get_weights())
    kernel, bias = (np.asarray(weight, np.float64) for weight in dense.get_weights())
    scale = gamma / np.sqrt(variance + normalisation.epsilon)
    return scale[:, None] * kernel, bias + (beta - mean * scale) @ kernel


def _answer_logits(network: keras.Model, name: str) -> keras.Model:
    """The same network without its softmax, sharing all weights but a copy of the last layer's."""
    if has_backbone(network):
        extractor, head = split_model(network)
        return _attach(extractor, _answer_logits(head, "head"), name)
    *others, last = network.layers
    if isinstance(last, layers.Softmax):  # joined already
        return keras.Model(network.inputs[0], others[-1].output, name=name)
    logits = layers.Dense(last.units, name="logits")
    answering = keras.Sequential([keras.Input(network.input_shape[1:]), *others, logits], name=name)
    logits.set_weights(last.get_weights())
    return answering
