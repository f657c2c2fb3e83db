"""Figures of many weighted resamples at once, and the intervals they give.

A group is what is resampled: a patient with all its images, or one image. A group's weight in a resample, 0 or more, is
how often it is taken. The jackknife leaves one group out, or one part of them, whose weight is then 0 and that of the
others 1. `weights` is `[draws, groups]`, a row a resample.
"""

import math
from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple

import numpy as np
from scipy.special import expit, logit, stdtrit

LEVEL = 0.95
LEAST_GROUPS = 6  # fewer give no interval
FEW_GROUPS = 20  # fewer give a rough one
MOST_PARTS = 1000  # that the jackknife leaves out in turn; of more groups several make a part
CHUNK_ELEMENTS = 2**18  # weights of images held at once; chosen to stay in a processor's cache


class Scale(NamedTuple):
    """A scale on which a figure has no end, so that no interval passes what the figure can be."""

    forward: Callable[[float], float]
    back: Callable[[float], float]
    slope: Callable[[float], float]  # of forward


SHARE = Scale(logit, expit, lambda value: 1 / (value * (1 - value)))  # 0 to 1
CORRELATION = Scale(np.arctanh, np.tanh, lambda value: 1 / (1 - value**2))  # -1 to 1; Fisher's z
PLAIN = Scale(lambda value: value, lambda value: value, lambda value: 1.0)
POSITIVE = Scale(np.log, np.exp, lambda value: 1 / value)  # above 0


class Ranking(NamedTuple):
    """The images of one class against all others, each ascending by score: what a weighted AUROC needs."""

    positive_groups: np.ndarray  # [P] group of each positive image
    negative_groups: np.ndarray  # [N]
    positives_below: np.ndarray  # [P] how many positive images score less than this positive one
    negatives_below: np.ndarray  # [P] how many negative images score less
    negatives_not_above: np.ndarray  # [P] how many score less or the same


def rank_images(scores: np.ndarray, is_positive: np.ndarray, groups: np.ndarray) -> Ranking:
    """Sort `[n]` scores once for all draws. groups: `[n]` indices from 0."""
    order = np.argsort(scores, kind="stable")
    scores, is_positive, groups = scores[order], is_positive[order], groups[order]
    positives, negatives = scores[is_positive], scores[~is_positive]
    return Ranking(
        positive_groups=groups[is_positive],
        negative_groups=groups[~is_positive],
        positives_below=np.searchsorted(positives, positives, side="left"),
        negatives_below=np.searchsorted(negatives, positives, side="left"),
        negatives_not_above=np.searchsorted(negatives, positives, side="right"),
    )


