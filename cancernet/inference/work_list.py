"""The list of work of `cancernet predict`: which files there are, and which of them are scored together.

Nothing here needs Keras, so that a wrong path is found at once.
"""

import csv
import io
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from cancernet import InputError, storage
from cancernet.data import dicom
from cancernet.data.dataset import find_place
from cancernet.data.files import walk
from cancernet.data.images import EXTENSIONS, HeaderStream
from cancernet.run import Settings
from cancernet.storage import file_stem

SLIDE_EXTENSIONS = (".svs", ".ndpi", ".mrxs", ".scn", ".svslide", ".vms", ".vmu", ".bif", ".dcm", ".qptiff")
_SLIDE_IN_DICOM = "1.2.840.10008.5.1.4.1.1.77.1.6"  # VL Whole Slide Microscopy Image Storage
PATH_COLUMN = "path"  # of a table of images
LARGE_SIDE = 4  # patches; a picture whose two sides are longer is tiled into patches
SINGLE_FILES = 64  # patches without a position in one item: one batch
SLIDE, SINGLE, LARGE = "slide", "single", "large"  # kinds of items


class WorkItem(NamedTuple):
    """Files that are scored together and never divided between shards or processes."""

    kind: str  # SLIDE: patches of one slide | SINGLE: patches without a position | LARGE: one image, tiled into patches
    slide: str  # name of the slide; "" for patches without a position
    stem: str  # of the names of its files in the output; "" for patches without a position
    files: list[str]


class FoundFiles(NamedTuple):
    """What the given paths lead to."""

    files: list[str]  # none twice
    skipped: Counter[str]  # other files in the given folders, by their extension
    rejected: list[tuple[str, str]]  # paths in tables that lead to no image, and why


def find_files(paths: Iterable[str | os.PathLike[str]]) -> FoundFiles:
    """List the given files, the images in given folders at any depth in the order of their names, and those in tables.

    Tables are .csv files with a column `path`, whose relative paths start at the folder of the table. A path in a table
    that leads to no image is rejected; the others are used. Raises InputError if a given path does not exist, a folder
    has no image, or a table has no path.
    """
    files: list[str] = []
    skipped: Counter[str] = Counter()
    rejected: list[tuple[str, str]] = []
    for given in paths:
        path = os.fspath(given)
        if not path.lower().endswith(".csv"):
            files += _list_images(path, skipped)
            continue
        for row in _read_table(Path(path)):
            try:
                files += _list_images(row, skipped)
            except InputError as error:
                rejected.append((row, str(error)))
    found: dict[str, str] = {}
    for file in files:
        found.setdefault(os.path.abspath(file), Path(file).as_posix())
    return FoundFiles(list(found.values()), skipped, rejected)


def _read_table(path: Path) -> list[str]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(storage.read_rows(file))
    except FileNotFoundError:
        raise InputError(f"There is no {printable(str(path))}. Give images, folders, or a table of them.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{printable(str(path))} is not a CSV file in UTF-8 ({error}).") from error
    if not rows or PATH_COLUMN not in rows[0]:
        raise InputError(f"{printable(str(path))} has no column {PATH_COLUMN}. Name the columns in its first line.")
    index = rows[0].index(PATH_COLUMN)
    named = [row[index] for row in rows[1:] if len(row) > index and row[index]]
    if not named:
        raise InputError(f"{printable(str(path))} lists no image. Give one a row, in the column {PATH_COLUMN}.")
    return [(path.parent / name).as_posix() for name in named]


def _list_images(path: str, skipped: Counter[str]) -> list[str]:
    if not os.path.exists(path):
        raise InputError(f"There is no {printable(path)}. Give images, or folders with images.")
    if not os.path.isdir(path):
        return [path]
    inside = [entry.path for _, entry in walk(path, EXTENSIONS + SLIDE_EXTENSIONS, others=skipped)]
    if not inside:
        advice = "Give a folder with images such as .png, .jpg, .tif, .svs."
        raise InputError(f"No images under {printable(path)}. {advice}")
    return inside


