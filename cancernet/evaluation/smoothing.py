"""Scores smoothed over the neighbouring patches of a slide, and decisions that are fitted and applied with smoothing.

Patches without a position on a slide are not smoothed.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logit

from cancernet import InputError
from cancernet.data.grid import SlideGrid
from cancernet.evaluation.calibration import IMAGES_PER_PATIENT, log_loss, minimise_log_loss
from cancernet.evaluation.decision import (
    Decision,
    calibrate,
    decide,
    fit_decision,
    parse_operating_point,
    refer_least_certain,
)
from cancernet.evaluation.predictions import Predictions, Scores

SIGMA = 1.0  # default width in patches: it helped on all complete slides tried (docs/recipes.md)
SIGMAS = (0.0, SIGMA, 1.5, 2.0, 3.0)  # widths to choose from; 0 is no smoothing
MIN_SLIDES = 6  # complete ones, for a calibration and a threshold of smoothed scores
# Prior of the factor by which smoothing steepens the calibration: a normal distribution of its logarithm
PRIOR_STEEPENING, PRIOR_LOG_STEEPENING_DEVIATION = 1.25, 0.35  # from simulated cohorts (docs/recipes.md)


def smooth_scores(scores: np.ndarray, slides: Sequence[SlideGrid], sigma: float) -> np.ndarray:
    """Average each patch's score with its neighbours', weighted by a Gaussian of the distance on the grid.

    The average is over logits; with two classes that is the logit difference, whatever constant a row's scores share.
    Grid cells without a patch have no weight: normalized convolution (Knutsson & Westin 1993). Each slide is smoothed
    separately; the rows of other patches stay unchanged. Scores are finite log-probabilities or logits [n, k], and so
    are those returned, float64. Sigma is the standard deviation in patches; 0 changes nothing.
    """
    smoothed = np.array(scores, float)
    for slide in slides if sigma else ():
        grid = np.zeros((*slide.shape, smoothed.shape[1] + 1))
        grid[slide.rows, slide.columns, :-1] = smoothed[slide.members]
        grid[slide.rows, slide.columns, -1] = 1  # occupied
        blurred = gaussian_filter(grid, (sigma, sigma, 0), mode="constant")[slide.rows, slide.columns]
        smoothed[slide.members] = log_softmax(blurred[:, :-1] / blurred[:, -1:], axis=1)
    return smoothed


def choose_sigma(scores: np.ndarray, labels: np.ndarray, slides: Sequence[SlideGrid]) -> float:
    """Choose the width of the smoothing: SIGMA, or another that is clearly better for slides like these.

    Each slide is left out in turn: temperature and biases are fitted to the other slides with the same smoothing, and
    give the log-loss of the left-out slide. Another width is chosen if its log-loss is lower than SIGMA's by more than
    one standard error of the difference over the slides (the one-standard-error rule, Breiman et al. 1984, section
    3.4.3). Fitted to and evaluated on the same slides, a wide smoothing looks better than it is on new ones.

    `scores` are log-probabilities [n, k] and `labels` true classes [n] of validation patches; `slides` are the complete
    ones among these, of which fewer than two give SIGMA.
    """
    if len(slides) < 2:
        return SIGMA
    losses = np.empty((len(SIGMAS), len(slides)))
    for row, sigma in enumerate(SIGMAS):
        smoothed = smooth_scores(scores, slides, sigma)
        for column, left_out in enumerate(slides):
            rest = np.concatenate([slide.members for slide in slides if slide is not left_out])
            calibration = minimise_log_loss(smoothed[rest], labels[rest])
            losses[row, column] = log_loss(calibration, smoothed[left_out.members], labels[left_out.members])[0]
    gains = losses[SIGMAS.index(SIGMA)] - losses
    errors = gains.std(axis=1, ddof=1) / np.sqrt(len(slides))
    clear = {s: gain for s, gain, error in zip(SIGMAS, gains.mean(axis=1), errors, strict=True) if gain > error}
    return max(clear, key=lambda sigma: clear[sigma], default=SIGMA)


def fit_on_validation(
    scores: Scores,
    *,
    classes: Sequence[str],
    positive: str | None,
    operating_point: str,
    neighbours: bool,
    log_class_weight: float = 0.0,
    refer: float | None = None,
) -> Decision:
    """Fit the decision on the validation split: calibration, threshold, and the smoothing over neighbours.

    Where patches have positions, complete slides are smoothed, even if validation itself has none: a width of SIGMA
    needs no fitting, and calibration and threshold are then those of unsmoothed patches. With MIN_SLIDES complete
    slides, smoothed scores get a calibration and a threshold of their own. With fewer, and two classes, the calibration
    of unsmoothed patches becomes steeper (`steepen_calibration`). A decision that smooths also holds the one without
    smoothing. Without `neighbours` none is smoothed; see `fit_decision` for the other settings and errors.
    """
    fit = partial(
        fit_decision,
        classes=classes,
        positive=positive,
        operating_point=operating_point,
        log_class_weight=log_class_weight,
        refer=refer,
    )
    alone = fit(scores)
    if not (neighbours and scores.layout.slides):
        return alone
    complete = [slide for slide in scores.layout.slides if slide.is_complete]
    sigma = choose_sigma(scores.log_probabilities, scores.index_labels(classes), complete)
    if not sigma:
        return alone
    together = alone
    smoothed = smooth_scores(scores.log_probabilities, complete, sigma)
    if len(complete) >= MIN_SLIDES:
        rows = np.concatenate([slide.members for slide in complete])
        together = fit(Scores([scores.patches[row] for row in rows], smoothed[rows]))
    elif complete and positive is not None:
        steeper = steepen_calibration(alone, scores, smoothed, complete)
        if parse_operating_point(operating_point).rule == "balanced":
            fit = partial(fit, operating_point=repr(alone.threshold))  # the share of the positive class is the same
        together = dataclasses.replace(fit(scores, calibration=steeper), operating_point=operating_point)
        if refer is not None:
            of_slides = smoothed[np.concatenate([slide.members for slide in complete])]
            together = refer_least_certain(together, of_slides, refer)
    return dataclasses.replace(together, neighbour_sigma=sigma, without_neighbours=alone)


def steepen_calibration(
    alone: Decision, scores: Scores, smoothed: np.ndarray, slides: Sequence[SlideGrid]
) -> tuple[float, tuple[float, ...]]:
    """Fit the temperature and bias of smoothed scores, which are steeper than those of single patches; two classes.

    Averaging removes noise, so that the same log-odds mean more: m + k (L - m), with L those of `alone`. They are fixed
    where they equal m, those of the mean probability of all patches: a few slides say too little about where
    the classes meet (docs/recipes.md). k is the maximum a posteriori estimate under a log-normal prior. As in
    `calibration.fit_calibration`, a slide counts as at most IMAGES_PER_PATIENT images. `smoothed` are log-probabilities
    [n, 2], and `slides` the complete ones, one at least.
    """
    rows = np.concatenate([slide.members for slide in slides])
    labels = scores.index_labels(alone.classes)[rows]
    middle = float(logit(calibrate(alone, scores.log_probabilities)[:, 1].mean()))
    shifted = (smoothed[rows, 1] - smoothed[rows, 0]) / alone.temperature + alone.bias[1] - middle
    weight = min(1.0, IMAGES_PER_PATIENT * len(slides) / len(rows))

    def negative_log_posterior(log_factor: float) -> float:
        line = np.exp(log_factor) * shifted + middle
        from_prior = (log_factor - np.log(PRIOR_STEEPENING)) / PRIOR_LOG_STEEPENING_DEVIATION
        return float(weight * np.sum(np.logaddexp(0, line) - labels * line) + from_prior**2 / 2)

    factor = float(np.exp(minimize_scalar(negative_log_posterior, bounds=(-3, 3), method="bounded").x))
    return alone.temperature / factor, (0.0, factor * alone.bias[1] + (1 - factor) * middle)


def predict_scores(decision: Decision, scores: Scores, *, threshold: float | None = None) -> Predictions:
    """Calibrate and decide scored patches (`apply_decision`), of unknown true classes where a patch has no label."""
    labels = scores.index_labels(decision.classes) if all(patch.label for patch in scores.patches) else None
    decided = apply_decision(decision, scores.log_probabilities, scores.layout.slides, threshold=threshold)
    return Predictions(scores.patches, labels, *decided, scores.distances)


def apply_decision(
    decision: Decision, scores: np.ndarray, slides: Sequence[SlideGrid], *, threshold: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Calibrate and decide log-probabilities [n, classes]: probabilities float64 [n, classes], class indices [n].

    Where the decision smooths over neighbours, the patches of a complete slide (`SlideGrid.is_complete`) are smoothed
    together. All others are decided by the decision that was fitted without smoothing. A threshold, 0 to 1, is on the
    positive class's probability, in place of the decision's own; InputError for more than two classes.
    """
    if threshold is not None and decision.positive is None:
        raise InputError("A threshold needs a run of two classes; this one decides on the most probable of several.")
    alone = decision.without_neighbours or decision
    probabilities = calibrate(alone, scores)
    predicted = decide(alone, probabilities, threshold)
    complete = [slide for slide in slides if slide.is_complete] if decision.neighbour_sigma else []
    if complete:
        rows = np.concatenate([slide.members for slide in complete])
        smoothed = smooth_scores(scores, complete, decision.neighbour_sigma)
        probabilities[rows] = calibrate(decision, smoothed[rows])
        predicted[rows] = decide(decision, probabilities[rows], threshold)
    return probabilities, predicted
