"""The work of the page without the page: uploaded images are scored, decided, mapped and explained, all in memory."""

import html
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from cancernet import InputError
from cancernet.data.grid import PATCH_STEP, stitch_slide
from cancernet.data.images import fit_image
from cancernet.explain import gradcam
from cancernet.explain.outside import Outside
from cancernet.inference import prediction, results, work_list
from cancernet.inference.prediction import DecidedPatches, ScoredPatches
from cancernet.models.architectures import ENCODER
from cancernet.reporting import illustration
from cancernet.reporting.plots import COLOURS, GREY, ORANGE
from cancernet.run import Run, load_run, name_class
from cancernet.storage import file_stem
from cancernet.web import slide_map, uploads

MOST_PICTURES = 24  # with Grad-CAM that are kept of a visitor's: 9 MB
MOST_FURTHEST = 6  # images outside what the run was made for that are shown first
LEAST_ON_A_MAP = 4  # patches of a slide
ORDERS = ("Highest probability first", "Closest to the threshold first", "In the order sent")
SCALE_LABEL = "Micrometres per pixel of large images"  # the page asks for it, where predict_images.py has --mpp
EXPLAINED = "Left the image, right what in it spoke for what it was called (Grad-CAM): yellow most, no colour not."
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


def open_run(folder: Path) -> Run:
    """Load a run and let it answer once: the first answers take seconds, and no visitor should wait for them.

    Raises:
        InputError: as `run.load_run`.
    """
    # Streamlit calls this after every click. It would throw away what TensorFlow has compiled for the network, which
    # takes half a second to make again, and another visitor's patches may be in it.
    keras.backend.clear_session = lambda: None
    run = load_run(folder)
    for count in (1, 2):  # the second is compiled for any number of images
        prediction.score_images(run, np.zeros((count, *run.model.input_shape[1:]), np.uint8))
    if has_maps(run):
        gradcam.grad_cam(run.model, np.zeros((1, *run.model.input_shape[1:]), np.uint8), 0)
    return run


def has_maps(run: Run) -> bool:
    """Whether Grad-CAM can explain a run's answers: a transformer has tokens, no maps."""
    return run.settings.experiment.model != ENCODER


def score_uploads(
    run: Run,
    files: Sequence[tuple[str, bytes]],
    *,
    mpp: float | None = None,
    tell: Tell = lambda *_: None,
) -> tuple[list[ScoredPatches], list[uploads.Problem]]:
    """Score uploaded files, read and divided as predict_images.py does; see cancernet.web.uploads for the limits.

    Args:
        files: name and bytes of each.
        mpp: micrometres a pixel of large pictures that do not say so themselves.

    Returns:
        The patches of each slide, lots of those without a slide, and those of each large picture, with their images;
        and the files that could not be used.
    """
    contents, problems = uploads.accept_uploads(files)
    planned = work_list.plan_parts(list(contents), mpp=run.settings.mpp, tile="auto", contents=contents)
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
            scored.append(prediction.score_part(run, part, mpp=mpp, refuse=refuse, progress=count, contents=contents))
        except InputError as error:
            refuse(part.files, str(error))
    return [each for each in scored if each.files], problems


def count_bytes(answer: Answer) -> int:
    """Bytes of an answer: its patches and their thumbnails, and as many pictures as it may come to have."""
    images = sum(image.nbytes for scored in answer.scored for image in (*scored.images, *scored.thumbnails))
    return images + MOST_PICTURES * SHOWN_PIXELS * (2 * SHOWN_PIXELS + GAP) * 3


def has_map(run: Run, decided: DecidedPatches) -> bool:
    """Whether the patches lie on a slide that is large enough for a map."""
    return run.settings.mpp is not None and decided.scored.grid is not None and len(decided.predicted) >= LEAST_ON_A_MAP


def draw_map(run: Run, decided: DecidedPatches, class_index: int, over: str) -> dict:
    """Specify the map of a laid-out slide, with the probability and the outline of one class, and its data.

    Args:
        over: one of slide_map.OVER_TISSUE.
    """
    scored, grid = decided.scored, decided.scored.grid
    picture = stitch_slide(scored.thumbnails, grid, tile_pixels=scored.thumbnail_pixels)
    height, width = (side * PATCH_STEP / scored.thumbnail_pixels for side in picture.shape[:2])
    left, top = grid.origin
    words = [name_class(run.settings, name) for name in run.decision.classes]
    frame = slide_map.Frame(left, top, left + width, top + height)
    specification = slide_map.map_specification(
        picture, frame, event=words[class_index], over=over, mpp=run.settings.mpp
    )
    rows = slide_map.map_rows(
        grid,
        files=scored.files,
        probability=decided.probabilities[:, class_index],
        decision=[words[index] for index in decided.predicted],
    )
    outline = slide_map.outline_rows(grid, decided.predicted == class_index)
    return specification | {"datasets": {slide_map.PATCHES: rows, slide_map.OUTLINE: outline}}


def patch_area(run: Run) -> float:
    """Square millimetres of a patch, of a run that knows its scale."""
    return (PATCH_STEP * run.settings.mpp / 1000) ** 2


def find_colours(run: Run) -> list[str]:
    """A colour for each class, as #rrggbb: orange for the positive one and grey for the other, or one for each."""
    classes, positive = run.decision.classes, run.decision.positive
    if positive is not None:
        return [ORANGE if name == positive else GREY for name in classes]
    return [COLOURS[index % len(COLOURS)] for index in range(len(classes))]


