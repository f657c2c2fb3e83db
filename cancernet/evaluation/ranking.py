"""Areas under the ROC and precision-recall curves, for many weightings of the same images at once."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Areas(NamedTuple):
    """Areas `[rows]` under two curves; NaN in rows whose weights leave one class only."""

    roc: np.ndarray
    precision_recall: np.ndarray


def rank_images(scores: np.ndarray, is_positive: np.ndarray, groups: np.ndarray) -> Callable[[np.ndarray], Areas]:
    """Sort the scores `[n]` of one class against all others once, and return a function of weights `[rows, groups]`.

    AUROC: the share of pairs of a positive and a negative image in which the positive one scores higher, where ties
    count half (Hanley & McNeil 1982). AUPRC: average precision, the sum of (R_n - R_n-1) P_n over the thresholds, as
    scikit-learn's `average_precision_score`. An image counts as much as its group; `groups` `[n]` are indices from 0.
    """
    order = np.argsort(scores, kind="stable")
    scores, is_positive, groups = scores[order], is_positive[order], groups[order]
    positives, negatives = scores[is_positive], scores[~is_positive]
    positive_groups, negative_groups = groups[is_positive], groups[~is_positive]
    positives_below = np.searchsorted(positives, positives)  # [P] how many score less than each positive image
    negatives_below = np.searchsorted(negatives, positives)
    negatives_not_above = np.searchsorted(negatives, positives, side="right")  # [P] less or the same
    has_ties = not np.array_equal(negatives_below, negatives_not_above)

    def weigh(weights: np.ndarray) -> Areas:
        positive = np.take(weights, positive_groups, axis=1)  # [rows, P]
        negative_sums = running_sums(np.take(weights, negative_groups, axis=1))  # [rows, N + 1]
        positive_sums = running_sums(positive)
        n_positive, n_negative = positive_sums[:, -1:], negative_sums[:, -1:]

        below = np.take(negative_sums, negatives_below, axis=1)  # [rows, P]
        pairs_won = np.einsum("ij,ij->i", positive, below)
        if has_ties:
            not_above = np.take(negative_sums, negatives_not_above, axis=1)
            pairs_won = (pairs_won + np.einsum("ij,ij->i", positive, not_above)) / 2

        at_least = n_positive - np.take(positive_sums, positives_below, axis=1)  # positives of this score or above
        precision = at_least / np.maximum(at_least + n_negative - below, 1)
        gained = np.einsum("ij,ij->i", positive, precision)

        both = (n_positive * n_negative)[:, 0] > 0
        areas = Areas(np.full(len(weights), np.nan), np.full(len(weights), np.nan))
        np.divide(pairs_won, (n_positive * n_negative)[:, 0], out=areas.roc, where=both)
        np.divide(gained, n_positive[:, 0], out=areas.precision_recall, where=both)
        return areas

    return weigh


def running_sums(weights: np.ndarray) -> np.ndarray:
    """Sum along the rows, with a leading 0: `[rows, n]` to `[rows, n + 1]`."""
    sums = np.zeros((len(weights), weights.shape[1] + 1))
    np.cumsum(weights, axis=1, out=sums[:, 1:])
    return sums
