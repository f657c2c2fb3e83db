"""Scores of images: log-probabilities, from images or from the features of a frozen backbone."""

import keras
import numpy as np

from cancernet import TrainingDiverged
from cancernet.data.images import ImageStore
from cancernet.models.test_time_augmentation import average_over_views
from cancernet.training import distribution
from cancernet.training.pipeline import evaluation_batches, naming_bad_files

_AT_ONCE = 4096  # images whose features a head is given at a time
BATCH = 64  # images at a time; more is no faster on a CPU and takes more memory


def log_scores(probabilities: np.ndarray) -> np.ndarray:
    """Turn a network's softmax outputs into scores.

    Of two classes the difference of the columns is the log-odds. It differs between images even where the larger output
    has saturated to exactly 1, for the smaller one has not.

    Args:
        probabilities: [n, classes] float32 or float64, 0 to 1; clipped at the smallest normal float32.

    Returns:
        Natural log-probabilities [n, classes], float64.

    Raises:
        TrainingDiverged: an output is not a number.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    broken = int((~np.isfinite(probabilities)).any(axis=-1).sum())
    if broken:
        raise TrainingDiverged(
            f"The network gives no number for {broken:,} of {len(probabilities):,} images: its training diverged. "
            "Train again with a smaller --learning-rate."
        )
    return np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))


def predict_scores(model: keras.Model, store: ImageStore, *, views: str) -> np.ndarray:
    """Score every image of a store.

    Args:
        model: raw images to probabilities.
        store: n images.
        views: of each image, to take the mean probability over, as `average_over_views`.

    Returns:
        Log-probabilities [n, classes], float64, in the store's order.

    Raises:
        InputError: a file cannot be used, or an output of the model is not a number.
    """
    return log_scores(predict(average_over_views(model, views), store))


def score_features(head: keras.Model, features: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Score some images by the mean probability over their views.

    Args:
        head: features [n, f] to probabilities.
        features: [n, views, f], in memory or mapped from a file.
        rows: of `features` [m].

    Returns:
        Log-probabilities [m, classes], float64.

    Raises:
        InputError: an output of the head is not a number.
    """
    answers = []
    for start in range(0, len(rows), _AT_ONCE):
        some = features[rows[start : start + _AT_ONCE]]
        answers.append(keras.ops.convert_to_numpy(head(some.reshape(-1, some.shape[2]))))
    return log_scores(np.concatenate(answers).reshape(len(rows), features.shape[1], -1).mean(axis=1))


def predict(model: keras.Model, store: ImageStore) -> np.ndarray:
    """Compute the outputs [n, ...] float32 of a network for every image of a store, in its order.

    Args:
        model: raw images to outputs of any kind.
        store: n images.

    Raises:
        InputError: a file cannot be used.
    """
    own = store.select(distribution.own_rows(len(store)))
    with naming_bad_files(store):
        outputs = model.predict(evaluation_batches(own, batch_size=BATCH), verbose=0)
    return distribution.gather(outputs, len(store))
