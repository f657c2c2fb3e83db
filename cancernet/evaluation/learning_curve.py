"""How well left-out patients are predicted after training on more and more patients, and whether more would help."""

from collections.abc import Sequence

import numpy as np

from cancernet.data.dataset import Patch
from cancernet.evaluation.comparison import subtract
from cancernet.evaluation.evaluate import measure
from cancernet.evaluation.intervals import Measured, jackknife_interval
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
    interval. `subsets` are two or more, the largest last: the number of patients that a model was trained on, and the
    log-probabilities [m, classes] of the patches in each draw.
    """
    computations = {name: METRICS[name].compute for name in SHOWN}
    labels, points, measured = Scores(patches, subsets[0][1][0]).index_labels(classes), [], []
    for patients, draws in subsets:
        predictions = [Predictions(patches, labels, np.exp(scores), scores.argmax(axis=1)) for scores in draws]
        images = [EvaluatedImages.of(each, classes=classes, positive=positive) for each in predictions]
        found = [measure(each, computations) for each in images]
        means = {name: _average([each[name] for each in found]) for name in SHOWN}
        measured.append(means)
        points.append(LearningPoint(patients, *(_estimate(name, means[name]) for name in SHOWN)))
    fewer, most = measured[-2:]
    return LearningCurve(points, {name: subtract(METRICS[name], most[name], fewer[name]) for name in SHOWN})


def _average(draws: Sequence[Measured]) -> Measured:
    values, left_out, _, _ = zip(*draws, strict=True)
    return draws[0]._replace(value=float(np.mean(values)), left_out=np.mean(left_out, axis=0))


def _estimate(name: str, mean: Measured) -> Estimate:
    bounds = jackknife_interval(mean, scale=METRICS[name].scale, why_undefined=ONE_EMPTY)
    return Estimate(mean.value, *bounds)