def plan_work(
    files: Sequence[str], settings: Settings, *, tile: str, contents: Mapping[str, bytes] | None = None
) -> list[WorkItem]:
    """Divide files into items: each slide, each large image, and patches without a position by SINGLE_FILES.

    The items are in the order of their first files. They do not depend on the shards, so that every image is scored in
    the same batch and gets the same probability to the last digit, however the work is divided. `settings` are of the
    run. `tile` is auto (see `is_tiled`; not patches with a position), always or never. `contents` are the bytes of each
    file, where they are in memory and not on disk.
    """
    items: list[WorkItem] = []
    open_items: dict[str, WorkItem] = {}  # by slide; "" has the patches without a position
    stems: set[str] = set()
    for file in files:
        patient, x, _ = find_place(file)
        slide = patient if x is not None else ""
        data = None if contents is None else contents[file]
        if tile == "always" or (tile == "auto" and not slide and is_tiled(file, settings, data)):
            items.append(WorkItem(LARGE, file, file_stem(Path(file).stem, stems), [file]))
            continue
        if slide not in open_items or (not slide and len(open_items[slide].files) == SINGLE_FILES):
            kind, stem = (SLIDE, file_stem(slide, stems)) if slide else (SINGLE, "")
            open_items[slide] = WorkItem(kind, slide, stem, [])
            items.append(open_items[slide])
        open_items[slide].files.append(file)
    return items


def is_tiled(file: str, settings: Settings, data: bytes | None = None) -> bool:
    """Return whether an image without a position is tiled: a whole slide, or a large image if the run has a scale."""
    if file.lower().endswith(dicom.ENDING):
        return _is_dicom_slide(file, data)
    if file.lower().endswith(SLIDE_EXTENSIONS):
        return True
    if settings.mpp is None or (data is None and not os.path.isfile(file)):  # reading a pipe would never end
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file if data is None else HeaderStream(data)) as header:
                return min(header.size) > LARGE_SIDE * settings.patch_pixels
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        return True
    except (OSError, ValueError):
        return file.lower().endswith((".tif", ".tiff"))  # a form of TIFF that Pillow cannot read, or a damaged file


def _is_dicom_slide(file: str, data: bytes | None) -> bool:
    try:
        with Path(file).open("rb") if data is None else io.BytesIO(data) as opened:
            return str(dicom.read_header(opened).get("SOPClassUID")) == _SLIDE_IN_DICOM
    except (InputError, OSError):  # says so when it is read
        return False


def take_shard(items: Sequence[WorkItem], number: int, count: int) -> list[WorkItem]:
    """Take one of `count` shards, each of about as many items in their order; `number` counts from 1."""
    return list(items[len(items) * (number - 1) // count : len(items) * number // count])


def describe_work(items: Sequence[WorkItem]) -> str:
    """Say how many files are patches of a slide, single patches, and large images."""
    slides = sum(item.kind == SLIDE for item in items)
    meanings = {
        SLIDE: f"patches of {slides:,} slide(s)",
        SINGLE: "image(s) that are one patch each",
        LARGE: "large image(s) to be tiled into patches (see --help)",
    }
    files = {kind: sum(len(item.files) for item in items if item.kind == kind) for kind in meanings}
    parts = [f"{files[kind]:,} {meaning}" for kind, meaning in meanings.items() if files[kind]]
    return (", ".join(parts) or "no images") + "."


def group_rejected(rejected: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Join files that were rejected for the same reason: `a.png and 3 more`, with the reason."""
    files: dict[str, list[str]] = {}
    for file, reason in rejected:
        files.setdefault(reason, []).append(file)
    return [(each[0] + (f" and {len(each) - 1:,} more" if each[1:] else ""), reason) for reason, each in files.items()]


def printable(text: str) -> str:
    """Replace bytes of a file name that are not UTF-8 by `?`, so that every terminal can show it."""
    return text.encode("utf-8", "replace").decode("utf-8")
