"""Whole slides with annotations as a source of patches: QuPath's GeoJSON, laid over the grid of each slide."""

import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from math import ceil, floor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import shapely
from shapely.errors import ShapelyError

from cancernet import InputError
from cancernet.data.dataset import Patch
from cancernet.data.labels import read_table
from cancernet.data.source import SourceFile
from cancernet.data.tiles import find_blocks, open_slide_image, tile_grid
from cancernet.storage import file_stem

COLUMNS = ("path", "annotations", "patient", "mpp")  # that mean something; the others go into the manifest
Colour = tuple[int, int, int]  # red, green, blue, 0 to 255


class AnnotatedSlide(NamedTuple):
    """A row of the table of slides."""

    path: Path
    annotations: Path
    patient: str
    mpp: float | None  # micrometres per pixel, for a file that does not state it
    more: tuple[tuple[str, str], ...]  # name and value of the other columns


class Region(NamedTuple):
    """All annotations of one class on a slide."""

    label: str
    colour: Colour | None
    shape: shapely.Geometry  # in pixels of level 0


class SlidePlan(NamedTuple):
    """The annotated patches of all slides, before the split; none is read yet."""

    patches: list[Patch]  # of one block of a slide after the other
    slides: dict[str, AnnotatedSlide]  # by the name of the slide
    blocks: dict[str, tuple[int, int]]  # rows and columns of patches that are read at once, by the name of the slide
    patch_pixels: int
    colours: dict[str, Colour]  # of each class that has one
    rejected: list[tuple[str, str]]  # slides that cannot be used, and why

    def find_block(self, patch: Patch) -> tuple[str, int, int]:
        """Identify the block of a slide with which a patch is read."""
        rows, columns = self.blocks[patch.slide]
        return patch.slide, (patch.y or 0) // self.patch_pixels // rows, (patch.x or 0) // self.patch_pixels // columns


def read_slides(table: Path) -> list[AnnotatedSlide]:
    """Read a CSV file with the columns path, annotations and optionally patient, mpp and others.

    Paths start at the folder of the table. A slide without a patient is a patient of its own. Raises InputError if the
    table cannot be read, lacks a column or a file, or has a scale that is no number above 0.
    """
    rows = read_table(table)
    for name in COLUMNS[:2]:
        if not rows or name not in rows[0]:
            raise InputError(f"{table} has no column {name}, or no row. It needs path, annotations and, best, patient.")
    return [_read_row(table, row) for row in rows]


def _read_row(table: Path, row: Mapping[str, str]) -> AnnotatedSlide:
    path, annotations = (table.parent / row[name] for name in COLUMNS[:2])
    for file in (path, annotations):
        if not file.is_file():
            raise InputError(f"{table} names {file}, which is no file.")
    try:
        mpp = float(row["mpp"]) if row.get("mpp") else None
    except ValueError as error:
        raise InputError(f"{table}: {row['mpp']!r} is no scale in micrometres per pixel.") from error
    taken = (*COLUMNS, "slide", *Patch._fields)
    more = tuple((name, value) for name, value in row.items() if name not in taken)
    return AnnotatedSlide(path, annotations, row.get("patient", ""), mpp, more)


