"""What a run keeps of its images: pictures of slides, Grad-CAM maps, augmented images, and a few images as samples."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
from matplotlib.figure import Figure

from cancernet.config import Augmentation, Experiment
from cancernet.data.dataset import Patch, label_class
from cancernet.data.grid import SlideGrid, make_thumbnail, paint_grid, stitch_slide, thumbnail_side
from cancernet.data.images import fit_image, read_image
from cancernet.evaluation.label_check import find_suspicious_labels
from cancernet.evaluation.predictions import Predictions
from cancernet.explain.gradcam import grad_cam, overlay
from cancernet.models.architectures import list_architectures
from cancernet.reporting.content import EvaluatedSplit, read_images
from cancernet.reporting.montages import plot_augmentation, plot_captioned
from cancernet.reporting.plots import use_fonts
from cancernet.reporting.schema import LabelCheck, Picture, Report
from cancernet.reporting.slide_plots import Explained, SlideMaps, plot_explained, plot_slide
from cancernet.reporting.wording import cut
from cancernet.run import SAMPLES, Run, name_class, write_labels_to_check
from cancernet.storage import file_stem
from cancernet.training.augment import augment_batch

SLIDES, GRADCAM = "slides", "gradcam.jpg"  # in the folder of the report
LEAST_PATCHES = 20  # of a slide that is drawn
MOST_SLIDES = 12  # in the report; the pictures of the others are only in the folder
EXPLAINED = 4  # images a group
MOST_SUSPICIOUS = 24  # labels in the report; labels_to_check.csv has all
AUGMENTED_IMAGES, AUGMENTATIONS = 4, 7  # training images, and augmentations of each
MOST_SAMPLES, SAMPLE_BYTES = 8, 2_000_000  # of all classes together, and of one file
PICTURE_DPI, JPEG_QUALITY = 120, 88


def illustrate(run: Run, evaluated: EvaluatedSplit, dataset: Path, folder: Path) -> Report:
    """Draw slides/<slide>.jpg and, if the network has feature maps, gradcam.jpg into the folder of a report.

    A slide is drawn if the run has two classes and `is_worth_drawing`. Returns the report with `slides` (at most
    MOST_SLIDES, evenly spaced from the lowest accuracy to the highest) and `gradcam`. InputError: a file has changed
    since it was evaluated.
    """
    report = replace(evaluated.report, slides=_draw_slides(run, evaluated, dataset, folder))
    if has_grad_cam(run):
        return replace(report, gradcam=[_draw_explained(run, evaluated.predictions, dataset, folder)])
    return report


def has_grad_cam(run: Run) -> bool:
    """Whether Grad-CAM can explain the model: transformers have no convolutional feature maps.

    Those of a frozen backbone do not locate tumour (docs/gradcam.md).
    """
    experiment = run.settings.experiment
    return experiment.strategy != "frozen" and all(each.has_maps for each in list_architectures(experiment.model))


def draw_augmentation(patches: Sequence[Patch], dataset: Path, experiment: Experiment) -> dict[str, Figure]:
    """Draw some training images as they are, and as the network sees them in the first epochs.

    Returns the report's figure `augmented`; none if the training does not augment. InputError: a file has changed since
    the training.
    """
    if experiment.augmentation == Augmentation():
        return {}
    training = [patch for patch in patches if patch.split == "training"]
    shown = training[:: -(-len(training) // AUGMENTED_IMAGES)]
    images = np.stack([fit_image(_read(each, dataset, experiment.channels), experiment.image_size) for each in shown])
    columns = [images]
    for epoch in range(AUGMENTATIONS):
        augmented = augment_batch(images, experiment.augmentation, seed=experiment.seed, epoch=epoch, step=0)
        columns.append(np.rint(np.asarray(augmented)).astype(np.uint8))
    return {"augmented": plot_augmentation(columns)}


def check_labels(
    report: Report, out_of_fold: Predictions, dataset: Path, folder: Path
) -> tuple[Report, dict[str, Figure]]:
    """Write labels_to_check.csv into the folder of a report, and draw the images with the most suspicious labels.

    Returns the report with `label_check`, and its figure `labels_to_check`; none if no label is suspicious. InputError:
    a file has changed since the training.
    """
    found = find_suspicious_labels(out_of_fold, report.classes)
    write_labels_to_check(folder, found)
    shown = found[:MOST_SUSPICIOUS]
    report = replace(report, label_check=LabelCheck(len(out_of_fold.patches), len(found), shown))
    if not shown:
        return report, {}
    captions = []
    for each in shown:
        lines = [Path(each.file).name, f"label: {label_class(report.class_names, each.label)}"]
        lines.append(f"probability of this label: {each.probability_of_label:.3f}")
        captions.append("\n".join(lines + [f"patient {each.patient}"] * bool(each.patient)))
    images = read_images([each.file for each in shown], out_of_fold, dataset)
    return report, {"labels_to_check": plot_captioned(images=images, captions=captions)}


def copy_samples(predictions: Predictions, dataset: Path, folder: Path) -> None:
    """Copy tested images, equally many of every class, to samples/<class>/ in the folder of a run, to try it on."""
    labels = [patch.label for patch in predictions.patches]
    for label in sorted(set(labels)):
        files = [dataset / patch.file for patch in predictions.patches if patch.label == label]
        small = (file for file in files if file.stat().st_size <= SAMPLE_BYTES)
        target = folder / SAMPLES / label
        target.mkdir(parents=True, exist_ok=True)
        for file in islice(small, max(1, MOST_SAMPLES // len(set(labels)))):
            shutil.copyfile(file, target / file.name)


def is_worth_drawing(grid: SlideGrid) -> bool:
    """Whether the patches of a slide are many and close enough for a map."""
    return len(grid.members) >= LEAST_PATCHES and grid.is_complete


def draw_slide(
    run: Run,
    grid: SlideGrid,
    thumbnails: Sequence[np.ndarray],
    predictions: Predictions,
    *,
    title: str,
    threshold: float | None = None,
) -> Figure:
    """Draw one slide of m patches, for a run of two classes; ValueError for one of more.

    The m `thumbnails` are of `grid.make_thumbnail`, of one side: the largest has the side of a whole patch. A
    `threshold` is used in place of the run's own.
    """
    decision, mpp = run.decision, run.settings.mpp
    threshold = decision.threshold if threshold is None else threshold
    if decision.positive is None or threshold is None:
        raise ValueError("draw_slide: a run of more than two classes has no map.")
    names = [name_class(run.settings, name) for name in decision.classes]
    use_fonts([*names, title])
    index = decision.classes.index(decision.positive)
    tile_pixels = max(max(thumbnail.shape[:2]) for thumbnail in thumbnails)
    maps = SlideMaps(
        stitch_slide(thumbnails, grid, tile_pixels=tile_pixels),
        tile_pixels,
        paint_grid(predictions.probabilities[:, index], grid),
        paint_grid(predictions.predicted == index, grid),
        None if predictions.true_classes is None else paint_grid(predictions.true_classes == index, grid),
        None if predictions.uncertain is None else paint_grid(predictions.uncertain, grid),
    )
    return plot_slide(
        maps,
        threshold=threshold,
        positive=names[index],
        negative=names[1 - index],
        title=title,
        patch_micrometres=mpp and mpp * grid.step,
    )


def save_picture(figure: Figure, place: Path | BinaryIO) -> None:
    """Write a JPEG, as large as all of its text needs; the folder of a path is created."""
    if isinstance(place, Path):
        place.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(place, format="jpg", dpi=PICTURE_DPI, bbox_inches="tight", pil_kwargs={"quality": JPEG_QUALITY})


def _draw_slides(run: Run, evaluated: EvaluatedSplit, dataset: Path, folder: Path) -> list[Picture]:
    if run.decision.positive is None:
        return []
    taken: set[str] = set()
    drawn: list[tuple[float, str, Picture]] = []
    for grid in filter(is_worth_drawing, evaluated.layout.slides):
        predictions, side = evaluated.predictions.take(grid.members), thumbnail_side(grid.shape)
        accuracy = float((predictions.predicted == predictions.labels).mean())
        title = f"Slide {grid.slide}: {len(grid.members):,} patches, accuracy {accuracy:.1%}"
        thumbnails = [make_thumbnail(_read(patch, dataset, 3), side, grid.step) for patch in predictions.patches]
        picture = f"{SLIDES}/{file_stem(grid.slide, taken)}.jpg"
        save_picture(draw_slide(run, grid, thumbnails, predictions, title=title), folder / picture)
        drawn.append((accuracy, grid.slide, Picture(title, picture)))
    drawn.sort(key=lambda each: each[:2])
    shown = np.unique(np.linspace(0, len(drawn) - 1, min(MOST_SLIDES, len(drawn))).round().astype(int))
    return [drawn[i][2] for i in shown]


def _read(patch: Patch, dataset: Path, channels: int) -> np.ndarray:
    return read_image(dataset / patch.file, channels=channels, sha256=patch.sha256)


def _draw_explained(run: Run, predictions: Predictions, dataset: Path, folder: Path) -> Picture:
    rows_of = _find_most_confident(run, predictions)
    explained = iter(_explain(run, predictions.take(np.concatenate(list(rows_of.values()))), dataset))
    groups = {heading: list(islice(explained, len(rows))) for heading, rows in rows_of.items()}
    figure = plot_explained(groups=groups, columns=EXPLAINED)
    save_picture(figure, folder / GRADCAM)
    return Picture("Most confident predictions, correct and wrong: each image and its Grad-CAM map", GRADCAM)


def _find_most_confident(run: Run, predictions: Predictions) -> dict[str, np.ndarray]:
    """Headings, and the rows with the highest probability of the predicted class, the highest first."""
    labels, predicted = predictions.labels, predictions.predicted
    classes, positive = run.decision.classes, run.decision.positive
    if positive is None:
        kinds = {"Correct": predicted == labels, "Wrong": predicted != labels}
    else:
        index = classes.index(positive)
        names = name_class(run.settings, positive), name_class(run.settings, classes[1 - index])
        kinds = {
            f"Detected: {names[0]} classified as {names[0]}": (labels == index) & (predicted == index),
            f"False alarms: {names[1]} classified as {names[0]}": (labels != index) & (predicted == index),
            f"Missed: {names[0]} classified as {names[1]}": (labels == index) & (predicted != index),
        }
    confidence = predictions.probabilities[np.arange(len(labels)), predicted]
    order = np.argsort(-confidence, kind="stable")
    return {heading: order[kind[order]][:EXPLAINED] for heading, kind in kinds.items()}


def _explain(run: Run, predictions: Predictions, dataset: Path) -> list[Explained]:
    if not predictions.patches:
        return []
    size, _, channels = run.model.input_shape[1:]
    images = np.stack([fit_image(_read(patch, dataset, channels), size) for patch in predictions.patches])
    maps = grad_cam(run.model, images, predictions.predicted)
    explained = []
    for row, (patch, image, heat) in enumerate(zip(predictions.patches, images, maps, strict=True)):
        index = predictions.predicted[row]
        name = name_class(run.settings, run.decision.classes[index])
        caption = f"{cut(Path(patch.file).stem, 34)}\n{name}: {predictions.probabilities[row, index]:.3f}"
        caption += "" if heat.any() else "\n(no region supports this class)"
        colour = np.repeat(image, 3, axis=2) if channels == 1 else image
        explained.append(Explained(colour, overlay(image, heat), caption))
    return explained
