"""Check whether this machine can train: versions, devices, memory, disk, and the speed of a real training step."""

import importlib.metadata
import json
import os
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cancernet import __version__
from cancernet.config import RECIPES, option

if TYPE_CHECKING:
    import numpy as np

EPILOG = "Paste what it prints into a bug report."
_PACKAGES = ("tensorflow", "keras", "jax", "numpy", "scikit-learn", "opencv-python-headless", "matplotlib", "pydantic")
_STEPS = 5  # timed, after the one that builds the graph
_LEAST_MEMORY = 3.0  # GB: training on all IDC patches took 2.6 GB
_LEAST_DISK = 5.0  # GB: their copy took 1.6 GB, and features 2 GB


@dataclass(frozen=True)
class CheckOptions:
    """How the result is printed."""

    json: bool = option(False, help="Print JSON")


@dataclass(frozen=True)
class DeviceCheck:
    """Speed of one device, in images a second; None where it failed."""

    device: str  # as Keras names it, such as cpu:0
    training: float | None  # CancerNet, one step of 32 images of 48x48 pixels
    backbone: float | None  # DenseNet121, one pass of 32 images of 96x96 pixels
    problem: str  # "" for none


@dataclass(frozen=True)
class Check:
    """What `cancernet check` found."""

    cancernet: str
    python: str
    system: str
    backend: str
    packages: dict[str, str]  # name to version; those that are installed
    cores: int
    memory_gb: float  # free
    disk_gb: float  # free in the current folder
    devices: list[DeviceCheck]
    problems: list[str]  # what is wrong, and what to do


def check(options: CheckOptions) -> Check:
    """Check this machine, and print what was found; InputError if Keras cannot be imported with its backend."""
    import psutil

    from cancernet.models.backend import explain_unused_gpu, import_keras

    import_keras()
    import keras

    from cancernet.training.pipeline import describe_device

    devices = [_check_device(name) for name in ["cpu:0", *keras.distribution.list_devices("gpu")]]
    memory, disk = psutil.virtual_memory().available / 2**30, shutil.disk_usage(Path.cwd()).free / 2**30
    problems = [f"{device.device}: {device.problem}" for device in devices if device.problem]
    problems += filter(None, [explain_unused_gpu(describe_device())])
    if memory < _LEAST_MEMORY:
        problems.append(f"{memory:.1f} GB of memory are free. Close other programs, or train with --cache-limit 0.1.")
    if disk < _LEAST_DISK:
        problems.append(f"{disk:.1f} GB of disk are free in {Path.cwd()}. Work in another folder.")
    installed = {each.metadata["Name"].lower(): each.version for each in importlib.metadata.distributions()}
    found = Check(
        cancernet=__version__,
        python=platform.python_version(),
        system=platform.platform(),
        backend=keras.backend.backend(),
        packages={name: installed[name] for name in _PACKAGES if name in installed},
        cores=os.cpu_count() or 1,
        memory_gb=round(memory, 1),
        disk_gb=round(disk, 1),
        devices=devices,
        problems=problems,
    )
    print(json.dumps(asdict(found), indent=1) if options.json else _write_text(found))
    return found


def _check_device(name: str) -> DeviceCheck:
    import keras

    from cancernet.training.pipeline import DEVICE_ERRORS

    try:
        with keras.device(name):
            return DeviceCheck(name, _time_training(), _time_backbone(), "")
    except DEVICE_ERRORS as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        advice = "Set CUDA_VISIBLE_DEVICES=-1 to work on the CPU." if name != "cpu:0" else "Install the package again."
        return DeviceCheck(name, None, None, f"{reason} {advice}")


def _time_training() -> float:
    import numpy as np

    from cancernet.models.architectures import build_model
    from cancernet.training.fitting import compile_model

    experiment = RECIPES["standard"]
    model = build_model(experiment, classes=2)
    compile_model(model, experiment, steps_per_epoch=1)
    images = _make_images(experiment.batch_size, experiment.image_size)
    targets = np.eye(2, dtype=np.float32)[np.arange(len(images)) % 2]
    return _measure_rate(lambda images: model.train_on_batch(images, targets), images)


def _time_backbone() -> float:
    from cancernet.models.architectures import build_model
    from cancernet.models.backend import without_xla

    experiment = replace(RECIPES["transfer"], model="densenet121", image_size=96, weights="none")
    model = without_xla(build_model(experiment, classes=2))
    return _measure_rate(model.predict_on_batch, _make_images(experiment.batch_size, experiment.image_size))


def _make_images(count: int, side: int) -> "np.ndarray":
    import numpy as np

    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def _measure_rate(work: Callable[["np.ndarray"], object], images: "np.ndarray") -> float:
    work(images)
    started = time.perf_counter()
    for _ in range(_STEPS):
        work(images)
    return round(_STEPS * len(images) / (time.perf_counter() - started), 1)


def _write_text(found: Check) -> str:
    lines = [
        f"cancernet {found.cancernet}, Python {found.python}, {found.system}",
        f"Keras on {found.backend}: " + ", ".join(f"{name} {version}" for name, version in found.packages.items()),
        f"{found.cores} cores, {found.memory_gb} GB of memory free, {found.disk_gb} GB of disk free",
        "",
        f"{'images a second':<18}{'CancerNet, training':>21}{'DenseNet121, prediction':>26}",
        *(f"{each.device:<18}{each.training or 'failed':>21}{each.backbone or 'failed':>26}" for each in found.devices),
        "",
        *(found.problems or ["No problem found."]),
    ]
    return "\n".join(lines)
