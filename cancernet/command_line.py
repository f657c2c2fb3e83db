"""What the scripts share: argument types, what --force may replace, and errors as one line."""

import argparse
import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cancernet import InputError

RUN_FILES = ("model.keras", "history.csv", "fold_*")  # what a training leaves and nothing else does


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one line, like every other error here."""

    def error(self, message: str):
        raise InputError(f"{message}. See {self.prog} --help.")


def at_least(smallest: int) -> Callable[[str], int]:
    """Argument type: a whole number of at least `smallest`."""

    def parse(text: str) -> int:
        if not text.lstrip("-").isdigit() or int(text) < smallest:
            raise argparse.ArgumentTypeError(f"takes a whole number of at least {smallest}, not {text!r}")
        return int(text)

    return parse


def seed(text: str) -> int:
    """Argument type: what NumPy, scikit-learn and Keras all take for a seed, a whole number of 32 bits."""
    if not re.fullmatch("[0-9]{1,10}", text) or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"takes a whole number from 0 to {2**32 - 1}, not {text!r}")
    return int(text)


def positive_number(text: str) -> float:
    """Argument type: a number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"takes a number above 0, not {text!r}")
    return value


def prevalence(text: str) -> float:
    """Argument type: a share between 0 and 1, both left out."""
    value = positive_number(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"takes a share below 1, not {text!r}")
    return value


def check_output(output: Path) -> None:
    """See that a folder to be made, or to be replaced as a whole, is not the one that the user is in.

    Raises:
        InputError: it is, or is above it.
    """
    if Path.cwd().is_relative_to(output.resolve()):
        raise InputError(f"--output {output} is the folder you are in or above it. Name a folder to be made.")


def check_replaceable(output: Path, *, holds: str, called: str, force: bool) -> None:
    """See that nothing is lost if results are written as the folder `output`: it is new or, with `force`, their like.

    Args:
        holds: a file that such results have, though runs may have it too.
        called: what they are called.

    Raises:
        InputError: something else is there, above all a trained run; or as `check_output`.
    """
    check_output(output)
    if any(any(output.glob(name)) for name in RUN_FILES):
        raise InputError(f"{output} holds a trained run, which would be lost. Choose another --output.")
    if output.exists() and not (force and (output / holds).is_file()):
        raise InputError(f"{output} is there already. Choose another --output, or --force to replace {called}.")


@contextlib.contextmanager
def quiet_import() -> Iterator[None]:
    """Around the import of TensorFlow, which greets with lines of its own; they are shown if the import fails."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as greeting:
        os.dup2(greeting.fileno(), 2)
        try:
            yield
        except ImportError:
            greeting.seek(0)
            os.write(terminal, greeting.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


def run_script(main: Callable[[Sequence[str]], None]) -> None:
    """Run a script's main and end the program: 0, 2 with one line for what the user can mend, 130 for Ctrl-C."""
    sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be bytes that are no text; stderr does so
    try:
        main(sys.argv[1:])
    except InputError as error:
        sys.exit(_complain(str(error), 2))
    except KeyboardInterrupt:
        sys.exit(_complain("interrupted.", 130))
    except OSError as error:  # a full disk, a folder that may not be written
        place = f": {error.filename}" if error.filename else ""
        sys.exit(_complain(f"{error.strerror or error}{place}. Nothing was overwritten.", 2))


def _complain(message: str, code: int) -> int:
    print(f"\nerror: {message}" if sys.stderr.isatty() else f"error: {message}", file=sys.stderr)
    return code
