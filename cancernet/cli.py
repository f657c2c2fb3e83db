"""What all commands share: options generated from dataclasses, one-line errors, exit codes, signals, quiet imports."""

import argparse
import contextlib
import dataclasses
import io
import logging
import math
import operator
import os
import re
import signal
import sys
import tempfile
import time
import typing
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO, TypeVar, Union, get_args, get_origin

from cancernet import CancerNetError, InputError, __version__

if TYPE_CHECKING:
    from cancernet.config import Option

Options = TypeVar("Options")
_FIRST_DATE = 315_619_200  # 1980-01-02: zip archives, such as model.keras, have no earlier dates


class Parser(argparse.ArgumentParser):
    """An argument parser that raises InputError, so that its complaint is one line like every other error."""

    def error(self, message: str) -> typing.NoReturn:
        raise InputError(f"{message}. See {self.prog} --help.")


def parse_options(kind: type[Options], argv: Sequence[str], *, prog: str, about: str, epilog: str = "") -> Options:
    """Parse a command line into a dataclass whose fields were declared with `config.option`.

    `about` and `epilog` are what --help says before and after the options. Raises InputError for an unknown option, or
    a value that an option does not take.
    """
    from cancernet.config import Group  # late, as it needs a package: `_run` reports one that is missing

    layout = argparse.RawDescriptionHelpFormatter if epilog else argparse.HelpFormatter
    parser = Parser(
        prog=prog, description=about, epilog=epilog, formatter_class=layout, argument_default=argparse.SUPPRESS
    )
    parser.add_argument("--version", action="version", version=f"cancernet {__version__}")
    _add_options({name: parser.add_argument_group(name) for name in get_args(Group)}, kind)
    words = list(argv)
    if "--patient-pattern" in words[:-1]:  # a regular expression may begin with a hyphen
        at = words.index("--patient-pattern")
        words[at : at + 2] = [f"{words[at]}={words[at + 1]}"]
    parsed = vars(parser.parse_args(words))
    given: dict[str, Any] = {name: tuple(each) if isinstance(each, list) else each for name, each in parsed.items()}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if "settings_of" in field.metadata:
            names = [each.name for each in dataclasses.fields(field.metadata["settings_of"])]
            given[field.name] = {name: given.pop(name) for name in names if name in given}
    return kind(**given)


def _add_options(groups: dict[str, Any], kind: type) -> None:
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        if "settings_of" in field.metadata:
            _add_options(groups, field.metadata["settings_of"])
        else:
            _add_option(groups, field, hints[field.name])


def _add_option(groups: dict[str, Any], field: "dataclasses.Field[Any]", hint: Any) -> None:
    described: Option = field.metadata["option"]
    if not described.on_command_line:
        return
    group, name, text = groups[described.group], field.name.replace("_", "-"), described.help.replace("%", "%%")
    kind, several = _unwrap(hint)
    if kind is bool:
        flag, action = ("--no-" + name, "store_false") if field.default is True else ("--" + name, "store_true")
        group.add_argument(flag, dest=field.name, action=action, help=text)
        return
    given: dict[str, Any] = {"metavar": described.metavar}
    if get_origin(kind) is Literal:
        given["choices"] = get_args(kind)
    elif get_origin(kind) is Annotated and not described.parse:
        given["type"] = _number_parser(*get_args(kind))
    else:
        given["type"] = described.parse or kind
    if described.const:
        given |= {"nargs": "?", "const": described.const}
    elif several:
        given["nargs"] = "+"
    required = field.default is dataclasses.MISSING
    if described.positional:
        if not (required or several):
            given["nargs"] = "?"
        group.add_argument(field.name, help=text, **given)
        return
    if not required:
        default = described.default or ("none" if field.default is None else f"{field.default}")
        text += f" (default: {default})".replace("%", "%%")
    group.add_argument("--" + name, dest=field.name, required=required, help=text, **given)


def _unwrap(hint: Any) -> tuple[Any, bool]:
    """A type without `| None` and without its tuple, and whether there was a tuple."""
    if get_origin(hint) in (Union, type(int | str)):
        (hint,) = (each for each in get_args(hint) if each is not type(None))
    if get_origin(hint) is tuple:
        return get_args(hint)[0], True
    return hint, False


