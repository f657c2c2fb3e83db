"""A folder that is whole or not there."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path


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
