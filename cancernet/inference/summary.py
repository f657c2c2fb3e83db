"""All work items together: the tables summary.csv and rejected.csv, what is printed, and the most unusual images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cancernet import storage
from cancernet.explain.distances import find_outliers
from cancernet.inference.work_list import LARGE, SINGLE, SLIDE, WorkItem, printable
from cancernet.reporting import printed, wording
from cancernet.run import Settings, name_class

if TYPE_CHECKING:
    from cancernet.inference.prediction import ItemPredictions  # needs Keras

PREDICTIONS, SUMMARY, REJECTED, FURTHEST_PICTURE = "predictions.csv", "summary.csv", "rejected.csv", "furthest.jpg"
MAX_LISTED = 10  # images that are listed with their predictions
SUMMARY_COLUMNS = ["slide", "class", "patches", "predicted", "share", "mm2", "mean_probability"]


class Outlier(NamedTuple):
    """An image out of distribution."""

    distance: float
    name: str
    row: int  # in its item


@dataclass(frozen=True)
class ItemResult:
    """What the tables and the printed text need of one work item: a few numbers for each item, not for each patch."""

    item: WorkItem
    rejected: tuple[tuple[str, str], ...]  # file and reason of what could not be used
    patches: int = 0  # that were predicted
    class_counts: tuple[int, ...] = ()  # patches of each class
    probability_sums: tuple[float, ...] = ()  # of each class
    has_map: bool = False
    listed: tuple[tuple[str, str, str], ...] = ()  # name, class and probability of the first images without a map
    outside: int | None = None  # patches out of distribution; None where the run cannot measure it
    outliers: tuple[Outlier, ...] = ()  # the furthest of them, at most MOST_NAMED
    uncertain: int | None = None  # patches to be referred to a person; None where the run refers none


def summarise_item(settings: Settings, item: WorkItem, predictions: "ItemPredictions", *, has_map: bool) -> ItemResult:
    """Reduce the predictions of one item to its ItemResult."""
    patches, distances, classes = predictions.patches, predictions.scores.distances, settings.classes
    names = [printable(Path(patch.file).name) for patch in patches]
    listed = []
    for name, index, probabilities in zip(names[:MAX_LISTED], predictions.predicted, predictions.probabilities):
        shown = index if settings.positive is None else classes.index(settings.positive)
        listed.append((name, name_class(settings, classes[index]), f"{probabilities[shown]:.3f}"))
    found = find_outliers(distances)
    if item.kind == LARGE:
        names = [f"{name} at {patch.x}, {patch.y}" for name, patch in zip(names, patches)]
    return ItemResult(
        item,
        tuple(predictions.scores.rejected),
        len(patches),
        tuple(np.bincount(predictions.predicted, minlength=len(classes)).tolist()),
        tuple(predictions.probabilities.sum(axis=0).tolist()),
        has_map,
        () if has_map else tuple(listed),
        found and found.outside,
        tuple(Outlier(distance, names[row], row) for row, distance in found.furthest) if found else (),
        None if predictions.uncertain is None else int(predictions.uncertain.sum()),
    )


def write_tables(
    folder: Path, settings: Settings, results: Sequence[ItemResult], missing: Sequence[tuple[str, str]]
) -> None:
    """Write summary.csv and rejected.csv; `missing` are paths that led to no image, and why."""
    columns = SUMMARY_COLUMNS + ["uncertain"] * (_count_uncertain(results) is not None)
    slides: list[Sequence[object]] = [columns, *list_slides(settings, results)]
    rejected = [("file", "reason"), *missing, *(row for result in results for row in result.rejected)]
    for name, rows in ((SUMMARY, slides), (REJECTED, rejected)):
        with (folder / name).open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            storage.write_rows(file, rows)


def list_slides(settings: Settings, results: Iterable[ItemResult]) -> list[list[object]]:
    """Make the rows of summary.csv: one for each slide or, with more than two classes, for each slide and class."""
    by_slide: dict[str, list[ItemResult]] = {}
    for result in results:
        if result.patches:
            by_slide.setdefault(result.item.slide, []).append(result)
    mm2 = settings.mpp and (settings.mpp * settings.patch_pixels / 1000) ** 2
    rows: list[list[object]] = []
    for slide, parts in by_slide.items():
        patches, counts, sums = _add_up(parts)
        uncertain, is_single = _count_uncertain(parts), parts[0].item.kind == SINGLE
        for name, count, total in zip(settings.classes, counts, sums, strict=True):
            if settings.positive in (None, name):
                area = "" if is_single or mm2 is None else round(count * mm2, 4)
                shares = round(count / patches, 4), area, round(total / patches, 4)
                rows.append([slide, name_class(settings, name), patches, count, *shares])
                rows[-1] += [] if uncertain is None else [uncertain]
    return rows


def describe_results(settings: Settings, results: Sequence[ItemResult]) -> str:
    """Write the text that is printed at the end; a warning about images out of distribution comes first."""
    results = [result for result in results if result.patches]
    if not results:
        return "No image was predicted."
    patches, counts, _ = _add_up(results)
    noun = "patch" if any(result.item.slide for result in results) else "image"
    names = [name_class(settings, name) for name in settings.classes]
    known = [result.outside for result in results if result.outside is not None]
    outside = (sum(known), patches) if len(known) == len(results) else None
    lines = [wording.describe_out_of_distribution(outside, noun)]
    outliers = sorted((each for result in results for each in result.outliers), key=lambda each: -each.distance)[:3]
    if outliers:
        furthest = ", ".join(f"{name} ({distance:.1f})" for distance, name, _ in outliers)
        lines.append(f"The furthest, where 1 is the limit: {furthest}.")
    shares = [f"{count:,} {name} ({count / patches:.0%})" for count, name in zip(counts, names, strict=True)]
    lines.append(f"{wording.plural(patches, noun)} classified: {', '.join(reversed(shares))}.")
    uncertain = _count_uncertain(results)
    if uncertain is not None:
        share = f"{uncertain:,} of them ({uncertain / patches:.0%})"
        lines.append(f"Uncertain, to be referred to a person: {share}.")
    sparse = [result.patches for result in results if result.item.kind == SLIDE and not result.has_map]
    if sparse:
        slides = wording.plural(len(sparse), "slide")
        of_slides = f"{wording.plural(sum(sparse), 'patch')} of {slides} {'is' if sum(sparse) == 1 else 'are'}"
        lines.append(f"{of_slides} too few or too far apart for a map.")
    listed = [row for result in results for row in result.listed][:MAX_LISTED]
    if listed:
        of = "" if settings.positive is None else f" of {name_class(settings, settings.positive)}"
        lines.append(printed.table([["image", "classified as", f"probability{of}"], *map(list, listed)]))
    return "\n".join(map(str, filter(None, lines)))


def _count_uncertain(results: Iterable[ItemResult]) -> int | None:
    """Count the patches that are uncertain; None where the run refers none."""
    known = [result.uncertain for result in results if result.uncertain is not None]
    return sum(known) if known else None


def _add_up(results: Sequence[ItemResult]) -> tuple[int, list[int], list[float]]:
    return (
        sum(result.patches for result in results),
        [sum(counts) for counts in zip(*(result.class_counts for result in results), strict=True)],
        [sum(values) for values in zip(*(result.probability_sums for result in results), strict=True)],
    )
