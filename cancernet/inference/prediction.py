"""Score the patches of a work item with a run's network, calibrate and decide. Nothing is written to disk here.

x and y are the left and top pixel of a patch at the scale of the run, as in the names of the IDC set; None where the
position is unknown.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from cancernet import InputError
from cancernet.data.dataset import Patch
from cancernet.data.grid import SlideGrid, make_thumbnail
from cancernet.data.images import fit_image
from cancernet.evaluation.decision import Decision
from cancernet.evaluation.predictions import Predictions, Scores
from cancernet.evaluation.referral import find_uncertain
from cancernet.evaluation.smoothing import apply_decision
from cancernet.explain.out_of_distribution import add_detector
from cancernet.inference.reading import OpenItem, Rejected, explain, open_item
from cancernet.inference.work_list import WorkItem
from cancernet.models.backend import without_xla
from cancernet.run import Run
from cancernet.training.scoring import BATCH, log_scores

if TYPE_CHECKING:
    from cancernet.inference.predict import PredictOptions

_network_lock = threading.Lock()  # visitors of the page share the network; only reading runs in parallel

Progress = Callable[[int], object]  # gets the number of images done since its last call


@dataclass(frozen=True, eq=False, kw_only=True)
class ItemScores(Scores):
    """The patches of one work item, without labels; all patches of a large image have the same file."""

    distances: np.ndarray  # [n], above 1 out of distribution; NaN where the run cannot measure them
    thumbnails: list[np.ndarray]  # [n] uint8 [h, w, 3]
    thumbnail_pixels: int  # side of the thumbnail of a whole patch
    file_scale: float = 1.0  # pixels of the file (at level 0) for one pixel of x and y
    images: Sequence[np.ndarray] = ()  # [n] where they are kept, at most of the network's size
    rejected: Sequence[Rejected] = ()  # files of the item that could not be read

    @property
    def slide(self) -> str:
        """Name of the slide; "" for patches without one."""
        return self.grid.slide if self.grid else ""

    @property
    def grid(self) -> SlideGrid | None:
        """The slide, laid out; None for patches without one."""
        return self.layout.slides[0] if self.layout.slides else None


@dataclass(frozen=True, eq=False, kw_only=True)
class ItemPredictions(Predictions):
    """The patches of one work item with probabilities and decisions."""

    scores: ItemScores
    threshold: float | None  # on the positive class's probability; None for more than two classes


class PredictedItem(NamedTuple):
    """A work item with its predictions."""

    item: WorkItem
    predictions: ItemPredictions | None  # None where no patch could be used
    rejected: Sequence[Rejected]


def score_images(
    run: Run, images: Iterable[np.ndarray], *, progress: Progress | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Score images batch by batch: log-probabilities [n, k] float64 and distances [n] (see `add_detector`), in order.

    Images are uint8 [height, width, 3] RGB or [height, width, 1] grey of any size; each is resized for the network.
    Memory holds one batch. Raises TrainingDiverged if an output of the network is not a number.
    """
    with _network_lock:
        network = without_xla(add_detector(run.model, run.detector, run.settings.experiment.views))
    size, _, channels = network.input_shape[1:]
    images, scores, distances = iter(images), [np.empty((0, len(run.decision.classes)))], [np.empty(0)]
    while batch := [_fit(image, size, channels) for image in islice(images, BATCH)]:
        with _network_lock:
            probabilities, measured = network.predict_on_batch(np.stack(batch))
        scores.append(log_scores(probabilities))
        distances.append(measured)
        if progress:
            progress(len(batch))
    return np.concatenate(scores), np.concatenate(distances)


