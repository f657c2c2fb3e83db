"""Regions of a probability map as GeoJSON that QuPath opens: one polygon a connected region."""

import numpy as np
import shapely
from scipy.ndimage import label, value_indices

Feature = dict[str, object]  # of GeoJSON, as `json.dump` takes it


def outline_regions(
    grid: np.ndarray,
    *,
    patch_pixels: float,
    origin: tuple[float, float] = (0.0, 0.0),
    name: str,
    colour: tuple[int, int, int],
    mpp: float | None = None,
) -> list[Feature]:
    """Outline the cells of a map [rows, columns] that have a probability, not NaN; the largest region comes first.

    Cells that share a side are one region, cells that only touch at a corner are two; holes are kept. A polygon follows
    the edges of its patches, so its area is exactly that of the patches. It may reach past the right and the lower edge
    of the slide where the last patch does.

    Coordinates are pixels at the slide's level 0 from its top-left corner, as in QuPath, where RFC 7946 has degrees.
    Otherwise the result follows RFC 7946: rings are closed, the outer one is counterclockwise (with x to the right and
    y upwards) and holes are clockwise. Each feature is an annotation with the measurements "Patches", "Mean
    probability", "Highest probability" and, with mpp, "Area mm^2".

    Args:
        patch_pixels: side of a cell in level-0 pixels.
        origin: x and y of the grid's top-left corner in level-0 pixels.
        name: of the class, as QuPath shows it.
        colour: red, green, blue, 0-255.
        mpp: micrometres per level-0 pixel.
    """
    labels, _ = label(~np.isnan(grid))  # by default cells that share a side are connected
    regions = value_indices(labels, ignore_value=0)  # rows and columns of the cells of each region, by its number
    features: list[Feature] = []
    for _, (rows, columns) in sorted(regions.items(), key=lambda region: (-len(region[1][0]), region[0])):
        probabilities = grid[rows, columns]
        measurements = {
            "Patches": len(probabilities),
            "Mean probability": float(probabilities.mean()),
            "Highest probability": float(probabilities.max()),
        }
        if mpp is not None:
            measurements["Area mm^2"] = len(probabilities) * (patch_pixels * mpp / 1000) ** 2
        outline = _trace(rows, columns)
        corners = [shapely.get_coordinates(ring) for ring in (outline.exterior, *outline.interiors)]
        rings = [(each * patch_pixels + np.asarray(origin, float)).tolist() for each in corners]
        properties = {
            "objectType": "annotation",
            "classification": {"name": name, "color": list(colour)},
            "isLocked": False,
            "measurements": measurements,
        }
        geometry = {"type": "Polygon", "coordinates": rings}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    return features


def _trace(rows: np.ndarray, columns: np.ndarray) -> shapely.Polygon:
    """Outline cells of side 1, joined in whole numbers so that nothing is lost to rounding."""
    outline = shapely.coverage_union_all(shapely.box(columns, rows, columns + 1, rows + 1))
    return shapely.orient_polygons(shapely.simplify(outline, 0))
