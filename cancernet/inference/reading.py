"""Read the patches of one work item. Nothing here needs Keras, so that a process that only reads stays small."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cancernet import InputError, StorageError
from cancernet.data.dataset import IDC_PIXELS, Patch, find_place
from cancernet.data.grid import lay_out_patches, thumbnail_side
from cancernet.data.images import is_failed_read, read_image
from cancernet.data.tiles import SlideImage, Tile, iterate_tiles, open_slide_image, tile_grid
from cancernet.inference.work_list import LARGE, SLIDE, WorkItem
from cancernet.run import Settings

MAX_PLACES_IN_MEMORY = 20_000  # patches of a whole slide that is in memory; their images are kept: 150 MB

Rejected = tuple[str, str]  # a file that cannot be used, and why


class OpenItem(NamedTuple):
    """A work item whose patches can be read."""

    tiles: Iterable[Tile]  # read while they are iterated over
    thumbnail_pixels: int  # side of the thumbnail of a whole patch
    file_scale: float = 1.0  # pixels of the file (at level 0) for one pixel of x and y
    rejected: Sequence[Rejected] = ()  # grows while the tiles are read; reading continues without these files


@contextmanager
def open_item(
    settings: Settings, item: WorkItem, *, mpp: float | None, contents: Mapping[str, bytes] | None = None
) -> Iterator[OpenItem]:
    """Open the files of one work item. Memory holds one patch, of a large image one block (see cancernet.data.tiles).

    `settings` are of the run that is to score the patches, `mpp` and `contents` as for `prediction.score_item`. Raises
    InputError if the whole item cannot be used: patches of a slide overlap, a large image cannot be read, has no known
    scale, or is in memory and has more than MAX_PLACES_IN_MEMORY places; or, while patches are read, the image is
    coarser than the run, part of the file is damaged, or no patch has tissue.
    """
    if item.kind == LARGE:
        (file,) = item.files
        with open_slide_image(Path(file), mpp, contents[file] if contents else None) as slide:
            yield _open_slide(settings, slide, file, in_memory=bool(contents))
        return
    places = [find_place(file) if item.kind == SLIDE else ("", None, None) for file in item.files]
    patches = [Patch(file, "", *place, "", "") for file, place in zip(item.files, places, strict=True)]
    layout, rejected = lay_out_patches(patches, settings.patch_pixels), list[Rejected]()
    for reason in layout.unplaceable.values():
        raise InputError(reason)

    def read() -> Iterator[Tile]:
        channels = settings.experiment.channels
        for file, place in zip(item.files, places, strict=True):
            try:
                data = contents[file] if contents else None
                yield Tile(read_image(file, channels=channels, sha256=None, data=data), file, *place)
            except InputError as error:
                rejected.extend(explain([file], error))

    thumbnail_pixels = min((thumbnail_side(slide.shape) for slide in layout.slides), default=IDC_PIXELS)
    yield OpenItem(read(), thumbnail_pixels, rejected=rejected)


def explain(files: Sequence[str], error: InputError | str) -> list[Rejected]:
    """Pair files with the reason why they cannot be used, without their name at its beginning.

    Raises:
        StorageError: the system failed to read them. They are not rejected: another attempt may succeed.
    """
    if isinstance(error, InputError) and is_failed_read(error):
        raise StorageError(str(error)) from error
    return [(file, str(error).removeprefix(f"{file}: ")) for file in files]


def _open_slide(settings: Settings, slide: SlideImage, file: str, *, in_memory: bool) -> OpenItem:
    """Open a slide for tiling into patches of the size and scale of the run, without its background."""
    if settings.mpp is None:
        advice = "Give patches, or train on a dataset that was built with --mpp."
        raise InputError(f"{file}: this run does not know the scale of its patches and cannot tile it. {advice}")
    shape = tile_grid(slide, patch_pixels=settings.patch_pixels, target_mpp=settings.mpp)
    if in_memory and np.prod(shape) > MAX_PLACES_IN_MEMORY:
        found = f"{np.prod(shape):,} patches, more than {MAX_PLACES_IN_MEMORY:,}"
        raise InputError(f"{file}: has {found}. Use `cancernet predict`.")

    def read(target_mpp: float) -> Iterator[Tile]:
        empty = True
        for tile in iterate_tiles(slide, file=file, patch_pixels=settings.patch_pixels, target_mpp=target_mpp):
            empty = False
            yield tile
        if empty:
            raise InputError(f"{file}: shows no stained tissue, only background. Check that it is the right image.")

    return OpenItem(read(settings.mpp), thumbnail_side(shape), settings.mpp / slide.mpp)
