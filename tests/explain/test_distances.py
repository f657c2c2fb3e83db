"""Which images are out of distribution, from their distances."""

import numpy as np

from cancernet.explain.distances import MOST_NAMED, Outliers, find_outliers


def test_the_furthest_come_first_and_only_those_outside():
    found = find_outliers(np.array([0.5, 3.0, 1.0, 1.5]))
    assert found == Outliers(images=4, outside=2, furthest=[(1, 3.0), (3, 1.5)])


def test_at_most_some_are_named():
    assert len(find_outliers(np.full(50, 2.0)).furthest) == MOST_NAMED


def test_unknown_distances_give_none():
    assert find_outliers(np.array([0.5, np.nan])) is None
    assert find_outliers(np.empty(0)) is None
