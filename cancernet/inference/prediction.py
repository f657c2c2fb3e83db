"""A run answers new images: patches, slides of patches, and large images cut into patches.

predict_images.py and the page share this. Nothing is written to disk here.

x and y are the left and top pixel of a patch at the scale of the run, in steps of PATCH_STEP, as in the names of the
IDC set; a patch without a place has None.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import cv2
import numpy as np

from cancernet.data.grid import Layout, SlideGrid, lay_out, make_thumbnail
from cancernet.data.images import fit_image
from cancernet.data.tiles import Tile
from cancernet.evaluation.decision import Decision
from cancernet.evaluation.smoothing import apply_decision
from cancernet.explain.out_of_distribution import watch
from cancernet.inference.reading import OpenPart, Refuse, open_part
from cancernet.inference.work_list import Part
from cancernet.run import Run
from cancernet.training.scoring import BATCH, log_scores

_one_at_a_time = threading.Lock()  # batches of all visitors of the page; files are read meanwhile

Progress = Callable[[int], object]  # gets the number of images done since its last call; tqdm.update is one


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
    distances: np.ndarray = np.empty(0)  # [n] from what the run was made for, above 1 outside; NaN where not known

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


def score_images(
    run: Run, images: Iterable[np.ndarray], *, progress: Progress | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Score images batch by batch; no more than one batch is held in memory.

    Args:
        images: n, uint8 [height, width, 3] RGB or [height, width, 1] grey of any size; each is scaled to the network's.

    Returns:
        Log-probabilities [n, k] float64 and distances [n] as `familiarity.watch`, in the order of the images.

    Raises:
        InputError: the network answers something that is not a number.
    """
    with _one_at_a_time:
        network = watch(run.model, run.familiar, run.settings.experiment.views)
    size, _, channels = network.input_shape[1:]
    images, scores, distances = iter(images), [np.empty((0, len(run.decision.classes)))], [np.empty(0)]
    while batch := [_fit(image, size, channels) for image in islice(images, BATCH)]:
        with _one_at_a_time:
            probabilities, far = network.predict_on_batch(np.stack(batch))
        scores.append(log_scores(probabilities))
        distances.append(far)
        if progress:
            progress(len(batch))
    return np.concatenate(scores), np.concatenate(distances)


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
        thumbnail_pixels: side of the thumbnail of a whole patch, see `reading.choose_thumbnail_pixels`.
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

    scores, distances = score_images(run, keep(), progress=progress)
    files, patients, x, y = map(list, zip(*places, strict=True)) if places else ([], [], [], [])
    layout = lay_out(patients, x, y, files)
    kept = {"images": images, "distances": distances}
    return ScoredPatches(files, x, y, layout, scores, thumbnails, thumbnail_pixels, **kept)


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
        mpp, refuse: as `reading.open_part`.
        contents: the bytes of each file, where they are in memory and not on disk; the patches are then kept too.

    Raises:
        InputError: the part cannot be used as a whole, see `reading.open_part`; or as `score_images`.
    """
    with open_part(run.settings, part, mpp=mpp, refuse=refuse, contents=contents) as opened:
        return score_opened(run, opened, progress=progress, keep_images=contents is not None)


def score_opened(
    run: Run, opened: OpenPart, *, progress: Progress | None = None, keep_images: bool = False
) -> ScoredPatches:
    """Score the patches of one part; one batch and all thumbnails are held in memory.

    Raises:
        InputError: as `score_images`, or while a patch is read.
    """
    given = {"thumbnail_pixels": opened.thumbnail_pixels, "progress": progress, "keep_images": keep_images}
    scored = score_patches(run, opened.tiles, **given)
    return scored._replace(file_scale=opened.file_scale)


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


def _fit(image: np.ndarray, size: int, channels: int) -> np.ndarray:
    """The image as the network takes it: uint8 [size, size, channels]."""
    if channels == 1 and image.shape[2] == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    elif channels == 3 and image.shape[2] == 1:
        image = np.repeat(image, 3, axis=2)
    return fit_image(image, size)
