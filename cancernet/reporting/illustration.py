"""The pictures of a report that need the images again: its slides, and what the network looked at."""

import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from cancernet.data.grid import LEAST_NEIGHBOURS, PATCH_STEP, iterate_slides, mean_neighbours, paint_grid, stitch_slide
from cancernet.data.images import decode_image, fit_image
from cancernet.judging.smoothing import Predictions, settle_places
from cancernet.learning.explain import grad_cam, overlay
from cancernet.reporting.slide_plots import Explained, plot_explained, plot_slide
from cancernet.run import Classifier
from cancernet.using.prediction import class_label, make_thumbnail, thumbnail_side

SLIDES, GRADCAM = "slides", "gradcam.jpg"  # in the folder of the report
LEAST_PATCHES = 20  # of a slide that is drawn
MOST_SLIDES = 12  # in the report; the others' pictures lie beside it
EXPLAINED = 4  # images a group
PICTURE_DPI, JPEG_QUALITY = 120, 88


def illustrate(loaded: Classifier, predictions: Predictions, dataset: Path, folder: Path) -> dict[str, list[dict]]:
    """Draw slides and Grad-CAM into the folder of a report.

    A slide is drawn where it has LEAST_PATCHES placed patches with LEAST_NEIGHBOURS of 8 neighbours on average; a
    sample of a slide has too many gaps for a map. It takes a run of two classes.

    Args:
        predictions: of the split that is judged; its files are relative to `dataset`.
        folder: gets slides/<slide>.jpg for every slide that is drawn, and gradcam.jpg.

    Returns:
        The report's galleries, `slides` (at most MOST_SLIDES: spread evenly from the slide with the lowest accuracy to
        the one with the highest) and `gradcam`: [{"title", "picture"}].
    """
    return {
        "slides": _draw_slides(loaded, predictions, dataset, folder),
        "gradcam": _draw_explained(loaded, predictions, dataset, folder),
    }


def is_worth_drawing(x: Sequence[int], y: Sequence[int]) -> bool:
    """Whether the patches of one slide lie closely enough for a map."""
    return len(x) >= LEAST_PATCHES and mean_neighbours([SLIDES] * len(x), x, y) >= LEAST_NEIGHBOURS


def file_stem(slide: str, taken: set[str]) -> str:
    """A file's name for a slide, without ending: letters, digits, `.`, `_` and `-`; none twice. Adds it to `taken`."""
    stem = unique = re.sub(r"[^\w.-]+", "_", slide).strip("._") or "slide"
    number = 1
    while unique.lower() in taken:
        number += 1
        unique = f"{stem}_{number}"
    taken.add(unique.lower())
    return unique


def draw_slide(
    loaded: Classifier,
    *,
    title: str,
    thumbnails: Sequence[np.ndarray],
    thumbnail_pixels: int,
    x: Sequence[int],
    y: Sequence[int],
    probabilities: np.ndarray,
    predicted: np.ndarray,
    labels: np.ndarray | None = None,
    threshold: float | None = None,
) -> Figure:
    """The picture of one slide from its patches, for a run of two classes.

    Args:
        thumbnails, thumbnail_pixels: as in prediction.Prediction.
        probabilities: calibrated [n, 2]. predicted, labels: class indices [n]; without labels no truth is drawn.
        threshold: in place of the run's own.
    """
    decision, mpp = loaded.decision, loaded.config.get("mpp")
    index = decision.classes.index(decision.positive)
    tissue, _ = stitch_slide(thumbnails, x, y, step=PATCH_STEP, tile_pixels=thumbnail_pixels)
    return plot_slide(
        tissue=tissue,
        tile_pixels=thumbnail_pixels,
        probabilities=paint_grid(probabilities[:, index], x, y)[0],
        predicted=paint_grid(predicted == index, x, y)[0],
        truth=None if labels is None else paint_grid(labels == index, x, y)[0],
        threshold=decision.threshold if threshold is None else threshold,
        positive=class_label(loaded, decision.positive),
        negative=class_label(loaded, decision.classes[1 - index]),
        title=title,
        patch_micrometres=mpp and mpp * PATCH_STEP,
    )


