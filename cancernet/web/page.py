"""The work behind the page, without Streamlit: score, explain and export uploaded images, all in memory."""

import html
import io
import json
import re
import zipfile
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import shapely
from cachetools import LRUCache

from cancernet import InputError
from cancernet.config import ANNOTATED_SHARE
from cancernet.data.annotations import Region, classify_cells, read_regions
from cancernet.data.grid import stitch_slide
from cancernet.data.images import fit_image
from cancernet.evaluation.referral import UNCERTAIN
from cancernet.explain import gradcam
from cancernet.explain.distances import Outliers
from cancernet.inference import prediction, reading, results, work_list
from cancernet.inference.prediction import ItemPredictions, ItemScores
from cancernet.reporting import illustration
from cancernet.reporting.plots import BLUE, COLOURS, GREY, ORANGE
from cancernet.reporting.wording import plural, share
from cancernet.run import Run, load_run, name_class
from cancernet.storage import file_stem, write_rows
from cancernet.web import slide_map, uploads

MAX_PICTURES = 24  # pictures kept per visitor: 9 MB
MAX_DISTANT = 6  # out-of-distribution images that are shown
MIN_MAP_PATCHES = 4  # a slide with fewer gets no map
ORDERS = ("Highest probability first", "Closest to the threshold first", "Upload order")
SCALE_LABEL = "Micrometres per pixel of large images"  # stands for --mpp in messages
SHOWN_PIXELS, GAP = 240, 12  # a patch and its Grad-CAM map on the screen, and the gap between them


class Shown(NamedTuple):
    """One patch on the screen."""

    predictions: ItemPredictions
    row: int  # of the patch

    @property
    def predicted(self) -> int:
        return int(self.predictions.predicted[self.row])

    @property
    def probabilities(self) -> np.ndarray:
        return self.predictions.probabilities[self.row]

    @property
    def is_uncertain(self) -> bool:
        return self.predictions.uncertain is not None and bool(self.predictions.uncertain[self.row])


class Answer(NamedTuple):
    """Results for the images of one visitor."""

    scores: list[ItemScores]
    problems: list[uploads.Problem]
    pictures: LRUCache[Hashable, np.ndarray]  # filled by `explain_patches`
    annotations: dict[str, list[Region]]  # of slides, by their names, in pixels of level 0


def open_run(folder: Path) -> Run:
    """Load a run and compile its model, which takes seconds, so that no visitor has to wait for it."""
    run = load_run(folder)
    shape = run.model.input_shape[1:]
    for count in (1, 2):  # the second call compiles the model for any number of images
        prediction.score_images(run, np.zeros((count, *shape), np.uint8))
    if illustration.has_grad_cam(run):
        gradcam.grad_cam(run.model, np.zeros((1, *shape), np.uint8), 0)
    return run


def answer_uploads(
    run: Run,
    files: Sequence[uploads.Upload],
    *,
    mpp: float | None = None,
    report_progress: Callable[[float, str], object] = lambda *_: None,
) -> Answer:
    """Score uploaded files; `cancernet predict` reads and groups them in the same way.

    GeoJSON files are the annotations of the slides with their names, or of the only slide.

    `mpp` is micrometres per pixel of large images whose files do not store it. `report_progress` takes the finished
    fraction, 0 to 1, and a text.
    """
    given = {name: data for name, data in files if name.lower().endswith(uploads.ANNOTATIONS)}
    contents, problems = uploads.accept_uploads([file for file in files if file[0] not in given])
    items = work_list.plan_work(list(contents), run.settings, tile="auto", contents=contents)
    scores, done = [], 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        report_progress(min(done / len(contents), 1.0), f"Classifying images: {done:,} done")

    for item in items:
        try:
            scores.append(prediction.score_item(run, item, mpp=mpp, progress=count, contents=contents))
            rejected = scores[-1].rejected
        except InputError as error:
            rejected = reading.explain(item.files, error)
        for name, reason in work_list.group_rejected(rejected):
            reason = re.sub("--mpp(, micrometres per pixel)?", f'"{SCALE_LABEL}"', reason)
            problems.append(uploads.Problem(name, reason))
    scores = [each for each in scores if each.patches]
    return Answer(scores, problems, LRUCache(MAX_PICTURES), match_annotations(given, scores, problems))


