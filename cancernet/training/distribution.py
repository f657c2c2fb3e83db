"""One training in several processes or on several GPUs, by Keras on JAX: which part of it is this process's.

Without `joined` there is one process, which is the first and takes all rows, and nothing here costs anything. A network
is built, scored and saved on one device as ever; a copy of it is spread over all devices while it is fitted.
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cancernet import InputError
from cancernet.cli import quiet_import

if TYPE_CHECKING:  # a script asks who is first before it needs Keras
    import keras

_LOST = ("gloo", "nccl", "connection", "coordination", "unavailable", "heartbeat")  # in what JAX says of lost processes


class Share(NamedTuple):
    """A contiguous part of every step's rows."""

    process: int  # from 0
    processes: int


_all_devices: "keras.distribution.DataParallel | None" = None


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Inside it, trainings are spread over all devices of all processes that the launcher has started.

    The launcher is found by JAX (Slurm, Open MPI 4, Kubernetes), names the coordinator by Keras' environment variables
    (KERAS_DISTRIBUTION_JOB_ADDRESSES, _NUM_PROCESSES, _PROCESS_ID), or has joined the processes already, as Ray does.
    Without a launcher there is one process with all devices of its machine.

    Raises:
        InputError: Keras' backend is not JAX, the launcher's word is not complete, or another process was lost.
    """
    global _all_devices
    with quiet_import():
        import keras
    if keras.backend.backend() != "jax":
        raise InputError(
            f"--distributed needs Keras on JAX, not on {keras.backend.backend()}: "
            'pip install ".[jax]", then set KERAS_BACKEND=jax.'
        )
    import jax

    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM, which ends the work here
    if not jax.distributed.is_initialized():
        try:
            keras.distribution.initialize()
        except ValueError as error:
            if "coordinator_address should be defined" not in str(error):
                raise InputError(f"The processes of --distributed cannot be joined: {error}") from error
    with _naming_lost_processes():
        _all_devices = keras.distribution.DataParallel(auto_shard_dataset=False)
        try:
            yield
        finally:
            _all_devices = None


@contextlib.contextmanager
def _naming_lost_processes() -> Iterator[None]:
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if not any(word in str(error).lower() for word in _LOST):
            raise
        raise InputError(
            "Another process of this training has ended; its own output says why. The same command goes on from the "
            f"last checkpoint. ({str(error).splitlines()[0]})"
        ) from error


def share() -> Share | None:
    """This process's share of each batch; None outside of `spread`."""
    import keras

    return _count_processes() if keras.distribution.distribution() else None


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return _count_processes().process == 0


def is_one_of_several() -> bool:
    """Whether there are other processes."""
    return _count_processes().processes > 1


def _count_processes() -> Share:
    return Share(0, 1) if _all_devices is None else Share(_all_devices._process_id, _all_devices.num_processes)


def count_devices() -> int:
    """Count the devices that a training is spread over."""
    return 1 if _all_devices is None else _all_devices.num_model_replicas


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside it Keras makes variables on one device: Model.save makes some, for which all processes would be waited."""
    import keras

    spread = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(spread)


def wait() -> None:
    """Wait until all processes are here."""
    if is_one_of_several():
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("wait")


def agree(values: Any) -> Any:
    """Return the first process's values: numbers or arrays, or a list or dictionary of them, of the same shapes."""
    if not is_one_of_several():
        return values
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(values)


def own_rows(n: int) -> np.ndarray:
    """The rows of n that this process scores; all processes have equally many, so the first rows may come twice."""
    process, processes = _count_processes()
    each = -(-n // processes)
    return (process * each + np.arange(each)) % n


def gather(own: np.ndarray, n: int) -> np.ndarray:
    """Join what all processes have computed of their `own_rows`: [each, ...] to [n, ...], in the order of the rows."""
    if not is_one_of_several():
        return own
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(own, tiled=True)[:n]


@contextlib.contextmanager
def spread(model: "keras.Model") -> Iterator["keras.Model"]:
    """Give a copy of a model on all devices, to be compiled and fitted inside; afterwards the model has its weights.

    All processes begin with the first one's weights. Where nothing is spread it is the model itself.
    """
    if _all_devices is None:
        yield model
        return
    import keras

    weights = agree(model.get_weights())
    with _all_devices.scope():
        copy = keras.models.clone_model(model)
        copy.set_weights(weights)
        yield copy
    model.set_weights(copy.get_weights())
