"""Files to batches, by tf.data, which feeds any Keras backend."""

import contextlib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import keras
import numpy as np
import psutil
import tensorflow as tf

from cancernet.config import Experiment
from cancernet.data.dataset import Patch
from cancernet.data.images import ImageStore
from cancernet.training import distribution
from cancernet.training.augment import augment_batch

_PREFETCH = 4  # batches made ahead of the step
_AT_ONCE = os.cpu_count() or 1  # batches made at the same time
if keras.backend.backend() != "tensorflow":
    tf.config.set_visible_devices([], "GPU")  # TensorFlow would take their memory from the network


def open_store(
    dataset: Path, patches: Sequence[Patch], experiment: Experiment, *, cache_limit: int | None = None
) -> ImageStore:
    """Open the images of patches as a store, which decodes and checks a file when it is first needed.

    Args:
        dataset: folder of the built dataset.
        experiment: its image size and channels count.
        cache_limit: bytes that decoded images may take in memory, one for each value; half of what is free if None.
            Where they need more, nothing is kept and every epoch reads the files.
    """
    limit = psutil.virtual_memory().available // 2 if cache_limit is None else cache_limit
    return ImageStore(
        [f"{dataset}/{patch.file}" for patch in patches],
        image_size=experiment.image_size,
        channels=experiment.channels,
        sha256=[patch.sha256 for patch in patches],
        cache=len(patches) * experiment.image_size**2 * experiment.channels <= limit,
    )


def steps_per_epoch(n_images: int, batch_size: int) -> int:
    """Count the batches in an epoch; the last may be smaller, none is dropped."""
    return math.ceil(n_images / batch_size)


def training_batches(
    store: ImageStore,
    targets: np.ndarray,
    experiment: Experiment,
    *,
    weights: np.ndarray | None = None,
    first_epoch: int = 0,
    first_step: int = 0,
) -> tf.data.Dataset:
    """Make shuffled, augmented batches from a step of `first_epoch` on to the last epoch, without a pause between them.

    The order is a pure function of (seed, epoch), the random changes are one of (seed, epoch, step). So a training that
    goes on after a crash gets the batches that it would have had.

    Inside `distribution.spread` these are this process's shares. The last batch of an epoch is then filled up with the
    epoch's first images, of weight 0; the weights of its others make its mean loss theirs alone.

    Args:
        store: n images.
        targets: one row for each image [n, classes], float32.
        experiment: its batch size, epochs, seed and augmentation count.
        weights: of each image in the loss [n]; 1 if None.

    Returns:
        Dataset of (images float32 [batch, size, size, channels] in 0 to 255, targets [batch, classes], weights float32
        [batch]); `steps_per_epoch` batches are an epoch.
    """
    n, share = len(store), distribution.share()
    weights = np.ones(n, np.float32) if weights is None else weights.astype(np.float32)

    def batches_of(epoch):
        key = tf.stack([tf.constant(experiment.seed, tf.int64), epoch])
        order = tf.argsort(tf.random.stateless_uniform([n], key), stable=True)
        batches = _deal_places(n, experiment.batch_size, share).enumerate()
        batches = batches.skip(tf.where(epoch == first_epoch, tf.constant(first_step, tf.int64), 0))
        return batches.map(lambda step, places: (epoch, step, places, tf.gather(order, places % n)))

    def load(epoch, step, places, rows):
        size, own = _own_part(places, share)
        part = own.start, size
        images = augment_batch(
            _fetch(store, rows[own]), experiment.augmentation, seed=experiment.seed, epoch=epoch, step=step, part=part
        )
        counted = tf.cast(places < n, tf.float32)
        counted *= tf.cast(size, tf.float32) / tf.reduce_sum(counted)
        return images, tf.gather(targets, rows[own]), tf.gather(weights, rows[own]) * counted[own]

    batches = tf.data.Dataset.range(first_epoch, experiment.epochs).flat_map(batches_of)
    return _make_ahead(batches, load)


def evaluation_batches(store: ImageStore, *, batch_size: int, targets: np.ndarray | None = None) -> tf.data.Dataset:
    """Make batches of every image once, in order and unchanged.

    Inside `distribution.spread` these are this process's shares, with weights: the last batch is filled up with the
    first images, of weight 0, and the others' weights make the mean loss that of all images.

    Args:
        store: n images.
        batch_size: the last batch may be smaller, none is dropped.
        targets: one row for each image [n, classes], float32.

    Returns:
        Dataset of images uint8 [batch, size, size, channels]; with `targets`, of pairs of these and targets [batch,
        classes].
    """
    n, share = len(store), distribution.share()

    def load(places):
        _, own = _own_part(places, share)
        rows = places[own] % n
        images = _fetch(store, rows)
        if targets is None:
            return images
        if share is None:
            return images, tf.gather(targets, rows)
        filled = steps_per_epoch(n, batch_size) * batch_size
        return images, tf.gather(targets, rows), tf.cast(places[own] < n, tf.float32) * (filled / n)

    return _make_ahead(_deal_places(n, batch_size, share), load)


def _deal_places(n: int, batch_size: int, share: distribution.Share | None) -> tf.data.Dataset:
    """Batches of 0, 1, ... n - 1; where they are shared, on to the end of the last batch: all are equally large."""
    return tf.data.Dataset.range(n if share is None else steps_per_epoch(n, batch_size) * batch_size).batch(batch_size)


def _own_part(batch: tf.Tensor, share: distribution.Share | None) -> tuple[tf.Tensor, slice]:
    """Size of a batch, and which of it is this process's."""
    process, processes = share or (0, 1)
    size = tf.size(batch)
    each = size // processes
    return size, slice(process * each, (process + 1) * each)


def _make_ahead(indices: tf.data.Dataset, load: Callable) -> tf.data.Dataset:
    """Apply `load` to each element, several at once and before they are asked for, in their order."""
    options = tf.data.Options()
    # The tuner sleeps twice as long each time, up to a minute, and the end of the data waits until it wakes.
    options.autotune.enabled = False
    batches = indices.map(load, num_parallel_calls=_AT_ONCE, deterministic=True).prefetch(_PREFETCH)
    return batches.with_options(options)


def _fetch(store: ImageStore, indices: tf.Tensor) -> tf.Tensor:
    images = tf.numpy_function(store.fetch, [indices], tf.uint8, stateful=False)
    return tf.ensure_shape(images, (None, *store.shape))


@contextlib.contextmanager
def naming_bad_files(store: ImageStore) -> Iterator[None]:
    """Raise the InputError of a file that a store cannot use, in the place of TensorFlow's error about its graph."""
    try:
        yield
    except tf.errors.OpError as error:
        if store.problem is None:
            raise
        raise store.problem from error


def describe_device() -> str:
    """Name what the network runs on: `GPU (NVIDIA H100)`, `GPU (8 NVIDIA H100)` or `CPU`."""
    if keras.backend.backend() == "jax":
        import jax

        names = [device.device_kind for device in jax.devices() if device.platform == "gpu"]
    else:
        gpus = tf.config.list_physical_devices("GPU")
        names = [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus]
    counted = [name if count == 1 else f"{count} {name}" for name, count in Counter(names).items()]
    return f"GPU ({', '.join(counted)})" if names else "CPU"
