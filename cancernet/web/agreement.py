"""Annotations that were uploaded with a slide: their outlines over its map, and how far the run agrees with them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import shapely
from shapely.affinity import affine_transform

from cancernet.config import ANNOTATED_SHARE
from cancernet.data.annotations import Region, classify_cells
from cancernet.inference.prediction import ItemPredictions, ItemScores
from cancernet.reporting.plots import COLOURS
from cancernet.web.slide_map import Table

DETAIL = 0.05  # of a patch: outlines are drawn this exactly


class Agreement(NamedTuple):
    """The patches of a slide that one class of annotations covers."""

    label: str
    patches: int
    answers: list[int]  # how many of them the run gives each class, and how many are uncertain


def place_regions(regions: Sequence[Region], scores: ItemScores) -> list[Region]:
    """Bring annotations, in pixels of level 0, to the scale of x and y of a slide's patches."""
    scale = 1 / scores.file_scale
    return [each._replace(shape=affine_transform(each.shape, [scale, 0, 0, scale, 0, 0])) for each in regions]


def count_agreement(regions: Sequence[Region], slide: ItemPredictions, n_classes: int) -> list[Agreement]:
    """Count which classes the run gives the patches of a slide that annotations cover to at least ANNOTATED_SHARE.

    Args:
        regions: as of `place_regions`.
    """
    (grid,) = slide.scores.layout.slides
    left, top = grid.origin
    moved = [each._replace(shape=affine_transform(each.shape, [1, 0, 0, 1, -left, -top])) for each in regions]
    covering = classify_cells(moved, grid.shape, grid.step, ANNOTATED_SHARE)[grid.rows, grid.columns]
    answers = slide.predicted if slide.uncertain is None else np.where(slide.uncertain, n_classes, slide.predicted)
    of_cells = answers[grid.members]
    counts = [np.bincount(of_cells[covering == index], minlength=n_classes + 1) for index in range(len(regions))]
    return [
        Agreement(each.label, int(count.sum()), count.tolist()) for each, count in zip(regions, counts, strict=True)
    ]


def list_edges(regions: Sequence[Region], step: float) -> Table:
    """List the line segments from (left, top) to (right, bottom) around annotations, with their class.

    Args:
        regions: as of `place_regions`.
        step: side of a patch.
    """
    rows: Table = {name: [] for name in ("left", "top", "right", "bottom", "annotation")}
    for region in regions:
        parts = shapely.get_parts(shapely.simplify(region.shape, DETAIL * step))
        for line in shapely.get_parts(shapely.boundary(parts[shapely.area(parts) > 0])):
            corners = shapely.get_coordinates(line)
            for name, values in zip(rows, np.hstack([corners[:-1], corners[1:]]).T, strict=False):
                rows[name] += values.tolist()
            rows["annotation"] += [region.label] * (len(corners) - 1)
    return rows


def choose_colours(regions: Sequence[Region]) -> dict[str, str]:
    """Return the colour of each class of annotations, as #rrggbb: QuPath's, if the file has it."""
    chosen = {}
    for number, region in enumerate(regions):
        own = region.colour and "#{:02x}{:02x}{:02x}".format(*(channel & 255 for channel in region.colour))
        chosen[region.label] = own or COLOURS[number % len(COLOURS)]
    return chosen
