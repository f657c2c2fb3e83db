"""What predict_images.py writes: a table of all patches, and the map and the regions of each slide."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
from tqdm import tqdm

from cancernet import InputError, tables
from cancernet.data.grid import PATCH_STEP, paint_grid
from cancernet.reporting import illustration
from cancernet.run import Run, name_class
from cancernet.using.parts import LOOSE, PREDICTIONS, REJECTED, SLIDE, Part, printable
from cancernet.using.prediction import DecidedPatches, decide_patches, score_part
from cancernet.using.regions import COLOUR, regions_geojson

REGION_COLOURS = (COLOUR, (0, 114, 178), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233))


class Options(NamedTuple):
    """How images are scored and decided."""

    mpp: float | None = None  # micrometres a pixel of large images that do not say so themselves
    neighbours: bool = True  # whether a slide is smoothed over its neighbours
    threshold: float | None = None  # on the positive class's probability, in place of the run's own


def predict_parts(
    run: Run, parts: Sequence[Part], folder: Path, options: Options, bar: tqdm
) -> tuple[int, list[tuple[str, str]]]:
    """Score and decide part after part; write predictions.csv, rejected.csv, and the files of each slide.

    Args:
        bar: shows the number of images done, and a line for each slide and each file that cannot be used.

    Returns:
        The number of patches in predictions.csv, and file and reason of what could not be used.
    """
    count, rejected = 0, []

    def refuse(files: Sequence[str], reason: str) -> None:
        rejected.extend((file, reason.removeprefix(f"{file}: ")) for file in files)
        bar.write(f"not used: {printable(': '.join(rejected[-len(files)]))}")
        if len(files) > 1:
            bar.write(f"          and {len(files) - 1:,} more for the same reason")
        bar.update(len(files))

    with _open_table(folder / PREDICTIONS) as table:
        write_header(table, run.decision.classes)
        for part in parts:
            try:
                scored = score_part(run, part, mpp=options.mpp, refuse=refuse, progress=bar.update)
                decided = decide_patches(run, scored, neighbours=options.neighbours, threshold=options.threshold)
            except InputError as error:
                refuse(part.files, str(error))
                continue
            write_rows(table, decided, run.decision.classes)
            count += len(scored.files)
            if part.kind != LOOSE and scored.files:
                bar.write(write_slide(run, part, decided, folder))
    with _open_table(folder / REJECTED) as table:
        tables.write_rows(table, [("file", "reason"), *rejected])
    return count, rejected


def write_header(table: TextIO, classes: Sequence[str]) -> None:
    """Write the first line of predictions.csv: file, x, y, probability of each class, predicted."""
    tables.write_rows(table, [["file", "x", "y", *(f"probability_{name}" for name in classes), "predicted"]])


def write_rows(table: TextIO, decided: DecidedPatches, classes: Sequence[str]) -> None:
    """Write one line for each patch, probabilities at full precision.

    x and y are the left and top pixel of the patch: in a large image in the file's own pixels (level 0), for a patch as
    its name says; empty where there is no place.
    """
    scored, lines = decided.scored, []
    rows = zip(scored.files, scored.x, scored.y, decided.probabilities.tolist(), decided.predicted, strict=True)
    for file, x, y, probabilities, index in rows:
        place = ["" if value is None else round(value * scored.file_scale) for value in (x, y)]
        lines.append([file, *place, *probabilities, classes[index]])
    tables.write_rows(table, lines)


def write_slide(run: Run, part: Part, decided: DecidedPatches, folder: Path) -> str:
    """Write the map and the regions of one slide, unless it has too many gaps.

    Returns:
        A line that says how many patches the slide has, and which files were written.
    """
    positive, scored = run.decision.positive, decided.scored
    said = f"{printable(part.slide)}: {len(scored.files):,} patches"
    if positive is not None:
        called = (decided.predicted == run.decision.classes.index(positive)).sum()
        said += f", {called:,} called {name_class(run.settings, positive)}"
    if part.kind == SLIDE and not illustration.is_worth_drawing(scored.grid):
        return f"{said}; too few or too far apart for a map"
    names = [f"{part.stem}.geojson"]
    (folder / names[0]).write_text(json.dumps(find_regions(run, decided)) + "\n", encoding="utf-8")
    if positive is not None:
        names.append(f"{part.stem}.jpg")
        answers = illustration.Answers(decided.probabilities, decided.predicted, threshold=decided.threshold)
        figure = illustration.draw_slide(run, scored.grid, scored.thumbnails, answers, title=printable(said))
        illustration.save_picture(figure, folder / names[1])
    return f"{said}; {', '.join(names)}"


def find_regions(run: Run, decided: DecidedPatches) -> dict:
    """Outline for QuPath the patches of one slide that were given the positive class; of several classes, each class.

    Returns:
        A GeoJSON FeatureCollection in the file's own pixels (level 0); see cancernet.using.regions.
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
