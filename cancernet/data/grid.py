"""Slides laid out: the patches of one patient on the grid of their slide, and pictures and maps of it.

A slide is all patches of one patient; x and y are the left and top pixel of a patch, at the scale of the patch. A
patch without a patient or without x and y belongs to no slide.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from scipy.ndimage import convolve
from scipy.spatial import cKDTree

from cancernet import InputError
from cancernet.data.dataset import Patch

PATCH_STEP = 50  # pixels from one patch to the next, as the IDC set was cut
LEAST_NEIGHBOURS = 4.0  # of 8, on average: a complete slide has 5.5 to 7.5, a sample of a slide less than 1
MOST_CELLS = 25_000_000  # of one slide's grid: 250,000 pixels square at a step of 50
PICTURE_PIXELS = 1600  # the longest side of a slide's picture, roughly
LEAST_THUMBNAIL = 4  # pixels of a patch in it


@dataclass(frozen=True, eq=False)
class SlideGrid:
    """One slide, laid out once: m patches, their rows and columns counted from the topmost and the leftmost."""

    slide: str  # the patient
    members: np.ndarray  # int [m] which of the patches given lie on it
    x: np.ndarray  # float [m] left pixel of each
    y: np.ndarray  # float [m] top pixel
    rows: np.ndarray  # int [m]
    columns: np.ndarray  # int [m]
    step: float = PATCH_STEP  # pixels from one patch to the next

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the grid."""
        return int(self.rows.max()) + 1, int(self.columns.max()) + 1

    @property
    def origin(self) -> tuple[float, float]:
        """x and y of the top-left cell."""
        return float(self.x.min()), float(self.y.min())

    @cached_property
    def neighbours(self) -> np.ndarray:
        """How many of the eight places around each patch are occupied: int [m], 0 to 8."""
        occupied = np.zeros(self.shape, int)
        occupied[self.rows, self.columns] = 1
        ring = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]])
        return convolve(occupied, ring, mode="constant")[self.rows, self.columns]

    @property
    def is_complete(self) -> bool:
        """Whether its patches have LEAST_NEIGHBOURS neighbours on average; a sample of a slide has too many gaps."""
        return bool(self.neighbours.mean() >= LEAST_NEIGHBOURS)


@dataclass(frozen=True, eq=False)
class Layout:
    """All slides among some patches, in order of patient, and the slides that cannot be laid out."""

    slides: tuple[SlideGrid, ...]
    unplaceable: dict[str, str]  # slide -> why two of its patches overlap, or lie too far apart

    @property
    def mean_neighbours(self) -> float:
        """Mean number, 0 to 8, of occupied places around a placed patch; 0 where none is placed."""
        counts = [slide.neighbours for slide in self.slides]
        return float(np.concatenate(counts).mean()) if counts else 0.0


def lay_out(
    patients: Sequence[str],
    x: Sequence[float | None],
    y: Sequence[float | None],
    files: Sequence[str],
    *,
    step: float = PATCH_STEP,
) -> Layout:
    """Put n patches on the grids of their slides.

    A slide is left out, with the reason, where two of its patches overlap or lie implausibly far apart: names may hold
    numbers that are not places, or a patient may have two slides.

    Args:
        patients: [n] the slide of each patch; "" is unknown.
        x, y: [n] left and top pixel; None or NaN is unknown.
        files: [n] names for the reasons.
        step: pixels from one patch to the next.
    """
    x, y = _numbers(x), _numbers(y)
    slides, unplaceable = [], {}
    for slide, members in _group_by_slide(patients, x, y):
        try:
            rows, columns = _find_cells(slide, x[members], y[members], step, [files[i] for i in members])
        except InputError as error:
            unplaceable[slide] = str(error)
            continue
        slides.append(SlideGrid(slide, members, x[members], y[members], rows, columns, step))
    return Layout(tuple(slides), unplaceable)


def lay_out_patches(patches: Sequence[Patch]) -> Layout:
    """`lay_out` of rows of a manifest."""
    columns = ([getattr(patch, name) for patch in patches] for name in ("patient", "x", "y", "file"))
    return lay_out(*columns)


