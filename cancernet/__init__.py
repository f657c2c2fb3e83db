"""Patient-wise training, calibration and reporting for tissue image classification."""

__version__ = "0.1.0"


class InputError(Exception):
    """Something the user gave cannot be used; the message is one line that says what, and what to do next."""


class Diverged(InputError):
    """A training gave no useful numbers with these settings; others may."""
