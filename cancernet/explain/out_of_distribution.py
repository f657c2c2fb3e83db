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
from keras import ops
from threadpoolctl import threadpool_limits

from cancernet.config import INSIDE_SHARE
from cancernet.models.image_features import add_image_features
from cancernet.models.test_time_augmentation import average_over_views

COMPONENTS = 4  # principal components of the features; the length of what is left of them counts as one more
LEAST_IMAGES = 30  # a spread is fitted to
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
    """What validation images are like to each network of a run, in the order of `add_image_features`."""

    spreads: tuple[Spread, ...]


@threadpool_limits.wrap(limits=1)  # as a head is fitted, and for the same reason
def fit_familiar(values: Sequence[tuple[np.ndarray, np.ndarray]], *, channels: int) -> Familiar | None:
    """Learn what images are like from those that each network was not trained on.

    A distance is Mahalanobis', its covariance shrunk after Ledoit and Wolf (2004), of the colours, of the first
    principal components of the features, and of how long what those leave of the features is. The limit is fitted on
    distances of images left out with their whole patient, for an image is closer to a spread that it made itself.

    Args:
        values: image features [n, c + f] and patient number [n] of each network, in the order of `add_image_features`.
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
    values = add_image_features(model).output_shape[1:]
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
    network = average_over_views(add_image_features(model), views)
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
