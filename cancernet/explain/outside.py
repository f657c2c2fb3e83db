"""Which images lie outside what a run was made for, from the distances that `learning.familiarity` measures."""

from typing import NamedTuple

import numpy as np

FURTHEST = 12  # images that are named and shown


class Outside(NamedTuple):
    """Which of n images lie outside what a run was made for."""

    images: int
    outside: int
    furthest: list[tuple[int, float]]  # row and distance of those outside, the furthest first, at most FURTHEST


def find_outside(distances: np.ndarray) -> Outside | None:
    """Which images lie outside, from their distances [n], above 1 for those; None where they are not known, NaN."""
    if np.isnan(distances).any() or not len(distances):
        return None
    order = np.argsort(-distances, kind="stable")
    outside = int((distances > 1).sum())
    furthest = [(int(row), float(distances[row])) for row in order[: min(outside, FURTHEST)]]
    return Outside(len(distances), outside, furthest)