def list_slide_files(table: Path, slides: Iterable[AnnotatedSlide]) -> list[SourceFile]:
    """List the table, the slides and their annotations with size and time, by which changes are noticed."""
    files = [table, *(file for slide in slides for file in (slide.path, slide.annotations))]
    return [SourceFile(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def read_regions(path: Path, text: bytes | None = None) -> list[Region]:
    """Read annotations as QuPath exports them, those of each class joined; the smallest region comes first.

    Annotations without a class, with one that QuPath ignores (its name ends in *), and those without an area, such as
    points, are left out. Raises InputError if the file is not GeoJSON, or a class cannot be the name of a folder.
    `text` is the content of the file, if it is in memory.
    """
    shapes: dict[str, list[shapely.Geometry]] = {}
    colours: dict[str, Colour | None] = {}
    try:
        content = json.loads(path.read_bytes() if text is None else text)
        features = content.get("features", [content]) if isinstance(content, dict) else content
        for feature in features:
            given = (feature.get("properties") or {}).get("classification") or {}
            name = given.get("name") or ": ".join(given.get("names", ()))
            label = unicodedata.normalize("NFC", name.strip())
            if label and not label.endswith("*"):
                shape = shapely.make_valid(shapely.from_geojson(json.dumps(feature["geometry"])))
                shapes.setdefault(label, []).append(shape)
                colours.setdefault(label, _read_colour(given))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, ShapelyError) as error:
        raise InputError(f"{path}: is not GeoJSON as QuPath exports it ({error}). Export it again.") from error
    for label in shapes:
        if label.startswith(".") or set(label) & set("/\\\0"):
            raise InputError(f"{path}: the class {label!r} cannot be the name of a folder. Rename it in QuPath.")
    regions = [Region(label, colours[label], shapely.union_all(parts)) for label, parts in shapes.items()]
    return sorted((region for region in regions if region.shape.area > 0), key=lambda region: region.shape.area)


def _read_colour(given: Mapping) -> Colour | None:
    if "colorRGB" in given:  # up to QuPath 0.3
        return ((given["colorRGB"] >> 16) & 255, (given["colorRGB"] >> 8) & 255, given["colorRGB"] & 255)
    if "color" not in given:
        return None
    red, green, blue = map(int, given["color"])
    return red, green, blue


def classify_cells(regions: Sequence[Region], shape: tuple[int, int], side: float, least_share: float) -> np.ndarray:
    """Find the region that covers most of each cell of a grid, at least `least_share`; of two alike, the first.

    Returns indices of regions, int [rows, columns], or -1. `side` of a cell is in the pixels of the regions.
    """
    found, most = np.full(shape, -1), np.zeros(shape)
    for index, region in enumerate(regions):
        shapely.prepare(region.shape)
        left, top, right, bottom = np.array(region.shape.bounds) / side
        columns = np.arange(max(0, floor(left)), min(shape[1], ceil(right)))
        for row in range(max(0, floor(top)), min(shape[0], ceil(bottom))):  # row by row, in little memory
            cells = shapely.box(columns * side, row * side, (columns + 1) * side, (row + 1) * side)
            share = shapely.contains(region.shape, cells).astype(float)
            partly = shapely.intersects(region.shape, cells) & (share == 0)
            share[partly] = shapely.area(shapely.intersection(cells[partly], region.shape)) / side**2
            chosen = columns[(share >= least_share - 1e-9) & (share > most[row, columns] + 1e-9)]
            most[row, chosen], found[row, chosen] = share[chosen - columns[0]] if len(columns) else 0, index
    return found


def plan_patches(slides: Sequence[AnnotatedSlide], *, patch_pixels: int, mpp: float, least_share: float) -> SlidePlan:
    """Lay one grid over each slide, and give its patches the classes of the annotations; no pixels are read.

    A slide that cannot be opened is rejected. `mpp` is the micrometres per pixel of the patches, `least_share` (above 0
    to 1) the share of a patch that the annotations of its class cover. Raises InputError if no slide has an annotated
    patch, and as `read_regions`.
    """
    plan = SlidePlan([], {}, {}, patch_pixels, {}, [])
    taken: set[str] = set()
    for slide in slides:
        regions = read_regions(slide.annotations)
        try:
            with open_slide_image(slide.path, slide.mpp) as opened:
                shape = tile_grid(opened, patch_pixels=patch_pixels, target_mpp=mpp)
                _, *block = find_blocks(opened, patch_pixels=patch_pixels, target_mpp=mpp)
                side = patch_pixels * mpp / opened.mpp
        except InputError as error:
            reason = str(error).removeprefix(f"{slide.path}: ").replace("Give --mpp", "Give it in a column mpp")
            plan.rejected.append((str(slide.path), reason))
            continue
        name = file_stem(slide.path.stem, taken)
        plan.slides[name], plan.blocks[name] = slide, (block[0], block[1])
        plan.colours.update({each.label: each.colour for each in reversed(regions) if each.colour})
        classes = classify_cells(regions, shape, side, least_share)
        found = []
        for row, column in np.argwhere(classes >= 0).tolist():
            x, y, label = column * patch_pixels, row * patch_pixels, regions[classes[row, column]].label
            patient, more = slide.patient or name, (("slide", name), *slide.more)
            found.append(Patch(f"{name}_x{x}_y{y}.png", label, patient, x, y, "", "", more))
        plan.patches.extend(sorted(found, key=plan.find_block))
    if not plan.patches:
        reason = ": ".join(plan.rejected[0]) if plan.rejected else "Are the annotations those of the slides?"
        raise InputError(f"No patch is covered by annotations of a class to {least_share:.0%}. {reason}")
    return plan
