"""A run answers new images: patches, slides of patches, and large images cut into patches.

predict_images.py and the page share this. Nothing is written to disk here.

x and y are the left and top pixel of a patch at the scale of the run, in steps of PATCH_STEP, as in the names of the
IDC set; a patch without a place has None.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from cancernet import InputError
from cancernet.data.dataset import find_place
from cancernet.data.grid import PATCH_STEP, Layout, SlideGrid, lay_out, make_thumbnail, thumbnail_side
from cancernet.data.images import decode_image, fit_image, read_image
from cancernet.data.tiles import SlideImage, Tile, iterate_tiles, open_slide_image, tile_grid
from cancernet.judging.decision import Decision
from cancernet.judging.smoothing import apply_decision
from cancernet.learning.scoring import BATCH, average_over_views, log_scores
from cancernet.run import Run
from cancernet.using.parts import CUT, SLIDE, Part

MOST_PLACES = 20_000  # for patches on a whole slide whose bytes are in memory: their images are kept, 150 MB

Progress = Callable[[int], object]  # gets the number of images done since its last call; tqdm.update is one
Refuse = Callable[[Sequence[str], str], object]  # gets files that cannot be used, and why; the reason may name the file


class ScoredPatches(NamedTuple):
    """n patches of one slide, or without a slide, with the network's scores; not yet calibrated or decided."""

    files: list[str]  # [n]; of a large image n times the same
    x: list[int | None]
    y: list[int | None]
    layout: Layout  # their slide, if they have one
    scores: np.ndarray  # log-probabilities [n, k] float64
    thumbnails: list[np.ndarray]  # [n] uint8 [h, w, 3]
    thumbnail_pixels: int  # side of the thumbnail of a whole patch
    file_scale: float = 1.0  # pixels of the file (at level 0) for one pixel of x and y
    images: Sequence[np.ndarray] = ()  # the patches themselves where they are kept, at most of the network's size

    @property
    def slide(self) -> str:
        """Name of the slide; "" for patches without one."""
        return self.grid.slide if self.grid else ""

    @property
    def grid(self) -> SlideGrid | None:
        """The slide, laid out; None for patches without one."""
        return self.layout.slides[0] if self.layout.slides else None


class DecidedPatches(NamedTuple):
    """Scored patches with their decisions."""

    scored: ScoredPatches
    probabilities: np.ndarray  # calibrated [n, k] float64
    predicted: np.ndarray  # class index [n]
    threshold: float | None  # on the positive class's probability; None of more than two classes


def score_images(run: Run, images: Iterable[np.ndarray], *, progress: Progress | None = None) -> np.ndarray:
    """Score images batch by batch; no more than one batch is held in memory.

    Args:
        images: n, uint8 [height, width, 3] RGB or [height, width, 1] grey of any size; each is scaled to the network's.

    Returns:
        Log-probabilities [n, k] float64, in the order of the images.

    Raises:
        InputError: the network answers something that is not a number.
    """
    with _one_at_a_time:
        network = _network(run.model, run.settings.experiment.views)
    size, _, channels = network.input_shape[1:]
    images, scores = iter(images), [np.empty((0, len(run.decision.classes)))]
    while batch := [_fit(image, size, channels) for image in islice(images, BATCH)]:
        with _one_at_a_time:
            scores.append(log_scores(network.predict_on_batch(np.stack(batch))))
        if progress:
            progress(len(batch))
    return np.concatenate(scores)


def score_patches(
    run: Run,
    tiles: Iterable[Tile],
    *,
    thumbnail_pixels: int,
    progress: Progress | None = None,
    keep_images: bool = False,
) -> ScoredPatches:
    """Score patches of one slide, or patches without a slide; one batch and all thumbnails are held in memory.

    Args:
        thumbnail_pixels: side of the thumbnail of a whole patch, see `choose_thumbnail_pixels`.
        keep_images: whether the result has `images`.

    Raises:
        InputError: as `score_images`.
    """
    places, thumbnails, images = [], [], []
    size, _, channels = run.model.input_shape[1:]

    def keep() -> Iterator[np.ndarray]:
        for image, *place in tiles:
            places.append(place)
            thumbnails.append(make_thumbnail(image, thumbnail_pixels))
            if keep_images:
                images.append(image if max(image.shape[:2]) <= size else _fit(image, size, channels))
            yield image

    scores = score_images(run, keep(), progress=progress)
    files, patients, x, y = map(list, zip(*places, strict=True)) if places else ([], [], [], [])
    return ScoredPatches(
        files, x, y, lay_out(patients, x, y, files), scores, thumbnails, thumbnail_pixels, images=images
    )


def score_part(
    run: Run,
    part: Part,
    *,
    mpp: float | None,
    refuse: Refuse,
    progress: Progress | None = None,
    contents: Mapping[str, bytes] | None = None,
) -> ScoredPatches:
    """Read and score the files of one part.

    Args:
        mpp: as `score_large_image`.
        refuse: gets each file that cannot be read, and why; the others are scored without it.
        contents: the bytes of each file, where they are in memory and not on disk; the patches are then kept too.

    Raises:
        InputError: the part cannot be used as a whole: patches of a slide overlap, or as `score_large_image`.
    """
    if part.kind == CUT:
        return score_large_image(run, part.files[0], mpp=mpp, progress=progress, contents=contents)
    places = [find_place(file) if part.kind == SLIDE else ("", None, None) for file in part.files]
    layout = lay_out(*zip(*places, strict=True), part.files)
    for reason in layout.unplaceable.values():
        raise InputError(reason)

    def read() -> Iterator[Tile]:
        for file, place in zip(part.files, places, strict=True):
            try:
                image = _read(file, run.settings.experiment.channels, contents)
            except InputError as error:
                refuse([file], str(error))
                continue
            yield Tile(image, file, *place)

    side = choose_thumbnail_pixels(layout)
    return score_patches(run, read(), thumbnail_pixels=side, progress=progress, keep_images=contents is not None)


