"""Networks asked for scores: views of an image, log-probabilities, and the features of a frozen backbone."""

from collections.abc import Mapping

import keras
import numpy as np

from cancernet import InputError
from cancernet.data.images import ImageStore
from cancernet.learning.pipeline import evaluation_batches, naming_bad_files

BATCH = 64  # images that a network answers at a time; more is no faster on a CPU and takes memory


def log_scores(probabilities: np.ndarray) -> np.ndarray:
    """Log-probabilities `[n, k]` float64 of a network's softmax outputs `[n, k]`, float32 or float64, 0 to 1.

    Outputs are clipped at the smallest normal float32. Of two classes the difference of the columns is the log-odds; it
    tells images apart even where the larger output has saturated to exactly 1, since the smaller one has not.

    Raises InputError where an output is not a number.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    broken = int((~np.isfinite(probabilities)).any(axis=-1).sum())
    if broken:
        raise InputError(
            f"The network gives no number for {broken:,} of {len(probabilities):,} images: its training diverged. "
            "Train again with a smaller --learning-rate."
        )
    return np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))


def predict_scores(model: keras.Model, store: ImageStore, *, views: str, verbose: int = 0) -> np.ndarray:
    """Log-probabilities [n, classes], float64, of every image of a store, in its order.

    Args:
        views: of each image, that the mean is taken over, as `average_over_views`.

    Raises:
        InputError: a file cannot be used, or the model answers something that is not a number.
    """
    return log_scores(predict(average_over_views(model, views), store, verbose=verbose))


def average_over_views(model: keras.Model, views: str) -> keras.Model:
    """The same network, answering the mean over views of an image, which is square.

    The views are, for `one`, the image itself; for `mirror`, it and its mirror image, left to right; for `eight`, all
    its flips and quarter turns.
    """
    if views == "one":
        return model
    network = _answer_views(model, views)
    return keras.Model(network.inputs[0], keras.ops.mean(network.outputs[0], axis=0))


def extract_features(
    extractor: keras.Model, stores: Mapping[str, ImageStore], *, views: str, verbose: int = 0
) -> dict[str, np.ndarray]:
    """Features [n, views, f], float32, of every view of every image of each store that has images, in its order.

    Raises:
        InputError: a file cannot be used.
    """
    network = _answer_views(extractor, views)
    network = keras.Model(network.inputs[0], keras.ops.transpose(network.outputs[0], (1, 0, 2)))
    return {name: predict(network, store, verbose=verbose) for name, store in stores.items() if len(store)}


def score_features(head: keras.Model, features: np.ndarray) -> np.ndarray:
    """Log-probabilities [n, classes], float64, of the features [n, views, f] of n images: of the mean over their views.

    Raises:
        InputError: the head answers something that is not a number.
    """
    n, views, size = features.shape
    answers = head.predict(features.reshape(n * views, size), verbose=0)
    return log_scores(answers.reshape(n, views, -1).mean(axis=1))


def _answer_views(model: keras.Model, views: str) -> keras.Model:
    """The same network, answering one view after the other: [views, n, outputs]."""
    inputs = keras.Input(model.input_shape[1:])
    seen = [inputs]
    if views != "one":
        seen.append(keras.ops.flip(inputs, 2))
    if views == "eight":
        seen += [keras.ops.flip(view, 1) for view in seen]
        seen += [keras.ops.transpose(view, (0, 2, 1, 3)) for view in seen]
    return keras.Model(inputs, keras.ops.map(model, keras.ops.stack(seen)))


def predict(model: keras.Model, store: ImageStore, *, verbose: int = 0) -> np.ndarray:
    """What a network answers for every image of a store, in its order: [n, ...] float32.

    Raises:
        InputError: a file cannot be used.
    """
    with naming_bad_files(store):
        return model.predict(evaluation_batches(store, batch_size=BATCH), verbose=verbose)
