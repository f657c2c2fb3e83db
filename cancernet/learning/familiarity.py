"""Whether images are like those that a run was made for, by their colours and the network's last features.

A network answers every image, also one of another organ, stain or kind. What validation images are like is kept with
the run, and an image that lies farther from them than nearly all of them do is told of.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import keras
import numpy as np
from keras import layers, ops
from threadpoolctl import threadpool_limits

from cancernet.config import INSIDE_SHARE
from cancernet.learning.models.structure import has_backbone, split_model
from cancernet.learning.views import average_over_views

COMPONENTS = 4  # principal components of the features; the length of what is left of them counts as one more
LEAST_IMAGES, MOST_IMAGES = 30, 10_000  # a spread is fitted to
_FOLDS = 5  # to measure images without their own patients
_LEAST_DEVIATION = 0.01  # of a coordinate; one that hardly varies is not blown up


class Spread(NamedTuple):
    """Where those images lie that one network was not trained on; float32, of c colours, f features, k components."""

    mean: np.ndarray  # of the features [f]
    components: np.ndarray  # [f, k]
    centre: np.ndarray  # mean of the coordinates [c + k + 1]: colours, components, length of what is left
    whitening: np.ndarray  # [c + k + 1, c + k + 1]: turns differences from the centre into ones of variance 1
    limit: float  # their length up to which an image lies inside


@dataclass(frozen=True, eq=False)  # so that a network can be kept for it
class Familiar:
    """What validation images are like to each network of a run, in the order of `describe_images`."""

    spreads: tuple[Spread, ...]


@lru_cache(maxsize=2)  # a backbone takes seconds to build again
def describe_images(model: keras.Model) -> keras.Model:
    """Return a network that shares the model's weights and answers its output, and values for each network in it.

    The values of an image are its colours, as `describe_colours`, and the features that the network's last layer
    takes; of a transfer model those of its extractor.

    Returns:
        Raw images to [output [n, classes], values [n, c + f], ...], one entry of values for each network.
    """
    image = keras.Input(model.input_shape[1:])
    output, *features = _keep_features(model)(image)
    return keras.Model(image, [output, *(ops.concatenate([_colours(image), each], axis=1) for each in features)])


def describe_colours(shape: tuple[int, int, int]) -> keras.Model:
    """Return a network without weights from raw images to colours [n, c], c three times the channels.

    They are mean and standard deviation of each channel, and its mean absolute difference from the mean of all, 0 to 1.
    """
    image = keras.Input(shape)
    return keras.Model(image, _colours(image))


def take_some(values: np.ndarray) -> np.ndarray:
    """At most MOST_IMAGES of the rows of an array, evenly spread over them."""
    return values[:: -(-len(values) // MOST_IMAGES)] if len(values) else values


@threadpool_limits.wrap(limits=1)  # as a head is fitted, and for the same reason
def fit_familiar(values: Sequence[tuple[np.ndarray, np.ndarray]], *, channels: int) -> Familiar | None:
    """Learn what images are like from those that each network was not trained on.

    A distance is Mahalanobis', its covariance shrunk after Ledoit and Wolf (2004), of the colours, of the first
    principal components of the features, and of how long what those leave of the features is. The limit is fitted on
    distances of images left out with their whole patient, for an image is closer to a spread that it made itself.

    Args:
        values: of each network in the order of `describe_images` the values [n, c + f], and the patient's number [n].
        channels: of the images.

    Returns:
        None where a network has fewer than LEAST_IMAGES, or images of one patient only, or there is no network.
    """
    if not values or any(len(of_images) < LEAST_IMAGES or len(set(patients)) < 2 for of_images, patients in values):
        return None
    return Familiar(tuple(_fit_spread(of_images, patients, 3 * channels) for of_images, patients in values))


def check_familiar(model: keras.Model, familiar: Familiar) -> None:
    """See that spreads are finite float32 numbers, in the shapes of the networks in a model.

    Raises:
        ValueError: they are not.
    """
    colours = 3 * model.input_shape[-1]
    values = describe_images(model).output_shape[1:]
    for (_, count), spread in zip(values, familiar.spreads, strict=True):
        places = len(spread.centre)
        shapes = [(count - colours,), (count - colours, places - colours - 1), (places,), (places, places)]
        if [part.shape for part in spread[:-1]] != shapes or {part.dtype.name for part in spread[:-1]} != {"float32"}:
            raise ValueError("the shapes do not fit the network")
        if not all(np.isfinite(part).all() for part in spread) or not spread.limit > 0:
            raise ValueError("not all are finite numbers")


@lru_cache(maxsize=1)
def watch(model: keras.Model, familiar: Familiar | None, views: str) -> keras.Model:
    """Return a network that answers the mean over views of an image, and how far the image lies from familiar ones.

    Args:
        model: raw images to probabilities.
        familiar: of the same model; None where it is not known.
        views: as `views.average_over_views`.

    Returns:
        Raw images to [probabilities [n, classes], distance [n]]. Above 1 an image lies outside; of several networks it
        is their mean. NaN where it is not known.
    """
    network = average_over_views(describe_images(model), views)
    image = keras.Input(model.input_shape[1:])
    probabilities, *values = network(image)
    if familiar is None:
        return keras.Model(image, [probabilities, probabilities[:, 0] * np.nan])
    distances = [_measure(spread, of_image) for of_image, spread in zip(values, familiar.spreads, strict=True)]
    return keras.Model(image, [probabilities, ops.mean(ops.stack(distances), axis=0)])


def _fit_spread(values: np.ndarray, patients: np.ndarray, colours: int) -> Spread:
    from sklearn.model_selection import GroupKFold  # 50 MB that answering does not need

    folds = GroupKFold(min(_FOLDS, len(set(patients))))
    alone = np.empty(len(values))
    for others, own in folds.split(values, groups=patients):
        alone[own] = ops.convert_to_numpy(_measure(_shrink(values[others], colours), values[own]))
    return _shrink(values, colours)._replace(limit=float(np.quantile(alone, INSIDE_SHARE)))


def _shrink(values: np.ndarray, colours: int) -> Spread:
    """A spread of these images, with a limit of 1."""
    from sklearn.covariance import LedoitWolf
    from sklearn.decomposition import PCA

    features = values[:, colours:]
    found = PCA(min(COMPONENTS, *features.shape), random_state=0).fit(features)
    mean, components = found.mean_.astype(np.float32), found.components_.T.astype(np.float32)
    coordinates = ops.convert_to_numpy(_locate(mean, components, values)).astype(np.float64)
    centre, deviation = coordinates.mean(axis=0), np.maximum(coordinates.std(axis=0), _LEAST_DEVIATION)
    precision = LedoitWolf(assume_centered=True).fit((coordinates - centre) / deviation).precision_
    whitening = np.linalg.cholesky(precision) / deviation[:, None]
    return Spread(mean, components, centre.astype(np.float32), whitening.astype(np.float32), 1.0)


def _measure(spread: Spread, values):
    """Distances [n] of values [n, c + f] from a spread; above 1 an image lies outside."""
    apart = _locate(spread.mean, spread.components, values) - spread.centre
    return ops.norm(ops.matmul(apart, spread.whitening), axis=1) / spread.limit


def _locate(mean: np.ndarray, components: np.ndarray, values):
    """Coordinates [n, c + k + 1] of values [n, c + f]: colours, components, and the length of what is left."""
    values, colours = ops.cast(values, "float32"), values.shape[1] - len(mean)
    features = values[:, colours:] - mean
    along = ops.matmul(features, components)
    rest = ops.norm(features - ops.matmul(along, components.T), axis=1, keepdims=True)
    return ops.concatenate([values[:, :colours], along, rest], axis=1)


def _keep_features(network: keras.Model) -> keras.Model:
    """The same network, answering [output, features, ...]: those that the last layer of each network in it takes."""
    image = keras.Input(network.input_shape[1:])
    members = [layer for layer in network.layers if layer.name.startswith("member_")]
    if members:
        members.sort(key=lambda layer: int(layer.name.removeprefix("member_")))
        output, features = [], []
        for member in members:
            logits, *own = _keep_features(member)(image)
            output.append(logits)
            features += own
        for layer in network.layers:  # the mean of the logits, and a softmax
            if layer not in members and not isinstance(layer, layers.InputLayer):
                output = layer(output)
        return keras.Model(image, [output, *features], name=network.name)
    if has_backbone(network):
        extractor, head = split_model(network)
        features = extractor(image)
        return keras.Model(image, [head(features), features], name=network.name)
    *before, last = (layer for layer in network.layers if not isinstance(layer, layers.InputLayer))
    features = image
    for layer in before:
        features = layer(features)
    return keras.Model(image, [last(features), features], name=network.name)


def _colours(image):
    values = ops.cast(image, "float32") / 255
    hues = ops.abs(values - ops.mean(values, axis=-1, keepdims=True))
    parts = [ops.mean(values, axis=(1, 2)), ops.std(values, axis=(1, 2)), ops.mean(hues, axis=(1, 2))]
    return ops.concatenate(parts, axis=1)
