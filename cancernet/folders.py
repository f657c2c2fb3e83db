"""The files in a folder, a folder that is whole or not there, and a JSON file that holds what it should."""

import contextlib
import operator
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from cancernet import InputError

Kind = TypeVar("Kind")
SYSTEM_NAMES = ("__MACOSX", "Thumbs.db", "desktop.ini")


def is_passed_over(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or left there by a system; `..` is neither."""
    return (name.startswith(".") and name != "..") or name in SYSTEM_NAMES


def walk(
    folder: str | Path, endings: tuple[str, ...], *, prefix: str = "", others: Counter | None = None
) -> Iterator[tuple[str, os.DirEntry]]:
    """Files of these endings under a folder in the order of their names: path relative to it, and its entry for it.

    What `is_passed_over` is left out. Files of other endings are counted in `others`, by their ending.
    """
    with os.scandir(folder) as found:
        entries = sorted(found, key=operator.attrgetter("name"))
    for entry in entries:
        name = entry.name
        if is_passed_over(name):
            continue
        if entry.is_dir():
            yield from walk(entry.path, endings, prefix=f"{prefix}{name}/", others=others)
        elif name.lower().endswith(endings):
            yield prefix + name, entry
        elif others is not None:
            others[os.path.splitext(name)[1].lower()] += 1


def describe_unsupported(others: Counter) -> str:
    """Say how many files were skipped because of their ending; "" for none."""
    if not others:
        return ""
    counts = ", ".join(f"{n:,} {ending or 'without an ending'}" for ending, n in others.most_common())
    return f"Skipped, unsupported file type: {counts}."


def read_json(path: Path, kind: type[Kind], *, again: str) -> Kind:
    """Read a JSON file as a dataclass, every value of the type that its field has; fields beside them are not read.

    Args:
        again: what to do about a damaged file, for the error.

    Raises:
        InputError: the file is missing, cannot be read, is not JSON, or has a field that is missing or of a wrong type.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_json(path.read_bytes(), strict=True)
    except FileNotFoundError:
        raise InputError(f"There is no {path}. {again}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        came = "" if first["type"] in ("missing", "json_invalid") else f", not {str(first['input'])[:40]!r}"
        raise InputError(f"{path} is damaged: {place and place + ': '}{first['msg']}{came}. {again}") from None


@contextlib.contextmanager
def fresh_folder(folder: Path) -> Iterator[Path]:
    """Make a folder under a provisional name; it gets its own name when all went well.

    What was there before is replaced only then. What an interrupted build left behind is removed.
    """
    folder = folder.resolve()
    partial, replaced = (folder.with_name(folder.name + ending) for ending in (".partial", ".replaced"))
    for leftover in (partial, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            folder.rename(replaced)
        partial.rename(folder)
    finally:
        for leftover in (partial, replaced):
            shutil.rmtree(leftover, ignore_errors=True)
