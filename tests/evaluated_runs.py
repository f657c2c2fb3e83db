"""Folders of made-up predictions as runs leave them, to be compared."""

import json

import numpy as np

from cancernet.data.dataset import Patch
from cancernet.evaluation.predictions import Predictions
from cancernet.run import write_predictions

PATIENTS = 12
DECISION = {"temperature": 1.0, "threshold": 0.5, "operating_point": "0.5", "fitted_on": {"images": 20, "patients": 2}}


def make_predictions(seed, strength, classes=("0", "1")) -> Predictions:
    """Twelve patients of ten images; the larger the strength, the better the predictions."""
    labels = np.arange(10 * PATIENTS) % len(classes)
    patches = [
        Patch(f"testing/{classes[label]}/{row}.png", classes[label], f"{row // 10:02}_idx5", None, None, "", "")
        for row, label in enumerate(labels)
    ]
    shared, own = np.random.default_rng(0).normal(size=len(labels)), np.random.default_rng(seed)
    scores = 0.5 * own.normal(size=(len(labels), len(classes))) + strength * np.eye(len(classes))[labels]
    scores[:, 0] += shared
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    return Predictions(patches, labels, probabilities, probabilities.argmax(axis=1))


def write_run(folder, predictions, classes=("0", "1"), **changes):
    """Write predictions.csv, and of report.json what a comparison reads."""
    folder.mkdir(parents=True)
    write_predictions(folder, predictions, classes)
    report = {"name": folder.name, "created": "2026-01-02", "statement": "Tested.", "warnings": []}
    report |= {"classes": list(classes), "class_names": {"0": "benign", "1": "IDC"} if len(classes) == 2 else None}
    report |= {"positive": "1" if len(classes) == 2 else None, "decision": DECISION} | changes
    (folder / "report.json").write_text(json.dumps(report))
    return folder
