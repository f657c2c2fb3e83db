"""Learning curve of linear heads: predictions of left-out patients by heads that are fitted to fewer patients."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import log_softmax

from cancernet.data.splits import Fold
from cancernet.training.heads import HeadData, fit_heads

SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4)  # of the patients
DRAWS = 2  # of each share


class SubsetScores(NamedTuple):
    """What heads that are fitted to some of the patients predict for the patients left out."""

    patients: float  # that a head was fitted to: the mean over the folds
    draws: list[np.ndarray]  # log-probabilities [m, classes] of the folds' validation rows, fold after fold


def score_subsets(
    data: HeadData, folds: Sequence[Fold], groups: np.ndarray, left_out: np.ndarray, *, seed: int
) -> list[SubsetScores]:
    """Fit heads to SHARES of the patients, each without one fold, and predict the whole fold.

    A draw takes the first patients of a random order of each fold, so that larger shares contain the smaller ones. The
    strength is chosen as for the members of a run: on the left-out rows of the drawn patients. A share is skipped if a
    head would lack a class.

    `folds` are those of the members of a run, `groups` [n] the patient of each row of the data, and `left_out`
    [m, classes] the log-probabilities of the validation rows, fold after fold, by the heads of the run, which are
    fitted to all patients. Returns the scores from the smallest share to all patients, without the bias of class
    weights.
    """
    found, n_classes, log_weights = [], len(data.class_weights), np.log(data.class_weights)
    for share in SHARES:
        drawn = []
        for draw in range(DRAWS):
            random = np.random.default_rng((seed, draw))
            orders = [random.permutation(np.unique(groups[fold.validation])) for fold in folds]
            within = np.isin(groups, np.concatenate([order[: round(share * len(order))] for order in orders]))
            drawn.append([Fold(*(rows[within[rows]] for rows in fold)) for fold in folds])
        if all(len(set(data.labels[fold.training])) == n_classes for subset in drawn for fold in subset):
            found.append(SubsetScores(_count(drawn[0], groups), [_score(data, folds, subset) for subset in drawn]))
    found.append(SubsetScores(_count(folds, groups), [left_out]))
    return [each._replace(draws=[log_softmax(scores - log_weights, axis=1) for scores in each.draws]) for each in found]


def _count(folds: Sequence[Fold], groups: np.ndarray) -> float:
    return float(np.mean([len(set(groups[fold.training])) for fold in folds]))


def _score(data: HeadData, folds: Sequence[Fold], subset: Sequence[Fold]) -> np.ndarray:
    pairs = zip(fit_heads(data, subset).heads, folds, strict=True)
    predicted = np.concatenate([head.predict(data.features, fold.validation) for head, fold in pairs])
    return np.log(np.maximum(predicted, np.finfo(np.float64).tiny))