def score_large_image(
    run: Run,
    file: str,
    *,
    mpp: float | None = None,
    progress: Progress | None = None,
    contents: Mapping[str, bytes] | None = None,
) -> ScoredPatches:
    """Open a whole slide or a large picture, cut it into patches at the scale of the run and score those with tissue.

    Memory holds one block of the image (see cancernet.data.tiles) and a thumbnail of each patch.

    Args:
        file: its path; also the name of the slide.
        mpp: micrometres a pixel at level 0, for a file that does not say so itself.
        contents: as of `score_part`.

    Raises:
        InputError: the file cannot be read or does not say its scale, or is in memory and has more than MOST_PLACES; or
            as `cut_slide`.
    """
    in_memory = contents is not None
    with open_slide_image(Path(file), mpp, contents[file] if in_memory else None) as slide:
        tiles = cut_slide(run, slide, file=file)
        shape = tile_grid(slide, patch_pixels=PATCH_STEP, target_mpp=run.settings.mpp)
        if in_memory and np.prod(shape) > MOST_PLACES:
            raise InputError(
                f"{file}: has room for {np.prod(shape):,} patches, more than {MOST_PLACES:,}. Use predict_images.py."
            )
        side = thumbnail_side(shape)
        scored = score_patches(run, tiles, thumbnail_pixels=side, progress=progress, keep_images=in_memory)
        return scored._replace(file_scale=run.settings.mpp / slide.mpp)


def cut_slide(run: Run, slide: SlideImage, *, file: str) -> Iterator[Tile]:
    """Cut an open slide into patches of PATCH_STEP pixels at the scale of the run; those without tissue are left out.

    Raises:
        InputError: the run does not know its scale. Later, while the patches are read: the slide is coarser than the
            run, a piece of the file is damaged, or no patch has tissue.
    """
    if run.settings.mpp is None:
        raise InputError(
            f"{file}: is to be cut into patches, and this run does not know the scale of its patches. Give patches."
        )
    return _expect_tissue(iterate_tiles(slide, file=file, patch_pixels=PATCH_STEP, target_mpp=run.settings.mpp), file)


def choose_thumbnail_pixels(layout: Layout) -> int:
    """Side of the thumbnails of patches that are laid out so; PATCH_STEP where there is no slide to be drawn."""
    return min((thumbnail_side(slide.shape) for slide in layout.slides), default=PATCH_STEP)


def can_be_smoothed(run: Run, scored: ScoredPatches) -> bool:
    """Whether neighbours count for these patches: the run smooths, and their slide has few gaps."""
    return run.decision.without_neighbours is not None and scored.grid is not None and scored.grid.is_complete


def choose_decision(run: Run, *, neighbours: bool) -> Decision:
    """The run's decision for smoothed slides, or the one for patches that are judged one by one."""
    return run.decision if neighbours else run.decision.without_neighbours or run.decision


def decide_patches(
    run: Run, scored: ScoredPatches, *, neighbours: bool = True, threshold: float | None = None
) -> DecidedPatches:
    """Apply the run's decision. A slide that is to be smoothed must be given as a whole.

    Args:
        neighbours: False judges every patch on its own, by the decision that the run has for that. So are patches
            without a slide, and a slide that has many gaps or cannot be laid out.
        threshold: on the positive class's probability, in place of the run's own; 0 to 1.

    Raises:
        InputError: a threshold for more than two classes.
    """
    decision = choose_decision(run, neighbours=neighbours and can_be_smoothed(run, scored))
    decided = apply_decision(decision, scored.scores, scored.layout.slides, threshold=threshold)
    return DecidedPatches(scored, *decided, decision.threshold if threshold is None else threshold)


def _read(file: str, channels: int, contents: Mapping[str, bytes] | None) -> np.ndarray:
    if contents is None:
        return read_image(file, channels=channels, sha256=None)
    return decode_image(contents[file], channels)


def _expect_tissue(tiles: Iterator[Tile], file: str) -> Iterator[Tile]:
    empty = True
    for tile in tiles:
        empty = False
        yield tile
    if empty:
        raise InputError(f"{file}: shows no stained tissue, only background. Check that it is the right image.")


def _fit(image: np.ndarray, size: int, channels: int) -> np.ndarray:
    """The image as the network takes it: uint8 [size, size, channels]."""
    if channels == 1 and image.shape[2] == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    elif channels == 3 and image.shape[2] == 1:
        image = np.repeat(image, 3, axis=2)
    return fit_image(image, size)


_network = lru_cache(maxsize=1)(average_over_views)  # built once
_one_at_a_time = threading.Lock()  # batches of all visitors of the page; files are read meanwhile
