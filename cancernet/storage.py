"""What commands leave on disk: folders that are whole or absent, what may be overwritten, JSON and CSV files.

`fresh_folder`, `replace_folder` and `recover_folder` are for the process that holds the folder's lock.
"""

import contextlib
import csv
import enum
import errno
import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TextIO, TypeVar

from cancernet import CancerNetError, InputError, StorageError

Content = TypeVar("Content")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FolderKind(enum.Enum):
    """Results that a command writes as one folder: what messages call them, and the files that identify them."""

    RUN = "a trained run", "report.json"
    DATASET = "a dataset", "manifest.csv", "dataset.json"
    EVALUATION = "an evaluation report", "report.json"
    COMPARISON = "a comparison", "comparison.json"
    SEARCH = "a search", "search.json"
    ARCHIVE = "predictions of a slide archive", "archive.json"
    PREDICTIONS = "predictions", "predictions.csv"
    SAMPLE = ("sample images",)  # no file identifies them: they are never replaced

    def __init__(self, noun: str, *files: str) -> None:
        self.noun = noun
        self.files = files


_TRAINING_FILES = ("model.keras", "history.csv", "fold_*")  # only training writes them


def check_replaceable(folder: Path, kind: FolderKind, *, force: bool) -> None:
    """Check that writing results as `folder` destroys nothing else.

    The folder must be absent or empty or, with `force`, contain results of the same kind. It is renamed as a whole, so
    it cannot be a link, a mount point, the current folder or one of its parents.

    Args:
        force: whether results of the same kind may be replaced. A command that resumes its own results, or finds them
            up to date, passes True and compares the request itself.

    Raises:
        InputError: the folder contains anything else, above all a trained run, or cannot be renamed.
    """
    if folder.is_symlink():
        raise InputError(f"{folder} is a link. Give the folder that it points to, {os.path.realpath(folder)}.")
    if Path.cwd().is_relative_to(folder.resolve()):
        raise InputError(f"{folder} is the current folder or one of its parents. Choose another output folder.")
    if _is_mount_point(folder):
        raise InputError(f"{folder} is a mount point and cannot be renamed. Choose a folder in it: {folder / 'NAME'}.")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is a file. Choose another output folder.")
    found = _identify_folder(folder)
    if found is not kind and any(folder.iterdir()):
        contents = found.noun if found else "other files"
        raise InputError(f"{folder} contains {contents}, not {kind.noun}. Choose another output folder.")
    if found and not force:
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


def _is_mount_point(folder: Path) -> bool:
    import psutil

    # Unlike os.path.ismount, the list includes bind mounts, such as a container's volumes.
    mounted = {partition.mountpoint for partition in psutil.disk_partitions(all=True)}
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


@contextlib.contextmanager
def lock_folder(folder: Path, *, announce: Callable[[str], None] | None = None) -> Iterator[None]:
    """Let no other process make or replace a folder meanwhile, and first repair what a killed process left of it.

    The lock is the file `.NAME.lock` in the same parent folder. The system frees it when its process ends, however it
    ends. On a network file system without locks filelock uses the existence of that file instead, and warns.

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
    is_system_lock = isinstance(lock, filelock.UnixFileLock)
    try:
        if is_system_lock:
            path.write_text(f"{os.getpid()}\n{platform.node()}\n", encoding="utf-8")
        recover_folder(folder)
        yield
    finally:
        if is_system_lock:
            path.unlink(missing_ok=True)  # before the release: a process that waits for it sees that its name is gone
        lock.release()


def _read_holder(lock: Path) -> str:
    try:
        process, host = lock.read_text(encoding="utf-8").split("\n")[:2]
    except (OSError, ValueError):
        return "process unknown"
    return f"process {process}" if host == platform.node() else f"process {process} on {host}"


@contextlib.contextmanager
def fresh_folder(folder: Path) -> Iterator[Path]:
    """Write a folder under a provisional name. It replaces `folder` when the block ends without an error.

    Raises:
        StorageError: the system refused to write (a full disk, for example); `folder` is unchanged.
    """
    folder = folder.resolve()
    recover_folder(folder)
    partial = _partial_name(folder)
    partial.mkdir(parents=True)
    try:
        yield partial
        replace_folder(partial, folder)
    except OSError as error:
        raise StorageError(_describe_failure(error, partial, folder)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def replace_folder(new: Path, folder: Path) -> None:
    """Give a finished folder its name, then delete the one that had it. `recover_folder` repairs a kill at any moment.

    Args:
        new: in the same parent folder as `folder`.

    Raises:
        OSError: it cannot be renamed; both are unchanged.
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
    recover_folder(folder)


def recover_folder(folder: Path) -> None:
    """Repair what a killed process left: restore a folder that was being replaced, delete what was not finished."""
    replaced = _replaced_name(folder)
    if replaced.exists() and not os.path.lexists(folder):
        replaced.rename(folder)
    if replaced.exists():  # a half-deleted folder must not have the name that is restored
        replaced.rename(folder.with_name(_partial_name(folder).name + "-old"))
    if folder.parent.is_dir():
        provisional = re.compile(re.escape(folder.name) + r"\.partial(-\d+(-old)?)?")
        for leftover in folder.parent.iterdir():
            if provisional.fullmatch(leftover.name):
                shutil.rmtree(leftover, ignore_errors=True)


