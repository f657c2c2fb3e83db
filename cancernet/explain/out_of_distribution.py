"""Out-of-distribution detection: whether images are like the validation images, by colour and by features.

A run keeps the distribution of its validation images; images farther from it than nearly all of these are reported.
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

COMPONENTS = 4  # principal components of the features; the length of their residual is one more coordinate
MIN_IMAGES = 30  # for a reference distribution
_FOLDS = 5  # in which images are measured without those of their own patient
_MIN_DEVIATION = 0.01  # of a coordinate, so that one that hardly varies is not magnified


class ReferenceDistribution(NamedTuple):
    """Distribution of images that one network was not trained on; float32, of c colours, f features, k components."""

    mean: np.ndarray  # of the features [f]
    components: np.ndarray  # [f, k]
    centre: np.ndarray  # mean of the coordinates [c + k + 1]: colours, components, length of the residual
    whitening: np.ndarray  # [c + k + 1, c + k + 1]: scales differences from the centre to unit variance
    limit: float  # their length above which an image is out of distribution


@dataclass(frozen=True, eq=False)  # hashed by identity, as a key of the cache below
class OutOfDistributionDetector:
    """A reference distribution for each network of a run, in the order of `add_image_features`."""

    references: tuple[ReferenceDistribution, ...]


@threadpool_limits.wrap(limits=1)  # like the fit of a head: the same numbers with any number of cores
def fit_detector(values: Sequence[tuple[np.ndarray, np.ndarray]], *, channels: int) -> OutOfDistributionDetector | None:
    """Fit a detector to images that the networks were not trained on; None if they are too few or of a single patient.

    The distance is Mahalanobis', with a shrunk covariance (Ledoit & Wolf 2004), of the colours, the first principal
    components of the features, and the length of their residual. The limit is a quantile of the distances of images
    that were left out with all of their patient: an image is closer to a distribution that it is part of. `values` are,
    for each network in the order of `add_image_features`, values [n, c + f] and patient numbers [n].
    """
    if not values or any(len(of_images) < MIN_IMAGES or len(set(patients)) < 2 for of_images, patients in values):
        return None
    return OutOfDistributionDetector(tuple(_fit_reference(*each, 3 * channels) for each in values))


def check_detector(model: keras.Model, detector: OutOfDistributionDetector) -> None:
    """Raise ValueError unless a detector has finite float32 numbers in the shapes of a model's networks."""
    colours = 3 * model.input_shape[-1]
    values = add_image_features(model).output_shape[1:]
    for (_, count), reference in zip(values, detector.references, strict=True):
        *arrays, limit = reference
        size = len(reference.centre)
        shapes = [(count - colours,), (count - colours, size - colours - 1), (size,), (size, size)]
        if [array.shape for array in arrays] != shapes or {array.dtype.name for array in arrays} != {"float32"}:
            raise ValueError("the shapes do not match the network")
        if not all(np.isfinite(part).all() for part in reference) or not limit > 0:
            raise ValueError("not all are finite numbers")


@lru_cache(maxsize=1)
def add_detector(model: keras.Model, detector: OutOfDistributionDetector | None, views: str) -> keras.Model:
    """Build a network from raw images to [probabilities [n, classes], distance [n]], averaged over views of an image.

    Images with a distance, the mean over several networks, above 1 are out of distribution; NaN without a detector.
    """
    network = average_over_views(add_image_features(model), views)
    image = keras.Input(model.input_shape[1:])
    probabilities, *values = network(image)
    if detector is None:
        return keras.Model(image, [probabilities, probabilities[:, 0] * np.nan])
    distances = [_measure(*each) for each in zip(detector.references, values, strict=True)]
    return keras.Model(image, [probabilities, ops.mean(ops.stack(distances), axis=0)])


def _fit_reference(values: np.ndarray, patients: np.ndarray, colours: int) -> ReferenceDistribution:
    from sklearn.model_selection import GroupKFold  # 50 MB that prediction does not need

    folds = GroupKFold(min(_FOLDS, len(set(patients))))
    distances = np.empty(len(values))
    for others, own in folds.split(values, groups=patients):
        distances[own] = ops.convert_to_numpy(_measure(_fit_without_limit(values[others], colours), values[own]))
    return _fit_without_limit(values, colours)._replace(limit=float(np.quantile(distances, INSIDE_SHARE)))


def _fit_without_limit(values: np.ndarray, colours: int) -> ReferenceDistribution:
    """Fit the distribution of these images; its limit is 1."""
    from sklearn.covariance import LedoitWolf
    from sklearn.decomposition import PCA

    features = values[:, colours:]
    found = PCA(min(COMPONENTS, *features.shape), random_state=0).fit(features)
    mean, components = found.mean_.astype(np.float32), found.components_.T.astype(np.float32)
    coordinates = ops.convert_to_numpy(_locate(mean, components, values)).astype(np.float64)
    centre, deviation = coordinates.mean(axis=0), np.maximum(coordinates.std(axis=0), _MIN_DEVIATION)
    precision = LedoitWolf(assume_centered=True).fit((coordinates - centre) / deviation).precision_
    whitening = np.linalg.cholesky(precision) / deviation[:, None]
    return ReferenceDistribution(mean, components, centre.astype(np.float32), whitening.astype(np.float32), 1.0)


def _measure(reference: ReferenceDistribution, values):
    """Distances [n] of values [n, c + f], where 1 is the limit."""
    difference = _locate(reference.mean, reference.components, values) - reference.centre
    return ops.norm(ops.matmul(difference, reference.whitening), axis=1) / reference.limit


def _locate(mean: np.ndarray, components: np.ndarray, values):
    """Coordinates [n, c + k + 1] of values [n, c + f]: colours, components, and the length of the residual."""
    values, colours = ops.cast(values, "float32"), values.shape[1] - len(mean)
    features = values[:, colours:] - mean
    along = ops.matmul(features, components)
    residual = ops.norm(features - ops.matmul(along, components.T), axis=1, keepdims=True)
    return ops.concatenate([values[:, :colours], along, residual], axis=1)
