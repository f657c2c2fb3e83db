"""Intervals of any metric by leaving out a group at a time: a patient with all its images, or one image.

The metrics are given as functions of weights `[rows, groups]`, a value a row: a group that is left out weighs 0, the
others 1.
"""

import math
from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple, TypeVar

import numpy as np
from scipy.special import expit, logit, stdtrit
from scipy.stats import binomtest

Key = TypeVar("Key", bound=Hashable)

LEVEL = 0.95
LEAST_GROUPS = 6  # fewer give no interval
FEW_GROUPS = 20  # fewer give a rough one
MOST_PARTS = 1000  # that the jackknife leaves out in turn; of more groups several make a part
HALF_WIDTH = 0.05  # of the interval that `count_needed` counts the groups for
CHUNK_ELEMENTS = 2**18  # weights of images held at once; chosen to stay in a processor's cache


class Scale(NamedTuple):
    """A transformation to an unbounded scale, so that no interval exceeds the range of the metric."""

    forward: Callable[[float], float]
    back: Callable[[float], float]
    slope: Callable[[float], float]  # of forward


SHARE = Scale(logit, expit, lambda value: 1 / (value * (1 - value)))  # 0 to 1
CORRELATION = Scale(np.arctanh, np.tanh, lambda value: 1 / (1 - value**2))  # -1 to 1; Fisher's z
PLAIN = Scale(lambda value: value, lambda value: value, lambda value: 1.0)
POSITIVE = Scale(np.log, np.exp, lambda value: 1 / value)  # above 0


class Measured(NamedTuple):
    """A figure of all images, and with each group left out; from `evaluate.measure`."""

    value: float
    left_out: np.ndarray  # [parts], as from `jackknife`
    n_groups: int  # that have images
    unit: str  # what a group is: `patients` or `images`


class Bounds(NamedTuple):
    """The ends of an interval; None where it cannot be estimated, with the reason."""

    low: float | None
    high: float | None
    reason: str | None = None


def jackknife(
    compute: Callable[[np.ndarray], Mapping[Key, np.ndarray]], n_groups: int, n_images: int
) -> dict[Key, np.ndarray]:
    """Compute metrics with each group left out in turn, `[n_groups]` of each.

    More than MOST_PARTS groups are dealt at random, by a fixed seed, into that many parts of nearly equal size, and the
    parts are left out: `[MOST_PARTS]` (the delete-a-group jackknife; Kott 2001, Journal of Official Statistics 17:521).
    `compute` takes weights `[rows, n_groups]` and returns values `[rows]` by key; `n_images` bounds the memory in use.
    """
    n_parts = min(n_groups, MOST_PARTS)
    parts = np.random.default_rng(0).permutation(n_groups) % n_parts
    at_once = max(1, CHUNK_ELEMENTS // max(n_groups, n_images))
    left_out = (np.arange(start, min(start + at_once, n_parts)) for start in range(0, n_parts, at_once))
    chunks = [compute((rows[:, None] != parts).astype(np.float64)) for rows in left_out]
    return {key: np.concatenate([chunk[key] for chunk in chunks]) for key in chunks[0]}


def jackknife_interval(measured: Measured, *, scale: Scale, why_undefined: str) -> Bounds:
    """Estimate the 95% interval of a figure from its values with each group left out.

    Student's t on the metric's scale: with SHARE the logit interval of survey statistics (Korn & Graubard 1998, Survey
    Methodology 24:193). The standard error is the jackknife's, sqrt((n - 1) / n * sum of squared deviations) (Efron &
    Stein 1981), carried over to the scale by the slope there, which is finite even where one group holds all errors.
    The degrees of freedom are the effective number of groups minus one: Kish's (sum of weights)^2 / sum of squared
    weights (1965), where a group's weight is the absolute deviation that leaving it out makes, times pi / 2, so that n
    normal deviations count as n. A few large groups among many small ones therefore count as few.
    Chosen by simulated coverage: docs/reporting.md and benchmarks/coverage.py. `why_undefined` is the reason in words
    where the figure is not finite without one of the groups.
    """
    value, left_out, n_groups, unit = measured
    if n_groups < LEAST_GROUPS:
        return Bounds(None, None, f"too few {unit} for an interval")
    if not np.isfinite(left_out).all():
        return Bounds(None, None, f"no interval: without some of the {unit}, {why_undefined}")
    with np.errstate(divide="ignore", invalid="ignore"):
        centre, slope = scale.forward(np.float64(value)), scale.slope(np.float64(value))
    deviations = left_out - left_out.mean()
    if not np.isfinite(centre) or np.ptp(left_out) <= 1e-12 * max(1.0, abs(value)):
        return Bounds(None, None, f"interval not estimable: all {unit} have the same value")
    parts, squares = len(left_out), (deviations**2).sum()
    error = math.sqrt((parts - 1) / parts * squares) * slope
    effective = np.abs(deviations).sum() ** 2 / squares * np.pi / 2
    half = stdtrit(max(min(effective, parts) - 1, 1), (1 + LEVEL) / 2) * error
    return Bounds(float(scale.back(centre - half)), float(scale.back(centre + half)))


def exact_interval(successes: int, trials: int) -> Bounds:
    """Compute the 95% interval of a share of independent trials (Clopper & Pearson 1934, Biometrika 26:404)."""
    low, high = binomtest(successes, trials).proportion_ci(LEVEL)
    return Bounds(float(low), float(high))


def count_needed(bounds: Bounds, n_groups: int) -> int | None:
    """Estimate how many groups like these would give an interval of +-HALF_WIDTH; None without both ends.

    n * (half the width / HALF_WIDTH)^2, because a standard error falls with the square root of the number of groups;
    at least LEAST_GROUPS. Its error is simulated by benchmarks/coverage.py; the table is in docs/reporting.md. If the
    metric is a share of the images of some groups only, only these count.
    """
    if bounds.low is None or bounds.high is None:
        return None
    return max(round(n_groups * ((bounds.high - bounds.low) / 2 / HALF_WIDTH) ** 2), LEAST_GROUPS)