def save_picture(figure: Figure, path: Path) -> None:
    """Write a JPEG; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=PICTURE_DPI, pil_kwargs={"quality": JPEG_QUALITY})


def _draw_slides(loaded: Classifier, predictions: Predictions, dataset: Path, folder: Path) -> list[dict]:
    if loaded.decision.positive is None:
        return []
    patches, taken, drawn = predictions.patches, set(), []
    placed, _ = settle_places(patches)
    x, y = placed["x"], placed["y"]
    for slide, members, _, _ in iterate_slides(**placed):
        places = [x[i] for i in members], [y[i] for i in members]
        if not is_worth_drawing(*places):
            continue
        side = thumbnail_side(*places)
        images = (decode_image((dataset / patches[i].file).read_bytes(), 3) for i in members)
        accuracy = float((predictions.predicted == predictions.labels)[members].mean())
        title = f"Slide {slide}: {len(members):,} patches, {accuracy:.1%} right"
        figure = draw_slide(
            loaded,
            title=title,
            thumbnails=[make_thumbnail(image, side) for image in images],
            thumbnail_pixels=side,
            x=places[0],
            y=places[1],
            probabilities=predictions.probabilities[members],
            predicted=predictions.predicted[members],
            labels=predictions.labels[members],
        )
        picture = f"{SLIDES}/{file_stem(slide, taken)}.jpg"
        save_picture(figure, folder / picture)
        drawn.append((accuracy, slide, {"title": title, "picture": picture}))
    drawn.sort(key=lambda each: each[:2])
    shown = np.unique(np.linspace(0, len(drawn) - 1, min(MOST_SLIDES, len(drawn))).round().astype(int))
    return [drawn[i][2] for i in shown]


def _draw_explained(loaded: Classifier, predictions: Predictions, dataset: Path, folder: Path) -> list[dict]:
    groups = dict(_surest(loaded, predictions))
    explained = iter(_explain(loaded, predictions, np.concatenate(list(groups.values())), dataset))
    figure = plot_explained(
        groups={heading: list(islice(explained, len(rows))) for heading, rows in groups.items()}, columns=EXPLAINED
    )
    save_picture(figure, folder / GRADCAM)
    return [{"title": "The surest answers, right and wrong: each image, and the same with its map", "picture": GRADCAM}]


def _surest(loaded: Classifier, predictions: Predictions) -> list[tuple[str, np.ndarray]]:
    """Headings, and the rows whose predicted class has the highest probability, the highest first."""
    labels, predicted = predictions.labels, predictions.predicted
    classes, positive = loaded.decision.classes, loaded.decision.positive
    if positive is None:
        kinds = {"Right": predicted == labels, "Wrong": predicted != labels}
    else:
        index = classes.index(positive)
        names = class_label(loaded, positive), class_label(loaded, classes[1 - index])
        kinds = {
            f"Found: {names[0]}, called {names[0]}": (labels == index) & (predicted == index),
            f"False alarms: {names[1]}, called {names[0]}": (labels != index) & (predicted == index),
            f"Missed: {names[0]}, called {names[1]}": (labels == index) & (predicted != index),
        }
    sureness = predictions.probabilities[np.arange(len(labels)), predicted]
    order = np.argsort(-sureness, kind="stable")
    return [(heading, order[kind[order]][:EXPLAINED]) for heading, kind in kinds.items()]


def _explain(loaded: Classifier, predictions: Predictions, rows: np.ndarray, dataset: Path) -> list[Explained]:
    if not len(rows):
        return []
    size, _, channels = loaded.model.input_shape[1:]
    files = [predictions.patches[row].file for row in rows]
    images = np.stack([fit_image(decode_image((dataset / file).read_bytes(), channels), size) for file in files])
    said = predictions.predicted[rows]
    heat = grad_cam(loaded.model, images, said)
    explained = []
    for row, file, image, index, each in zip(rows, files, images, said, heat, strict=True):
        name = class_label(loaded, loaded.decision.classes[index])
        caption = f"{_shorten(Path(file).stem)}\ncalled {name}: {predictions.probabilities[row, index]:.3f}"
        caption += "" if each.any() else "\n(no place speaks for it)"
        colour = np.repeat(image, 3, axis=2) if channels == 1 else image
        explained.append(Explained(colour, overlay(image, each), caption))
    return explained


def _shorten(name: str, limit: int = 34) -> str:
    return name if len(name) <= limit else f"{name[:16]}…{name[-17:]}"
