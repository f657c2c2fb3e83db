"""Linear heads on the features of a frozen backbone: fitted until they converge, not by epochs."""

import time
from collections.abc import Mapping, Sequence
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
_SMALLEST_DEVIATION = 1e-3  # of a feature; one that hardly varies is not blown up


class Heads(NamedTuple):
    """One fitted head for each member."""

    fitted: list[Pipeline]
    strength: float  # chosen from STRENGTHS, the same for all
    losses: dict[float, float]  # strength -> log-loss of images left out, of those that were tried
    seconds: float


def fit_heads(
    features: np.ndarray, labels: np.ndarray, members: Sequence[Mapping[str, np.ndarray]], weights: dict[int, float]
) -> Heads:
    """Fit a logistic regression with a penalty on the squared coefficients for each member.

    The strength of the penalty is the one with the lowest log-loss, weighted by class, of the images that the members
    leave out, so it is chosen by patient. It is looked for among STRENGTHS, from the middle on to where it gets worse.

    Args:
        features: [n, f], the mean over the views of an image.
        labels: class index [n].
        members: of each, the rows that are its `training` and its `validation`.
        weights: class index -> weight in the loss.
    """
    started = time.perf_counter()
    tried: dict[int, tuple[float, list[Pipeline]]] = {}

    def loss_at(place: int) -> float:
        if place not in tried:
            fitted = [_fit_head(features, labels, rows["training"], weights, STRENGTHS[place]) for rows in members]
            left_out = np.concatenate([rows["validation"] for rows in members])
            told = np.concatenate(
                [each.predict_proba(features[rows["validation"]]) for each, rows in zip(fitted, members, strict=True)]
            )
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
    features: np.ndarray, labels: np.ndarray, rows: np.ndarray, weights: dict[int, float], strength: float
) -> Pipeline:
    scaler = StandardScaler().fit(features[rows])
    scaler.scale_ = np.maximum(scaler.scale_, _SMALLEST_DEVIATION)
    regression = LogisticRegression(C=strength, class_weight=weights, max_iter=_ITERATIONS)
    regression.fit(scaler.transform(features[rows]), labels[rows])
    return make_pipeline(scaler, regression)
