"""Place the patches of each slide on a grid, and draw pictures and maps of it.

A slide is all patches of one patient, or of one name in the column `slide` of the manifest. x and y are the left and
top pixel of a patch, at the scale of the patch. A patch without a patient, or without x and y, belongs to no slide.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.ndimage import convolve
from scipy.spatial import cKDTree

from cancernet import InputError
from cancernet.data.dataset import IDC_PIXELS, Patch
from cancernet.data.images import resize_image

LEAST_NEIGHBOURS = 4.0  # of 8, on average: a complete slide has 5.5 to 7.5, a sample of a slide less than 1
MOST_CELLS = 25_000_000  # of a grid: a slide of 250,000 x 250,000 pixels at a step of 50
PICTURE_PIXELS = 1600  # the longest side of a slide's picture, roughly
LEAST_THUMBNAIL = 4  # pixels of a patch in it


@dataclass(frozen=True, eq=False)
class SlideGrid:
    """The m patches of one slide; rows and columns are counted from the topmost and the leftmost patch."""

    slide: str  # its name, or the patient
    members: np.ndarray  # int [m] their indices among all patches
    x: np.ndarray  # float [m] left pixel of each
    y: np.ndarray  # float [m] top pixel
    rows: np.ndarray  # int [m]
    columns: np.ndarray  # int [m]
    step: float = IDC_PIXELS  # pixels from one patch to the next

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
        """Number of occupied cells around each patch: int [m], 0 to 8."""
        occupied = np.zeros(self.shape, int)
        occupied[self.rows, self.columns] = 1
        ring = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]])
        return convolve(occupied, ring, mode="constant")[self.rows, self.columns]

    @property
    def is_complete(self) -> bool:
        """Whether patches have at least LEAST_NEIGHBOURS neighbours on average; a sample of a slide has more gaps."""
        return bool(self.neighbours.mean() >= LEAST_NEIGHBOURS)


@dataclass(frozen=True, eq=False)
class Layout:
    """All slides among some patches, in order of patient, and the slides that cannot be placed on a grid."""

    slides: tuple[SlideGrid, ...]
    unplaceable: dict[str, str]  # slide -> reason: two of its patches overlap, or are too far apart


def lay_out_patches(patches: Sequence[Patch], step: float = IDC_PIXELS) -> Layout:
    """Place the rows of a manifest on the grids of their slides, `step` pixels apart.

    A slide is left out, with the reason, if two of its patches overlap or are implausibly far apart: names may contain
    numbers that are not positions, or a patient may have two slides.
    """
    members_of: dict[str, list[int]] = {}
    for index, patch in enumerate(patches):
        if patch.slide and patch.x is not None and patch.y is not None:
            members_of.setdefault(patch.slide, []).append(index)
    slides, unplaceable = [], {}
    for slide, members in sorted(members_of.items()):
        placed = [patches[index] for index in members]
        left, top = np.array([(patch.x, patch.y) for patch in placed], float).T
        try:
            rows, columns = _find_cells(slide, left, top, step, [patch.file for patch in placed])
        except InputError as error:
            unplaceable[slide] = str(error)
            continue
        slides.append(SlideGrid(slide, np.array(members), left, top, rows, columns, step))
    return Layout(tuple(slides), unplaceable)


def stitch_slide(tiles: Sequence[np.ndarray], grid: SlideGrid, *, tile_pixels: int) -> np.ndarray:
    """Draw the patches of one slide at their positions, on white: uint8 [height, width, channels].

    The tiles are m uint8 images [h, w, channels], at most `tile_pixels` a side; edge tiles may be smaller. Pixel [row,
    column] is at `grid.origin` + (column, row) * step / tile_pixels.
    """
    offsets = np.array([grid.x, grid.y]) - np.array(grid.origin)[:, None]
    lefts, tops = np.floor(offsets * tile_pixels / grid.step + 0.5).astype(int)
    shape = (tops.max() + tile_pixels, lefts.max() + tile_pixels, tiles[0].shape[2])
    picture = np.full(shape, 255, np.uint8)
    for tile, left, top in zip(tiles, lefts, tops, strict=True):
        picture[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return picture


def paint_grid(values: np.ndarray, grid: SlideGrid) -> np.ndarray:
    """Return a map of values [m], one per patch of a slide: float64 [rows, columns], NaN where there is no patch.

    Cell [row, column] begins at `grid.origin` + (column, row) * step.
    """
    painted = np.full(grid.shape, np.nan)
    painted[grid.rows, grid.columns] = np.asarray(values, float)
    return painted


def find_edges(mask: np.ndarray) -> np.ndarray:
    """Return the sides of cells on the boundary of a mask [rows, columns]: int [n, 2 ends, x and y], of length 1."""
    padded = np.pad(mask, 1)
    across = np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1])[:, ::-1]  # x and y of one end
    down = np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1])[:, ::-1]
    return np.concatenate([np.stack([ends, ends + step], axis=1) for ends, step in ((across, (1, 0)), (down, (0, 1)))])


def thumbnail_side(shape: tuple[int, int]) -> int:
    """Return the pixels of a patch in the picture of a slide of `shape` rows and columns; see PICTURE_PIXELS."""
    return int(np.clip(PICTURE_PIXELS // max(shape), LEAST_THUMBNAIL, IDC_PIXELS))


def make_thumbnail(image: np.ndarray, side: int, step: float = IDC_PIXELS) -> np.ndarray:
    """Return a patch as RGB, at the scale at which `step` pixels become `side`; an edge tile stays smaller."""
    rgb = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
    share = min(1.0, step / max(rgb.shape[:2])) * side / step
    height, width = (max(1, round(pixels * share)) for pixels in rgb.shape[:2])
    return resize_image(rgb, height, width)


def _find_cells(
    slide: str, x: np.ndarray, y: np.ndarray, step: float, files: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns [m]. Patches that do not overlap never share a cell, on the grid or off it."""
    overlapping = cKDTree(np.column_stack([x, y])).query_pairs(np.nextafter(step, 0), p=np.inf, output_type="ndarray")
    if len(overlapping):
        i, j = overlapping[np.lexsort(overlapping.T[::-1])[0]].tolist()
        two = " and ".join(f"{files[each]} at x {x[each]:g}, y {y[each]:g}" for each in (i, j))
        advice = f"patches are {step:g} pixels apart. Remove one of them."
        raise InputError(f"Two patches of slide {slide} overlap: {two}; {advice}")
    rows = np.floor((y - y.min()) / step + 0.5)
    columns = np.floor((x - x.min()) / step + 0.5)
    if (rows.max() + 1) * (columns.max() + 1) > MOST_CELLS:
        far = int(np.argmax(rows + columns))
        span = f"{columns.max() + 1:.0f} x {rows.max() + 1:.0f} cells, more than {MOST_CELLS:,}"
        advice = f"Check x and y of {files[far]}, x {x[far]:g}, y {y[far]:g}."
        raise InputError(f"The patches of slide {slide} span {span}. {advice}")
    return rows.astype(int), columns.astype(int)
