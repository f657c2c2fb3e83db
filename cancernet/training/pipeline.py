"""The input pipeline from image files to batches, in tf.data, which feeds any Keras backend."""

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
from tensorflow.python.framework import config as framework  # the public module cannot switch determinism off

from cancernet.cli import quiet_import
from cancernet.config import EPOCHS, Experiment
from cancernet.data.dataset import Patch
from cancernet.data.images import ImageStore
from cancernet.models.architectures import find_architecture, split_by_architecture
from cancernet.training import distribution
from cancernet.training.augment import augment_batch

_PREFETCH = 4  # batches
DEVICE_ERRORS = (RuntimeError, ValueError, tf.errors.OpError)  # that a driver or a device can cause
_PARALLEL_CALLS = os.cpu_count() or 1
if keras.backend.backend() != "tensorflow":
    tf.config.set_visible_devices([], "GPU")  # TensorFlow would allocate memory that the network needs


def open_store(
    dataset: Path, patches: Sequence[Patch], experiment: Experiment, *, cache_limit: int | None = None
) -> ImageStore:
    """Open the images of patches as a store, which decodes a file and checks its hash when it is first needed.

    `cache_limit` is the bytes that decoded images may take in memory; None allows half of the free memory. If they need
    more, nothing is cached and every epoch reads the files.
    """
    limit = psutil.virtual_memory().available // 2 if cache_limit is None else cache_limit
    return ImageStore(
        [f"{dataset}/{patch.file}" for patch in patches],
        image_size=experiment.image_size,
        channels=experiment.channels,
        sha256=[patch.sha256 for patch in patches],
        cache=len(patches) * experiment.image_size**2 * experiment.channels <= limit,
    )


def count_steps(n_images: int, batch_size: int) -> int:
    """Return the number of batches in an epoch; the last may be smaller, none is dropped."""
    return math.ceil(n_images / batch_size)


def training_batches(
    store: ImageStore,
    targets: np.ndarray,
    experiment: Experiment,
    weights: np.ndarray | None = None,
    *,
    first_epoch: int = 0,
    first_step: int = 0,
) -> tf.data.Dataset:
    """Make shuffled, augmented batches from a step of `first_epoch` to the last epoch, prefetched across epochs.

    The order is a pure function of (seed, epoch), and the augmentation is one of (seed, epoch, step). So a resumed
    training gets the batches that it would have had.

    Inside `distribution.spread` these are this process's shares. The last batch of an epoch is then filled up with the
    epoch's first images, with weight 0; the other weights keep the mean loss that of the other images.

    `targets` are float32 [n, classes], `weights` those of the images in the loss [n], None for 1. Returns a dataset of
    (images float32 [batch, size, size, channels] of 0 to 255, targets [batch, classes], weights float32 [batch]); an
    epoch has `count_steps` batches.
    """
    n, share = len(store), distribution.share()
    weights = np.ones(n, np.float32) if weights is None else weights.astype(np.float32)

    @tf.autograph.experimental.do_not_convert  # no branch depends on a tensor, and a conversion takes seconds
    def batches_of(epoch):
        key = tf.stack([tf.constant(experiment.seed, tf.int64), epoch])
        order = tf.argsort(tf.random.stateless_uniform([n], key), stable=True)
        batches = _make_positions(n, experiment.batch_size, share).enumerate()
        batches = batches.skip(tf.where(epoch == first_epoch, tf.constant(first_step, tf.int64), 0))
        return batches.map(lambda step, positions: (epoch, step, positions, tf.gather(order, positions % n)))

    def load(epoch, step, positions, rows):
        size, own = _own_part(positions, share)
        images, part = _fetch(store, rows[own]), (own.start, size)
        images = augment_batch(images, experiment.augmentation, seed=experiment.seed, epoch=epoch, step=step, part=part)
        counted = tf.cast(positions < n, tf.float32)
        counted *= tf.cast(size, tf.float32) / tf.reduce_sum(counted)
        return images, tf.gather(targets, rows[own]), tf.gather(weights, rows[own]) * counted[own]

    batches = tf.data.Dataset.range(first_epoch, experiment.epochs).flat_map(batches_of)
    return _prefetch(batches, load)


