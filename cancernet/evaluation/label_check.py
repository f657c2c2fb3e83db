"""Which labels to look at again: those that predictions of the images contradict."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cancernet.evaluation.predictions import Predictions


@dataclass(frozen=True)
class SuspiciousLabel:
    """An image whose label may be wrong: one row of labels_to_check.csv."""

    file: str
    patient: str  # "" if unknown
    label: str
    suggested: str  # the class that the predictions suggest
    probability_of_label: float
    probability_of_suggested: float


def find_suspicious_labels(predictions: Predictions, classes: Sequence[str]) -> list[SuspiciousLabel]:
    """Find the images whose label is probably wrong (confident learning), the most suspicious first.

    The threshold of a class is the mean probability of that class over the images with its label. An image belongs
    confidently to the most probable of the classes whose threshold it reaches. It is suspicious if this is not its
    label, and its label is not its most probable class either. Images are sorted by the normalised margin: the
    probability of the label minus the highest probability.

    Northcutt, Jiang and Chuang, "Confident learning: estimating uncertainty in dataset labels", JAIR 2021, sections 3.1
    (the confident joint) and 3.2 (its off-diagonal entries); that the label is not the most probable class is required
    as in cleanlab 2.9. The network must not have been trained on these images, or it has learned the wrong labels, too.
    """
    probabilities, labels, rows = predictions.probabilities, predictions.labels, np.arange(len(predictions.labels))
    own = probabilities[rows, labels]
    images = np.bincount(labels, minlength=len(classes))
    thresholds = np.bincount(labels, weights=own, minlength=len(classes)) / np.maximum(images, 1)
    confident = (probabilities >= thresholds) & (images > 0)
    suggested = np.where(confident, probabilities, -1).argmax(axis=1)
    highest = probabilities.max(axis=1)
    suspicious = np.flatnonzero(confident.any(axis=1) & (suggested != labels) & (own < highest))
    order = suspicious[np.argsort((own - highest)[suspicious], kind="stable")]
    found = []
    for row in order:
        patch, other = predictions.patches[row], suggested[row]
        shares = float(own[row]), float(probabilities[row, other])
        found.append(SuspiciousLabel(patch.file, patch.patient, patch.label, classes[other], *shares))
    return found
