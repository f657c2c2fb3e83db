"""What a run keeps of its images: pictures of slides, what the network looked at, and a few images as samples."""

import shutil
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from cancernet.config import Augmentation, Experiment
from cancernet.data.dataset import Patch
from cancernet.data.grid import PATCH_STEP, SlideGrid, make_thumbnail, paint_grid, stitch_slide, thumbnail_side
from cancernet.data.images import fit_image, read_image
from cancernet.evaluation.predictions import Predictions
from cancernet.explain.gradcam import grad_cam, overlay
from cancernet.models.architectures import list_architectures
from cancernet.reporting.captions import cut
from cancernet.reporting.content import Assessment
from cancernet.reporting.montages import plot_changes
from cancernet.reporting.slide_plots import Explained, SlideMaps, plot_explained, plot_slide
from cancernet.run import SAMPLES, Run, name_class
from cancernet.storage import file_stem
from cancernet.training.augment import augment_batch

SLIDES, GRADCAM = "slides", "gradcam.jpg"  # in the folder of the report
LEAST_PATCHES = 20  # of a slide that is drawn
MOST_SLIDES = 12  # in the report; the others' pictures lie beside it
EXPLAINED = 4  # images a group
CHANGED, CHANGES = 4, 7  # training images, and changes of each
MOST_SAMPLES, SAMPLE_BYTES = 8, 2_000_000  # of all classes together, and of one file
PICTURE_DPI, JPEG_QUALITY = 120, 88


class Answers(NamedTuple):
    """What is drawn of a slide's m patches."""

    probabilities: np.ndarray  # calibrated [m, 2]
    predicted: np.ndarray  # class index [m]
    labels: np.ndarray | None = None  # class index [m]; None where the truth is not known
    threshold: float | None = None  # in place of the run's own


def illustrate(run: Run, assessment: Assessment, dataset: Path, folder: Path) -> dict[str, list[dict[str, str]]]:
    """Draw slides and, of a network with maps, Grad-CAM into the folder of a report.

    A slide is drawn where it has LEAST_PATCHES placed patches and few gaps (`SlideGrid.is_complete`); a sample of a
    slide has too many for a map. It takes a run of two classes.

    Args:
        assessment: of the split that is judged; its files are relative to `dataset`.
        folder: gets slides/<slide>.jpg for every slide that is drawn, and gradcam.jpg.

    Returns:
        The report's galleries, `slides` (at most MOST_SLIDES: spread evenly from the slide with the lowest accuracy to
        the one with the highest) and `gradcam`: [{"title", "picture"}].

    Raises:
        InputError: a file is not the one that was judged.
    """
    galleries = {"slides": _draw_slides(run, assessment, dataset, folder)}
    if all(architecture.has_maps for architecture in list_architectures(run.settings.experiment.model)):
        galleries["gradcam"] = _draw_explained(run, assessment.predictions, dataset, folder)
    return galleries


