"""Patient-wise training, calibration and reporting for tissue image classification.

    import cancernet

    run = cancernet.load("runs/cancernet")
    predictions = run.predict(images)

docs/api.md describes what is offered. Nothing heavy is imported until it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cancernet.api import Run, build, compare, evaluate, load, predict_slides, train

__version__ = "1.0.0"
__all__ = [
    "CancerNetError",
    "InputError",
    "Run",
    "StorageError",
    "TrainingDiverged",
    "build",
    "compare",
    "evaluate",
    "load",
    "predict_slides",
    "train",
]


class CancerNetError(Exception):
    """Anything that this package reports to its user in one line: what is wrong, what was found, what to do next."""


class InputError(CancerNetError):
    """An argument, a file or a folder that the user gave cannot be used."""


class TrainingDiverged(CancerNetError):
    """Training produced no finite numbers with these settings; other settings may work."""


class StorageError(CancerNetError):
    """A file of a dataset or run could not be written or read back: a full disk, a lock, a damaged file."""


def __getattr__(name: str) -> Any:
    """Import what `__all__` names when it is first used (PEP 562)."""
    if name in __all__:
        return getattr(import_module("cancernet.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
