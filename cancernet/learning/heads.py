"""Linear heads on the features of a frozen backbone: fitted until they converge, not by epochs."""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from cancernet.learning.models.structure import split_model

STRENGTHS = (1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 1e-1, 1.0)  # one over the weight of the squared coefficients
_FIRST = STRENGTHS.index(1e-3)
_ITERATIONS = 1000
_AT_ONCE = 8192  # images in memory at a time
_SMALLEST_DEVIATION = 1e-3  # of a feature; one that hardly varies is not blown up


class Heads(NamedTuple):
    """One fitted head for each member."""

    fitted: list[Pipeline]
    strength: float  # chosen from STRENGTHS, the same for all
    losses: dict[float, float]  # strength -> log-loss of images left out, of those that were tried
    seconds: float


def fit_heads(
    features: np.ndarray,
    labels: np.ndarray,
    members: Sequence[Mapping[str, np.ndarray]],
    weights: dict[int, float],
    *,
    scratch: Path,
) -> Heads:
    """Fit a logistic regression with a penalty on the squared coefficients for each member.

    The strength of the penalty is the one with the lowest log-loss, weighted by class, of the images that the members
    leave out, so it is chosen by patient. It is looked for among STRENGTHS, from the middle on to where it gets worse.

    A head is fitted to the mean over the views of an image. What it is fitted to lies in a file, and no more than some
    thousand images are in memory at once.

    Args:
        features: [n, views, f] float32, in memory or mapped from a file.
        labels: class index [n].
        members: of each, the rows that are its `training` and its `validation`.
        weights: class index -> weight in the loss.
        scratch: folder with room for the features of one view.
    """
    started = time.perf_counter()
    tried: dict[int, tuple[float, list[Pipeline]]] = {}

    def loss_at(place: int) -> float:
        if place not in tried:
            fitted, told = [], []
            for rows in members:
                own = features, labels, rows["training"]
                fitted.append(_fit_head(*own, weights, STRENGTHS[place], scratch))
                told += [fitted[-1].predict_proba(some) for some in _mean_views(features, rows["validation"])]
            left_out, told = np.concatenate([rows["validation"] for rows in members]), np.concatenate(told)
            of_images = np.array([weights[label] for label in labels[left_out]])
            loss = log_loss(labels[left_out], told, sample_weight=of_images, labels=sorted(weights))
            tried[place] = loss, fitted
        return tried[place][0]

    best = _FIRST
    for step in (-1, 1):
        while 0 <= best + step < len(STRENGTHS) and loss_at(best + step) < loss_at(best):
            best += step
    losses = {STRENGTHS[place]: loss for place, (loss, _) in sorted(tried.items())}
    return Heads(tried[best][1], STRENGTHS[best], losses, time.perf_counter() - started)


def set_head(model: keras.Model, fitted: Pipeline) -> None:
    """Put a fitted head into a transfer model: its scaling as batch normalisation, its coefficients as dense layer."""
    *_, normalisation, dense = split_model(model)[1].layers
    scaler, regression = fitted[0], fitted[-1]
    size = np.ones_like(scaler.mean_)
    normalisation.set_weights([size, 0 * size, scaler.mean_, scaler.scale_**2 - normalisation.epsilon])
    kernel, bias = regression.coef_.T, regression.intercept_
    if kernel.shape[1] == 1:  # of two classes the difference of their logits
        kernel, bias = np.hstack([-kernel / 2, kernel / 2]), np.append(-bias / 2, bias / 2)
    dense.set_weights([kernel, bias])


def _fit_head(
    features: np.ndarray,
    labels: np.ndarray,
    rows: np.ndarray,
    weights: dict[int, float],
    strength: float,
    scratch: Path,
) -> Pipeline:
    scaler = StandardScaler()
    for some in _mean_views(features, rows):
        scaler.partial_fit(some)
    scaler.scale_ = np.maximum(scaler.scale_, _SMALLEST_DEVIATION)
    regression = LogisticRegression(C=strength, class_weight=weights, max_iter=_ITERATIONS)
    regression.fit(_transform(scaler, features, rows, scratch), labels[rows])
    return make_pipeline(scaler, regression)


def _transform(scaler: StandardScaler, features: np.ndarray, rows: np.ndarray, scratch: Path) -> np.ndarray:
    """Standardised mean features of some rows, [m, f] float32, mapped from a file without a name: it goes with them."""
    with tempfile.TemporaryFile(dir=scratch) as file:
        for some in _mean_views(features, rows):
            file.write(scaler.transform(some).data)
        file.flush()
        return np.memmap(file, np.float32, "r", shape=(len(rows), features.shape[2]))


def _mean_views(features: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    """The mean over the views of some rows, [up to _AT_ONCE, f] at a time."""
    for start in range(0, len(rows), _AT_ONCE):
        yield features[rows[start : start + _AT_ONCE]].mean(axis=1)
