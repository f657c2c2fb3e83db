"""What the scripts share: argument types, and errors as one line."""

import argparse
import contextlib
import io
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

from cancernet import CancerNetError, InputError


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one line, like every other error here."""

    def error(self, message: str):
        raise InputError(f"{message}. See {self.prog} --help.")


def at_least(smallest: int) -> Callable[[str], int]:
    """Argument type: a whole number of at least `smallest`."""

    def parse(text: str) -> int:
        if not re.fullmatch("-?[0-9]{1,18}", text) or int(text) < smallest:
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
        value = float(text) if text.isascii() else float("nan")  # float takes the digits of every script
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


class _Stream(io.FileIO):
    """Standard output or standard error: if it cannot be written any more the work goes on, and `problem` says why."""

    def __init__(self, descriptor: int):
        self.problem = ""
        try:
            os.fstat(descriptor)
        except OSError:  # the next file to be opened must not become standard output
            self.problem = "it is closed"
            empty = os.open(os.devnull, os.O_RDWR)
            if empty != descriptor:
                os.dup2(empty, descriptor)
                os.close(empty)
        super().__init__(descriptor, "w", closefd=False)

    def write(self, data) -> int | None:
        try:
            return super().write(data)
        except OSError as error:
            self.problem = self.problem or error.strerror
            return len(data)


def _open_stream(descriptor: int, before: TextIO | None) -> tuple[TextIO, _Stream]:
    """Standard output or error as it was, on a _Stream; a file's name may be bytes that are no text."""
    stream = _Stream(descriptor)
    text = io.TextIOWrapper(
        io.BufferedWriter(stream),
        encoding=before.encoding if before else "utf-8",
        errors="backslashreplace",
        line_buffering=descriptor == 2 or stream.isatty(),
        write_through=bool(before and before.write_through),
    )
    return text, stream


class Ended(KeyboardInterrupt):
    """A signal by which others end a program, a batch system or a closed terminal: ends the work like Ctrl-C."""


def _end(number: int, frame) -> None:
    raise Ended(number)


def run_script(main: Callable[[Sequence[str]], None]) -> None:
    """Run a script's main and end the program.

    The exit code is 0; 2 with one line for what the user can mend; 128 and its number for a signal, 130 for Ctrl-C.
    """
    if sys.getfilesystemencoding() != "utf-8":  # a locale such as POSIX must not change what the names of files are
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    sys.stderr, errors = _open_stream(2, sys.stderr)
    sys.stdout, output = _open_stream(1, sys.stdout)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # `nohup` ignores the one
            signal.signal(number, _end)
    code, said = _run(main)
    sys.stdout.flush()
    if not said and output.problem:
        code, said = 2, f"the work is done, but what it printed was lost ({output.problem})."
    if said:
        line = f"\nerror: {said}" if sys.stderr.isatty() else f"error: {said}"
        print(line, file=sys.stdout if errors.problem else sys.stderr, flush=True)
    jax = sys.modules.get("jax")
    if code and jax and jax.distributed.is_initialized():
        os._exit(code)  # at a usual exit JAX first waits for the other processes, which wait for this one
    sys.exit(code)


def _run(main: Callable[[Sequence[str]], None]) -> tuple[int | str | None, str]:
    """The exit code, and what to say of it."""
    try:
        main(sys.argv[1:])
    except SystemExit as end:  # --help
        return end.code, ""
    except CancerNetError as error:
        return 2, str(error)
    except Ended as error:
        return 128 + error.args[0], f"ended by {signal.Signals(error.args[0]).name}."
    except KeyboardInterrupt:
        return 130, "interrupted."
    except OSError as error:  # a folder that may not be written, say
        return 2, f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}."
    return 0, ""
