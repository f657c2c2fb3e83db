"""The patches of one part, read one after the other. Nothing here needs Keras: a process that only reads is light."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cancernet import InputError
from cancernet.data.dataset import find_place
from cancernet.data.grid import PATCH_STEP, Layout, lay_out, thumbnail_side
from cancernet.data.images import decode_image, read_image
from cancernet.data.tiles import SlideImage, Tile, iterate_tiles, open_slide_image, tile_grid
from cancernet.inference.work_list import CUT, SLIDE, Part
from cancernet.run import Settings

MOST_PLACES = 20_000  # for patches on a whole slide whose bytes are in memory: their images are kept, 150 MB

Refuse = Callable[[Sequence[str], str], object]  # gets files that cannot be used, and why; the reason may name the file


class OpenPart(NamedTuple):
    """A part whose patches can be read."""

    tiles: Iterable[Tile]  # read while they are iterated over
    thumbnail_pixels: int  # side of the thumbnail of a whole patch
    file_scale: float = 1.0  # pixels of the file (at level 0) for one pixel of x and y


@contextmanager
def open_part(
    settings: Settings,
    part: Part,
    *,
    mpp: float | None,
    refuse: Refuse,
    contents: Mapping[str, bytes] | None = None,
) -> Iterator[OpenPart]:
    """Open the files of one part for reading.

    Memory holds one patch, of a large image one block (see cancernet.data.tiles).

    Args:
        settings: of the run that is to score the patches.
        mpp: micrometres a pixel at level 0, for a large image that does not say so itself.
        refuse: gets each patch that cannot be read, and why; the others are read without it.
        contents: the bytes of each file, where they are in memory and not on disk.

    Raises:
        InputError: the part cannot be used as a whole: patches of a slide overlap, or a large image cannot be read or
            does not say its scale, or is in memory and has more than MOST_PLACES. While its patches are read: as
            `cut_slide`.
    """
    if part.kind == CUT:
        (file,) = part.files
        with open_slide_image(Path(file), mpp, contents[file] if contents else None) as slide:
            tiles = cut_slide(settings, slide, file=file)
            shape = tile_grid(slide, patch_pixels=PATCH_STEP, target_mpp=settings.mpp)
            if contents and np.prod(shape) > MOST_PLACES:
                raise InputError(
                    f"{file}: has room for {np.prod(shape):,} patches, more than {MOST_PLACES:,}. "
                    "Use predict_images.py."
                )
            yield OpenPart(tiles, thumbnail_side(shape), settings.mpp / slide.mpp)
        return
    places = [find_place(file) if part.kind == SLIDE else ("", None, None) for file in part.files]
    layout = lay_out(*zip(*places, strict=True), part.files)
    for reason in layout.unplaceable.values():
        raise InputError(reason)
    channels = settings.experiment.channels

    def read(file: str) -> np.ndarray:
        return decode_image(contents[file], channels) if contents else read_image(file, channels=channels, sha256=None)

    yield OpenPart(_read_patches(part.files, places, read, refuse), choose_thumbnail_pixels(layout))


def cut_slide(settings: Settings, slide: SlideImage, *, file: str) -> Iterator[Tile]:
    """Cut an open slide into patches of PATCH_STEP pixels at the scale of the run; those without tissue are left out.

    Raises:
        InputError: the run does not know its scale. Later, while the patches are read: the slide is coarser than the
            run, a piece of the file is damaged, or no patch has tissue.
    """
    if settings.mpp is None:
        raise InputError(
            f"{file}: is to be cut into patches, and this run does not know the scale of its patches. Give patches."
        )
    return _expect_tissue(iterate_tiles(slide, file=file, patch_pixels=PATCH_STEP, target_mpp=settings.mpp), file)


def choose_thumbnail_pixels(layout: Layout) -> int:
    """Side of the thumbnails of patches that are laid out so; PATCH_STEP where there is no slide to be drawn."""
    return min((thumbnail_side(slide.shape) for slide in layout.slides), default=PATCH_STEP)


def _read_patches(
    files: Sequence[str],
    places: Sequence[tuple[str, int | None, int | None]],
    read: Callable[[str], np.ndarray],
    refuse: Refuse,
) -> Iterator[Tile]:
    for file, place in zip(files, places, strict=True):
        try:
            image = read(file)
        except InputError as error:
            refuse([file], str(error))
            continue
        yield Tile(image, file, *place)


def _expect_tissue(tiles: Iterator[Tile], file: str) -> Iterator[Tile]:
    empty = True
    for tile in tiles:
        empty = False
        yield tile
    if empty:
        raise InputError(f"{file}: shows no stained tissue, only background. Check that it is the right image.")
