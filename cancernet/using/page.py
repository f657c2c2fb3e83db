"""One visitor's images, from upload to answer, in memory: the page's work without the page."""

import io
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from cancernet import InputError
from cancernet.data import grid
from cancernet.data.dataset import find_place
from cancernet.data.images import fit_image
from cancernet.judging.decision import Decision
from cancernet.learning import explain
from cancernet.run import Classifier
from cancernet.using import prediction, slide_map, uploads
from cancernet.using.prediction import Prediction

LEAST_ON_A_MAP = 4  # patches of a slide
ORDERS = ("Highest probability first", "Closest to the threshold first", "In the order sent")
SCALE_LABEL = "Micrometres per pixel of large images"  # where the page asks for what --mpp is elsewhere
SHOWN_PIXELS, GAP = 240, 12  # of a patch and its Grad-CAM on the screen, and between them

Tell = Callable[[float, str], object]  # is told the share done, 0 to 1, and of what


class Source(NamedTuple):
    """What is judged together: a slide's patches, a large picture cut into patches, or all patches without a place."""

    slide: str  # its patient, or the picture's name; "" for patches without a place
    prediction: Prediction
    images: list[np.ndarray]  # uint8 [h, w, channels] of each patch


class Judged(NamedTuple):
    """A source with its decisions."""

    source: Source
    probabilities: np.ndarray  # [n, k], calibrated
    predicted: np.ndarray  # class index [n]
    threshold: float | None  # of the decision; None of several classes
    problem: str  # why it has no map, and its neighbours do not count; "" if nothing is wrong


class Patch(NamedTuple):
    """One patch to look at."""

    judged: Judged
    row: int


def score_uploads(
    loaded: Classifier, files: Sequence[tuple[str, bytes]], *, mpp: float | None = None, tell: Tell = lambda *_: None
) -> tuple[list[Source], list[uploads.Problem]]:
    """What the network says of uploaded files; see cancernet.using.uploads for what is taken and what is not.

    Args:
        files: name and bytes of each.
        mpp: micrometres a pixel of large pictures that do not say so themselves.
    """
    pictures, problems = uploads.read_uploads(
        files, channels=loaded.model.input_shape[-1], progress=lambda done, of: tell(done / of, "Reading the images")
    )
    patches, large = {}, []
    for picture in pictures:
        patient, x, y = find_place(picture.name)
        placed = bool(patient) and x is not None
        if not placed and uploads.is_large(picture) and prediction.training_mpp(loaded) is not None:
            large.append(picture)
        else:
            place = (patient, x, y) if placed else ("", None, None)
            patches.setdefault(place[0], []).append(prediction.PlacedImage(picture.image, picture.name, *place))
    sources = [_score_patches(loaded, slide, found, tell) for slide, found in patches.items()]
    for picture in large:
        try:
            sources.append(_score_large(loaded, picture, mpp, tell))
        except InputError as error:
            reason = str(error).removeprefix(f"{picture.name}: ").replace("--mpp", f'"{SCALE_LABEL}"')
            problems.append(uploads.Problem(picture.name, reason))
    return sources, problems


def judge(
    loaded: Classifier, sources: Sequence[Source], *, neighbours: bool = True, threshold: float | None = None
) -> list[Judged]:
    """Probabilities and decisions; a slide whose patches overlap is judged patch by patch."""
    judged = []
    for source in sources:
        problem, smoothed = _find_overlap(source), neighbours and can_be_smoothed(loaded, source)
        decided = prediction.decide_prediction(loaded, source.prediction, neighbours=smoothed, threshold=threshold)
        own = choose_decision(loaded, neighbours=smoothed).threshold
        judged.append(Judged(source, *decided, own if threshold is None else threshold, problem))
    return judged


def choose_decision(loaded: Classifier, *, neighbours: bool) -> Decision:
    """The run's decision for smoothed slides, or the one for patches that are judged one by one."""
    return loaded.decision if neighbours else loaded.decision.without_neighbours or loaded.decision


def can_be_smoothed(loaded: Classifier, source: Source) -> bool:
    """Whether neighbours count in this source: the run smooths, and the slide has few enough gaps."""
    answer = source.prediction
    if loaded.decision.without_neighbours is None or not source.slide or _find_overlap(source):
        return False
    return grid.mean_neighbours(answer.patients, answer.x, answer.y) >= grid.LEAST_NEIGHBOURS


def has_map(judged: Judged) -> bool:
    return bool(judged.source.slide) and not judged.problem and len(judged.predicted) >= LEAST_ON_A_MAP


