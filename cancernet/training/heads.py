"""Heads on the features of a frozen backbone: fitted until they converge, then put into one network of Keras layers."""

import math
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from cancernet.data.splits import Fold
from cancernet.models.head import Centres, Dense, build_linear_head, build_wide_head

_ITERATIONS = 1000
_SMALLEST_DEVIATION = 1e-3  # of a feature; one that hardly varies is not blown up
_AT_ONCE = 8192  # images in memory at a time
_LANDMARKS = 300  # of a kernel
_SMALLEST_EIGENVALUE = 1e-4  # of the largest; what a float32 network cannot tell from noise is left out
_HIDDEN_UNITS, _BATCH = 64, 200
_LEAST_EPOCHS, _LEAST_STEPS = 20, 600  # of a hidden layer: few images need many epochs


class Kind(NamedTuple):
    """What is tried of a kind of head."""

    strengths: tuple[float, ...]  # one over the weight of the squared coefficients
    first: int  # of them that is tried first


HEADS = {
    "linear": Kind((1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 1e-1, 1.0), 4),
    "kernel": Kind((1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0, 100.0), 4),
    "hidden": Kind((1e-3, 1e-2, 1e-1, 1.0, 10.0), 2),
}


class Kernel(NamedTuple):
    """A Gaussian kernel exp(-width |x - l|^2) to m landmarks, weighed so that inner products are nearly the kernel's.

    Williams & Seeger, "Using the Nystroem method to speed up kernel machines", NIPS 2000.
    """

    landmarks: np.ndarray  # [m, f], standardised
    width: float
    weights: np.ndarray  # [m, k]

    def transform(self, standardised: np.ndarray) -> np.ndarray:
        """[n, f] to [n, k]."""
        return rbf_kernel(standardised, self.landmarks, gamma=self.width) @ self.weights


class Space(NamedTuple):
    """What a classifier takes of mean features: they are standardised, and perhaps carried into a kernel's space."""

    kind: str  # of head
    scaler: StandardScaler
    kernel: Kernel | None

    def transform(self, features: np.ndarray) -> np.ndarray:
        """What the classifier takes of mean features [n, f]."""
        standardised = self.scaler.transform(features)
        return self.kernel.transform(standardised) if self.kernel else standardised


