"""How well left-out patients are predicted after training on more and more patients, and whether more would help."""

from collections.abc import Sequence

import numpy as np

from cancernet.data.dataset import Patch
from cancernet.evaluation.comparison import estimate_difference
from cancernet.evaluation.evaluate import measure
from cancernet.evaluation.intervals import jackknife_interval
from cancernet.evaluation.metrics import METRICS, ONE_EMPTY
from cancernet.evaluation.predictions import Predictions, Scores
from cancernet.evaluation.results import Estimate, LearningCurve, LearningPoint
from cancernet.evaluation.tables import EvaluatedImages

SHOWN = ("auroc", "log_loss")


def trace_learning_curve(
    subsets: Sequence[tuple[float, Sequence[np.ndarray]]],
    patches: Sequence[Patch],
    classes: Sequence[str],
    positive: str | None,
) -> LearningCurve:
    """Estimate AUROC and log-loss by number of training patients, with 95% intervals over the predicted patients.

    A figure is the mean over the draws of a subset. The change from the last subset but one to all has a paired
    interval.

    Args:
        subsets: two or more, the largest last: number of patients that a model was trained on, and of each draw the
            log-probabilities [m, classes] of the patches.
    """
    measured = []
    for _, draws in subsets:
        found = []
        for scores in draws:
            labels = Scores(patches, scores).index_labels(classes)
            predictions = Predictions(patches, labels, np.exp(scores), scores.argmax(axis=1))
            images = EvaluatedImages.of(predictions, classes=classes, positive=positive)
            found.append(measure(images, {name: METRICS[name].compute for name in SHOWN}))
        values = {name: float(np.mean([each[name] for each, _ in found])) for name in SHOWN}
        measured.append((values, {name: np.mean([each[name] for _, each in found], axis=0) for name in SHOWN}))

    def estimate(name: str, values: dict[str, float], left_out: dict[str, np.ndarray]) -> Estimate:
        bounds = jackknife_interval(
            values[name],
            left_out[name],
            images.n_groups,
            unit=images.unit,
            scale=METRICS[name].scale,
            why_undefined=ONE_EMPTY,
        )
        return Estimate(values[name], *bounds)

    points = [
        LearningPoint(patients, *(estimate(name, *each) for name in SHOWN))
        for (patients, _), each in zip(subsets, measured, strict=True)
    ]
    (fewer, without_fewer), (most, without_most) = measured[-2:]
    change = {
        name: estimate_difference(
            METRICS[name],
            most[name] - fewer[name],
            without_most[name] - without_fewer[name],
            n_groups=images.n_groups,
            unit=images.unit,
        )
        for name in SHOWN
    }
    return LearningCurve(points, change)
