"""Regions of a probability map as GeoJSON that QuPath opens: one polygon a connected region."""

import numpy as np
import shapely
from scipy.ndimage import label

from cancernet import InputError

COLOUR = (200, 0, 0)  # red, as QuPath's own class "Tumor"


def outline_regions(
    grid: np.ndarray,
    *,
    patch_pixels: float,
    origin: tuple[float, float] = (0.0, 0.0),
    name: str,
    colour: tuple[int, int, int] = COLOUR,
    mpp: float | None = None,
) -> dict:
    """Outline the cells of a map that have a probability.

    Cells that share a side are one region, cells that only touch at a corner are two; holes are kept. A polygon follows
    the edges of its patches, so its area is exactly that of the patches. It may reach past the right and the lower edge
    of the slide where the last patch does.

    Coordinates are pixels at the slide's level 0 from its top-left corner, as QuPath has them, where RFC 7946 would
    have degrees. In all else the result follows RFC 7946: rings are closed, the outer one is counterclockwise (with x
    to the right and y counted upwards) and holes are clockwise.

    Args:
        grid: [rows, columns] probabilities; NaN in cells that belong to no region.
        patch_pixels: side of a cell in level-0 pixels.
        origin: x and y of the grid's top-left corner in level-0 pixels.
        name: of the class, as QuPath shows it.
        colour: red, green, blue, 0-255.
        mpp: micrometres a level-0 pixel; adds each region's area in square millimetres.

    Returns:
        A FeatureCollection for `json.dump`, largest region first. Each feature is an annotation with the
        measurements "Patches", "Mean probability", "Highest probability" and, with mpp, "Area mm^2".

    Raises:
        InputError: the grid is not two-dimensional or patch_pixels not above 0.
    """
    grid = np.asarray(grid, float)
    if grid.ndim != 2 or not patch_pixels > 0:
        raise InputError(
            f"Regions need a map of two dimensions and patches above 0 pixels; got {grid.ndim} and {patch_pixels}."
        )
    labels, regions = label(~np.isnan(grid))  # by default cells that share a side are connected
    order = np.argsort(-np.bincount(labels.ravel(), minlength=regions + 1)[1:], kind="stable") + 1
    rows_of, columns_of = _members(labels, regions)
    features = []
    for region in order:
        rows, columns = rows_of[region], columns_of[region]
        area = len(rows) * (patch_pixels * mpp / 1000) ** 2 if mpp else None
        outline = _trace(rows, columns)
        outline = shapely.transform(outline, lambda corners: corners * patch_pixels + np.asarray(origin, float))
        features.append(_feature(outline, grid[rows, columns], name, colour, area))
    return {"type": "FeatureCollection", "features": features}


def _members(labels: np.ndarray, regions: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Rows and columns of each region's cells; index 0 has the cells of no region."""
    order = np.argsort(labels, axis=None, kind="stable")
    ends = np.cumsum(np.bincount(labels.ravel(), minlength=regions + 1))[:-1]
    rows, columns = np.unravel_index(order, labels.shape)
    return np.split(rows, ends), np.split(columns, ends)


def _trace(rows: np.ndarray, columns: np.ndarray) -> shapely.Polygon:
    """Outline of cells of side 1, joined in whole numbers so that nothing is lost to rounding."""
    outline = shapely.coverage_union_all(shapely.box(columns, rows, columns + 1, rows + 1))
    return shapely.orient_polygons(shapely.simplify(outline, 0))


def _feature(
    outline: shapely.Polygon, probabilities: np.ndarray, name: str, colour: tuple[int, int, int], area: float | None
) -> dict:
    measurements = {
        "Patches": len(probabilities),
        "Mean probability": float(probabilities.mean()),
        "Highest probability": float(probabilities.max()),
    }
    if area is not None:
        measurements["Area mm^2"] = area
    rings = [outline.exterior, *outline.interiors]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [shapely.get_coordinates(ring).tolist() for ring in rings]},
        "properties": {
            "objectType": "annotation",
            "classification": {"name": name, "color": list(colour)},
            "isLocked": False,
            "measurements": measurements,
        },
    }