def draw_changes(patches: Sequence[Patch], dataset: Path, experiment: Experiment) -> dict[str, Figure]:
    """Draw some training images as they are, and as the network sees them in the first epochs.

    Args:
        patches: of all splits.

    Returns:
        The report's figure `augmented`; none where training changes nothing.

    Raises:
        InputError: a file is not the one that was trained on.
    """
    if experiment.augmentation == Augmentation():
        return {}
    training = [patch for patch in patches if patch.split == "training"]
    shown = training[:: -(-len(training) // CHANGED)]
    read = [read_image(dataset / each.file, channels=experiment.channels, sha256=each.sha256) for each in shown]
    images = np.stack([fit_image(image, experiment.image_size) for image in read])
    given = {"augmentation": experiment.augmentation, "seed": experiment.seed, "step": 0}
    changed = [np.asarray(augment_batch(images, epoch=epoch, **given)) for epoch in range(CHANGES)]
    return {"augmented": plot_changes([images, *(np.rint(each).astype(np.uint8) for each in changed)])}


def copy_samples(predictions: Predictions, dataset: Path, folder: Path) -> None:
    """Copy tested images of every class, as many of each, to samples/<class>/ in the folder of a run, to try it on.

    Args:
        predictions: of the split that is judged; its files are relative to `dataset`.
    """
    labels = [patch.label for patch in predictions.patches]
    for label in sorted(set(labels)):
        files = [dataset / patch.file for patch in predictions.patches if patch.label == label]
        small = (file for file in files if file.stat().st_size <= SAMPLE_BYTES)
        target = folder / SAMPLES / label
        target.mkdir(parents=True, exist_ok=True)
        for file in islice(small, max(1, MOST_SAMPLES // len(set(labels)))):
            shutil.copyfile(file, target / file.name)


def is_worth_drawing(grid: SlideGrid) -> bool:
    """Whether the patches of one slide lie closely enough for a map."""
    return len(grid.members) >= LEAST_PATCHES and grid.is_complete


def draw_slide(run: Run, grid: SlideGrid, thumbnails: Sequence[np.ndarray], answers: Answers, *, title: str) -> Figure:
    """Draw one slide from its m patches, for a run of two classes.

    Args:
        thumbnails: m of `grid.make_thumbnail`, of one side. The largest has the side of a whole patch.
    """
    decision, mpp = run.decision, run.settings.mpp
    index = decision.classes.index(decision.positive)
    tile_pixels = max(max(thumbnail.shape[:2]) for thumbnail in thumbnails)
    maps = SlideMaps(
        stitch_slide(thumbnails, grid, tile_pixels=tile_pixels),
        tile_pixels,
        paint_grid(answers.probabilities[:, index], grid),
        paint_grid(answers.predicted == index, grid),
        None if answers.labels is None else paint_grid(answers.labels == index, grid),
    )
    return plot_slide(
        maps,
        threshold=decision.threshold if answers.threshold is None else answers.threshold,
        positive=name_class(run.settings, decision.positive),
        negative=name_class(run.settings, decision.classes[1 - index]),
        title=title,
        patch_micrometres=mpp and mpp * PATCH_STEP,
    )


def save_picture(figure: Figure, place: Path | BinaryIO) -> None:
    """Write a JPEG; the folder of a path is made."""
    if isinstance(place, Path):
        place.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(place, format="jpg", dpi=PICTURE_DPI, pil_kwargs={"quality": JPEG_QUALITY})


def _draw_slides(run: Run, assessment: Assessment, dataset: Path, folder: Path) -> list[dict[str, str]]:
    if run.decision.positive is None:
        return []
    predictions, taken, drawn = assessment.predictions, set(), []
    for grid in filter(is_worth_drawing, assessment.layout.slides):
        members, side = grid.members, thumbnail_side(grid.shape)
        accuracy = float((predictions.predicted == predictions.labels)[members].mean())
        title = f"Slide {grid.slide}: {len(members):,} patches, {accuracy:.1%} right"
        thumbnails = [make_thumbnail(_read(predictions, i, dataset, 3), side) for i in members]
        answers = Answers(
            predictions.probabilities[members], predictions.predicted[members], predictions.labels[members]
        )
        picture = f"{SLIDES}/{file_stem(grid.slide, taken)}.jpg"
        save_picture(draw_slide(run, grid, thumbnails, answers, title=title), folder / picture)
        drawn.append((accuracy, grid.slide, {"title": title, "picture": picture}))
    drawn.sort(key=lambda each: each[:2])
    shown = np.unique(np.linspace(0, len(drawn) - 1, min(MOST_SLIDES, len(drawn))).round().astype(int))
    return [drawn[i][2] for i in shown]


def _read(predictions: Predictions, row: int, dataset: Path, channels: int) -> np.ndarray:
    patch = predictions.patches[row]
    return read_image(dataset / patch.file, channels=channels, sha256=patch.sha256)


def _draw_explained(run: Run, predictions: Predictions, dataset: Path, folder: Path) -> list[dict]:
    groups = dict(_surest(run, predictions))
    explained = iter(_explain(run, predictions, np.concatenate(list(groups.values())), dataset))
    figure = plot_explained(
        groups={heading: list(islice(explained, len(rows))) for heading, rows in groups.items()}, columns=EXPLAINED
    )
    save_picture(figure, folder / GRADCAM)
    return [{"title": "The surest answers, right and wrong: each image, and the same with its map", "picture": GRADCAM}]


def _surest(run: Run, predictions: Predictions) -> list[tuple[str, np.ndarray]]:
    """Headings, and the rows whose predicted class has the highest probability, the highest first."""
    labels, predicted = predictions.labels, predictions.predicted
    classes, positive = run.decision.classes, run.decision.positive
    if positive is None:
        kinds = {"Right": predicted == labels, "Wrong": predicted != labels}
    else:
        index = classes.index(positive)
        names = name_class(run.settings, positive), name_class(run.settings, classes[1 - index])
        kinds = {
            f"Found: {names[0]}, called {names[0]}": (labels == index) & (predicted == index),
            f"False alarms: {names[1]}, called {names[0]}": (labels != index) & (predicted == index),
            f"Missed: {names[0]}, called {names[1]}": (labels == index) & (predicted != index),
        }
    sureness = predictions.probabilities[np.arange(len(labels)), predicted]
    order = np.argsort(-sureness, kind="stable")
    return [(heading, order[kind[order]][:EXPLAINED]) for heading, kind in kinds.items()]


def _explain(run: Run, predictions: Predictions, rows: np.ndarray, dataset: Path) -> list[Explained]:
    if not len(rows):
        return []
    size, _, channels = run.model.input_shape[1:]
    images = np.stack([fit_image(_read(predictions, row, dataset, channels), size) for row in rows])
    said = predictions.predicted[rows]
    explained = []
    for row, image, index, heat in zip(rows, images, said, grad_cam(run.model, images, said), strict=True):
        name = name_class(run.settings, run.decision.classes[index])
        stem = cut(Path(predictions.patches[row].file).stem, 34)
        caption = f"{stem}\ncalled {name}: {predictions.probabilities[row, index]:.3f}"
        caption += "" if heat.any() else "\n(no region supports this class)"
        colour = np.repeat(image, 3, axis=2) if channels == 1 else image
        explained.append(Explained(colour, overlay(image, heat), caption))
    return explained