def evaluation_batches(store: ImageStore, *, batch_size: int, targets: np.ndarray | None = None) -> tf.data.Dataset:
    """Make batches of every image once, in order and without augmentation; the last may be smaller.

    Batches are images uint8 [batch, size, size, channels] or, with targets [n, classes], pairs of images and targets.
    Inside `distribution.spread` these are this process's shares, with weights: the last batch is filled up with the
    first images, with weight 0, and the other weights keep the mean loss that of all images.
    """
    n, share = len(store), distribution.share()

    def load(positions):
        _, own = _own_part(positions, share)
        rows = positions[own] % n
        images = _fetch(store, rows)
        if targets is None:
            return images
        if share is None:
            return images, tf.gather(targets, rows)
        filled = count_steps(n, batch_size) * batch_size
        return images, tf.gather(targets, rows), tf.cast(positions[own] < n, tf.float32) * (filled / n)

    return _prefetch(_make_positions(n, batch_size, share), load)


def _make_positions(n: int, batch_size: int, share: distribution.Share | None) -> tf.data.Dataset:
    """Make batches of 0, 1, ... n - 1; if processes share them, continued until the last batch is full."""
    return tf.data.Dataset.range(n if share is None else count_steps(n, batch_size) * batch_size).batch(batch_size)


def _own_part(batch: tf.Tensor, share: distribution.Share | None) -> tuple[tf.Tensor, slice]:
    """Return the size of a batch and the slice of it that belongs to this process."""
    process, processes = share or (0, 1)
    size = tf.size(batch)
    each = size // processes
    return size, slice(process * each, (process + 1) * each)


def _prefetch(indices: tf.data.Dataset, load: Callable) -> tf.data.Dataset:
    """Apply `load` to each element in parallel and ahead of time, in order."""
    options = tf.data.Options()
    # The autotuner sleeps twice as long each time, up to a minute, and the end of the data waits until it wakes.
    options.autotune.enabled = False
    load = tf.autograph.experimental.do_not_convert(load)  # as above
    batches = indices.map(load, num_parallel_calls=_PARALLEL_CALLS, deterministic=True).prefetch(_PREFETCH)
    return batches.with_options(options)


def _fetch(store: ImageStore, indices: tf.Tensor) -> tf.Tensor:
    images = tf.numpy_function(store.fetch, [indices], tf.uint8, stateful=False)
    return tf.ensure_shape(images, (None, *store.shape))


@contextlib.contextmanager
def reraise_file_errors(store: ImageStore) -> Iterator[None]:
    """Raise the InputError about a file that a store cannot read, instead of TensorFlow's error about its graph."""
    try:
        yield
    except tf.errors.OpError as error:
        if store.problem is None:
            raise
        raise store.problem from error


def explain_variation(experiment: Experiment) -> str:
    """Say why the same training gives other numbers on this machine's GPU each time; "" if it does not."""
    if keras.backend.backend() != "tensorflow" or not tf.config.list_physical_devices("GPU"):
        return ""
    if not any(find_architecture(single.model).is_backbone for single in _list_trained(experiment)):
        return ""
    return (
        "Training this backbone on a GPU gives slightly different numbers each time: TensorFlow has no deterministic "
        "gradient of its frozen batch normalisation."
    )


def enable_determinism(experiment: Experiment) -> None:
    """Let TensorFlow compute the same numbers on a GPU each time, where networks are trained and it can."""
    if keras.backend.backend() == "tensorflow" and tf.config.list_physical_devices("GPU") and _list_trained(experiment):
        is_possible = not explain_variation(experiment)
        (framework.enable_op_determinism if is_possible else framework.disable_op_determinism)()


def _list_trained(experiment: Experiment) -> list[Experiment]:
    return [single for single in split_by_architecture(experiment) if single.way in EPOCHS]


def describe_device() -> str:
    """Describe the devices of Keras' backend: `GPU (NVIDIA H100)`, `GPU (8 NVIDIA H100)` or `CPU`."""
    if keras.backend.backend() == "jax":
        import jax

        names = [device.device_kind for device in jax.devices() if device.platform == "gpu"]
    else:
        with quiet_import():  # TensorFlow reports the drivers that it looked for in vain
            gpus = tf.config.list_physical_devices("GPU")
        names = [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus]
    counted = [name if count == 1 else f"{count} {name}" for name, count in Counter(names).items()]
    return f"GPU ({', '.join(counted)})" if names else "CPU"
