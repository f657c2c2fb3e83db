"""Folders of predictions as runs leave them, of made-up answers: what a comparison reads."""

import json

import numpy as np

from cancernet.data.dataset import Patch
from cancernet.evaluation.predictions import Predictions
from cancernet.run import write_predictions

PATIENTS = 12


def make_predictions(seed, strength, classes=("0", "1")) -> Predictions:
    """Twelve patients of ten images; the larger the strength, the better the answers."""
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
    folder.mkdir(parents=True)
    write_predictions(folder, predictions, classes)
    split = {"images": 120, "patients": PATIENTS, "classes": {}}
    data = {"source_images": 120, "rejected": 0, "duplicates_across_patients": 0, "duplicates_across_splits": 0}
    data |= {"left_out": 0, "split_by": "patient", "images_without_patient": 0, "patients_known": True}
    data |= {"splits": dict.fromkeys(("training", "validation", "testing"), split)}
    report = {"name": folder.name, "evaluated_on": "testing", "data": data, "metrics": {}, "per_class": {}}
    report |= {"confusion_matrix": [], "calibration": {}, "prevalence": None, "patients": [], "patient_spread": {}}
    report |= {"interval": {"level": 0.95, "over": "patients", "groups": PATIENTS}, "worst_errors": []}
    report |= {"created": "2026-01-02", "statement": "Tested.", "warnings": [], "classes": list(classes)}
    report |= {"class_names": {"0": "benign", "1": "IDC"} if len(classes) == 2 else None}
    report |= {"positive": "1" if len(classes) == 2 else None, "decision": {"threshold": 0.5}} | changes
    (folder / "report.json").write_text(json.dumps(report))
    return folder
