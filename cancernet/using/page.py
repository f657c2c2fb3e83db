"""The work of the page without the page: uploaded images are scored, decided, mapped and explained, all in memory."""

import contextlib
import io
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np

from cancernet import InputError
from cancernet.data.grid import PATCH_STEP, stitch_slide
from cancernet.data.images import fit_image
from cancernet.learning import explain
from cancernet.reporting import wording
from cancernet.reporting.content import Report
from cancernet.run import Run, name_class
from cancernet.using import parts, prediction, results, slide_map, uploads
from cancernet.using.prediction import DecidedPatches, ScoredPatches

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
    """Score uploaded files, read and divided as predict_images.py does; see cancernet.using.uploads for the limits.

    Args:
        files: name and bytes of each.
        mpp: micrometres a pixel of large pictures that do not say so themselves.
        lock: under which the run answers, part by part.

    Returns:
        The patches of each slide, lots of those without a slide, and those of each large picture, with their images;
        and the files that could not be used.
    """
    contents, problems = uploads.accept_uploads(files)
    planned = parts.plan_parts(list(contents), mpp=run.settings.mpp, tile="auto", contents=contents)
    scored, done = [], 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        tell(min(done / len(contents), 1.0), f"Judging the images: {done:,} done")

    def refuse(names: Sequence[str], reason: str) -> None:
        more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
        reason = reason.removeprefix(f"{names[0]}: ").replace("--mpp", f'"{SCALE_LABEL}"')
        problems.append(uploads.Problem(names[0] + more, reason))

    for part in planned:
        try:
            with lock:
                scored.append(
                    prediction.score_part(run, part, mpp=mpp, refuse=refuse, progress=count, contents=contents)
                )
        except InputError as error:
            refuse(part.files, str(error))
    return [each for each in scored if each.files], problems


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


def _side_by_side(image: np.ndarray, overlaid: np.ndarray) -> np.ndarray:
    rgb = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
    gap = np.full((SHOWN_PIXELS, GAP, 3), 255, np.uint8)
    return np.hstack([fit_image(rgb, SHOWN_PIXELS), gap, fit_image(overlaid, SHOWN_PIXELS)])
