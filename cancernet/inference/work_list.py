"""The work of predict_images.py divided into parts: which files there are, and which of them are scored together.

Nothing here needs Keras, so that a wrong path is found at once.
"""

import csv
import io
import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from cancernet import InputError, storage
from cancernet.data.dataset import find_place
from cancernet.data.files import walk
from cancernet.data.grid import PATCH_STEP
from cancernet.data.images import EXTENSIONS
from cancernet.storage import file_stem

PREDICTIONS, REJECTED = "predictions.csv", "rejected.csv"  # in the folder of the results
SLIDE_EXTENSIONS = (".svs", ".ndpi", ".mrxs", ".scn", ".svslide", ".vms", ".vmu", ".bif", ".dcm", ".qptiff")
COLUMN = "path"  # of a table of slides
LARGE_SIDE = 4 * PATCH_STEP  # pixels; a picture whose two sides are longer is cut into patches
LOOSE_FILES = 64  # patches without a place in one part
SLIDE, LOOSE, CUT = "slide", "loose", "cut"  # kinds of parts


class Part(NamedTuple):
    """Files that are scored together and never divided between shards."""

    kind: str  # SLIDE: patches of one slide | LOOSE: patches without a place | CUT: one large image
    slide: str  # name of the slide; "" for patches without a place
    stem: str  # of the names of its files in the output
    files: list[str]


def expand_tables(paths: Sequence[str]) -> list[str]:
    """Put the paths of each table, a .csv file with a column `path`, in its place.

    A path that is not absolute starts at the folder of its table.

    Raises:
        InputError: a table cannot be read, has no such column or no row.
    """
    found: list[str] = []
    for path in map(str, paths):
        found += _read_paths(Path(path)) if path.lower().endswith(".csv") else [path]
    return found


def _read_paths(path: Path) -> list[str]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(storage.read_rows(file))
    except FileNotFoundError:
        raise InputError(f"There is no {printable(str(path))}. Give a table of slides, or images.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{printable(str(path))} is no CSV file in UTF-8 ({error}).") from error
    if not rows or COLUMN not in rows[0]:
        raise InputError(f"{printable(str(path))} has no column {COLUMN}. Its first line names the columns.")
    index = rows[0].index(COLUMN)
    named = [row[index] for row in rows[1:] if len(row) > index and row[index]]
    if not named:
        raise InputError(f"{printable(str(path))} names no slide. Give one a row, in the column {COLUMN}.")
    return [(path.parent / name).as_posix() for name in named]


def find_files(paths: Sequence[str]) -> tuple[list[str], Counter[str]]:
    """List the given files, and the images in the given folders at any depth in the order of their names.

    Returns:
        The files, none twice, and the number of other files in the folders by their ending.

    Raises:
        InputError: there is no such path, or a folder has no image.
    """
    found: dict[str, str] = {}
    others: Counter[str] = Counter()
    for path in paths:
        if not os.path.exists(path):
            raise InputError(f"There is no {printable(path)}. Give images, or folders with images.")
        endings = EXTENSIONS + SLIDE_EXTENSIONS
        inside = [entry.path for _, entry in walk(path, endings, others=others)] if os.path.isdir(path) else [path]
        if not inside:
            raise InputError(
                f"No images under {printable(path)}. Give a folder with images such as .png, .jpg, .tif, .svs."
            )
        for file in inside:
            found.setdefault(os.path.abspath(file), Path(file).as_posix())
    return list(found.values()), others


def plan_parts(
    files: Sequence[str], *, mpp: float | None, tile: str, contents: Mapping[str, bytes] | None = None
) -> list[Part]:
    """Divide files into parts: each slide, each large image, and patches without a place by LOOSE_FILES.

    The parts are in the order of their first files. They do not depend on the shards, so that every image is scored in
    the same batch and gets the same probability to the last digit, however the work is divided.

    Args:
        mpp: the run's scale, micrometres a pixel; None where it has none.
        tile: whether images are cut into patches: auto (see `is_cut`; patches with a place are not), always or never.
        contents: the bytes of each file, where they are in memory and not on disk.
    """
    parts: list[Part] = []
    slides: dict[str, Part] = {}
    loose, stems = Part(LOOSE, "", "", []), set()
    for file in files:
        patient, x, _ = find_place(file)
        has_place = bool(patient) and x is not None
        data = None if contents is None else contents[file]
        if tile == "always" or (tile == "auto" and not has_place and is_cut(file, mpp, data)):
            parts.append(Part(CUT, file, file_stem(Path(file).stem, stems), [file]))
        elif has_place and patient in slides:
            slides[patient].files.append(file)
        elif has_place:
            slides[patient] = Part(SLIDE, patient, file_stem(patient, stems), [file])
            parts.append(slides[patient])
        else:
            if len(loose.files) in (0, LOOSE_FILES):
                loose = Part(LOOSE, "", "", [])
                parts.append(loose)
            loose.files.append(file)
    return parts


def is_cut(file: str, mpp: float | None, data: bytes | None = None) -> bool:
    """Whether an image without a place is cut into patches: a whole slide, or a large image if the run has a scale.

    Args:
        mpp: the run's scale, micrometres a pixel; None where it has none.
        data: the bytes of the file, where they are in memory and not on disk.
    """
    if file.lower().endswith(SLIDE_EXTENSIONS):
        return True
    if mpp is None or (data is None and not os.path.isfile(file)):  # a pipe would never be read to its end
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file if data is None else io.BytesIO(data)) as header:
                return is_large(*header.size)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        return True
    except (UnidentifiedImageError, OSError, ValueError):
        return file.lower().endswith((".tif", ".tiff"))  # a form of TIFF that Pillow cannot read, or a damaged file


def is_large(width: int, height: int) -> bool:
    """Whether a picture of so many pixels is large: more than LARGE_SIDE both ways."""
    return min(width, height) > LARGE_SIDE


def take_shard(parts: Sequence[Part], number: int, of: int) -> list[Part]:
    """Take one of `of` shards, each of about as many parts in their order; `number` counts from 1."""
    return list(parts[len(parts) * (number - 1) // of : len(parts) * number // of])


def describe_plan(parts: Sequence[Part]) -> str:
    """Say in words how many files are used as patches of a slide, as single patches, and as large images."""
    files = {kind: sum(len(part.files) for part in parts if part.kind == kind) for kind in (SLIDE, LOOSE, CUT)}
    slides = sum(part.kind == SLIDE for part in parts)
    said = []
    if slides:
        said.append(f"{files[SLIDE]:,} patches of {slides:,} slide(s)")
    if files[LOOSE]:
        said.append(f"{files[LOOSE]:,} image(s) that are one patch each")
    if files[CUT]:
        said.append(f"{files[CUT]:,} large image(s) to be cut into patches (which: see --help)")
    return (", ".join(said) or "no images") + "."


def printable(text: str) -> str:
    """Text that every terminal can show: bytes of a file's name that are not UTF-8 become `?`."""
    return text.encode("utf-8", "replace").decode("utf-8")
