"""What commands leave on disk: folders that are whole or absent, what may be overwritten, JSON and CSV files.

`fresh_folder`, `replace_folder` and `recover_folder` are for the process that holds the folder's lock.
"""

import contextlib
import csv
import ctypes
import enum
import errno
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TextIO, TypeVar

from cancernet import CancerNetError, InputError, StorageError, __version__

Content = TypeVar("Content")
_FEW = 64  # files that are flushed one by one, without waiting for what other programs write
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
    it cannot be a link, a mount point, the current folder or one of its parents. A command that resumes its own
    results, or finds them up to date, passes `force` and compares the request itself. Raises InputError if the folder
    contains anything else, above all a trained run, or cannot be renamed.
    """
    if folder.is_symlink():
        raise InputError(f"{folder} is a link. Give the folder that it points to, {os.path.realpath(folder)}.")
    if Path.cwd().is_relative_to(_resolve(folder)):
        raise InputError(f"{folder} is the current folder or one of its parents. Choose another output folder.")
    if _is_mount_point(folder):
        raise InputError(f"{folder} is a mount point and cannot be renamed. Choose a folder in it: {folder / 'NAME'}.")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is a file. Choose another output folder.")
    partial = _provisional(folder / "*", "new").name  # what `write_files` leaves if it is killed
    contents = [path for path in folder.iterdir() if not (path.match(partial) and path.is_file())]
    found = _identify_folder(folder)  # later, as another process may be about to write the files that identify it
    if found is not kind and contents:
        noun = found.noun if found else "other files"
        raise InputError(f"{folder} contains {noun}, not {kind.noun}. Choose another output folder.")
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


def _resolve(folder: Path) -> Path:
    return Path(os.path.realpath(folder))  # unlike `resolve`, it takes a link to itself


def _is_mount_point(folder: Path) -> bool:
    import psutil

    # Unlike os.path.ismount, the list includes bind mounts, such as a container's volumes.
    mounted = {partition.mountpoint for partition in psutil.disk_partitions(all=True)}
    return os.path.ismount(folder) or str(_resolve(folder)) in mounted


@contextlib.contextmanager
def claim_folder(folder: Path | None, kind: FolderKind, *, force: bool) -> Iterator[None]:
    """Lock a folder, unless it is None, for results of a kind; `check_replaceable` decides whether it may be used."""
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

    The lock is the file `.NAME.cancernet-lock` in the same parent folder. The system frees it when its process ends,
    however it ends. On a network file system without locks the existence of a file is the lock: a killed process leaves
    it, and a later one on the same machine sees that it has ended. If another process has the lock, `announce` receives
    a message before waiting for it; without `announce` StorageError is raised.
    """
    import filelock

    folder = _resolve(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = _provisional(folder, "lock")
    lock: filelock.BaseFileLock = filelock.FileLock(path)
    try:
        try:
            lock.acquire(blocking=False)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):  # filelock itself handles ENOSYS
                raise
            path.unlink(missing_ok=True)
            path = _provisional(folder, "lock-file")
            lock = filelock.SoftFileLock(path)
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
            try:
                path.write_text(f"{os.getpid()}\n{platform.node()}\n", encoding="utf-8")
            except OSError as error:  # a failed write does not name the file
                raise StorageError(f"{path} cannot be written: {error.strerror}.") from error
        recover_folder(folder)
        yield
    finally:
        if is_system_lock:
            with contextlib.suppress(OSError):  # the file itself does not lock anything
                path.unlink()  # before the release: a process that waits for it sees that its name is gone
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

    Raises StorageError if the system refused to write (a full disk, for example); `folder` is then unchanged.
    """
    folder = _resolve(folder)
    recover_folder(folder)
    partial = _provisional(folder, "new")
    try:
        partial.mkdir(parents=True)
        _mark(partial, "unfinished")
        yield partial
        replace_folder(partial, folder)
    except OSError as error:
        raise StorageError(_describe_failure(error, partial, folder)) from error
    finally:
        _delete(partial)


def replace_folder(new: Path, folder: Path) -> None:
    """Flush a finished folder to disk and give it its name, then delete the one that had it; both have the same parent.

    `recover_folder` repairs what a kill or a power cut leaves. Raises OSError if the folder cannot be written or
    renamed, and both are unchanged; StorageError if the one being replaced could not get its name back.
    """
    flush_folder(new)
    replaced = _provisional(folder, "old")
    try:
        if folder.exists():
            _mark(folder, "replaced")
            folder.rename(replaced)
        new.rename(folder)
        flush(folder.parent)
    except BaseException as error:
        try:
            if folder.exists() and not new.exists():
                folder.rename(new)
            if _is_marked(replaced):
                replaced.rename(folder)
            (folder / _MARKER).unlink(missing_ok=True)
        except OSError:
            where = f"What was {folder} is now {replaced}; the next command with this folder renames it back."
            raise StorageError(f"{error}. {where}") from error
        raise
    with contextlib.suppress(OSError):  # what is left of the old folder is deleted by the next command
        recover_folder(folder)


def recover_folder(folder: Path) -> None:
    """Repair what a killed process left: restore a folder that was being replaced, delete what was not finished."""
    new, old, deleted = (_provisional(folder, purpose) for purpose in ("new", "old", "deleted"))
    if _is_marked(old) and not os.path.lexists(folder):
        old.rename(folder)
        flush(folder.parent)
    if _is_marked(folder):
        (folder / _MARKER).unlink()
    _delete(deleted)
    if _is_marked(old):  # a half-deleted folder must not have the name that is restored
        old.rename(deleted)
    for leftover in (deleted, new):
        _delete(leftover)


# A provisional folder has a hidden name and contains a marker. Without the marker it is never renamed or deleted.
_MARKER = ".cancernet-provisional.json"


def _provisional(folder: Path, purpose: str) -> Path:
    return folder.with_name(f".{folder.name}.cancernet-{purpose}")


def _mark(folder: Path, purpose: str) -> None:
    made_by = {"made_by": f"CancerNet {__version__}", "process": os.getpid(), "host": platform.node()}
    (folder / _MARKER).write_text(json.dumps({"purpose": purpose, **made_by}) + "\n", encoding="utf-8")
    flush(folder / _MARKER)


def _is_marked(folder: Path) -> bool:
    return (folder / _MARKER).is_file() and not folder.is_symlink()


def _delete(folder: Path) -> None:
    """Delete a marked folder, its marker last, so that a kill leaves nothing that is not recognized."""
    with contextlib.suppress(OSError):  # it is not there, is not ours, or cannot be deleted now
        if _is_marked(folder):
            for path in folder.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path.name != _MARKER:
                    path.unlink()
            (folder / _MARKER).unlink()
        folder.rmdir()  # refused by the system unless it is empty


def flush_folder(folder: Path) -> None:
    """Write all files of a folder from the system's memory to disk; OSError if the disk could not store them."""
    paths = [Path(parent, name) for parent, folders, files in os.walk(folder) for name in (*folders, *files)]
    if len(paths) <= _FEW or sys.platform != "linux":
        for path in reversed([folder, *paths]):
            if not path.is_symlink():
                flush(path)
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor):  # the file system at once: many times as fast
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(folder))
    finally:
        os.close(descriptor)