def match_annotations(
    files: Mapping[str, bytes], scores: Sequence[ItemScores], problems: list[uploads.Problem]
) -> dict[str, list[Region]]:
    """Read annotations and find the slide of each; what cannot be used is added to `problems`."""
    slides, found = {Path(each.slide).stem: each for each in scores if each.grid}, {}
    for name, content in files.items():
        slide = slides.get(Path(name).stem) or (next(iter(slides.values())) if len(slides) == len(files) == 1 else None)
        try:
            if slide is None:
                raise InputError("belongs to none of the slides. Give it the name of its slide.")
            if len(content) > uploads.ANNOTATION_BYTES:
                raise InputError(f"is larger than {uploads.ANNOTATION_BYTES / 2**20:.0f} MB. Export fewer annotations.")
            regions = read_regions(Path(name), content)
            if not regions:
                raise InputError("has no area with a class.")
            found[slide.slide] = regions
        except InputError as error:
            problems.append(uploads.Problem(name, str(error).removeprefix(f"{name}: ")))
    return found


def count_bytes(answer: Answer) -> int:
    """Return the size of an answer: patches, thumbnails, and the pictures that may still be added."""
    images = sum(image.nbytes for scores in answer.scores for image in (*scores.images, *scores.thumbnails))
    return images + MAX_PICTURES * SHOWN_PIXELS * (2 * SHOWN_PIXELS + GAP) * 3


def find_slides(predictions: Sequence[ItemPredictions]) -> list[ItemPredictions]:
    """Select the slides that are large enough for a map."""
    return [each for each in predictions if each.scores.grid and len(each.predicted) >= MIN_MAP_PATCHES]


def draw_map(
    run: Run, slide: ItemPredictions, class_index: int, *, show_probability: bool = True, regions: Sequence[Region] = ()
) -> dict[str, object]:
    """Specify the map of a slide in Vega-Lite, with its data sets, for one class; `regions` are its annotations."""
    (grid,), scores, labels = slide.scores.layout.slides, slide.scores, list_labels(run)
    picture = stitch_slide(scores.thumbnails, grid, tile_pixels=scores.thumbnail_pixels)
    height, width = (side * grid.step / scores.thumbnail_pixels for side in picture.shape[:2])
    left, top = grid.origin
    specification = slide_map.map_specification(
        picture,
        (left, top, left + width, top + height),
        event=labels[class_index],
        show_probability=show_probability,
        mpp=run.settings.mpp,
        annotations=slide_map.choose_colours(regions),
    )
    probability = slide.probabilities[:, class_index]
    answers = [name_answer(labels, Shown(slide, row)) for row in range(len(slide.predicted))]
    uncertain = np.zeros(len(answers), bool) if slide.uncertain is None else slide.uncertain
    selected = (slide.predicted == class_index) & ~uncertain
    confident = probability >= (1 + (slide.threshold or 0)) / 2
    outlined = {"uncertain": uncertain, "dashed": selected, "solid": selected & confident}
    datasets = {
        slide_map.PATCHES: slide_map.map_rows(
            grid, files=[patch.file for patch in scores.patches], probability=probability, decision=answers
        ),
        slide_map.OUTLINE: slide_map.outline_rows(grid, outlined),
        slide_map.ANNOTATIONS: slide_map.list_edges(regions, slide),
    }
    return specification | {"datasets": datasets}


