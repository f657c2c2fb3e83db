"""Predictions of a network for images or for features, as log-probabilities."""

import keras
import numpy as np

from cancernet import TrainingDiverged, progress
from cancernet.data.images import ImageStore
from cancernet.models.backend import without_xla
from cancernet.models.test_time_augmentation import average_over_views
from cancernet.training import distribution
from cancernet.training.pipeline import evaluation_batches, reraise_file_errors

_ROWS_AT_ONCE = 4096  # of features
BATCH = 64  # images; larger batches are no faster on a CPU and take more memory


def log_scores(probabilities: np.ndarray) -> np.ndarray:
    """Turn softmax outputs [n, classes] into natural log-probabilities, float64.

    Outputs are clipped at the smallest normal float32. The difference of the columns of two classes is the log-odds. It
    still orders images whose larger output has saturated to exactly 1, because the smaller one has not. Raises
    TrainingDiverged if an output is not finite.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    broken = int((~np.isfinite(probabilities)).any(axis=-1).sum())
    if broken:
        found = f"not a number for {broken:,} of {len(probabilities):,} images: its training diverged"
        raise TrainingDiverged(f"The network's output is {found}. Train again with a smaller --learning-rate.")
    return np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))


def predict_scores(model: keras.Model, store: ImageStore, *, views: str) -> np.ndarray:
    """Predict log-probabilities [n, classes] float64 of all images of a store, in order.

    The mean is over the probabilities of the views, see `average_over_views`. Raises InputError if a file cannot be
    read, TrainingDiverged if an output is not finite.
    """
    return log_scores(predict(average_over_views(model, views), store))


def score_features(head: keras.Model, features: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Predict log-probabilities [m, classes] of rows [m] of features [n, views, f]: mean probability over the views."""
    outputs = []
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        block = features[rows[start : start + _ROWS_AT_ONCE]]
        outputs.append(keras.ops.convert_to_numpy(head(block.reshape(-1, block.shape[2]))))
    return log_scores(np.concatenate(outputs).reshape(len(rows), features.shape[1], -1).mean(axis=1))


def predict(model: keras.Model, store: ImageStore) -> np.ndarray:
    """Compute the outputs [n, ...] float32, of any kind, of a network for every image of a store, in its order."""
    own = store.select(distribution.own_rows(len(store)))
    with reraise_file_errors(store), progress.count("Predicting", len(own)) as add:
        shown = keras.callbacks.LambdaCallback(
            on_predict_batch_end=lambda batch, logs: add(min(BATCH, len(own) - batch * BATCH))
        )
        batches = evaluation_batches(own, batch_size=BATCH)
        outputs = without_xla(model).predict(batches, callbacks=[shown], verbose=0)
    return distribution.gather(outputs, len(store))