def flush(path: Path) -> None:
    """Write a file, or the names in a folder, from the system's memory to disk; errors as `flush_folder`."""
    is_windows = sys.platform == "win32"
    if is_windows and path.is_dir():
        return  # Windows opens no folders, and flushes only what is open to write
    descriptor = os.open(path, os.O_RDWR if is_windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):  # some network file systems
            raise
    finally:
        os.close(descriptor)


def _describe_failure(error: OSError, partial: Path, folder: Path) -> str:
    message = f"{error.strerror or error}: {error.filename or folder}."
    if error.errno in _NO_SPACE:
        written = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file() and not path.is_symlink())
        free = shutil.disk_usage(partial).free
        message += f" {describe_size(written)} had been written, {describe_size(free)} are free."
    return message + (f" {folder} is unchanged." if folder.exists() else "")


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_space(folder: Path, needed: int, *, advice: str = "Choose another output folder.") -> None:
    """Raise StorageError unless the file system has room for a folder of `needed` bytes."""
    folder = _resolve(folder)
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
    """Write files into a folder. After a crash or a power cut each is either the old one or the whole new one."""
    partial = {name: _provisional(folder / name, "new") for name in files}
    try:
        for name, content in files.items():
            partial[name].write_bytes(content)
            flush(partial[name])
        for name in files:
            os.replace(partial[name], folder / name)
        flush(folder)
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
        StorageError: the file cannot be read, or one that CancerNet wrote is damaged.
    """
    from pydantic import ValidationError

    try:
        text = path.read_bytes()
        if update:
            with contextlib.suppress(ValueError, RecursionError):  # text that is not JSON is refused below
                value = json.loads(text)
                text = json.dumps(update(value)).encode() if isinstance(value, dict) else text
        return _compile_parser(content)(text, strict=True)  # type: ignore[arg-type]  # a type is hashable
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


@functools.cache
def _compile_parser(content: type[Content]) -> Callable[..., Content]:
    from pydantic import TypeAdapter

    return TypeAdapter(content).validate_json  # a report's takes 30 ms to compile, and one to use


_FORMULA = set("=+-@＝＋－＠\t\r\n")  # a spreadsheet runs text that begins so; see OWASP, "CSV Injection"
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")


def write_rows(file: TextIO, rows: Iterable[Sequence[object]]) -> None:
    """Write CSV rows to an open file. Text that a spreadsheet would run as a formula gets a leading apostrophe."""
    lines = SimpleNamespace(write=lambda line: file.write(line[:-2] + "\n"))
    # csv quotes a cell that contains \r only where its own lines end in \r\n.
    csv.writer(lines, lineterminator="\r\n").writerows([_escape(cell) for cell in row] for row in rows)


def read_rows(file: Iterable[str]) -> Iterator[list[str]]:
    """Read CSV rows as `write_rows` received them, without the apostrophes that it added; csv.Error if it is no CSV."""
    for row in csv.reader(file):
        yield [cell[1:] if cell[:1] == "'" and cell.lstrip("'")[:1] in _FORMULA else cell for cell in row]


def _escape(cell: object) -> object:
    if not isinstance(cell, str) or cell[:1] not in _FORMULA | {"'"} or _NUMBER.fullmatch(cell):
        return cell
    return f"'{cell}" if cell.lstrip("'")[:1] in _FORMULA else cell
