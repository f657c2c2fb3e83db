"""What `cancernet predict` writes: the table of patches, the map and the regions of each slide, the furthest images."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from cancernet import storage
from cancernet.data.grid import paint_grid
from cancernet.evaluation.decision import Decision
from cancernet.evaluation.referral import UNCERTAIN
from cancernet.explain.distances import MOST_NAMED
from cancernet.inference.prediction import ItemPredictions, PredictedItem
from cancernet.inference.regions import Feature, outline_regions
from cancernet.inference.summary import FURTHEST_PICTURE, PREDICTIONS, ItemResult, summarise_item, write_tables
from cancernet.inference.work_list import LARGE, WorkItem, group_rejected, printable
from cancernet.reporting import illustration, montages
from cancernet.reporting.wording import plural
from cancernet.run import Run, name_class

RED = (200, 0, 0)  # as QuPath's own class "Tumor"
YELLOW = (240, 228, 66)  # of uncertain regions
REGION_COLOURS = (RED, (0, 114, 178), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233))


def write_results(
    run: Run,
    predicted: Iterable[PredictedItem],
    folder: Path,
    *,
    missing: Sequence[tuple[str, str]] = (),
    print_line: Callable[[str], object] = lambda line: None,
) -> list[ItemResult]:
    """Write predictions.csv, summary.csv, rejected.csv, furthest.jpg and the files of each slide.

    Items come in the order of the work list, and are predicted while they are iterated over. `missing` are paths that
    led to no image, and why. `print_line` gets a line for each slide that has a map, and for what was rejected.
    """
    names = [name_class(run.settings, name) for name in run.decision.classes]
    results: list[ItemResult] = []
    furthest: list[tuple[float, str, np.ndarray]] = []
    with (folder / PREDICTIONS).open("w", newline="", encoding="utf-8", errors="surrogateescape") as table:
        storage.write_rows(table, [list_columns(run.decision, names)])
        for item, predictions, rejected in predicted:
            for files, reason in group_rejected(rejected):
                print_line(printable(f"not used: {files}: {reason}"))
            if predictions is None:
                results.append(ItemResult(item, tuple(rejected)))
                continue
            storage.write_rows(table, list_rows(predictions, names))
            line = write_slide(run, item, predictions, folder)
            if line:
                print_line(line)
            result = summarise_item(run.settings, item, predictions, has_map=bool(line))
            thumbnails = predictions.scores.thumbnails
            furthest += [(distance, name, thumbnails[row]) for distance, name, row in result.outliers]
            furthest = sorted(furthest, key=lambda each: -each[0])[:MOST_NAMED]
            results.append(result)
    write_tables(folder, run.settings, results, missing)
    if furthest:
        captions = [f"{name}\ndistance {distance:.1f}" for distance, name, _ in furthest]
        figure = montages.plot_captioned(images=[image for *_, image in furthest], captions=captions)
        illustration.save_picture(figure, folder / FURTHEST_PICTURE)
    return results


def list_columns(decision: Decision, class_names: Sequence[str]) -> list[str]:
    """Name the columns of the table of patches, predictions.csv or patches/*.parquet."""
    probabilities = [f"probability_{name}" for name in class_names]
    answer = [] if decision.uncertain_below is None else ["answer"]
    return ["file", "x", "y", *probabilities, "predicted", "threshold", "slide", "distance", *answer]


def list_rows(predictions: ItemPredictions, class_names: Sequence[str]) -> list[list]:
    """Make a row for each patch, see `list_columns`; numbers have four decimals.

    x and y are the left and top pixel of the patch: of a large image in the file's own pixels (level 0), of a patch as
    in its name. None stands for an unknown position or distance (see `out_of_distribution.add_detector`) and for the
    threshold of more than two classes; a patch without a slide has "". The answer is UNCERTAIN or the predicted class.
    """
    scores, rows = predictions.scores, []
    threshold = None if predictions.threshold is None else round(predictions.threshold, 4)
    columns = (scores.patches, predictions.probabilities, predictions.predicted, scores.distances)
    for patch, probabilities, index, distance in zip(*columns, strict=True):
        place = [None if value is None else round(value * scores.file_scale) for value in (patch.x, patch.y)]
        shares = [round(float(share), 4) for share in probabilities]
        known = None if np.isnan(distance) else round(float(distance), 4)
        rows.append([patch.file, *place, *shares, class_names[index], threshold, scores.slide, known])
    if predictions.uncertain is not None:
        for row, index, is_uncertain in zip(rows, predictions.predicted, predictions.uncertain, strict=True):
            row.append(UNCERTAIN if is_uncertain else class_names[index])
    return rows


def describe_slide(run: Run, predictions: ItemPredictions) -> str:
    """Say how many patches a slide has, how many are uncertain and, of two classes, were classified as positive."""
    scores, positive = predictions.scores, run.decision.positive
    text = f"{printable(scores.slide)}: {plural(len(scores.patches), 'patch')}"
    if predictions.uncertain is not None:
        text += f", {predictions.uncertain.sum():,} {UNCERTAIN}"
    if positive is None:
        return text
    count = (predictions.predicted == run.decision.classes.index(positive)).sum()
    return f"{text}, {count:,} classified as {name_class(run.settings, positive)}"


def draw_map(run: Run, predictions: ItemPredictions) -> Figure:
    """Draw the probability of the positive class over a slide, for a run of two classes."""
    (grid,), title = predictions.scores.layout.slides, describe_slide(run, predictions)
    thumbnails, threshold = predictions.scores.thumbnails, predictions.threshold
    return illustration.draw_slide(run, grid, thumbnails, predictions, title=title, threshold=threshold)


def write_slide(run: Run, item: WorkItem, predictions: ItemPredictions, folder: Path) -> str:
    """Write the regions and, of two classes, the map of a slide; return a line about it, "" where gaps leave no map."""
    scores = predictions.scores
    if item.kind != LARGE and not (scores.grid and illustration.is_worth_drawing(scores.grid)):
        return ""
    names = [f"{item.stem}.geojson"]
    (folder / names[0]).write_text(json.dumps(find_regions(run, predictions)) + "\n", encoding="utf-8")
    if run.decision.positive is not None:
        names.append(f"{item.stem}.jpg")
        illustration.save_picture(draw_map(run, predictions), folder / names[1])
    outside = int((scores.distances > 1).sum())
    unlike = f", {outside:,} out of distribution" if outside else ""
    return f"{describe_slide(run, predictions)}{unlike}; {', '.join(names)}"


def find_regions(run: Run, predictions: ItemPredictions) -> dict[str, object]:
    """Outline the patches of one slide that were classified as positive, as GeoJSON in the file's pixels (level 0).

    Of several classes, or if the classes are those of annotations, all patches are outlined by their class. Uncertain
    patches are not among them: they are regions of their own.
    """
    classes, positive = run.decision.classes, run.decision.positive
    colours = run.settings.class_colours
    (grid,), scale, mpp = predictions.scores.layout.slides, predictions.scores.file_scale, run.settings.mpp
    answers, probabilities = predictions.predicted, predictions.probabilities
    kinds = []  # name, colour, patches bool [m], probability [m]
    if predictions.uncertain is not None:
        answers = np.where(predictions.uncertain, -1, answers)
        stated = probabilities[:, classes.index(positive)] if positive else probabilities.max(axis=1)
        kinds.append((UNCERTAIN, YELLOW, answers == -1, stated))
    for number, name in enumerate([positive] if positive and colours is None else classes):
        index, colour = classes.index(name), REGION_COLOURS[number % len(REGION_COLOURS)]
        colour = (colours or {}).get(name, colour)
        kinds.append((name_class(run.settings, name), colour, answers == index, probabilities[:, index]))
    features: list[Feature] = []
    for name, colour, patches, probability in kinds:
        features += outline_regions(
            paint_grid(np.where(patches, probability, np.nan), grid),
            patch_pixels=grid.step * scale,
            origin=(grid.origin[0] * scale, grid.origin[1] * scale),
            name=name,
            colour=colour,
            mpp=mpp and mpp / scale,
        )
    return {"type": "FeatureCollection", "features": features}
