"""Folders that are whole or absent, the files in a folder, and JSON and CSV files checked when they are read."""

import contextlib
import csv
import enum
import errno
import json
import operator
import os
import platform
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO, TypeVar

from cancernet import InputError, StorageError

Kind = TypeVar("Kind")
SYSTEM_NAMES = ("__MACOSX", "Thumbs.db", "desktop.ini")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_passed_over(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or left there by a system; `..` is neither."""
    return (name.startswith(".") and name != "..") or name in SYSTEM_NAMES


def file_stem(slide: str, taken: set[str]) -> str:
    """A file's name for a slide, without ending: letters, digits, `.`, `_` and `-`; none twice. Adds it to `taken`."""
    stem = unique = re.sub(r"[^\w.-]+", "_", slide).strip("._") or "slide"
    number = 1
    while unique.lower() in taken:
        number += 1
        unique = f"{stem}_{number}"
    taken.add(unique.lower())
    return unique


def walk(
    folder: str | Path, endings: tuple[str, ...], *, prefix: str = "", others: Counter | None = None
) -> Iterator[tuple[str, os.DirEntry]]:
    """Files of these endings under a folder in the order of their names: path relative to it, and its entry for it.

    What `is_passed_over` is left out. Files of other endings are counted in `others`, by their ending, and so are links
    to a folder that they lie in, which would be followed for ever, and folders with too long a path.
    """
    others = Counter() if others is None else others
    levels = [(prefix, *_open_level(folder))]  # the folders from the first down to the one that is being read
    while levels:
        prefix, identity, entries = levels[-1]
        entry = next(entries, None)
        if entry is None:
            levels.pop()
        elif is_passed_over(entry.name):
            continue
        elif _is_folder(entry):
            try:
                identity, entries = _open_level(entry.path)
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:
                    raise
                others["folder with too long a path"] += 1
                continue
            if any(identity == above for _, above, _ in levels):
                others["link to a folder that it lies in"] += 1
            else:
                levels.append((f"{prefix}{entry.name}/", identity, entries))
        elif entry.name.lower().endswith(endings):
            yield prefix + entry.name, entry
        else:
            others[os.path.splitext(entry.name)[1].lower()] += 1


def _open_level(folder: str | Path) -> tuple[tuple[int, int], Iterator[os.DirEntry]]:
    """What tells a folder from others, whatever its path, and its entries in the order of their names."""
    status = os.stat(folder)
    with os.scandir(folder) as found:
        return (status.st_dev, status.st_ino), iter(sorted(found, key=operator.attrgetter("name")))


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def describe_unsupported(others: Counter) -> str:
    """Say how many files were skipped because of their ending; "" for none."""
    if not others:
        return ""
    counts = ", ".join(f"{n:,} {ending or 'without an ending'}" for ending, n in others.most_common())
    return f"Skipped, unsupported file type: {counts}."


def read_json(
    path: Path,
    kind: type[Kind],
    *,
    again: str,
    fault: str = "is damaged",
    update: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> Kind:
    """Read a JSON file as a dataclass or a TypedDict, every value of the type that its field has.

    Args:
        again: what to do about a damaged file, for the error.
        fault: what is said of such a file.
        update: translates an object that an earlier version wrote.

    Raises:
        InputError: the file is missing, cannot be read, is not JSON, or has a field that is missing, of a wrong type or
            out of its range.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        content = path.read_bytes()
        if update:
            with contextlib.suppress(ValueError):  # what is no JSON object is refused below
                given = json.loads(content)
                content = json.dumps(update(given)).encode() if isinstance(given, dict) else content
        return TypeAdapter(kind).validate_json(content, strict=True)
    except FileNotFoundError:
        raise InputError(f"There is no {path}. {again}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        says_all = first["type"] in ("missing", "json_invalid", "unexpected_keyword_argument")
        came = "" if says_all else f", not {str(first['input'])[:40]!r}"
        raise InputError(f"{path} {fault}: {place and place + ': '}{first['msg']}{came}. {again}") from None


def write_whole(folder: Path, files: dict[str, bytes]) -> None:
    """Write files into a folder, each either the old one or the whole new one."""
    partial = {name: folder / f".{name}.partial" for name in files}
    try:
        for name, content in files.items():
            partial[name].write_bytes(content)
        for name in files:
            os.replace(partial[name], folder / name)
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def lock_folder(folder: Path, *, announce: Callable[[str], None] | None = None) -> Iterator[None]:
    """Let no other process make or replace a folder meanwhile, and first repair what a killed process left of it.

    The lock is the file `.NAME.lock` beside the folder. The system frees it when its process ends, however it ends; on
    a network file system without locks filelock falls back to the existence of that file, and says so.

    Args:
        folder: may be absent.
        announce: receives a message before waiting for another process to release the lock.

    Raises:
        StorageError: another process has the lock, and `announce` is None.
    """
    import filelock

    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f".{folder.name}.lock")
    lock = filelock.FileLock(path)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout as error:
        found = f"Another process is writing {folder} ({_read_holder(path)})."
        if not announce:
            raise StorageError(f"{found} Wait until it has finished, or choose another output folder.") from error
        announce(f"{found} Waiting for it ...")
        lock.acquire()
    try:
        if isinstance(lock, filelock.UnixFileLock):
            path.write_text(f"{os.getpid()}\n{platform.node()}\n", encoding="utf-8")
        recover_folder(folder)
        yield
    finally:
        if isinstance(lock, filelock.UnixFileLock):
            path.unlink(missing_ok=True)  # before the release: who waits for this file sees that it has no name now
        lock.release()


def _read_holder(lock: Path) -> str:
    try:
        process, host = lock.read_text(encoding="utf-8").split("\n")[:2]
    except (OSError, ValueError):
        return "process unknown"
    return f"process {process}" if host == platform.node() else f"process {process} on {host}"


def recover_folder(folder: Path) -> None:
    """Put right what a killed process left beside a folder; for who has its lock only.

    Where it was killed while it replaced the folder, the old one gets its name back. What it had not finished goes.
    """
    replaced = _replaced_name(folder)
    if replaced.exists() and not os.path.lexists(folder):
        replaced.rename(folder)
    _remove_replaced(folder)
    if folder.parent.is_dir():
        own = re.compile(re.escape(folder.name) + r"\.partial(-\d+(-old)?)?")
        for leftover in folder.parent.iterdir():
            if own.fullmatch(leftover.name):
                shutil.rmtree(leftover, ignore_errors=True)


def replace_folder(new: Path, folder: Path) -> None:
    """Give a finished folder its name; what had that name is deleted afterwards. For who has its lock only.

    At every moment the old one or the new one is there whole, and `recover_folder` finds it.

    Args:
        new: beside `folder`.

    Raises:
        OSError: it cannot be renamed; both are as they were.
    """
    replaced = _replaced_name(folder)
    try:
        if folder.exists():
            folder.rename(replaced)
        new.rename(folder)
    except BaseException:
        if replaced.exists() and not folder.exists():
            replaced.rename(folder)
        raise
    _remove_replaced(folder)


def _replaced_name(folder: Path) -> Path:
    return folder.with_name(folder.name + ".replaced")


def _partial_name(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.partial-{os.getpid()}")


def _remove_replaced(folder: Path) -> None:
    """Delete what was replaced, under a name by which nobody takes half of it for the whole."""
    replaced, doomed = _replaced_name(folder), folder.with_name(_partial_name(folder).name + "-old")
    if replaced.exists():
        replaced.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


@contextlib.contextmanager
def fresh_folder(folder: Path) -> Iterator[Path]:
    """Make a folder under a provisional name; it gets its own name when all went well. For who has its lock only.

    What was there before is replaced only then, by `replace_folder`. What a killed process left is put right first.

    Raises:
        InputError: the system refused to write (a full disk, say); what was there before is untouched.
    """
    folder = folder.resolve()
    recover_folder(folder)
    partial = _partial_name(folder)
    partial.mkdir(parents=True)
    try:
        yield partial
        replace_folder(partial, folder)
    except OSError as error:
        raise InputError(_describe_failure(error, partial, folder)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _describe_failure(error: OSError, partial: Path, folder: Path) -> str:
    said = f"{error.strerror or error}: {error.filename or folder}."
    if error.errno in _NO_SPACE:
        written = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file() and not path.is_symlink())
        free = shutil.disk_usage(partial).free
        said += f" {describe_size(written)} were written before, {describe_size(free)} are free."
    return said + (f" {folder} is as it was." if folder.exists() else "")


def check_space(folder: Path, needed: int, *, instead: str = "Give another --output.") -> None:
    """See that a file system has room for a folder to be made.

    Args:
        needed: bytes, as estimated.
        instead: what to do otherwise.

    Raises:
        InputError: it has not.
    """
    folder = folder.resolve()
    place = next(above for above in (folder, *folder.parents) if above.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise InputError(f"{folder} needs about {describe_size(needed)}, and {describe_size(free)} are free. {instead}")


def describe_size(size: int) -> str:
    """A number of bytes in words: `1.2 GB`, `0.5 MB`, `300 bytes`."""
    for unit, name in ((10**9, "GB"), (10**6, "MB")):
        if size >= unit / 10:
            return f"{size / unit:,.1f} {name}"
    return f"{size:,} bytes"


class FolderKind(enum.Enum):
    """Results that a command writes as one folder: what messages call them, and the files that identify them."""

    RUN = "a trained run", "report.json"
    DATASET = "a dataset", "manifest.csv", "dataset.json"
    EVALUATION = "an evaluation report", "report.json"
    COMPARISON = "a comparison", "comparison.json"
    SEARCH = "a search", "search.json"
    ARCHIVE = "predictions of a slide archive", "asked.json"
    PREDICTIONS = "predictions", "predictions.csv"
    SAMPLE = ("sample images",)  # without a file that identifies them: never replaced

    def __init__(self, noun: str, *files: str) -> None:
        self.noun = noun
        self.files = files


_TRAINING_FILES = ("model.keras", "history.csv", "fold_*")  # only a training writes them


def check_replaceable(folder: Path, kind: FolderKind, *, force: bool) -> None:
    """Check that writing results as `folder` destroys nothing else.

    The folder must be absent or empty, or, with `force`, contain results of the same kind. It is renamed as a whole, so
    it cannot be a link, a mount point, the current folder or one of its parents.

    Args:
        force: whether results of the same kind may be replaced. A command that resumes its own results, or finds them
            up to date, passes True and compares what was requested itself.

    Raises:
        InputError: the folder contains anything else, above all a trained run, or cannot be renamed.
    """
    if folder.is_symlink():
        raise InputError(f"{folder} is a link. Give the folder that it points to, {os.path.realpath(folder)}.")
    if Path.cwd().is_relative_to(folder.resolve()):
        raise InputError(f"{folder} is the current folder or one of its parents. Choose another output folder.")
    if is_mount_point(folder):
        raise InputError(f"{folder} is a mount point and cannot be renamed. Choose a folder in it: {folder / 'NAME'}.")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file. Choose another output folder.")
    if not folder.exists() or not any(folder.iterdir()):
        return
    found = _identify_folder(folder)
    if found is not kind:
        contents = found.noun if found else "other files"
        raise InputError(f"{folder} contains {contents}, not {kind.noun}. Choose another output folder.")
    if not force:
        raise InputError(
            f"{folder} already contains {kind.noun}. Choose another output folder, or add --force to replace this one."
        )


def _identify_folder(folder: Path) -> FolderKind | None:
    """Return the kind of results in a folder; None for anything else, such as half of a run."""
    is_trained = any(any(folder.glob(name)) for name in _TRAINING_FILES)
    for kind in FolderKind:
        is_complete = kind.files and all((folder / name).is_file() for name in kind.files)
        if is_complete and is_trained == (kind is FolderKind.RUN):
            return kind
    return None


def is_mount_point(folder: Path) -> bool:
    """Whether something is mounted at a folder, so that it cannot be renamed: a container's volume, say."""
    import psutil

    mounted = {partition.mountpoint for partition in psutil.disk_partitions(all=True)}  # knows a bind mount, too
    return os.path.ismount(folder) or str(folder.resolve()) in mounted


@contextlib.contextmanager
def claim_folder(folder: Path | None, kind: FolderKind, *, force: bool) -> Iterator[None]:
    """Lock a folder for results of a kind; `check_replaceable` decides whether it may be used.

    Args:
        folder: None where nothing is written; then nothing is locked.

    Raises:
        InputError: see `check_replaceable`.
        StorageError: another process is writing the folder.
    """
    if folder is None:
        yield
        return
    check_replaceable(folder, kind, force=force)
    with lock_folder(folder):
        check_replaceable(folder, kind, force=force)  # another process may have finished meanwhile
        yield


_RUN = set("=+-@＝＋－＠\t\r\n")  # what a spreadsheet takes for the beginning of a formula, by OWASP's "CSV Injection"
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")


def write_rows(file: TextIO, rows: Iterable[Sequence]) -> None:
    """Write rows to an open file; a text that would be run gets an apostrophe in front, that `read_rows` takes away."""
    lines = SimpleNamespace(write=lambda line: file.write(line[:-2] + "\n"))
    # Only a writer whose lines end in \r\n puts a name with \r in it in quotation marks.
    csv.writer(lines, lineterminator="\r\n").writerows([_escape(cell) for cell in row] for row in rows)


def read_rows(file: Iterable[str]) -> Iterator[list[str]]:
    """The rows of an open file, as they were given to `write_rows`.

    Raises:
        csv.Error: it is no CSV file.
    """
    for row in csv.reader(file):
        yield [cell[1:] if cell[:1] == "'" and cell.lstrip("'")[:1] in _RUN else cell for cell in row]


def _escape(cell: object) -> object:
    if not isinstance(cell, str) or cell[:1] not in _RUN | {"'"} or _NUMBER.fullmatch(cell):
        return cell
    return f"'{cell}" if cell.lstrip("'")[:1] in _RUN else cell