def tabulate_agreement(run: Run, slide: ItemPredictions, regions: Sequence[Region]) -> dict[str, list[str]]:
    """Compare the answers of the run with the annotations of a slide.

    Returns columns of a table, by their headings: the area of each class of annotations, which are the patches that it
    covers to at least ANNOTATED_SHARE, and the share of each answer among them.
    """
    (grid,), scale, mpp = slide.scores.layout.slides, slide.scores.file_scale, run.settings.mpp
    placed = [shapely.transform(each.shape, lambda corners: corners / scale - grid.origin) for each in regions]
    moved = [each._replace(shape=shape) for each, shape in zip(regions, placed, strict=True)]
    covering = classify_cells(moved, grid.shape, grid.step, ANNOTATED_SHARE)[grid.rows, grid.columns]
    names = [f"classified as {label}" for label in list_labels(run)]
    answers = slide.predicted
    if slide.uncertain is not None:
        answers, names = np.where(slide.uncertain, len(names), answers), [*names, UNCERTAIN]
    answers_by_region = [answers[grid.members][covering == index] for index in range(len(regions))]
    area = (run.settings.patch_pixels * mpp / 1000) ** 2 if mpp else None  # mm² of a patch
    sizes = [len(each) for each in answers_by_region]
    table = {
        "annotated as": [each.label for each in regions],
        "area": [f"{size * area:,.2f} mm²" if area else plural(size, "patch") for size in sizes],
    }
    for index, name in enumerate(names):
        table[name] = [share((each == index).mean() if len(each) else None) for each in answers_by_region]
    return table


def list_labels(run: Run) -> list[str]:
    """Return the display name of each class."""
    return [name_class(run.settings, name) for name in run.classes]


def describe_patch(run: Run, patch: Shown) -> str:
    """Return HTML: the predicted class, and bars of the probabilities with a mark at the positive class's threshold."""
    labels, colours = [html.escape(label) for label in list_labels(run)], [*COLOURS] * len(run.classes)
    if run.positive is not None:
        colours = [ORANGE if name == run.positive else GREY for name in run.classes]
    mark, note, threshold = "", "", patch.predictions.threshold
    if run.positive is not None:
        mark = f'<i style="left: {threshold:.1%}"></i>'
        note = f"<small>Mark: {labels[run.classes.index(run.positive)]} from {threshold:.1%}</small>"
    bars = "".join(
        f'<div class="share"><span>{labels[index]}</span><span>{patch.probabilities[index]:.1%}</span>'
        f'<div><div style="width: {patch.probabilities[index]:.1%}; background: {colours[index]}"></div>'
        f"{mark if run.classes[index] == run.positive else ''}</div></div>"
        for index in np.argsort(-patch.probabilities, kind="stable")
    )
    title, colour = f"classified as {labels[patch.predicted]}", colours[patch.predicted]
    if patch.is_uncertain:
        title, colour = f"{name_answer(labels, patch)}: refer to a person", BLUE
    return f'<div class="predicted" style="background: {colour}">{title}</div>{bars}{note}'


def name_answer(labels: Sequence[str], patch: Shown) -> str:
    """Return the class of a patch, or that it is uncertain: `uncertain (otherwise IDC)`."""
    label = labels[patch.predicted]
    return f"{UNCERTAIN} (otherwise {label})" if patch.is_uncertain else label


def list_patches(run: Run, predictions: Sequence[ItemPredictions], order: str) -> list[Shown]:
    """List all patches in one of ORDERS, by the probability of the positive class or, without one, the largest."""
    patches = [Shown(each, row) for each in predictions for row in range(len(each.predicted))]
    index = run.classes.index(run.positive) if run.positive else None

    def rank(patch: Shown) -> float:
        probability = float(patch.probabilities.max() if index is None else patch.probabilities[index])
        if order == ORDERS[0]:
            return -probability
        threshold = patch.predictions.threshold
        return abs(probability - (0.5 if threshold is None else threshold))

    return patches if order == ORDERS[2] else sorted(patches, key=rank)


