"""The one place where Keras is imported for the first time: its backend is checked, and its settings are ours."""

import functools
import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from cancernet import InputError
from cancernet.cli import quiet_import

if TYPE_CHECKING:
    import keras

BACKENDS = ("tensorflow", "jax")
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


@functools.cache
def import_keras() -> None:
    """Import Keras without its greeting, with images channels last and numbers in float32 whatever keras.json says.

    Raises InputError if the backend of KERAS_BACKEND or keras.json is not TensorFlow or JAX, or is not installed.
    """
    backend = _read_backend()
    if backend not in BACKENDS:
        found = f"Keras is set to the backend {backend!r} (KERAS_BACKEND or keras.json)"
        raise InputError(f"{found}. Set KERAS_BACKEND=tensorflow.")
    try:
        with quiet_import():
            import keras
    except ImportError as error:
        advice = f"Install it, or set KERAS_BACKEND to another of {', '.join(BACKENDS)}."
        raise InputError(f"Keras on {backend} cannot be imported: {error}. {advice}") from error
    keras.config.set_image_data_format("channels_last")
    keras.config.set_floatx("float32")
    keras.config.set_epsilon(1e-7)
    keras.config.set_dtype_policy("float32")


def _read_backend() -> str:
    """Return the backend that Keras will use, by the rules of keras/src/backend/config.py."""
    name = os.environ.get("KERAS_BACKEND")
    if name:
        return name
    file = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "keras.json"
    try:
        return str(json.loads(file.read_text(encoding="utf-8")).get("backend", BACKENDS[0]))
    except (OSError, ValueError, AttributeError):  # Keras ignores such a file, too
        return BACKENDS[0]


def without_xla(network: "keras.Model") -> "keras.Model":
    """Return the same network, which TensorFlow runs without XLA.

    Keras compiles an uncompiled network with XLA where a GPU is present, which fails with some drivers and GPUs
    (cuDNN's autotuner, unknown PTX versions), after a training without XLA that succeeded. JAX always uses XLA.
    """
    import keras

    network.jit_compile = keras.backend.backend() == "jax"
    return network


def find_nvidia_gpu() -> str:
    """Return the name of an NVIDIA GPU that the system has, whether or not Keras can use it; "" if there is none."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):  # no such tool, or no working driver: the driver's own file decides
        return "NVIDIA GPU" if _NVIDIA_DRIVER.exists() else ""
    return listed.stdout.strip().partition("\n")[0]


def explain_unused_gpu(device: str) -> str:
    """Say why an NVIDIA GPU is not used if `device`, see `describe_device`, is "CPU", and the remedy; otherwise ""."""
    import keras

    if device != "CPU" or os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return ""
    gpu = find_nvidia_gpu()
    name, package = {
        "tensorflow": ("TensorFlow", '"tensorflow[and-cuda]" nvidia-cusolver-cu12'),  # 2.21 does not ask for the latter
        "jax": ("JAX", '"jax[cuda12]"'),
    }[keras.backend.backend()]
    return gpu and f"This machine has a GPU ({gpu}), but {name} does not find it. Try pip install {package}."
