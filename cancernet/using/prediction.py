"""A loaded run applied to images without a known truth: patches, slides of patches, and large images cut into patches.

What predict_images.py and the page share. Nothing is written to disk here; tables go to an open file.

x and y are the left and top pixel of a patch at the scale of the run, in steps of PATCH_STEP, as in the names of the
IDC set; a patch without a place has None.
"""

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TextIO

import cv2
import numpy as np

from cancernet import InputError
from cancernet.data.grid import PATCH_STEP, paint_grid
from cancernet.data.images import fit_image
from cancernet.data.tiles import SlideImage, iterate_tiles, open_slide_image, tile_grid
from cancernet.judging.decision import log_scores
from cancernet.judging.smoothing import judge_patches
from cancernet.run import BATCH, Classifier, average_over_views
from cancernet.using.regions import COLOUR, regions_geojson

PICTURE_PIXELS = 1600  # the longest side of a slide's picture, roughly
LEAST_THUMBNAIL = 4  # pixels of a patch in it
REGION_COLOURS = (COLOUR, (0, 114, 178), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233))

Progress = Callable[[int], object]  # is told the number of images done since the last call, such as tqdm.update


class PlacedImage(NamedTuple):
    """A decoded patch and where it comes from."""

    image: np.ndarray  # uint8 [height, width, 3] RGB or [height, width, 1] grey, of any size
    name: str  # its file
    patient: str  # the slide it lies on; "" where unknown
    x: int | None
    y: int | None


class Prediction(NamedTuple):
    """What a run's network says of n patches, a row a patch; not yet calibrated or decided."""

    names: list[str]  # file of each patch
    patients: list[str]  # the slide it lies on; "" where unknown
    x: list[int | None]
    y: list[int | None]
    scores: np.ndarray  # log-probabilities [n, k] float64
    thumbnails: list[np.ndarray]  # uint8 [h, w, 3] of each, at most thumbnail_pixels a side
    thumbnail_pixels: int  # side of a whole patch in the thumbnails
    file_scale: float = 1.0  # pixels of the file (of level 0) for one of x and y
    mpp: float | None = None  # micrometres a pixel of x and y; None where unknown


def training_mpp(loaded: Classifier) -> float | None:
    """Micrometres a pixel of the patches that a run was trained on; None where it does not know."""
    return loaded.config.get("mpp")


def class_label(loaded: Classifier, name: str) -> str:
    """A class as people call it: `IDC` for the class 1 of the IDC set, else its own name."""
    return (loaded.config.get("class_names") or {}).get(name, name)


def score_images(loaded: Classifier, images: Iterable[np.ndarray], *, progress: Progress | None = None) -> np.ndarray:
    """Log-probabilities [n, k], float64, of images in their order; a batch of them is held at a time.

    Args:
        images: uint8 [height, width, 3] RGB or [height, width, 1] grey of any size; each is scaled to the network's.

    Raises:
        InputError: the network answers something that is not a number.
    """
    network = _network(loaded.model, loaded.config["experiment"]["views"])
    size, _, channels = network.input_shape[1:]
    images, scores = iter(images), [np.empty((0, len(loaded.decision.classes)))]
    while batch := [_fit(image, size, channels) for image in islice(images, BATCH)]:
        scores.append(log_scores(network.predict_on_batch(np.stack(batch))))
        if progress:
            progress(len(batch))
    return np.concatenate(scores)


def predict_patches(
    loaded: Classifier, patches: Iterable[PlacedImage], *, thumbnail_pixels: int, progress: Progress | None = None
) -> Prediction:
    """Score patches as they come; a batch of them is held at a time, and a thumbnail of each.

    Args:
        thumbnail_pixels: see thumbnail_side.
        progress: is told how many images were scored since its last call.
    """
    places, thumbnails = [], []

    def take_apart() -> Iterator[np.ndarray]:
        for image, *place in patches:
            places.append(place)
            thumbnails.append(make_thumbnail(image, thumbnail_pixels))
            yield image

    scores = score_images(loaded, take_apart(), progress=progress)
    names, patients, x, y = (list(column) for column in zip(*places)) if places else ([], [], [], [])
    return Prediction(names, patients, x, y, scores, thumbnails, thumbnail_pixels, mpp=training_mpp(loaded))


def predict_arrays(
    loaded: Classifier,
    images: Iterable[np.ndarray],
    names: Sequence[str],
    patients: Sequence[str],
    x: Sequence[int | None],
    y: Sequence[int | None],
    *,
    progress: Progress | None = None,
) -> Prediction:
    """Score patches that are already decoded.

    Args:
        images: n, uint8 [height, width, channels], of any sizes.
        names, patients, x, y: [n]; "" and None where a patch has no slide or place.
        progress: is told how many images were scored since its last call.
    """
    patches = (PlacedImage(*each) for each in zip(images, names, patients, x, y, strict=True))
    return predict_patches(loaded, patches, thumbnail_pixels=thumbnail_side(x, y), progress=progress)


