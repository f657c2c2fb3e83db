"""The work of the page without the page: uploaded images are scored, decided, mapped and explained, all in memory."""

import contextlib
import io
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cancernet import InputError
from cancernet.data.dataset import find_place
from cancernet.data.grid import PATCH_STEP, lay_out, stitch_slide
from cancernet.data.images import fit_image
from cancernet.data.tiles import Tile, picture_as_slide
from cancernet.learning import explain
from cancernet.reporting import wording
from cancernet.reporting.content import Report
from cancernet.run import Run, name_class
from cancernet.using import prediction, results, slide_map, uploads
from cancernet.using.parts import is_large
from cancernet.using.prediction import DecidedPatches, ScoredPatches
from cancernet.using.reading import choose_thumbnail_pixels, cut_slide

CARD_METRICS = ("sensitivity", "specificity", "ppv", "npv", "auroc", "accuracy", "macro_f1", "ece")
_NOBODY_ELSE = contextlib.nullcontext()
MOST_PICTURES = 120  # with Grad-CAM that are kept of a visitor's: 42 MB
LEAST_ON_A_MAP = 4  # patches of a slide
ORDERS = ("Highest probability first", "Closest to the threshold first", "In the order sent")
SCALE_LABEL = "Micrometres per pixel of large images"  # the page asks for it, where predict_images.py has --mpp
SHOWN_PIXELS, GAP = 240, 12  # of a patch and its Grad-CAM on the screen, and between them

Tell = Callable[[float, str], object]  # gets the share done, 0 to 1, and what is being done


class Shown(NamedTuple):
    """One patch on the screen."""

    decided: DecidedPatches
    row: int  # of the patch in it


class Answer(NamedTuple):
    """What the page keeps of a visitor's images."""

    scored: list[ScoredPatches]
    problems: list[uploads.Problem]
    pictures: dict[tuple, np.ndarray]  # with Grad-CAM, as `explain_patches` keeps them


class Card(NamedTuple):
    """How good a run is and what it was trained on, in words."""

    statement: str
    interval: str  # heading of the intervals
    over: str  # patients or images
    figures: list[tuple[str, str, str]]  # name, value and interval of each of CARD_METRICS that the run has
    images: str  # number of training images, and of patients where they are known
    classes: list[str]  # training images of each class
    network: str
    warnings: list[str]


def describe_run(run: Run, report: Report) -> Card:
    """What the page says of a run, from its report."""
    training, experiment = report["data"]["splits"]["training"], run.settings.experiment
    metrics, interval = report["metrics"], report["interval"]
    of_patients = f" of {training['patients']:,} patients" if report["data"]["patients_known"] else ""
    return Card(
        report["statement"],
        f"{interval['level']:.0%} interval",
        interval["over"],
        [
            (wording.METRICS[name][0].split(" (")[0], wording.number(metric["value"]), wording.interval(metric))
            for name, metric in ((name, metrics[name]) for name in CARD_METRICS if name in metrics)
        ],
        f"{training['images']:,} images{of_patients}",
        [f"{wording.class_label(report, name)}: {count:,}" for name, count in training["classes"].items()],
        f"{experiment.model}, {experiment.image_size} pixels, {_describe_length(report)}{report['created']}.",
        wording.all_warnings(report),
    )


def _describe_length(report: dict) -> str:
    """For how many epochs a run was trained; nothing for a head that was not fitted by epochs."""
    epochs = (report.get("training") or {}).get("epochs")
    return f"{epochs} epochs, " if epochs else ""


def score_uploads(
    run: Run,
    files: Sequence[tuple[str, bytes]],
    *,
    mpp: float | None = None,
    lock: AbstractContextManager = _NOBODY_ELSE,
    tell: Tell = lambda *_: None,
) -> tuple[list[ScoredPatches], list[uploads.Problem]]:
    """Score uploaded files; see cancernet.using.uploads for those that are accepted.

    Args:
        files: name and bytes of each.
        mpp: micrometres a pixel of large pictures that do not say so themselves.
        lock: under which the run answers; the files are decoded before, so that nobody waits for that.

    Returns:
        The patches of each slide, those without a slide, and those of each large picture, with their images; and the
        files that could not be used.
    """
    pictures, problems = uploads.read_uploads(
        files, channels=run.model.input_shape[-1], progress=lambda done, of: tell(done / of, "Reading the images")
    )
    slides: dict[str, list[Tile]] = {}
    large = []
    for picture in pictures:
        patient, x, y = find_place(picture.name)
        has_place = bool(patient) and x is not None
        if not has_place and is_large(*picture.image.shape[:2]) and run.settings.mpp is not None:
            large.append(picture)
        else:
            place = (patient, x, y) if has_place else ("", None, None)
            slides.setdefault(place[0], []).append(Tile(picture.image, picture.name, *place))
    with lock:
        scored = [_score_tiles(run, tiles, tell) for tiles in slides.values()]
        for picture in large:
            try:
                scored.append(_score_large(run, picture, mpp, tell))
            except InputError as error:
                reason = str(error).removeprefix(f"{picture.name}: ").replace("--mpp", f'"{SCALE_LABEL}"')
                problems.append(uploads.Problem(picture.name, reason))
    return scored, problems