def _number_parser(kind: type[int] | type[float], limits: Any) -> Callable[[str], float]:
    """Make a parser of numbers within the limits of an annotation: whole ones, of plain digits only, or finite ones."""
    is_whole, names = kind is int, ("gt", "ge", "lt", "le")
    bounds = {name: getattr(limits, name) for name in names if getattr(limits, name, None) is not None}
    low, *high = bounds.values()
    if is_whole:
        allowed = f"from {low} to {high[0] - 1}" if high else f"of at least {low}"
    else:
        allowed = f"between {low:g} and {high[0]:g}" if high else f"above {low:g}"

    def parse(text: str) -> float:
        is_plain = re.fullmatch("-?[0-9]{1,18}", text) if is_whole else text.isascii()  # float takes all digits
        with contextlib.suppress(ValueError):  # text that is no number is refused below
            value = kind(text) if is_plain else math.nan
            if math.isfinite(value) and all(getattr(operator, name)(value, bound) for name, bound in bounds.items()):
                return value
        raise argparse.ArgumentTypeError(f"takes a {'whole number' if is_whole else 'number'} {allowed}, not {text!r}")

    return parse


@contextlib.contextmanager
def quiet_import() -> Iterator[None]:
    """Silence what TensorFlow prints while it is imported, unless that fails, and its warnings, which tell of speed."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
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
    """Standard output or error. If it can no longer be written, work continues and `problem` says why."""

    def __init__(self, descriptor: int):
        self.problem = ""
        try:
            os.fstat(descriptor)
        except OSError:  # closed; the next file to be opened must not become standard output
            self.problem = "it is closed"
            os.open(os.devnull, os.O_RDWR)
        super().__init__(descriptor, "w", closefd=False)

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            self.problem = self.problem or error.strerror or str(error)
            return len(data)


def _open_stream(descriptor: int, before: TextIO | None) -> tuple[TextIO, _Stream]:
    """Open standard output or error on a _Stream; names of files that are no text are shown with escapes."""
    stream = _Stream(descriptor)
    text = io.TextIOWrapper(
        io.BufferedWriter(stream),
        encoding=before.encoding if before else "utf-8",
        errors="backslashreplace",
        line_buffering=descriptor == 2 or stream.isatty(),
        write_through=bool(before and getattr(before, "write_through", False)),
    )
    return text, stream


# Signals by which a batch system or a closed terminal ends a program; Windows has no SIGHUP.
ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Terminated(KeyboardInterrupt):
    """A signal by which others end a program, a batch system or a closed terminal: ends the work like Ctrl-C."""


def _terminate(number: int, frame: object) -> None:
    raise Terminated(number)


def run_command(main: Callable[[Sequence[str]], object]) -> typing.NoReturn:
    """Run a command's main with the arguments of the command line and end the program.

    The exit status is 0; 2 with one line for an error that the user can fix; 128 and its number for a signal.
    """
    sys.stdout, output = _open_stream(1, sys.stdout)  # in this order: a closed stream takes the lowest number
    sys.stderr, errors = _open_stream(2, sys.stderr)
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it lists fonts that nothing here needs
    os.environ["MPLBACKEND"] = "agg"  # Jupyter's, which a command started in a cell inherits, ends it
    for number in ENDING:
        if signal.getsignal(number) is signal.SIG_DFL:  # `nohup` ignores the latter
            signal.signal(number, _terminate)
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # errors of damaged files are ours to describe
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    status, message = _run(main)
    sys.stdout.flush()
    if not message and output.problem:
        status, message = 2, f"the work is done, but what it printed was lost ({output.problem})."
    if message:
        line = f"\nerror: {message}" if sys.stderr.isatty() else f"error: {message}"
        print(line, file=sys.stdout if errors.problem else sys.stderr, flush=True)
    jax = sys.modules.get("jax")
    if status and jax and jax.distributed.is_initialized():
        os._exit(int(status))  # at a usual exit JAX first waits for the other processes, which wait for this one
    sys.exit(status)


def _run(main: Callable[[Sequence[str]], object]) -> tuple[int | str | None, str]:
    try:
        if sys.getfilesystemencoding() != "utf-8":  # it would change what the names of files are
            raise InputError("Python reads file names in another encoding than UTF-8. Set PYTHONUTF8=1 and try again.")
        if time.time() < _FIRST_DATE:
            raise InputError(f"The clock of this machine says {time.strftime('%Y-%m-%d')}. Set it, and try again.")
        main(sys.argv[1:])
    except SystemExit as end:  # --help
        return end.code, ""
    except CancerNetError as error:
        return 2, str(error)
    except Terminated as error:
        return 128 + error.args[0], f"ended by {signal.Signals(error.args[0]).name}."
    except KeyboardInterrupt:
        return 130, "interrupted."
    except MemoryError:
        return 2, "memory ran out. End other programs, or use a machine with more memory."
    except ModuleNotFoundError as error:
        advice = "Activate the environment in which the requirements are installed; the README says how."
        return 2, f"{sys.executable} has no package {error.name}. {advice}"
    except OSError as error:  # a folder that may not be written, say
        return 2, f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}."
    return 0, ""