class FittedHead(NamedTuple):
    """From mean features to probabilities."""

    space: Space
    classifier: LogisticRegression | MLPClassifier

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Probabilities [n, classes] of mean features [n, f]."""
        return self.classifier.predict_proba(self.space.transform(features))


class Heads(NamedTuple):
    """One fitted head for each member."""

    fitted: list[FittedHead]
    strength: float  # chosen from those of the kind, the same for all
    losses: dict[float, float]  # strength -> log-loss of images left out, of those that were tried
    seconds: float


class Examples(NamedTuple):
    """What heads are fitted to: n images."""

    features: np.ndarray  # [n, views, f] float32, in memory or mapped from a file
    labels: np.ndarray  # class index [n]
    weights: dict[int, float]  # class index -> weight in the loss
    scratch: Path  # folder with room for the features of one view


@threadpool_limits.wrap(limits=1)  # in steps so small threads wait for each other: two take 2 to 12 times as long
def fit_heads(
    examples: Examples,
    members: Sequence[Fold],
    *,
    parts: Sequence[Fold] | None = None,
    kind: str = "linear",
    seed: int = 0,
) -> Heads:
    """Fit a head with a penalty on the squared coefficients for each member.

    The strength of the penalty is the one with the lowest log-loss, weighted by class, of the images that the parts
    leave out, so it is chosen by patient. It is looked for among those of the kind, from the first on to where it gets
    worse.

    A head is fitted to the mean over the views of an image. What it is fitted to lies in a file, and no more than some
    thousand images are in memory at once.

    Args:
        members: of each, the rows of `examples` that are its `training` and its `validation`.
        parts: such rows, by which the strength is chosen; None is by the members themselves.
        kind: of head: `linear`, a logistic regression; `kernel`, one on Gaussian kernels to landmarks, which are drawn
            from training; `hidden`, one hidden layer.
        seed: of what is random.
    """
    started = time.perf_counter()
    tried: dict[int, tuple[float, list[FittedHead]]] = {}
    strengths, best = HEADS[kind]
    chosen_by = parts or members
    spaces = [fit_space(examples, rows.training, kind, seed) for rows in chosen_by]
    left_out = np.concatenate([rows.validation for rows in chosen_by])
    of_images = np.array([examples.weights[label] for label in examples.labels[left_out]])

    def loss_at(place: int) -> float:
        if place not in tried:
            fitted, told = [], []
            for rows, space in zip(chosen_by, spaces, strict=True):
                fitted.append(fit_head(examples, rows.training, space, strengths[place], seed))
                told += [fitted[-1].predict(some) for some in _mean_views(examples.features, rows.validation)]
            loss = log_loss(
                examples.labels[left_out],
                np.concatenate(told),
                sample_weight=of_images,
                labels=sorted(examples.weights),
            )
            tried[place] = loss, fitted
        return tried[place][0]

    for step in (-1, 1):
        while 0 <= best + step < len(strengths) and loss_at(best + step) < loss_at(best):
            best += step
    losses = {strengths[place]: loss for place, (loss, _) in sorted(tried.items())}
    fitted = tried[best][1]
    if parts:
        trained_on = [rows.training for rows in members]
        spaces = [fit_space(examples, rows, kind, seed) for rows in trained_on]
        fitted = [fit_head(examples, *each, strengths[best], seed) for each in zip(trained_on, spaces, strict=True)]
    return Heads(fitted, strengths[best], losses, time.perf_counter() - started)


def fit_space(examples: Examples, rows: np.ndarray, kind: str, seed: int) -> Space:
    """Fit what a head of some rows takes, whatever its strength; the arguments are as for `fit_heads`."""
    scaler = StandardScaler()
    for some in _mean_views(examples.features, rows):
        scaler.partial_fit(some)
    scaler.scale_ = np.maximum(scaler.scale_, _SMALLEST_DEVIATION)
    kernel = _choose_landmarks(examples.features, rows, scaler, seed) if kind == "kernel" else None
    return Space(kind, scaler, kernel)


def fit_head(examples: Examples, rows: np.ndarray, space: Space, strength: float, seed: int) -> FittedHead:
    """Fit one head to some rows; the arguments are as for `fit_heads`."""
    classifier = LogisticRegression(C=strength, max_iter=_ITERATIONS)
    if space.kind == "hidden":
        classifier = _make_hidden(len(rows), strength, seed)
    labels = examples.labels[rows]
    transformed = _write(map(space.transform, _mean_views(examples.features, rows)), len(rows), examples.scratch)
    with warnings.catch_warnings():
        if space.kind == "hidden":  # its number of epochs is fixed
            warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit(transformed, labels, np.array([examples.weights[label] for label in labels]))
    return FittedHead(space, classifier)


def build_head(fitted: Sequence[FittedHead]) -> keras.Model:
    """Build the network from features [n, f] to probabilities [n, classes] that answers as heads of one kind together.

    Its answer is the softmax of their mean logits. Linear heads become one linear head; those of others stand side by
    side in one hidden layer. All take features that are standardised as for the first.
    """
    reference = fitted[0].space.scaler
    outputs = [_read_output(each.classifier) for each in fitted]
    if fitted[0].space.kind == "linear":
        outputs = [_move(output, each.space.scaler, reference) for output, each in zip(outputs, fitted, strict=True)]
        mean = Dense(*(np.mean(part, axis=0) for part in zip(*outputs, strict=True)))
        return build_linear_head(reference.mean_, reference.scale_, mean)
    if fitted[0].space.kind == "kernel":
        hidden = [_centre_kernel(each, reference) for each in fitted]
        outputs = [
            Dense(each.space.kernel.weights @ output.kernel, output.bias) for each, output in zip(fitted, outputs)
        ]
    else:
        first = [Dense(each.classifier.coefs_[0], each.classifier.intercepts_[0]) for each in fitted]
        hidden = [_move(layer, each.space.scaler, reference) for layer, each in zip(first, fitted)]
    kernels, biases = zip(*outputs, strict=True)
    joined = Dense(np.concatenate(kernels) / len(fitted), np.mean(biases, axis=0))
    return build_wide_head(reference.mean_, reference.scale_, hidden, joined)


def _make_hidden(images: int, strength: float, seed: int) -> MLPClassifier:
    batch = min(_BATCH, images)
    epochs = max(_LEAST_EPOCHS, math.ceil(_LEAST_STEPS / math.ceil(images / batch)))
    return MLPClassifier(
        _HIDDEN_UNITS,
        alpha=batch / (strength * images),  # scikit-learn divides it by the images of a batch, not by all
        batch_size=batch,
        max_iter=epochs,
        n_iter_no_change=epochs,
        random_state=seed,
    )


def _choose_landmarks(features: np.ndarray, rows: np.ndarray, scaler: StandardScaler, seed: int) -> Kernel:
    """A kernel of width 1 / f, whose landmarks are training images drawn at random."""
    drawn = np.sort(np.random.default_rng(seed).choice(rows, min(_LANDMARKS, len(rows)), replace=False))
    landmarks = np.concatenate([scaler.transform(some) for some in _mean_views(features, drawn)])
    width = 1 / landmarks.shape[1]
    values, vectors = np.linalg.eigh(rbf_kernel(landmarks, gamma=width).astype(np.float64))
    kept = values > _SMALLEST_EIGENVALUE * values[-1]
    return Kernel(landmarks, width, (vectors[:, kept] / np.sqrt(values[kept])).astype(np.float32))


def _write(blocks: Iterable[np.ndarray], rows: int, scratch: Path) -> np.ndarray:
    """Blocks [m, k] float32, `rows` in all, as one array mapped from a file without a name: it goes with the array."""
    with tempfile.TemporaryFile(dir=scratch) as file:
        for block in blocks:
            file.write(np.ascontiguousarray(block, np.float32).data)
        file.flush()
        return np.memmap(file, np.float32, "r").reshape(rows, -1)


def _mean_views(features: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    """The mean over the views of some rows, [up to _AT_ONCE, f] at a time."""
    for start in range(0, len(rows), _AT_ONCE):
        yield features[rows[start : start + _AT_ONCE]].mean(axis=1)


def _read_output(classifier: LogisticRegression | MLPClassifier) -> Dense:
    """The last layer of a classifier, with an output for each class."""
    if isinstance(classifier, MLPClassifier):
        kernel, bias = classifier.coefs_[-1], classifier.intercepts_[-1]
    else:
        kernel, bias = classifier.coef_.T, classifier.intercept_
    if kernel.shape[1] == 1:  # of two classes the difference of their logits
        kernel, bias = np.hstack([-kernel / 2, kernel / 2]), np.append(-bias / 2, bias / 2)
    return Dense(kernel, bias)


def _move(layer: Dense, own: StandardScaler, reference: StandardScaler) -> Dense:
    """A layer on features that its own scaler standardised, as one on features that another did."""
    ratio, shift = _compare(own, reference)
    return Dense(ratio[:, None] * layer.kernel, layer.bias + shift @ layer.kernel)


def _centre_kernel(fitted: FittedHead, reference: StandardScaler) -> Centres:
    """A head's kernel on features that another scaler standardised."""
    ratio, shift = _compare(fitted.space.scaler, reference)
    return Centres(ratio, fitted.space.kernel.landmarks - shift, fitted.space.kernel.width)


def _compare(own: StandardScaler, reference: StandardScaler) -> tuple[np.ndarray, np.ndarray]:
    """Ratio and shift [f] each: what the own scaler makes is ratio * what the other makes + shift."""
    return reference.scale_ / own.scale_, (reference.mean_ - own.mean_) / own.scale_
