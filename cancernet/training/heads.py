"""Linear heads on the features of a frozen backbone: logistic regression, then one network of Keras layers."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from cancernet.data.splits import Fold
from cancernet.models.structure import build_head

STRENGTHS = (1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 1e-1, 1.0)  # scikit-learn's C: the inverse of the L2 penalty
_FIRST = 4  # index of the strength that is tried first
_MAX_ITERATIONS = 1000
_MIN_DEVIATION = 1e-3  # of a feature; a smaller one would only amplify noise
_ROWS_IN_MEMORY = 8192


class LinearHead(NamedTuple):
    """A logistic regression on standardised features."""

    scaler: StandardScaler
    classifier: LogisticRegression

    def predict(self, features: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Predict probabilities [m, classes] of rows [m] of features [n, views, f], averaged over views."""
        blocks = map(self.scaler.transform, average_views(features, rows))
        return np.concatenate([self.classifier.predict_proba(block) for block in blocks])


class FittedHeads(NamedTuple):
    """One head for each ensemble member."""

    heads: list[LinearHead]
    strength: float  # chosen from STRENGTHS, the same for all
    losses: dict[float, float]  # strength -> log-loss of left-out images, for those that were tried
    seconds: float


class HeadData(NamedTuple):
    """What heads are fitted to: n images."""

    features: np.ndarray  # [n, views, f] float32, in memory or memory-mapped
    labels: np.ndarray  # class index [n]
    class_weights: np.ndarray  # in the loss [classes]
    scratch: Path  # folder with room for the features of one view


@threadpool_limits.wrap(limits=1)  # threads wait for each other in steps this small: two take 2 to 12 times as long
def fit_heads(data: HeadData, members: Sequence[Fold], *, folds: Sequence[Fold] | None = None) -> FittedHeads:
    """Fit a logistic regression with an L2 penalty for each ensemble member, to the mean features over the views.

    The strength is the one of STRENGTHS with the lowest log-loss, weighted by class, on the left-out images of `folds`
    (or `members`), searched from the middle outward until the loss rises. Memory holds no more than some thousand
    images.
    """
    started, chosen_by = time.perf_counter(), folds or members
    labels = data.labels[np.concatenate([split.validation for split in chosen_by])]
    weights = data.class_weights[labels]
    scalers = [fit_scaler(data.features, split.training) for split in chosen_by]
    tried: dict[int, tuple[float, list[LinearHead]]] = {}

    def loss_at(index: int) -> float:
        if index not in tried:
            fitted, predicted = [], []
            for split, scaler in zip(chosen_by, scalers, strict=True):
                fitted.append(fit_head(data, split.training, scaler, STRENGTHS[index]))
                predicted.append(fitted[-1].predict(data.features, split.validation))
            classes = range(len(data.class_weights))
            tried[index] = log_loss(labels, np.concatenate(predicted), sample_weight=weights, labels=classes), fitted
        return tried[index][0]

    best = _FIRST
    for step in (-1, 1):
        while 0 <= best + step < len(STRENGTHS) and loss_at(best + step) < loss_at(best):
            best += step
    losses = {STRENGTHS[index]: loss for index, (loss, _) in sorted(tried.items())}
    heads, strength = tried[best][1], STRENGTHS[best]
    if folds:
        trained_on = [split.training for split in members]
        heads = [fit_head(data, rows, fit_scaler(data.features, rows), strength) for rows in trained_on]
    return FittedHeads(heads, strength, losses, time.perf_counter() - started)


def fit_scaler(features: np.ndarray, rows: np.ndarray) -> StandardScaler:
    """Fit the standardisation of features [n, views, f], averaged over views, to some rows."""
    scaler = StandardScaler()
    for block in average_views(features, rows):
        scaler.partial_fit(block)
    scaler.scale_ = np.maximum(scaler.scale_, _MIN_DEVIATION)
    return scaler


def fit_head(data: HeadData, rows: np.ndarray, scaler: StandardScaler, strength: float) -> LinearHead:
    """Fit one head to some rows of the data."""
    with tempfile.TemporaryFile(dir=data.scratch) as file:  # unnamed: it disappears with the array that is mapped to it
        for block in average_views(data.features, rows):
            file.write(np.ascontiguousarray(scaler.transform(block), np.float32).data)
        file.flush()
        standardised = np.memmap(file, np.float32, "r").reshape(len(rows), -1)
    labels = data.labels[rows]
    classifier = LogisticRegression(C=strength, max_iter=_MAX_ITERATIONS)
    classifier.fit(standardised, labels, data.class_weights[labels])
    return LinearHead(scaler, classifier)


def join_heads(heads: Sequence[LinearHead]) -> keras.Sequential:
    """Build the network from features [n, f] to probabilities [n, classes]: the softmax of the heads' mean logits.

    The mean of linear heads is one linear head, on features standardised as for the first.
    """
    reference = heads[0].scaler
    kernels, biases = [], []
    for head in heads:
        kernel, bias = head.classifier.coef_.T, head.classifier.intercept_
        if kernel.shape[1] == 1:  # two classes: scikit-learn keeps the difference of their logits
            kernel, bias = np.hstack([-kernel / 2, kernel / 2]), np.append(-bias / 2, bias / 2)
        ratio = reference.scale_ / head.scaler.scale_
        shift = (reference.mean_ - head.scaler.mean_) / head.scaler.scale_
        kernels.append(ratio[:, None] * kernel)
        biases.append(bias + shift @ kernel)
    network = build_head(*kernels[0].shape)
    *_, normalisation, dense = network.layers
    scale = np.ones_like(reference.mean_)
    variance = reference.scale_**2 - normalisation.epsilon
    normalisation.set_weights([scale, 0 * scale, reference.mean_, variance])
    dense.set_weights([np.mean(kernels, axis=0), np.mean(biases, axis=0)])
    return network


def average_views(features: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Average some rows over their views, in blocks of [up to _ROWS_IN_MEMORY, f]."""
    for start in range(0, len(rows), _ROWS_IN_MEMORY):
        yield features[rows[start : start + _ROWS_IN_MEMORY]].mean(axis=1)