def ranking_figures(ranking: Ranking, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUROC and AUPRC of each draw, `[draws]` each; NaN where a draw holds one class only.

    AUROC: the share of pairs of a positive and a negative image in which the positive scores higher, ties counting
    half (Hanley & McNeil 1982). AUPRC: average precision, sum of (R_n - R_n-1) P_n over the thresholds, as in
    scikit-learn's `average_precision_score`.
    """
    positive = np.take(weights, ranking.positive_groups, axis=1)  # [draws, P]
    negative_sums = _cumulative(np.take(weights, ranking.negative_groups, axis=1))  # [draws, N + 1]
    positive_sums = _cumulative(positive)
    n_positive, n_negative = positive_sums[:, -1:], negative_sums[:, -1:]

    below = np.take(negative_sums, ranking.negatives_below, axis=1)  # [draws, P]
    pairs_won = np.einsum("ij,ij->i", positive, below)
    if not np.array_equal(ranking.negatives_below, ranking.negatives_not_above):
        not_above = np.take(negative_sums, ranking.negatives_not_above, axis=1)
        pairs_won = (pairs_won + np.einsum("ij,ij->i", positive, not_above)) / 2

    called = n_positive - np.take(positive_sums, ranking.positives_below, axis=1)  # at this image's score or above
    precision = called / np.maximum(called + n_negative - below, 1)
    gained = np.einsum("ij,ij->i", positive, precision)

    pairs = (n_positive * n_negative)[:, 0]
    both = pairs > 0
    auroc, auprc = np.full(len(weights), np.nan), np.full(len(weights), np.nan)
    np.divide(pairs_won, pairs, out=auroc, where=both)
    np.divide(gained, n_positive[:, 0], out=auprc, where=both)
    return auroc, auprc


def class_rates(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Rates of each class against the rest, `[..., k]`, from confusion matrices `[..., k, k]`; NaN where undefined."""
    tp = np.diagonal(counts, axis1=-2, axis2=-1)
    fn = counts.sum(axis=-1) - tp
    fp = counts.sum(axis=-2) - tp
    tn = counts.sum(axis=(-2, -1))[..., None] - tp - fn - fp
    return {
        "sensitivity": ratio(tp, tp + fn),
        "specificity": ratio(tn, tn + fp),
        "precision": ratio(tp, tp + fp),
        "npv": ratio(tn, tn + fn),
        "f1": ratio(2 * tp, 2 * tp + fp + fn),
    }


def matthews_correlation(counts: np.ndarray) -> np.ndarray:
    """MCC `[...]` from confusion matrices `[..., k, k]` (Gorodkin 2004); NaN with one true or one predicted class."""
    true, called, total = counts.sum(axis=-1), counts.sum(axis=-2), counts.sum(axis=(-2, -1))
    covariance = np.trace(counts, axis1=-2, axis2=-1) * total - (true * called).sum(axis=-1)
    spread = (total**2 - (true**2).sum(axis=-1)) * (total**2 - (called**2).sum(axis=-1))
    return ratio(covariance, np.sqrt(spread))


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """NaN where the denominator is 0."""
    shape = np.broadcast_shapes(np.shape(numerator), np.shape(denominator))
    return np.divide(numerator, denominator, out=np.full(shape, np.nan), where=np.asarray(denominator) > 0)


def jackknife(
    figures: Callable[[np.ndarray], dict[Hashable, np.ndarray]], n_groups: int, n_images: int
) -> dict[Hashable, np.ndarray]:
    """Every figure with each group left out in turn, `[n_groups]`.

    `figures` maps weights `[d, n_groups]` to figures of `[d]`.
    More than MOST_PARTS groups are dealt at random, by a fixed seed, into as many parts of nearly equal number, and
    the parts are left out (the delete-a-group jackknife; Kott 2001, Journal of Official Statistics 17:521).
    """
    n_parts = min(n_groups, MOST_PARTS)
    parts = np.random.default_rng(0).permutation(n_groups) % n_parts
    at_once = _rows_at_once(n_groups, n_images)
    starts = range(0, n_parts, at_once)
    left_out = (np.arange(start, min(start + at_once, n_parts)) for start in starts)
    return _join(figures((rows[:, None] != parts).astype(np.float64)) for rows in left_out)


def jackknife_interval(
    value: float, left_out: np.ndarray, n_groups: int, *, unit: str, scale: Scale, why_undefined: str
) -> tuple[float | None, float | None, str | None]:
    """Low end, high end, and, where they are None, the reason in words.

    Student's t on the figure's scale: with SHARE the logit interval of survey statistics (Korn & Graubard 1998, Survey
    Methodology 24:193). Its standard error is the jackknife's, sqrt((n - 1) / n * sum of squared deviations) (Efron &
    Stein 1981), carried over to the scale by the slope there, which is finite even where one group holds all errors.
    Its degrees of freedom are the effective number of groups less one: Kish's (sum of weights)^2 / sum of their squares
    (1965), a group's weight being the absolute deviation that leaving it out makes, times pi / 2, so that n normal
    deviations count as n. Few large groups among many small ones so count as few.
    Chosen by simulated coverage: docs/reporting.md and benchmarks/coverage.py.

    Args:
        left_out: the figure with each group left out, as of `jackknife`.
        unit: what a group is, for the reason: `patients` or `images`.
        why_undefined: in words, where the figure is NaN or infinite without one of the groups.
    """
    if n_groups < LEAST_GROUPS:
        return None, None, f"too few {unit} for an interval"
    if not np.isfinite(left_out).all():
        return None, None, f"no interval: without some of the {unit}, {why_undefined}"
    with np.errstate(divide="ignore", invalid="ignore"):
        centre, slope = scale.forward(np.float64(value)), scale.slope(np.float64(value))
    deviations = left_out - left_out.mean()
    if not np.isfinite(centre) or np.ptp(left_out) <= 1e-12 * max(1.0, abs(value)):
        return None, None, f"no interval: it does not differ between {unit}, so how sure it is cannot be told"
    parts, squares = len(left_out), (deviations**2).sum()
    error = math.sqrt((parts - 1) / parts * squares) * slope
    effective = np.abs(deviations).sum() ** 2 / squares * np.pi / 2
    half = stdtrit(max(min(effective, parts) - 1, 1), (1 + LEVEL) / 2) * error
    low, high = scale.back(centre - half), scale.back(centre + half)
    return float(low), float(high), None


def _rows_at_once(n_groups: int, n_images: int) -> int:
    return max(1, CHUNK_ELEMENTS // max(n_groups, n_images))


def _join(parts: Iterable[dict[Hashable, np.ndarray]]) -> dict[Hashable, np.ndarray]:
    parts = list(parts)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _cumulative(weights: np.ndarray) -> np.ndarray:
    """Running sums along the rows, with a leading 0: `[draws, n]` to `[draws, n + 1]`."""
    sums = np.zeros((len(weights), weights.shape[1] + 1))
    np.cumsum(weights, axis=1, out=sums[:, 1:])
    return sums
