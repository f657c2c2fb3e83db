"""Patient-wise training, calibration and reporting for tissue image classification."""

__version__ = "1.0.0"


class CancerNetError(Exception):
    """Anything that this package reports to its user in one line: what is wrong, what was found, what to do next."""


class InputError(CancerNetError):
    """An argument, a file or a folder that the user gave cannot be used."""


class TrainingDiverged(CancerNetError):
    """Training produced no finite numbers with these settings; other settings may work."""


class StorageError(CancerNetError):
    """A file of a dataset or run could not be written or read back: a full disk, a lock, a damaged file."""
