"""Predictions of made-up images, from their columns."""

import numpy as np

from cancernet.data.dataset import Patch
from cancernet.evaluation.decision import Decision, fit_decision
from cancernet.evaluation.predictions import Predictions, Scores


def predictions_of(labels, probabilities, predicted, patients) -> Predictions:
    """An image's file is its number, and the name of its class is its index."""
    patches = [
        Patch(f"{number}.png", str(label), patient, None, None, "", "")
        for number, (label, patient) in enumerate(zip(labels, patients, strict=True))
    ]
    return Predictions(patches, np.asarray(labels), np.asarray(probabilities, float), np.asarray(predicted))


def two_class_predictions(labels, probability, patients, *, threshold=0.5) -> Predictions:
    """Of two classes, from the probability of class 1."""
    probability = np.asarray(probability, float)
    predicted = (probability >= threshold).astype(int)
    return predictions_of(labels, np.stack([1 - probability, probability], axis=1), predicted, patients)


def fit_arrays(scores, labels, patients, *, classes, **settings) -> Decision:
    """Fit a decision to scores [n, k] of images with these class indices and patients."""
    rows = enumerate(zip(labels, patients, strict=True))
    patches = [Patch(f"{row}.png", classes[label], patient, None, None, "", "") for row, (label, patient) in rows]
    return fit_decision(Scores(patches, np.asarray(scores, float)), classes=classes, **settings)
