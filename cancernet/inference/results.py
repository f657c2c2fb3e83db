"""What predict_images.py writes: tables of all patches and of all slides, and the map and regions of each slide."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
from tqdm import tqdm

from cancernet import InputError, storage
from cancernet.data.grid import PATCH_STEP, paint_grid
from cancernet.inference.prediction import DecidedPatches, decide_patches, score_part
from cancernet.inference.regions import COLOUR, regions_geojson
from cancernet.inference.summary import SUMMARY, Summary
from cancernet.inference.work_list import LOOSE, PREDICTIONS, REJECTED, SLIDE, Part, printable
from cancernet.reporting import illustration
from cancernet.run import Run, name_class

REGION_COLOURS = (COLOUR, (0, 114, 178), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233))


class Options(NamedTuple):
    """How images are scored and decided."""

    mpp: float | None = None  # micrometres a pixel of large images that do not say so themselves
    neighbours: bool = True  # whether a slide is smoothed over its neighbours
    threshold: float | None = None  # on the positive class's probability, in place of the run's own


def predict_parts(
    run: Run, parts: Sequence[Part], folder: Path, options: Options, bar: tqdm
) -> tuple[Summary, list[tuple[str, str]]]:
    """Score and decide part after part; write predictions.csv, summary.csv, rejected.csv, and the files of each slide.

    Args:
        bar: shows the number of images done, and a line for each slide and each file that cannot be used.

    Returns:
        What is to be said of all patches, and file and reason of what could not be used.
    """
    summary, rejected = Summary(run), []

    def refuse(files: Sequence[str], reason: str) -> None:
        rejected.extend((file, reason.removeprefix(f"{file}: ")) for file in files)
        bar.write(f"not used: {printable(': '.join(rejected[-len(files)]))}")
        if len(files) > 1:
            bar.write(f"          and {len(files) - 1:,} more for the same reason")
        bar.update(len(files))

    with _open_table(folder / PREDICTIONS) as table:
        write_header(table, summary.words)
        for part in parts:
            try:
                scored = score_part(run, part, mpp=options.mpp, refuse=refuse, progress=bar.update)
                decided = decide_patches(run, scored, neighbours=options.neighbours, threshold=options.threshold)
            except InputError as error:
                refuse(part.files, str(error))
                continue
            if scored.files:
                write_rows(table, decided, summary.words)
                said = write_slide(run, part, decided, folder) if part.kind != LOOSE else ""
                summary.add(part, decided, has_map=bool(said))
                if said:
                    bar.write(said)
    for name, rows in ((SUMMARY, summary.rows()), (REJECTED, [("file", "reason"), *rejected])):
        with _open_table(folder / name) as table:
            storage.write_rows(table, rows)
    summary.draw_furthest(folder)
    return summary, rejected


def name_columns(classes: Sequence[str]) -> list[str]:
    """The columns of predictions.csv: file, x, y, probability of each class, predicted, threshold, slide, distance."""
    shares = [f"probability_{name}" for name in classes]
    return ["file", "x", "y", *shares, "predicted", "threshold", "slide", "distance"]


def write_header(table: TextIO, classes: Sequence[str]) -> None:
    """Write the first line of predictions.csv, see `name_columns`."""
    storage.write_rows(table, [name_columns(classes)])


def list_rows(decided: DecidedPatches, classes: Sequence[str]) -> list[list]:
    """A row for each patch, see `name_columns`; numbers of four digits after the point.

    x and y are the left and top pixel of the patch: in a large image in the file's own pixels (level 0), for a patch as
    its name says. What a patch does not have is None: a place, a threshold (of more than two classes), and how far it
    lies from what the run was made for (`familiarity.watch`) where the run does not know. A patch without a slide
    has "".
    """
    scored, listed = decided.scored, []
    threshold = None if decided.threshold is None else round(decided.threshold, 4)
    distances = [None if np.isnan(distance) else round(float(distance), 4) for distance in scored.distances]
    distances = distances or [None] * len(scored.files)
    rows = zip(scored.files, scored.x, scored.y, decided.probabilities, decided.predicted, distances, strict=True)
    for file, x, y, probabilities, index, distance in rows:
        place = [None if value is None else round(value * scored.file_scale) for value in (x, y)]
        shares = [round(float(share), 4) for share in probabilities]
        listed.append([file, *place, *shares, classes[index], threshold, scored.slide, distance])
    return listed


def write_rows(table: TextIO, decided: DecidedPatches, classes: Sequence[str]) -> None:
    """Write `list_rows`; what a patch does not have is empty."""
    storage.write_rows(table, list_rows(decided, classes))


def write_slide(run: Run, part: Part, decided: DecidedPatches, folder: Path) -> str:
    """Write the map and the regions of one slide, unless it has too many gaps.

    Returns:
        A line that says how many patches the slide has, and which files were written; "" for a slide without a map.
    """
    positive, scored = run.decision.positive, decided.scored
    if part.kind == SLIDE and not illustration.is_worth_drawing(scored.grid):
        return ""
    said = f"{printable(part.slide)}: {len(scored.files):,} patches"
    if positive is not None:
        called = (decided.predicted == run.decision.classes.index(positive)).sum()
        said += f", {called:,} called {name_class(run.settings, positive)}"
    names = [f"{part.stem}.geojson"]
    (folder / names[0]).write_text(json.dumps(find_regions(run, decided)) + "\n", encoding="utf-8")
    if positive is not None:
        names.append(f"{part.stem}.jpg")
        answers = illustration.Answers(decided.probabilities, decided.predicted, threshold=decided.threshold)
        figure = illustration.draw_slide(run, scored.grid, scored.thumbnails, answers, title=printable(said))
        illustration.save_picture(figure, folder / names[1])
    outside = int((scored.distances > 1).sum())
    if outside:
        said += f", {outside:,} outside what this run was made for"
    return f"{said}; {', '.join(names)}"


def find_regions(run: Run, decided: DecidedPatches) -> dict:
    """Outline for QuPath the patches of one slide that were given the positive class; of several classes, each class.

    Returns:
        A GeoJSON FeatureCollection in the file's own pixels (level 0); see cancernet.inference.regions.
    """
    classes, positive, scored = run.decision.classes, run.decision.positive, decided.scored
    mpp, features = run.settings.mpp, []
    for number, name in enumerate(classes if positive is None else [positive]):
        index = classes.index(name)
        values = np.where(decided.predicted == index, decided.probabilities[:, index], np.nan)
        features += regions_geojson(
            paint_grid(values, scored.grid),
            patch_pixels=PATCH_STEP * scored.file_scale,
            origin=tuple(value * scored.file_scale for value in scored.grid.origin),
            name=name_class(run.settings, name),
            colour=REGION_COLOURS[number % len(REGION_COLOURS)],
            mpp=mpp and mpp / scored.file_scale,
        )["features"]
    return {"type": "FeatureCollection", "features": features}


def _open_table(path: Path) -> TextIO:
    """A CSV file to write; names of files that are not UTF-8 keep their bytes."""
    return path.open("w", newline="", encoding="utf-8", errors="surrogateescape")