def count_bytes(answer: Answer) -> int:
    """Bytes of an answer: its patches and their thumbnails, and as many pictures as it may come to have."""
    images = sum(image.nbytes for scored in answer.scored for image in (*scored.images, *scored.thumbnails))
    return images + MOST_PICTURES * SHOWN_PIXELS * (2 * SHOWN_PIXELS + GAP) * 3


def has_map(decided: DecidedPatches) -> bool:
    """Whether the patches lie on a slide that is large enough for a map."""
    return decided.scored.grid is not None and len(decided.predicted) >= LEAST_ON_A_MAP


def draw_map(run: Run, decided: DecidedPatches, class_index: int, layer: str) -> tuple[dict[str, list], dict]:
    """Rows and specification of the map of a laid-out slide, with the probability of one class.

    Args:
        layer: one of slide_map.LAYERS.
    """
    scored, grid = decided.scored, decided.scored.grid
    picture = stitch_slide(scored.thumbnails, grid, tile_pixels=scored.thumbnail_pixels)
    height, width = (side * PATCH_STEP / scored.thumbnail_pixels for side in picture.shape[:2])
    left, top = grid.origin
    words = [name_class(run.settings, name) for name in run.decision.classes]
    specification = slide_map.map_specification(
        picture,
        (left, top, left + width, top + height),
        event=words[class_index],
        decisions=[words[class_index], *(word for i, word in enumerate(words) if i != class_index)],
        layer=layer,
    )
    rows = slide_map.map_rows(
        grid,
        files=scored.files,
        probability=decided.probabilities[:, class_index],
        decision=[words[index] for index in decided.predicted],
    )
    return rows, specification


def list_patches(run: Run, decided: Sequence[DecidedPatches], order: str) -> list[Shown]:
    """All patches in one of ORDERS.

    The order goes by the probability of the positive class; of several classes by that of the most probable one.
    """
    patches = [Shown(each, row) for each in decided for row in range(len(each.predicted))]
    positive = run.decision.positive
    index = run.decision.classes.index(positive) if positive else None

    def probability(patch: Shown) -> float:
        shares = patch.decided.probabilities[patch.row]
        return float(shares.max() if index is None else shares[index])

    def distance(patch: Shown) -> float:
        threshold = patch.decided.threshold
        return abs(probability(patch) - (0.5 if threshold is None else threshold))

    if order == ORDERS[0]:
        return sorted(patches, key=probability, reverse=True)
    if order == ORDERS[1]:
        return sorted(patches, key=distance)
    return patches


def explain_patches(
    run: Run, patches: Sequence[Shown], class_index: int, made: dict[tuple, np.ndarray]
) -> list[np.ndarray]:
    """Each patch with Grad-CAM over it to its right: uint8 [SHOWN_PIXELS, w, 3].

    Args:
        made: pictures that were made before, by patch and class; new ones are added, and the oldest of many go.
    """
    keys = [(id(patch.decided.scored.images), patch.row, class_index) for patch in patches]
    new = [(key, patch) for key, patch in zip(keys, patches, strict=True) if key not in made]
    if new:
        images = [patch.decided.scored.images[patch.row] for _, patch in new]
        fitted = np.stack([fit_image(image, run.model.input_shape[1]) for image in images])
        heat = explain.grad_cam(run.model, fitted, class_index)
        for (key, _), image, small, warm in zip(new, images, fitted, heat, strict=True):
            made[key] = _side_by_side(image, explain.overlay(small, warm))
    shown = [made[key] for key in keys]
    while len(made) > MOST_PICTURES:
        del made[next(iter(made))]
    return shown


def predictions_csv(run: Run, decided: Sequence[DecidedPatches]) -> str:
    """All patches in the form of predictions.csv that predict_images.py writes."""
    table = io.StringIO()
    results.write_header(table, run.decision.classes)
    for each in decided:
        results.write_rows(table, each, run.decision.classes)
    return table.getvalue()


def _score_tiles(run: Run, tiles: Sequence[Tile], tell: Tell) -> ScoredPatches:
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        tell(done / len(tiles), f"Judging patch {done:,} of {len(tiles):,}")

    images, files, patients, x, y = zip(*tiles, strict=True)
    thumbnail_pixels = choose_thumbnail_pixels(lay_out(patients, x, y, files))
    scored = prediction.score_patches(run, tiles, thumbnail_pixels=thumbnail_pixels, progress=count)
    return scored._replace(images=images)


def _score_large(run: Run, picture: uploads.Picture, mpp: float | None, tell: Tell) -> ScoredPatches:
    if picture.image.shape[2] != 3:
        raise InputError(
            "is a large picture, and this run takes grey patches: only colour pictures can be cut. Send patches."
        )
    tell(0.0, "Cutting a large image into patches")
    slide = picture_as_slide(Path(picture.name), picture.image, picture.resolution, mpp)
    tiles = list(cut_slide(run.settings, slide, file=picture.name))
    return _score_tiles(run, tiles, tell)._replace(file_scale=run.settings.mpp / slide.mpp)


def _side_by_side(image: np.ndarray, overlaid: np.ndarray) -> np.ndarray:
    rgb = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
    gap = np.full((SHOWN_PIXELS, GAP, 3), 255, np.uint8)
    return np.hstack([fit_image(rgb, SHOWN_PIXELS), gap, fit_image(overlaid, SHOWN_PIXELS)])