def describe_answer(run: Run, patch: Shown) -> str:
    """What a patch was called and its probabilities as bars, the highest first, as HTML."""
    shares, predicted = patch.decided.probabilities[patch.row].tolist(), int(patch.decided.predicted[patch.row])
    words = [html.escape(name_class(run.settings, name)) for name in run.decision.classes]
    colours = find_colours(run)
    bars = "".join(
        f'<div class="share"><span>{words[index]}</span><span>{shares[index]:.1%}</span>'
        f'<div><div style="width: {shares[index]:.1%}; background: {colours[index]}"></div></div></div>'
        for index in sorted(range(len(words)), key=lambda index: -shares[index])
    )
    return f'<div class="called" style="background: {colours[predicted]}">called {words[predicted]}</div>{bars}'


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


def show_furthest(scored: Sequence[ScoredPatches], outside: Outside) -> list[tuple[np.ndarray, str]]:
    """The images farthest outside what the run was made for, at most MOST_FURTHEST.

    Args:
        outside: of the distances of all patches of `scored`, in their order.

    Returns:
        Picture and name of each, the furthest first; a picture is uint8 [SHOWN_PIXELS, SHOWN_PIXELS, 3].
    """
    places = [(each, row) for each in scored for row in range(len(each.files))]
    chosen = [(*places[index], distance) for index, distance in outside.furthest[:MOST_FURTHEST]]
    return [
        (fit_image(_as_rgb(each.images[row]), SHOWN_PIXELS), f"{distance:.1f}: {name_patch(each, row)}")
        for each, row, distance in chosen
    ]


def name_patch(scored: ScoredPatches, row: int) -> str:
    """The file of a patch, and where in it the patch lies if it was cut from a large image."""
    file = scored.files[row]
    return f"x {scored.x[row]}, y {scored.y[row]} of {file}" if file == scored.slide else file


def explain_patches(run: Run, patches: Sequence[Shown], made: dict[tuple, np.ndarray]) -> list[np.ndarray]:
    """Each patch, and where there are maps Grad-CAM of what it was called to its right: uint8 [SHOWN_PIXELS, w, 3].

    Args:
        made: pictures that were made before, by patch and class; new ones are added, and the oldest of many go.
    """
    said = [int(patch.decided.predicted[patch.row]) for patch in patches]
    keys = [(id(patch.decided.scored.images), patch.row, index) for patch, index in zip(patches, said, strict=True)]
    new = [(key, patch) for key, patch in zip(keys, patches, strict=True) if key not in made]
    if new:
        images = [patch.decided.scored.images[patch.row] for _, patch in new]
        fitted = np.stack([fit_image(image, run.model.input_shape[1]) for image in images])
        if has_maps(run):
            heat = gradcam.grad_cam(run.model, fitted, np.array([index for (_, _, index), _ in new]))
            beside = [gradcam.overlay(small, warm) for small, warm in zip(fitted, heat, strict=True)]
        else:
            beside = [np.full((*fitted.shape[1:3], 3), 255, np.uint8)] * len(new)
        for (key, _), image, right in zip(new, images, beside, strict=True):
            made[key] = _side_by_side(image, right)
    shown = [made[key] for key in keys]
    while len(made) > MOST_PICTURES:
        del made[next(iter(made))]
    return shown


def without_images(decided: DecidedPatches) -> DecidedPatches:
    """The same answers without the images, which Streamlit would keep as long as a button that makes a file of them."""
    return decided._replace(scored=decided.scored._replace(images=()))


def predictions_csv(run: Run, decided: Sequence[DecidedPatches]) -> str:
    """All patches in the form of predictions.csv that predict_images.py writes."""
    table = io.StringIO()
    names = [name_class(run.settings, each) for each in run.decision.classes]
    results.write_header(table, names)
    for each in decided:
        results.write_rows(table, each, names)
    return table.getvalue()


def draw_picture(run: Run, decided: DecidedPatches) -> bytes:
    """The picture of a slide as predict_images.py draws it, of a run of two classes: a JPEG."""
    index = run.decision.classes.index(run.decision.positive)
    called = f"{int((decided.predicted == index).sum()):,} called {name_class(run.settings, run.decision.positive)}"
    scored = decided.scored
    title = f"{scored.slide}: {len(scored.files):,} patches, {called}"
    answers = illustration.Answers(decided.probabilities, decided.predicted, threshold=decided.threshold)
    figure = illustration.draw_slide(run, scored.grid, scored.thumbnails, answers, title=title)
    picture = io.BytesIO()
    illustration.save_picture(figure, picture)
    return picture.getvalue()


def pack_regions(run: Run, decided: Sequence[DecidedPatches]) -> bytes:
    """A zip with a GeoJSON file for each slide, in the slide's own pixels."""
    packed, taken = io.BytesIO(), set()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for each in decided:
            name = file_stem(Path(each.scored.slide).stem, taken)
            archive.writestr(f"{name}.geojson", json.dumps(results.find_regions(run, each)))
    return packed.getvalue()


def _side_by_side(image: np.ndarray, overlaid: np.ndarray) -> np.ndarray:
    gap = np.full((SHOWN_PIXELS, GAP, 3), 255, np.uint8)
    return np.hstack([fit_image(_as_rgb(image), SHOWN_PIXELS), gap, fit_image(overlaid, SHOWN_PIXELS)])


def _as_rgb(image: np.ndarray) -> np.ndarray:
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
