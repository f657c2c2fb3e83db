"""Find files of given types in a folder tree, in a fixed order, whatever else lies there."""

import errno
import operator
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

_SYSTEM_NAMES = ("__MACOSX", "Thumbs.db", "desktop.ini")
_Entry = os.DirEntry[str]
_Identity = tuple[int, int]  # device and inode: the same for a folder under every path


def is_ignored(name: str) -> bool:
    """Return whether a file or folder of this name is hidden or made by an operating system; `..` is neither."""
    return (name.startswith(".") and name != "..") or name in _SYSTEM_NAMES


def walk(
    folder: str | Path, endings: tuple[str, ...], *, prefix: str = "", others: Counter[str] | None = None
) -> Iterator[tuple[str, _Entry]]:
    """Find the files with these endings (lower case) in a folder and its subfolders, without those that `is_ignored`.

    Yields the path relative to the folder, with forward slashes and after `prefix`, and its directory entry, in order
    of names. `others` counts, by their ending, the files of other types; and folders that are skipped because their
    path is too long, or because they are links to a folder above them, which would be followed for ever.
    """
    others = Counter() if others is None else others
    levels = [(prefix, *_open_folder(folder))]  # from the first folder down to the one that is being read
    while levels:
        prefix, _, entries = levels[-1]
        entry = next(entries, None)
        if entry is None:
            levels.pop()
        elif is_ignored(entry.name):
            continue
        elif _is_folder(entry):
            try:
                identity, inner = _open_folder(entry.path)
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:
                    raise
                others["folder with too long a path"] += 1
                continue
            if any(identity == above for _, above, _ in levels):
                others["link to a folder that contains it"] += 1
            else:
                levels.append((f"{prefix}{entry.name}/", identity, inner))
        elif entry.name.lower().endswith(endings):
            yield prefix + entry.name, entry
        else:
            others[os.path.splitext(entry.name)[1].lower()] += 1


def _open_folder(folder: str | Path) -> tuple[_Identity, Iterator[_Entry]]:
    """Return what identifies a folder, and its entries in order of names."""
    status = os.stat(folder)
    with os.scandir(folder) as found:
        return (status.st_dev, status.st_ino), iter(sorted(found, key=operator.attrgetter("name")))


def _is_folder(entry: _Entry) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENAMETOOLONG):  # a link to itself, or to a name that cannot be
            raise
        return False


def describe_unsupported(others: Counter[str]) -> str:
    """Report how many files `walk` skipped because of their type; "" for none."""
    if not others:
        return ""
    counts = ", ".join(f"{count:,} {ending or 'without an ending'}" for ending, count in others.most_common())
    return f"Skipped, unsupported file type: {counts}."