def score_tiles(
    run: Run, opened: OpenItem, *, progress: Progress | None = None, keep_images: bool = False
) -> ItemScores:
    """Score the patches of an open work item; memory holds one batch, all thumbnails, and `images` if they are kept."""
    patches, thumbnails, images = list[Patch](), list[np.ndarray](), list[np.ndarray]()
    (size, _, channels), step = run.model.input_shape[1:], run.settings.patch_pixels

    def read() -> Iterator[np.ndarray]:
        for image, file, slide, x, y in opened.tiles:
            patches.append(Patch(file, "", slide, x, y, "", ""))
            thumbnails.append(make_thumbnail(image, opened.thumbnail_pixels, step))
            if keep_images:
                images.append(image if max(image.shape[:2]) <= size else _fit(image, size, channels))
            yield image

    scores, distances = score_images(run, read(), progress=progress)
    return ItemScores(
        patches=patches,
        log_probabilities=scores,
        distances=distances,
        step=step,
        thumbnails=thumbnails,
        thumbnail_pixels=opened.thumbnail_pixels,
        file_scale=opened.file_scale,
        images=images,
        rejected=opened.rejected,
    )


def score_item(
    run: Run,
    item: WorkItem,
    *,
    mpp: float | None,
    progress: Progress | None = None,
    contents: Mapping[str, bytes] | None = None,
) -> ItemScores:
    """Read and score the files of one work item; InputError if the whole item cannot be used, see `reading.open_item`.

    `mpp` is micrometres per pixel at level 0, for a large image that does not state it. `contents` are the bytes of
    each file, where they are in memory and not on disk; the images are then kept too.
    """
    with open_item(run.settings, item, mpp=mpp, contents=contents) as opened:
        return score_tiles(run, opened, progress=progress, keep_images=contents is not None)


def can_be_smoothed(run: Run, scores: ItemScores) -> bool:
    """Whether the run smooths over neighbouring patches and these lie on a slide with few gaps."""
    return run.decision.without_neighbours is not None and scores.grid is not None and scores.grid.is_complete


def choose_decision(run: Run, *, neighbours: bool) -> Decision:
    """Return the run's decision for smoothed slides, or the one for single patches."""
    return run.decision if neighbours else run.decision.without_neighbours or run.decision


def decide_item(
    run: Run, scores: ItemScores, *, neighbours: bool = True, threshold: float | None = None
) -> ItemPredictions:
    """Calibrate and decide the patches of one work item; a slide must be complete to be smoothed.

    Without `neighbours` each patch is decided on its own, by the decision that the run has for that. Patches without a
    slide, and slides with many gaps, are always decided like this. `threshold`, on the positive class's probability,
    replaces the run's own; InputError for more than two classes.
    """
    decision = choose_decision(run, neighbours=neighbours and can_be_smoothed(run, scores))
    slides, distances = scores.layout.slides, scores.distances
    decided = apply_decision(decision, scores.log_probabilities, slides, threshold=threshold)
    applied = decision.threshold if threshold is None else threshold
    _, uncertain = find_uncertain(decision, decided[0], slides, distances=distances, threshold=threshold)
    return ItemPredictions(scores.patches, None, *decided, distances, uncertain, scores=scores, threshold=applied)


def predict_items(
    run: Run, items: Iterable[WorkItem], options: "PredictOptions", *, progress: Progress | None = None
) -> Iterator[PredictedItem]:
    """Read, score and decide one item after the other; files that are rejected count as progress, too."""
    for item in items:
        predictions = None
        try:
            scores = score_item(run, item, mpp=options.mpp, progress=progress)
            rejected = scores.rejected
            if scores.patches:
                predictions = decide_item(run, scores, neighbours=options.neighbours, threshold=options.threshold)
        except InputError as error:
            rejected = explain(item.files, error)
        if progress:
            progress(len(rejected))
        yield PredictedItem(item, predictions, rejected)


def _fit(image: np.ndarray, size: int, channels: int) -> np.ndarray:
    if channels == 1 and image.shape[2] == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    elif channels == 3 and image.shape[2] == 1:
        image = np.repeat(image, 3, axis=2)
    return fit_image(image, size)