def _replaced_name(folder: Path) -> Path:
    return folder.with_name(folder.name + ".replaced")


def _partial_name(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.partial-{os.getpid()}")


def _describe_failure(error: OSError, partial: Path, folder: Path) -> str:
    message = f"{error.strerror or error}: {error.filename or folder}."
    if error.errno in _NO_SPACE:
        written = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file() and not path.is_symlink())
        free = shutil.disk_usage(partial).free
        message += f" {describe_size(written)} had been written, {describe_size(free)} are free."
    return message + (f" {folder} is unchanged." if folder.exists() else "")


def check_space(folder: Path, needed: int, *, advice: str = "Choose another output folder.") -> None:
    """Check that the file system has room for a folder to be written.

    Args:
        needed: estimated size in bytes.

    Raises:
        StorageError: there is too little space.
    """
    folder = folder.resolve()
    existing = next(above for above in (folder, *folder.parents) if above.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise StorageError(f"{folder} needs about {describe_size(needed)}; {describe_size(free)} are free. {advice}")


def describe_size(size: int) -> str:
    """Format a number of bytes: `1.2 GB`, `0.5 MB`, `300 bytes`."""
    for unit, name in ((10**9, "GB"), (10**6, "MB")):
        if size >= unit / 10:
            return f"{size / unit:,.1f} {name}"
    return f"{size:,} bytes"


def file_stem(name: str, taken: set[str]) -> str:
    """Make a file name without ending from any text: letters, digits, `.`, `_` and `-`; unique. Adds it to `taken`."""
    stem = unique = re.sub(r"[^\w.-]+", "_", name).strip("._") or "slide"
    number = 1
    while unique.lower() in taken:
        number += 1
        unique = f"{stem}_{number}"
    taken.add(unique.lower())
    return unique


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a folder. After a crash each is either the old one or the whole new one."""
    partial = {name: folder / f".{name}.partial" for name in files}
    try:
        for name, content in files.items():
            partial[name].write_bytes(content)
        for name in files:
            os.replace(partial[name], folder / name)
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write a JSON file, the old one or the whole new one."""
    write_files(path.parent, {path.name: (json.dumps(value, indent=1) + "\n").encode()})


def read_json(
    path: Path,
    content: type[Content],
    *,
    advice: str,
    expected: str | None = None,
    update: Callable[[dict[str, object]], dict[str, object]] | None = None,
) -> Content:
    """Read a JSON file as a dataclass or a TypedDict, every value of the type that its field has.

    Args:
        advice: what to do about a file that cannot be used.
        expected: what the user should have given, such as `a recipe`; None for a file that CancerNet wrote.
        update: translates an object that an earlier version wrote.

    Raises:
        InputError: the file is missing, or one that the user gave is not what is expected.
        StorageError: the file cannot be read, or one that CancerNet wrote is damaged: it is not JSON, or has a field
            that is missing, of a wrong type or out of range.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        text = path.read_bytes()
        if update:
            with contextlib.suppress(ValueError, RecursionError):  # text that is not JSON is refused below
                value = json.loads(text)
                text = json.dumps(update(value)).encode() if isinstance(value, dict) else text
        return TypeAdapter(content).validate_json(text, strict=True)
    except FileNotFoundError:
        raise InputError(f"There is no {path}. {advice}") from None
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}.") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        is_complete = first["type"] in ("missing", "json_invalid", "unexpected_keyword_argument")
        found = "" if is_complete else f", not {str(first['input'])[:40]!r}"
        problem = f"is not {expected}" if expected else "is damaged"
        failure: type[CancerNetError] = InputError if expected else StorageError
        raise failure(f"{path} {problem}: {place and place + ': '}{first['msg']}{found}. {advice}") from None


_FORMULA = set("=+-@＝＋－＠\t\r\n")  # a spreadsheet runs text that begins so; see OWASP, "CSV Injection"
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")


def write_rows(file: TextIO, rows: Iterable[Sequence[object]]) -> None:
    """Write CSV rows to an open file. Text that a spreadsheet would run as a formula gets a leading apostrophe."""
    lines = SimpleNamespace(write=lambda line: file.write(line[:-2] + "\n"))
    # csv quotes a cell that contains \r only where its own lines end in \r\n.
    csv.writer(lines, lineterminator="\r\n").writerows([_escape(cell) for cell in row] for row in rows)


def read_rows(file: Iterable[str]) -> Iterator[list[str]]:
    """Read CSV rows as `write_rows` received them, without the apostrophes that it added.

    Raises:
        csv.Error: it is not a CSV file.
    """
    for row in csv.reader(file):
        yield [cell[1:] if cell[:1] == "'" and cell.lstrip("'")[:1] in _FORMULA else cell for cell in row]


def _escape(cell: object) -> object:
    if not isinstance(cell, str) or cell[:1] not in _FORMULA | {"'"} or _NUMBER.fullmatch(cell):
        return cell
    return f"'{cell}" if cell.lstrip("'")[:1] in _FORMULA else cell
