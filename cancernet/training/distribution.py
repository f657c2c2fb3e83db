"""One training in several processes or on several GPUs, with Keras on JAX: which part belongs to this process.

Outside `joined` there is one process, which is the first and takes all rows. A network is built, evaluated and saved on
one device; while it is trained, a copy of it is spread over all devices.
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from cancernet import CancerNetError, InputError
from cancernet.models.backend import import_keras

if TYPE_CHECKING:  # workflows ask which process is the first before they need Keras
    import keras

Values = TypeVar("Values")
# In JAX's errors on lost processes.
_LOST = ("gloo", "nccl", "connection", "coordination", "unavailable", "heartbeat")
_all_devices: "keras.distribution.DataParallel | None" = None  # inside `joined`


class Share(NamedTuple):
    """The contiguous part of every batch that belongs to one process."""

    process: int  # from 0
    processes: int


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Spread trainings over all devices of all processes that a launcher has started.

    JAX detects the launcher (Slurm, Open MPI 4, Kubernetes), or the launcher sets Keras' environment variables
    (KERAS_DISTRIBUTION_JOB_ADDRESSES, _NUM_PROCESSES, _PROCESS_ID), or it has joined the processes already, as Ray
    does. Without a launcher there is one process with all devices of its machine. Raises InputError if Keras' backend
    is not JAX or the launcher's information is incomplete, CancerNetError if another process has ended.
    """
    global _all_devices
    import_keras()
    import keras

    if keras.backend.backend() != "jax":
        needed = 'Run pip install ".[jax]" and set KERAS_BACKEND=jax.'
        raise InputError(f"--distributed needs Keras on JAX, not on {keras.backend.backend()}. {needed}")
    import jax

    jax.config.update("jax_enable_preemption_service", False)  # it would handle SIGTERM, which ends the process here
    if not jax.distributed.is_initialized():
        try:
            keras.distribution.initialize()
        except ValueError as error:
            if "coordinator_address should be defined" not in str(error):
                raise InputError(f"The processes of --distributed cannot be joined: {error}") from error
    try:
        _all_devices = keras.distribution.DataParallel(auto_shard_dataset=False)
        yield
    except (ValueError, RuntimeError) as error:
        if not any(word in str(error).lower() for word in _LOST):
            raise
        found = "Another process of this training has ended; its own output says why"
        advice = "Run the same command again to resume from the last checkpoint."
        raise CancerNetError(f"{found}. {advice} ({str(error).splitlines()[0]})") from error
    finally:
        _all_devices = None


def share() -> Share | None:
    """Return this process's share of each batch; None outside `spread`."""
    import keras

    return _count_processes() if keras.distribution.distribution() else None


def is_first() -> bool:
    """Return whether this process is the one that writes files."""
    return _count_processes().process == 0


def is_one_of_several() -> bool:
    """Return whether there are other processes."""
    return _count_processes().processes > 1


def _count_processes() -> Share:
    return Share(0, 1) if _all_devices is None else Share(_all_devices._process_id, _all_devices.num_processes)


def count_devices() -> int:
    """Return the number of devices that a training is spread over."""
    return 1 if _all_devices is None else _all_devices.num_model_replicas


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Let Keras create variables on one device: Model.save creates some, and would wait for all processes."""
    import keras

    spread = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(spread)


def wait() -> None:
    """Wait until all processes have called this."""
    if is_one_of_several():
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("wait")


def broadcast(values: Values) -> Values:
    """Return the first process's values: numbers or arrays, or a list or dictionary of them, with the same shapes."""
    if not is_one_of_several():
        return values
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(values)


def own_rows(n: int) -> np.ndarray:
    """Return the rows of n that this process predicts; all have equally many, so the first rows may occur twice."""
    process, processes = _count_processes()
    each = -(-n // processes)
    return (process * each + np.arange(each)) % n


def gather(own: Values, n: int) -> Values:
    """Join the results of all processes for their `own_rows`: arrays [each, ...] to [n, ...] in order."""
    if not is_one_of_several():
        return own
    import keras
    from jax.experimental import multihost_utils

    return keras.tree.map_structure(lambda array: array[:n], multihost_utils.process_allgather(own, tiled=True))


@contextlib.contextmanager
def spread(model: "keras.Model") -> Iterator["keras.Model"]:
    """Yield a copy of a model on all devices, to be compiled and trained inside; its weights are then copied back.

    All processes begin with the first one's weights. Outside `joined` it is the model itself.
    """
    if _all_devices is None:
        yield model
        return
    import keras

    weights = broadcast(model.get_weights())
    with _all_devices.scope():
        copy = keras.models.clone_model(model)
        copy.set_weights(weights)
        yield copy
    model.set_weights(copy.get_weights())