def stitch_slide(
    tiles: Iterable[np.ndarray], grid: SlideGrid, *, tile_pixels: int | None = None, background: int = 255
) -> np.ndarray:
    """Put the patches of one slide side by side.

    Args:
        tiles: m uint8 images [h, w, channels], a patch of the grid each; edge tiles may be smaller than the others.
        tile_pixels: side of a whole tile in `tiles` where it was resized, so that the picture is drawn at its scale;
            the grid's step if None.
        background: grey level where there is no patch.

    Returns:
        uint8 [height, width, channels]. Pixel [row, column] of it lies at `grid.origin` + (column, row) * step /
        tile_pixels.

    Raises:
        InputError: a tile larger than tile_pixels.
    """
    tiles = list(tiles)
    tile_pixels = int(grid.step) if tile_pixels is None else tile_pixels
    large = [i for i, tile in enumerate(tiles) if max(tile.shape[:2]) > tile_pixels]
    if large:
        side = max(tiles[large[0]].shape[:2])
        raise InputError(f"Tile {large[0]} has {side} pixels a side, more than {tile_pixels}. Give tile_pixels={side}.")
    lefts = np.floor((grid.x - grid.origin[0]) * tile_pixels / grid.step + 0.5).astype(int)
    tops = np.floor((grid.y - grid.origin[1]) * tile_pixels / grid.step + 0.5).astype(int)
    shape = (tops.max() + tile_pixels, lefts.max() + tile_pixels, tiles[0].shape[2])
    picture = np.full(shape, background, np.uint8)
    for tile, left, top in zip(tiles, lefts, tops, strict=True):
        picture[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return picture


def paint_grid(values: np.ndarray, grid: SlideGrid) -> np.ndarray:
    """A map of one slide with one cell a patch: of probabilities, true classes, or decisions.

    Args:
        values: [m] numbers, one a patch of the grid.

    Returns:
        float64 [rows, columns], NaN where no patch is; cell [row, column] begins at `grid.origin` + (column, row) *
        step.
    """
    painted = np.full(grid.shape, np.nan)
    painted[grid.rows, grid.columns] = np.asarray(values, float)
    return painted


def find_edges(mask: np.ndarray) -> np.ndarray:
    """The sides of a mask's cells, of length 1, beyond which the mask is not: int [n, 2 ends, x and y].

    Args:
        mask: bool [rows, columns].
    """
    padded = np.pad(mask, 1)
    rows, columns = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])
    across = np.stack([np.stack([columns, rows], axis=1), np.stack([columns + 1, rows], axis=1)], axis=1)
    rows, columns = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])
    down = np.stack([np.stack([columns, rows], axis=1), np.stack([columns, rows + 1], axis=1)], axis=1)
    return np.concatenate([across, down])


def thumbnail_side(shape: tuple[int, int]) -> int:
    """Pixels of a patch in the picture of a slide of so many rows and columns: the picture's longest side is about
    PICTURE_PIXELS."""
    return int(np.clip(PICTURE_PIXELS // max(shape), LEAST_THUMBNAIL, PATCH_STEP))


def make_thumbnail(image: np.ndarray, side: int) -> np.ndarray:
    """A patch as RGB at the scale at which a whole one, PATCH_STEP pixels, has `side`; an edge tile stays smaller."""
    rgb = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
    share = min(1.0, PATCH_STEP / max(rgb.shape[:2])) * side / PATCH_STEP
    height, width = (max(1, round(pixels * share)) for pixels in rgb.shape[:2])
    return cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)


def _group_by_slide(patients: Sequence[str], x: np.ndarray, y: np.ndarray) -> Iterable[tuple[str, np.ndarray]]:
    """Each slide and the indices of its placed patches, in order of patient."""
    patients = np.asarray(patients, object)
    placed = np.flatnonzero(~np.isnan(x + y) & (patients != ""))
    names, slide_of = np.unique(patients[placed].astype(str), return_inverse=True)
    order = np.argsort(slide_of, kind="stable")
    ends = np.searchsorted(slide_of[order], np.arange(1, len(names)))
    return zip(map(str, names), np.split(placed[order], ends)) if len(names) else ()


def _find_cells(
    slide: str, x: np.ndarray, y: np.ndarray, step: float, labels: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns [m]. Patches that do not overlap never share a cell, on the grid or off it."""
    overlapping = cKDTree(np.column_stack([x, y])).query_pairs(np.nextafter(step, 0), p=np.inf, output_type="ndarray")
    if len(overlapping):
        i, j = overlapping[np.lexsort(overlapping.T[::-1])[0]]
        raise InputError(
            f"Two patches of slide {slide} overlap: {labels[i]} at x {x[i]:g}, y {y[i]:g} and {labels[j]} at x "
            f"{x[j]:g}, y {y[j]:g}; patches are {step:g} pixels apart. Remove one of them."
        )
    rows = np.floor((y - y.min()) / step + 0.5)
    columns = np.floor((x - x.min()) / step + 0.5)
    if (rows.max() + 1) * (columns.max() + 1) > MOST_CELLS:
        far = np.argmax(rows + columns)
        raise InputError(
            f"The patches of slide {slide} span {columns.max() + 1:.0f} x {rows.max() + 1:.0f} places. Check x and y "
            f"of {labels[far]}, x {x[far]:g}, y {y[far]:g}."
        )
    return rows.astype(int), columns.astype(int)


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], float)
