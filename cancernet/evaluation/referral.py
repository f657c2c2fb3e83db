"""The images that a decision is least certain of: which they are, and what referring them to a person would achieve."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from cancernet.data.grid import SlideGrid
from cancernet.evaluation.decision import Decision, measure_certainty
from cancernet.evaluation.evaluate import Figure, estimate_figures
from cancernet.evaluation.predictions import Predictions
from cancernet.evaluation.ranking import running_sums
from cancernet.evaluation.rates import ratio
from cancernet.evaluation.results import Referral, Referred, RiskPoint
from cancernet.evaluation.tables import EvaluatedImages, WeightedImages

UNCERTAIN = "uncertain"  # the answer for an image that is referred to a person
STEPS = 20  # of the risk-coverage curve
REFERRED = (1, 2, 4)  # of these steps, in the table: 5, 10 and 20% of the images
BAND = 0  # in place of the step that keeps no image: what the decision keeps

Sums = Mapping[str, np.ndarray]  # by the names in `_list_cells`

_RATES = {  # shares of the images that are kept: those counted, those among which they are, and why none may be
    "error": ("wrong", "all", "no image is kept"),
    "sensitivity": ("true positives", "positive", "no positive image is kept"),
    "specificity": ("true negatives", "negative", "no negative image is kept"),
    "ppv": ("true positives", "predicted positive", "no image that is kept was classified as positive"),
}


class Certainty(NamedTuple):
    """How certain a decision is of n images."""

    values: np.ndarray  # [n], see `decision.measure_certainty`
    uncertain: np.ndarray | None  # bool [n]: to be referred to a person; None for a decision that refers none


def find_uncertain(
    decision: Decision,
    probabilities: np.ndarray,
    slides: Sequence[SlideGrid],
    *,
    distances: np.ndarray | None = None,
    threshold: float | None = None,
) -> Certainty:
    """Measure the certainty of decided images, and find those that the decision refers to a person.

    These are the images below its limit of certainty, and all that are out of distribution: their distance [n] is above
    1 (None or NaN where it was not measured). `probabilities` are calibrated [n, k], from `smoothing.apply_decision`,
    which also describes `slides` and `threshold`.
    """
    alone = decision.without_neighbours or decision
    values = measure_certainty(alone, probabilities, threshold)
    limits = np.full(len(values), alone.uncertain_below, dtype=float)
    for slide in slides if decision.neighbour_sigma else ():
        if slide.is_complete:
            values[slide.members] = measure_certainty(decision, probabilities[slide.members], threshold)
            limits[slide.members] = decision.uncertain_below
    if decision.uncertain_below is None:
        return Certainty(values, None)
    uncertain = values < limits
    return Certainty(values, uncertain if distances is None else uncertain | (distances > 1))


def evaluate_referral(
    predictions: Predictions, certainty: Certainty, *, classes: Sequence[str], positive: str | None
) -> Referral:
    """Estimate what is left where the least certain images are referred to a person, with intervals as `evaluate`.

    The risk-coverage curve is the share of errors among the most certain images (El-Yaniv & Wiener 2010, Journal of
    Machine Learning Research 11:1605). Where the jackknife leaves out a patient, the same share of the other images is
    referred, so the cut moves. The decision's own limit of certainty is fixed.
    """
    images = EvaluatedImages.of(predictions, classes=classes, positive=positive)
    cells, uncertain = _list_cells(images), certainty.uncertain
    ranks = np.argsort(np.argsort(-certainty.values, kind="stable"))  # 0 is the most certain image
    kept = {step: ranks * STEPS < step * len(ranks) for step in range(1, STEPS + 1)}
    if uncertain is not None:
        kept[BAND] = ~uncertain
    sum_kept = _rank_images(images, certainty, cells)
    tables = {BAND, *(STEPS - steps for steps in REFERRED)}
    figures = {
        (step, name): figure
        for step, rows in kept.items()
        for name, figure in _list_figures(cells, rows, sum_kept, step).items()
        if name == "error" or step in tables
    }
    found = estimate_figures(images, figures)

    def collect(step: int, share: float) -> Referred:
        return Referred(share, **{name: found[step, name] for at, name in found if at == step})

    return Referral(
        curve=[RiskPoint(step / STEPS, found[step, "error"]) for step in range(STEPS, 0, -1)],
        table=[collect(STEPS - steps, steps / STEPS) for steps in REFERRED],
        band=None if uncertain is None else collect(BAND, float(uncertain.mean())),
    )


def _list_cells(images: EvaluatedImages) -> dict[str, np.ndarray]:
    """Divide the images into disjoint sets, bool [n] each: right and wrong, of two classes of each true class."""
    wrong = images.predicted != images.labels
    if images.positive is None:
        return {"right": ~wrong, "wrong": wrong}
    positive = images.labels == images.positive
    of_positive = {"true positives": positive & ~wrong, "false negatives": positive & wrong}
    return of_positive | {"true negatives": ~positive & ~wrong, "false positives": ~positive & wrong}


def _add_cells(cells: Sums) -> dict[str, np.ndarray]:
    """Add up the numbers of images that `_RATES` names; without rounding errors where one of two numbers is 0."""
    if "wrong" in cells:
        return {"wrong": cells["wrong"], "all": cells["wrong"] + cells["right"]}
    tp, fn, tn, fp = cells.values()
    sums = {"true positives": tp, "positive": tp + fn, "predicted positive": tp + fp}
    sums |= {"true negatives": tn, "negative": tn + fp}
    return sums | _add_cells({"wrong": fn + fp, "right": tp + tn})


def _rank_images(
    images: EvaluatedImages, certainty: Certainty, cells: Sums
) -> Callable[[WeightedImages], dict[str, np.ndarray]]:
    """Return a function that sums the weights of the images kept: `[rows, STEPS + 1]` by the names in `_add_cells`.

    A column is a step of the curve, and BAND what the decision keeps. Of equally certain images at a cut the same share
    counts, whatever their order.
    """
    order = np.argsort(-certainty.values, kind="stable")
    ends = np.flatnonzero(np.diff(certainty.values[order], prepend=np.nan, append=np.nan))  # of equal ones, from 0
    groups = images.groups[order]
    before = {name: np.append(0, np.cumsum(rows[order]))[ends] for name, rows in cells.items()}
    groups_of = {name: groups[rows[order]] for name, rows in cells.items()}
    band = certainty.uncertain if certainty.uncertain is not None else np.ones(len(order), dtype=bool)
    in_band = {name: images.sum_by_group(rows & ~band) for name, rows in cells.items()}

    @lru_cache(maxsize=1)  # all figures of one weighting are computed in turn
    def sum_kept(weighted: WeightedImages) -> dict[str, np.ndarray]:
        total = running_sums(np.take(weighted.weights, groups, axis=1))[:, ends]
        covered = np.arange(STEPS + 1) * total[:, -1:] / STEPS
        after = np.array([np.searchsorted(*each) for each in zip(total, covered, strict=True)])
        ends_around = (np.maximum(after - 1, 0), after)
        low, high = (np.take_along_axis(total, each, axis=1) for each in ends_around)
        part = np.divide(covered - low, high - low, out=np.zeros(covered.shape), where=high > low)
        found = {}
        for name, of in groups_of.items():
            sums = running_sums(np.take(weighted.weights, of, axis=1))
            low, high = (np.take_along_axis(sums, before[name][each], axis=1) for each in ends_around)
            found[name] = low + part * (high - low)
            found[name][:, BAND] = weighted.weights @ in_band[name]
        return _add_cells(found)

    return sum_kept


def _list_figures(
    cells: Sums, kept: np.ndarray, sum_kept: Callable[[WeightedImages], Sums], step: int
) -> dict[str, Figure]:
    """List the figures of `Referred` if all images are referred but those `kept`, bool [n]."""

    def share(weighted: WeightedImages, counts: str, among: str) -> np.ndarray:
        sums = sum_kept(weighted)
        return ratio(sums[counts][:, step], sums[among][:, step])

    def catch(weighted: WeightedImages) -> np.ndarray:
        wrong = weighted.total - np.trace(weighted.counts, axis1=1, axis2=2)
        return 1 - ratio(sum_kept(weighted)["wrong"][:, step], wrong)

    rows = _add_cells(cells)  # of bool: or
    figures = {"caught": Figure(catch, "no image was classified wrongly", of=rows["wrong"])}
    for name, (counts, among, why) in _RATES.items():
        if among in rows:
            figures[name] = Figure(partial(share, counts=counts, among=among), why, of=rows[among] & kept)
    return figures