def show_distant(scores: Sequence[ItemScores], outside: Outliers) -> list[tuple[np.ndarray, str]]:
    """Return picture, uint8 [SHOWN_PIXELS, SHOWN_PIXELS, 3], and caption of the most distant images, largest first."""
    patches = [(each, row) for each in scores for row in range(len(each.patches))]
    shown = [(*patches[index], distance) for index, distance in outside.furthest[:MAX_DISTANT]]
    return [(_enlarge(each.images[row]), f"{distance:.1f}: {name_patch(each, row)}") for each, row, distance in shown]


def name_patch(scores: ItemScores, row: int) -> str:
    """Return the file of a patch, with its position if it was cut from a large image."""
    patch = scores.patches[row]
    return f"x {patch.x}, y {patch.y} of {patch.file}" if patch.file == scores.slide else patch.file


def explain_patches(run: Run, patches: Sequence[Shown], pictures: LRUCache[Hashable, np.ndarray]) -> list[np.ndarray]:
    """Draw each patch and, next to it, Grad-CAM of its predicted class: uint8 [SHOWN_PIXELS, width, 3].

    `pictures` are those drawn before, with room for all patches; new ones are added.
    """
    keys = [(id(patch.predictions.scores.images), patch.row, patch.predicted) for patch in patches]
    new = {key: patch for key, patch in zip(keys, patches, strict=True) if key not in pictures}
    if new:
        images = [patch.predictions.scores.images[patch.row] for patch in new.values()]
        fitted = np.stack([fit_image(image, run.model.input_shape[1]) for image in images])
        if illustration.has_grad_cam(run):
            heat = gradcam.grad_cam(run.model, fitted, np.array([patch.predicted for patch in new.values()]))
            right = [gradcam.overlay(small, warm) for small, warm in zip(fitted, heat, strict=True)]
        else:
            right = [np.full((*fitted.shape[1:3], 3), 255, np.uint8)] * len(new)
        gap = np.full((SHOWN_PIXELS, GAP, 3), 255, np.uint8)
        for key, image, overlaid in zip(new, images, right, strict=True):
            pictures[key] = np.hstack([_enlarge(image), gap, _enlarge(overlaid)])
    return [pictures[key] for key in keys]


def without_images(predictions: ItemPredictions) -> ItemPredictions:
    """Drop the images, which Streamlit would keep as long as a download button refers to them."""
    return replace(predictions, scores=replace(predictions.scores, images=()))


def predictions_csv(run: Run, predictions: Sequence[ItemPredictions]) -> str:
    """Return the table predictions.csv as `cancernet predict` writes it."""
    table, labels = io.StringIO(), list_labels(run)
    write_rows(table, [results.list_columns(run.decision, labels)])
    for each in predictions:
        write_rows(table, results.list_rows(each, labels))
    return table.getvalue()


def draw_picture(run: Run, slide: ItemPredictions) -> bytes:
    """Draw a slide as `cancernet predict` does, for two classes; a JPEG."""
    picture = io.BytesIO()
    illustration.save_picture(results.draw_map(run, slide), picture)
    return picture.getvalue()


def pack_regions(run: Run, slides: Sequence[ItemPredictions]) -> bytes:
    """Return a zip with one GeoJSON file per slide, in the pixels of the slide."""
    packed, taken = io.BytesIO(), set[str]()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for slide in slides:
            name = file_stem(Path(slide.scores.slide).stem, taken)
            archive.writestr(f"{name}.geojson", json.dumps(results.find_regions(run, slide)))
    return packed.getvalue()


def _enlarge(image: np.ndarray) -> np.ndarray:
    """Make a grey or colour image a picture, uint8 [SHOWN_PIXELS, SHOWN_PIXELS, 3]."""
    return fit_image(np.repeat(image, 3 // image.shape[2], axis=2), SHOWN_PIXELS)