def predict_large_image(
    loaded: Classifier,
    path: Path,
    *,
    mpp: float | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> Prediction:
    """Open a whole slide or a large picture, cut it into patches and score those with tissue; see predict_slide.

    Args:
        mpp: micrometres a pixel of level 0, for a file that does not say so itself.
        name: what the file and its slide are called; its path if None.

    Raises:
        InputError: as predict_slide; or the file knows no scale, or cannot be read.
    """
    with open_slide_image(path, mpp) as slide:
        return predict_slide(loaded, slide, name=str(path) if name is None else name, progress=progress)


def predict_slide(loaded: Classifier, slide: SlideImage, *, name: str, progress: Progress | None = None) -> Prediction:
    """Cut an open slide into patches at the scale of the run and score those with tissue.

    Memory is bounded by one block of the image (see cancernet.data.tiles) and a thumbnail a patch.

    Raises:
        InputError: the run knows no scale, the slide is coarser than it, a piece is broken, or there is no tissue.
    """
    scale = training_mpp(loaded)
    if scale is None:
        raise InputError(f"{name}: is to be cut into patches, and the run knows no scale to cut at. Give patches.")
    rows, columns = tile_grid(slide, patch_pixels=PATCH_STEP, target_mpp=scale)
    patches = (
        PlacedImage(tile.image, name, name, tile.x, tile.y)
        for tile in iterate_tiles(slide, patch_pixels=PATCH_STEP, target_mpp=scale)
    )
    prediction = predict_patches(loaded, patches, thumbnail_pixels=_side_for(max(rows, columns)), progress=progress)
    if not prediction.names:
        raise InputError(f"{name}: shows no stained tissue, only background. Check that it is the right image.")
    return prediction._replace(file_scale=scale / slide.mpp)


def decide_prediction(
    loaded: Classifier, prediction: Prediction, *, neighbours: bool = True, threshold: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated probabilities float64 [n, k] and decided class indices [n]; a slide's patches must be all in it.

    Args:
        neighbours: False judges every patch on its own, by the decision that the run has for that.
        threshold: on the positive class's probability, in place of the run's own; 0 to 1.

    Raises:
        InputError: as `judgement.judge_patches`.
    """
    decision = loaded.decision
    if not neighbours and decision.without_neighbours:
        decision = decision.without_neighbours
    return judge_patches(
        decision,
        prediction.scores,
        prediction.patients,
        prediction.x,
        prediction.y,
        files=prediction.names,
        threshold=threshold,
    )


def write_header(file: TextIO, classes: Sequence[str]) -> None:
    """Write the first line of predictions.csv: file, x, y, probability of each class, predicted."""
    csv.writer(file, lineterminator="\n").writerow(
        ["file", "x", "y", *(f"probability_{name}" for name in classes), "predicted"]
    )


def write_rows(
    file: TextIO, prediction: Prediction, probabilities: np.ndarray, predicted: np.ndarray, classes: Sequence[str]
) -> None:
    """Write one line a patch, probabilities at full precision.

    x and y are the left and top pixel of the patch: of a large image in the file's own (level 0) pixels, of a patch as
    its name says; empty where there is no place.
    """
    writer = csv.writer(file, lineterminator="\n")
    rows = zip(prediction.names, prediction.x, prediction.y, probabilities.tolist(), predicted, strict=True)
    for name, x, y, shares, index in rows:
        place = ["" if value is None else round(value * prediction.file_scale) for value in (x, y)]
        writer.writerow([name, *place, *shares, classes[index]])


def find_regions(loaded: Classifier, prediction: Prediction, probabilities: np.ndarray, predicted: np.ndarray) -> dict:
    """Outlines, for QuPath, of the places of one slide that were given the positive class; of every class if none is.

    Args:
        prediction: patches of one slide, all placed.

    Returns:
        A GeoJSON FeatureCollection in the file's own (level 0) pixels; see cancernet.using.regions.
    """
    classes, positive = loaded.decision.classes, loaded.decision.positive
    features = []
    for number, name in enumerate(classes if positive is None else [positive]):
        index = classes.index(name)
        values = np.where(predicted == index, probabilities[:, index], np.nan)
        grid, origin = paint_grid(values, prediction.x, prediction.y)
        features += regions_geojson(
            grid,
            threshold=0.0,  # all that is not NaN: the decision is made
            patch_pixels=PATCH_STEP * prediction.file_scale,
            origin=(origin[0] * prediction.file_scale, origin[1] * prediction.file_scale),
            name=class_label(loaded, name),
            colour=REGION_COLOURS[number % len(REGION_COLOURS)],
            mpp=prediction.mpp and prediction.mpp / prediction.file_scale,
        )["features"]
    return {"type": "FeatureCollection", "features": features}


def thumbnail_side(x: Sequence[float | None], y: Sequence[float | None]) -> int:
    """Pixels of a patch in the picture of its slide, so that the picture's longest side is about PICTURE_PIXELS."""
    spans = [max(known) - min(known) for known in ([v for v in axis if v is not None] for axis in (x, y)) if known]
    return _side_for(max(spans, default=0) / PATCH_STEP + 1)


def make_thumbnail(image: np.ndarray, side: int) -> np.ndarray:
    """A patch as RGB at the scale at which a whole one, PATCH_STEP pixels, has `side`; an edge tile stays smaller."""
    rgb = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
    share = min(1.0, PATCH_STEP / max(rgb.shape[:2])) * side / PATCH_STEP
    height, width = (max(1, round(pixels * share)) for pixels in rgb.shape[:2])
    return cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)


def _side_for(places: float) -> int:
    return int(np.clip(PICTURE_PIXELS // places, LEAST_THUMBNAIL, PATCH_STEP))


def _fit(image: np.ndarray, size: int, channels: int) -> np.ndarray:
    """The image as the network takes it: uint8 [size, size, channels]."""
    if channels == 1 and image.shape[2] == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    elif channels == 3 and image.shape[2] == 1:
        image = np.repeat(image, 3, axis=2)
    return fit_image(image, size)


_network = lru_cache(maxsize=1)(average_over_views)  # built once
