"""Neighbours on a slide: scores smoothed over its grid, the decision fitted with them, and applied to slides.

A patch that lies on no slide is judged alone.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.special import log_softmax

from cancernet import InputError
from cancernet.data.dataset import Patch
from cancernet.data.grid import LEAST_NEIGHBOURS, Layout, SlideGrid, lay_out_patches
from cancernet.judging.calibration import least_log_loss
from cancernet.judging.decision import Decision, calibrate, decide, fit_decision

SIGMAS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)  # patches; 0 is no smoothing
TIE = 1e-6  # log losses that differ by less are equal
KERNEL_REACH = 4.0  # the Gaussian is cut off at so many sigma


class Predictions(NamedTuple):
    """What a frozen decision says of the patches of one split, row by row."""

    patches: Sequence[Patch]
    labels: np.ndarray  # class index [n]
    probabilities: np.ndarray  # calibrated [n, classes]
    predicted: np.ndarray  # class index [n]


def smooth_scores(scores: np.ndarray, slides: Sequence[SlideGrid], sigma: float) -> np.ndarray:
    """Average each patch's score with its neighbours', weighted by a Gaussian of the distance on the grid.

    What is averaged are logits: with two classes the logit difference, whatever constant a row's scores share.
    Places without a patch weigh nothing: normalised convolution (Knutsson & Westin 1993). A slide
    is smoothed on its own.

    Args:
        scores: [n, k] log-probabilities of k classes, or logits; finite.
        slides: those that are smoothed; patches of no slide keep their row as it came.
        sigma: standard deviation in patches; 0 returns the scores unchanged.

    Returns:
        float64 [n, k] log-probabilities.

    Raises:
        InputError: a sigma below 0.
    """
    scores = np.asarray(scores, float)
    if sigma < 0:
        raise InputError(f"Sigma is {sigma}. Give 0 (no smoothing) or a number of patches above it.")
    smoothed = scores.copy()
    for slide in slides if sigma else ():
        grid = np.zeros((*slide.shape, scores.shape[1] + 1))
        grid[slide.rows, slide.columns, :-1] = scores[slide.members]
        grid[slide.rows, slide.columns, -1] = 1  # occupied
        blurred = gaussian_filter(grid, (sigma, sigma, 0), mode="constant", truncate=KERNEL_REACH)
        blurred = blurred[slide.rows, slide.columns]
        smoothed[slide.members] = log_softmax(blurred[:, :-1] / blurred[:, -1:], axis=1)
    return smoothed


def choose_sigma(scores: np.ndarray, labels: np.ndarray, layout: Layout) -> float:
    """Width of the smoothing that fits the validation slides best, one of SIGMAS; 0 where none helps.

    The criterion is the log loss of the placed patches after each candidate has had its own best calibration, a
    temperature and biases as in `cancernet.judging.decision`: smoothing draws scores together, and without that it
    would be praised or blamed for the calibration it happens to bring. Of equals the narrowest wins. 0 is also the
    answer where the patches have fewer than LEAST_NEIGHBOURS neighbours on average: with gaps that large the slides
    say nothing of complete ones.

    Args:
        scores: [n, k] log-probabilities of validation patches.
        labels: [n] index of the true class.
    """
    if layout.mean_neighbours < LEAST_NEIGHBOURS:
        return 0.0
    placed = np.sort(np.concatenate([slide.members for slide in layout.slides]))
    best, least = 0.0, np.inf
    for sigma in SIGMAS:
        loss = least_log_loss(smooth_scores(scores, layout.slides, sigma)[placed], labels[placed])
        if loss < least - TIE:
            best, least = sigma, loss
    return best


def fit_on_validation(
    patches: Sequence[Patch],
    scores: np.ndarray,
    *,
    classes: Sequence[str],
    positive: str | None,
    operating_point: str,
    neighbours: bool,
    log_class_weight: float = 0.0,
) -> Decision:
    """Fix the decision on the validation split: width of the smoothing, calibration and threshold.

    Where neighbours are used the decision also holds the one without them.

    Args:
        scores: log-probabilities [n, classes] in the order of `patches`.
        positive: one of two classes, which the operating point is of; None of more.
        operating_point: as `decision.parse_operating_point` takes it.
        neighbours: whether smoothing over a slide's neighbours may be chosen.
        log_class_weight: of two classes, as `decision.fit_decision` takes it.
    """
    labels = np.array([classes.index(patch.label) for patch in patches], dtype=int)
    layout = lay_out_patches(patches)

    def fit(sigma: float) -> Decision:
        return fit_decision(
            smooth_scores(scores, layout.slides, sigma),
            labels,
            [patch.patient for patch in patches],
            classes=classes,
            positive=positive,
            operating_point=operating_point,
            neighbour_sigma=sigma,
            log_class_weight=log_class_weight,
        )

    sigma = choose_sigma(scores, labels, layout) if neighbours else 0.0
    alone = fit(0.0)
    return dataclasses.replace(fit(sigma), without_neighbours=alone) if sigma else alone


def predict_split(decision: Decision, patches: Sequence[Patch], scores: np.ndarray, layout: Layout) -> Predictions:
    """What a frozen decision says of the patches of a split, beside their true classes.

    Args:
        scores: log-probabilities [n, classes] in the order of `patches`.
        layout: of `patches`.
    """
    if len(patches) != len(scores):
        raise ValueError(f"{len(patches)} patches but {len(scores)} scores")
    labels = np.array([decision.classes.index(patch.label) for patch in patches], dtype=int)
    return Predictions(patches, labels, *apply_decision(decision, scores, layout.slides))


def apply_decision(
    decision: Decision, scores: np.ndarray, slides: Sequence[SlideGrid], *, threshold: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated probabilities float64 [n, classes] and decided class indices [n] of scored patches.

    Where the decision smooths over neighbours, the patches of a slide are smoothed together. Patches on no slide,
    and slides with too many gaps (`SlideGrid.is_complete`), are judged by the decision that was fitted without
    neighbours.

    Args:
        scores: log-probabilities [n, classes].
        slides: those laid out among the n patches.
        threshold: on the positive class's probability, in place of the decision's own; 0 to 1.

    Raises:
        InputError: a threshold for more than two classes.
    """
    if threshold is not None and decision.positive is None:
        raise InputError("A threshold needs a run of two classes; this one takes the most probable of several.")
    alone = decision.without_neighbours or decision
    probabilities = calibrate(alone, scores)
    predicted = decide(alone, probabilities, threshold)
    if not decision.neighbour_sigma:
        return probabilities, predicted
    complete = [slide for slide in slides if slide.is_complete]
    smoothed = smooth_scores(scores, complete, decision.neighbour_sigma)
    for slide in complete:
        probabilities[slide.members] = calibrate(decision, smoothed[slide.members])
        predicted[slide.members] = decide(decision, probabilities[slide.members], threshold)
    return probabilities, predicted
