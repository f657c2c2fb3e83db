"""Reports made up by hand: what pages and printed text are made of."""


def metric(value, low=None, high=None, reason=None) -> dict:
    return {"value": value, "low": low, "high": high} | ({"reason": reason} if reason else {})


def make_report() -> dict:
    """Five test images of two patients, at a threshold of 0.5: one of two IDC found, two of three benign cleared."""
    third, half = 2 / 3, 0.5
    benign = {"precision": metric(third, 0.5, 1.0), "sensitivity": metric(third, 0.25, 1.0)}
    benign |= {"specificity": metric(half, 0.0, 1.0), "f1": metric(third, 0.4, 1.0), "auroc": metric(5 / 6, 0.5, 1.0)}
    idc = {"precision": metric(half, 0.0, 1.0), "sensitivity": metric(half, 0.0, 1.0)}
    idc |= {"specificity": metric(third, 0.25, 1.0), "f1": metric(half, 0.0, 1.0), "auroc": metric(5 / 6, 0.5, 1.0)}
    counts = [("training", 20, 8, 15, 5), ("validation", 4, 2, 3, 1), ("testing", 5, 2, 3, 2)]
    return {
        "name": "a_run",
        "created": "2026-01-02",
        "statement": "Figures from 5 images of 2 patients that training has not seen (testing).",
        "evaluated_on": "testing",
        "warnings": [],
        "classes": ["0", "1"],
        "class_names": {"0": "benign", "1": "IDC"},
        "positive": "1",
        "interval": {"level": 0.95, "over": "patients", "groups": 40},
        "data": {
            "source_images": 1234,
            "rejected": 3,
            "left_out": 1202,
            "duplicates_across_patients": 0,
            "split_by": "patient",
            "patients_known": True,
            "splits": {
                split: {"images": images, "patients": patients, "classes": {"0": zeros, "1": ones}}
                for split, images, patients, zeros, ones in counts
            },
        },
        "class_weights": {"0": 1.0, "1": 3.0},
        "metrics": {
            "accuracy": metric(0.6, 0.4, 0.8),
            "sensitivity": metric(half, 0.0, 1.0),
            "specificity": metric(third, 0.25, 1.0),
            "precision": metric(half, 0.0, 1.0),
            "ppv": metric(half, 0.0, 1.0),
            "npv": metric(third, 0.5, 1.0),
            "lr_positive": metric(12.345, 1.5, 20.25),
            "auroc": metric(5 / 6, 0.5, 1.0),
            "auprc": metric(0.8, reason="no interval: too few patients"),
            "ece": metric(0.1, 0.05, 0.2),
            "mcc": metric(None, reason="all images decided as one class"),
        },
        "prevalence": None,
        "per_class": {"0": benign | {"images": 3}, "1": idc | {"images": 2}},
        "confusion_matrix": [[2, 1], [1, 1]],
        "calibration": {
            "bins": [{"mean_probability": 0.44, "fraction_positive": 0.4, "images": 5}],
            "n_bins": 1,
            "binning": "equal mass",
        },
        "patients": [
            {"patient": "8863", "images": 3, "tp": 1, "fp": 1, "tn": 1, "fn": 0}
            | {"accuracy": 2 / 3, "sensitivity": 1.0, "specificity": 0.5, "auroc": 1.0},
            {"patient": "8864", "images": 2, "tp": 0, "fp": 0, "tn": 1, "fn": 1}
            | {"accuracy": 0.5, "sensitivity": 0.0, "specificity": 1.0, "auroc": None},
        ],
        "patient_spread": {"accuracy": {"median": 7 / 12, "q1": 0.54, "q3": 0.625, "min": 0.5, "max": 2 / 3}},
        "decision": {
            "temperature": 1.5,
            "threshold": 0.5,
            "operating_point": "balanced",
            "neighbour_sigma": 0.0,
            "fitted_on": {"images": 4, "patients": 2},
        },
        "expected_on_validation": {"sensitivity": 0.75, "specificity": 0.8},
        "training": {"epochs": 2, "kept_epochs": [1, 1], "seconds": 3.2} | {"images_per_second": 12.6, "device": "CPU"},
        "settings": {"model": "cancernet", "weights": None, "seed": 42},
        "worst_errors": [
            {"file": "testing/1/d.png", "kind": "missed", "label": "1", "predicted": "0", "probability": 0.4},
            {"file": "testing/0/<b>.png", "kind": "false alarm", "label": "0", "predicted": "1", "probability": 0.7},
        ],
    }


def make_report_of_three() -> dict:
    """Three classes, patients unknown, no testing split."""
    report = make_report()
    per_class = {name: report["per_class"]["0"] | {"images": 1} for name in ("normal", "benign", "malignant")}
    undefined = metric(None, reason="no image of class malignant")
    per_class["malignant"] = per_class["malignant"] | {"sensitivity": undefined, "images": 0}
    per_class["benign"] = per_class["benign"] | {"sensitivity": metric(0.25, 0.1, 0.4)}
    splits = {"validation": {"images": 2, "patients": 0, "classes": {"normal": 1, "benign": 1, "malignant": 0}}}
    return report | {
        "classes": list(per_class),
        "class_names": None,
        "positive": None,
        "evaluated_on": "validation",
        "chose_model": True,
        "data": report["data"] | {"splits": splits, "patients_known": False, "split_by": "given"},
        "class_weights": None,
        "interval": report["interval"] | {"over": "images"},
        "metrics": {"accuracy": metric(0.5, 0.2, 0.8), "auroc": undefined, "ece": metric(0.1, 0.0, 0.2)},
        "per_class": per_class,
        "confusion_matrix": [[1, 0, 0], [1, 0, 0], [0, 0, 0]],
        "patients": [],
        "patient_spread": {},
        "decision": report["decision"] | {"threshold": None, "fitted_on": {"images": 2, "patients": None}},
        "expected_on_validation": None,
        "training": None,
        "worst_errors": [],
    }
