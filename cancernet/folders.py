"""The files in a folder, and a folder that is whole or not there."""

import contextlib
import operator
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


def walk(folder: str | Path, endings: tuple[str, ...], *, prefix: str = "") -> Iterator[tuple[str, os.DirEntry]]:
    """Files of these endings under a folder in the order of their names: path relative to it, and its entry for it."""
    with os.scandir(folder) as found:
        entries = sorted(found, key=operator.attrgetter("name"))
    for entry in entries:
        name = entry.name
        if entry.is_dir():
            yield from walk(entry.path, endings, prefix=f"{prefix}{name}/")
        elif name.lower().endswith(endings) and name[0] != ".":
            yield prefix + name, entry


@contextlib.contextmanager
def fresh_folder(folder: Path) -> Iterator[Path]:
    """Make a folder under a provisional name; it gets its own name when all went well.

    What was there before is replaced only then. What an interrupted build left behind is removed.
    """
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