def draw_map(loaded: Classifier, judged: Judged, class_index: int, layer: str) -> tuple[dict[str, list], dict]:
    """Rows and specification of a slide's map, see cancernet.using.slide_map, with the probability of one class.

    Raises:
        InputError: patches overlap.
    """
    answer = judged.source.prediction
    picture, (left, top) = grid.stitch_slide(answer.thumbnails, answer.x, answer.y, tile_pixels=answer.thumbnail_pixels)
    height, width = (side * grid.PATCH_STEP / answer.thumbnail_pixels for side in picture.shape[:2])
    words = [prediction.class_label(loaded, name) for name in loaded.decision.classes]
    specification = slide_map.map_specification(
        picture,
        (left, top, left + width, top + height),
        event=words[class_index],
        decisions=[words[class_index], *(word for i, word in enumerate(words) if i != class_index)],
        layer=layer,
    )
    rows = slide_map.map_rows(
        answer.x,
        answer.y,
        grid.PATCH_STEP,
        names=answer.names,
        probability=judged.probabilities[:, class_index],
        decision=[words[index] for index in judged.predicted],
    )
    return rows, specification


def list_patches(loaded: Classifier, judged: Sequence[Judged], order: str) -> list[Patch]:
    """All patches in one of ORDERS: by the probability of the positive class, of the most probable one if none is."""
    patches = [Patch(each, row) for each in judged for row in range(len(each.predicted))]
    positive = loaded.decision.positive
    index = loaded.decision.classes.index(positive) if positive else None

    def probability(patch: Patch) -> float:
        shares = patch.judged.probabilities[patch.row]
        return float(shares.max() if index is None else shares[index])

    def distance(patch: Patch) -> float:
        threshold = patch.judged.threshold
        return abs(probability(patch) - (0.5 if threshold is None else threshold))

    if order == ORDERS[0]:
        return sorted(patches, key=probability, reverse=True)
    if order == ORDERS[1]:
        return sorted(patches, key=distance)
    return patches


def explain_patches(
    loaded: Classifier, patches: Sequence[Patch], class_index: int, kept: dict[tuple, np.ndarray]
) -> list[np.ndarray]:
    """Each patch and, to its right, Grad-CAM over it: uint8 [h, w, 3] for the screen.

    kept: what was made before, by patch and class; what is new is added.
    """
    keys = [(id(patch.judged.source.images), patch.row, class_index) for patch in patches]
    new = [(key, patch) for key, patch in zip(keys, patches, strict=True) if key not in kept]
    if new:
        images = [patch.judged.source.images[patch.row] for _, patch in new]
        fitted = np.stack([fit_image(image, loaded.model.input_shape[1]) for image in images])
        heat = explain.grad_cam(loaded.model, fitted, class_index)
        for (key, _), image, seen, warm in zip(new, images, fitted, heat, strict=True):
            kept[key] = _side_by_side(image, explain.overlay(seen, warm))
    return [kept[key] for key in keys]


def predictions_csv(loaded: Classifier, judged: Sequence[Judged]) -> str:
    """All patches in the form of predictions.csv that predict_images.py writes."""
    table = io.StringIO()
    prediction.write_header(table, loaded.decision.classes)
    for each in judged:
        prediction.write_rows(table, each.source.prediction, *each[1:3], loaded.decision.classes)
    return table.getvalue()


def _score_patches(loaded: Classifier, slide: str, patches: list, tell: Tell, file_scale: float = 1.0) -> Source:
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        tell(done / len(patches), f"Judging patch {done:,} of {len(patches):,}")

    images, names, patients, x, y = map(list, zip(*patches, strict=True))
    found = prediction.predict_arrays(loaded, images, names, patients, x, y, progress=count)
    return Source(slide, found._replace(file_scale=file_scale), images)


def _find_overlap(source: Source) -> str:
    """What is wrong with the places of a slide's patches, "" if nothing is."""
    answer = source.prediction
    try:
        grid.mean_neighbours(answer.patients, answer.x, answer.y, files=answer.names)
    except InputError as error:
        return str(error)
    return ""


def _score_large(loaded: Classifier, picture: uploads.Picture, mpp: float | None, tell: Tell) -> Source:
    if picture.image.shape[2] != 3:
        raise InputError("is a large picture, and the run takes grey patches; only colour ones are cut")
    tell(0.0, "Cutting a large image into patches")
    tiles, file_scale = uploads.cut_picture(picture, target_mpp=prediction.training_mpp(loaded), mpp=mpp)
    patches = [prediction.PlacedImage(tile.image, picture.name, picture.name, tile.x, tile.y) for tile in tiles]
    return _score_patches(loaded, picture.name, patches, tell, file_scale)


def _side_by_side(image: np.ndarray, overlaid: np.ndarray) -> np.ndarray:
    rgb = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
    gap = np.full((SHOWN_PIXELS, GAP, 3), 255, np.uint8)
    return np.hstack([fit_image(rgb, SHOWN_PIXELS), gap, fit_image(overlaid, SHOWN_PIXELS)])
