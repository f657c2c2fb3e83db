"""Which images lie outside."""

import numpy as np

from cancernet.explain import outside


def test_the_furthest_come_first_and_only_those_outside():
    found = outside.find_outside(np.array([0.5, 3.0, 1.0, 1.5]))
    assert found == outside.Outside(images=4, outside=2, furthest=[(1, 3.0), (3, 1.5)])


def test_no_more_are_named_than_are_shown():
    assert len(outside.find_outside(np.full(50, 2.0)).furthest) == outside.FURTHEST


def test_what_is_not_known_is_none():
    assert outside.find_outside(np.array([0.5, np.nan])) is None
    assert outside.find_outside(np.empty(0)) is None
