"""Which images are out of distribution, from the distances that `out_of_distribution` measures. Needs no Keras."""

from typing import NamedTuple

import numpy as np

MOST_NAMED = 12  # images out of distribution that are named and shown


class Outliers(NamedTuple):
    """How many images are out of distribution, and which most."""

    images: int
    outside: int  # of these images, out of distribution
    furthest: list[tuple[int, float]]  # row and distance of those outside, the furthest first, at most MOST_NAMED


def find_outliers(distances: np.ndarray) -> Outliers | None:
    """Find the images with a distance [n] above 1; None where distances are unknown (NaN), or there are none."""
    if np.isnan(distances).any() or not len(distances):
        return None
    order = np.argsort(-distances, kind="stable")
    outside = int((distances > 1).sum())
    furthest = [(int(row), float(distances[row])) for row in order[: min(outside, MOST_NAMED)]]
    return Outliers(len(distances), outside, furthest)
