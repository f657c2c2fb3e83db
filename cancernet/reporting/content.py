"""From the scores of a split to its report's numbers; train and evaluate share it."""

import dataclasses
import datetime
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cancernet import InputError
from cancernet.config import SPLITS
from cancernet.data.dataset import Patch, count_patches, is_idc
from cancernet.data.images import decode_image
from cancernet.judging.decision import Decision
from cancernet.judging.metrics import evaluate
from cancernet.judging.smoothing import PREDICTIONS, Predictions, apply_decision, read_predictions, settle_places

_WORST_ERRORS = 12
_HASH_DIGITS = 16  # of SHA-256 that tell images apart


def pool_folds(
    folders: Sequence[Path], *, name: str, data: dict, prevalence: float | None = None
) -> tuple[dict, Predictions]:
    """One report on the test images of all folds, each judged by the run that had not seen it."""
    reports = [json.loads((folder / "report.json").read_text(encoding="utf-8")) for folder in folders]
    classes, positive = reports[0]["classes"], reports[0]["positive"]
    parts = [read_predictions(folder / PREDICTIONS, classes) for folder in folders]
    pooled = Predictions(
        [patch for part in parts for patch in part.patches],
        *(np.concatenate([part[field] for part in parts]) for field in (1, 2, 3)),
    )
    figures = _evaluate(pooled, classes, positive, prevalence)
    table = [
        {"fold": number, "metrics": {key: metric["value"] for key, metric in report["metrics"].items()}}
        for number, report in enumerate(reports, start=1)
    ]
    columns = {
        key: [row["metrics"][key] for row in table if row["metrics"][key] is not None] for key in figures["metrics"]
    }
    known = {key: values for key, values in columns.items() if len(values) > 1}
    return {
        "name": name,
        "created": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "statement": f"Cross-validated in {len(folders)} folds: each of the {_state_unseen(data, pooled.patches)}.",
        "evaluated_on": "all folds",
        "warnings": _warn(data, pooled.patches),
        "classes": classes,
        "class_names": reports[0]["class_names"],
        "positive": positive,
        "data": data,
        **figures,
        "decision": None,
        "cross_validation": {
            "folds": table,
            "mean": {key: float(np.mean(values)) for key, values in known.items()},
            "spread": {key: float(np.std(values, ddof=1)) for key, values in known.items()},
        },
        "class_weights": None,
        "settings": reports[0]["settings"],
        "worst_errors": find_worst_errors(pooled, classes),
    }, pooled


def describe_data(patches: Sequence[Patch], summary: dict) -> dict:
    """The report's part on data: what came in and what is in each split."""
    splits = {split: count_patches([patch for patch in patches if patch.split == split]) for split in SPLITS}
    keys = ("source_images", "rejected", "duplicates_across_patients", "duplicates_across_splits")
    return {key: summary[key] for key in keys} | {
        "left_out": summary["left_out_images"],
        "split_by": summary["split"],
        "images_without_patient": sum(not patch.patient for patch in patches),
        "patients_known": any(patch.patient for patch in patches),
        "splits": splits,
    }


def assess(
    patches: Sequence[Patch],
    scores: np.ndarray,
    decision: Decision,
    *,
    name: str,
    evaluated_on: str,
    data: dict,
    chose_model: bool = False,
    seen: Sequence[str] = (),
    warnings: Sequence[str] = (),
    prevalence: float | None = None,
) -> tuple[dict, Predictions]:
    """The report of one split in the form of report.json, as far as it follows from scores, and its predictions.

    Args:
        chose_model: the split chose the epoch and fixed the decision: there was no testing split.
        seen: what `find_seen` found.
    """
    predictions = apply_decision(decision, patches, scores)
    figures = _evaluate(predictions, decision.classes, decision.positive, prevalence)
    neighbours = None
    if decision.without_neighbours:
        plain = decision.without_neighbours
        without = _evaluate(apply_decision(plain, patches, scores), plain.classes, plain.positive, prevalence)
        neighbours = {"with": figures["metrics"], "without": without["metrics"]}
    return {
        "name": name,
        "created": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "statement": _state(data, evaluated_on, chose_model=chose_model, seen=seen),
        "chose_model": chose_model,
        "evaluated_on": evaluated_on,
        "warnings": [*warnings, *_warn(data, patches)],
        "classes": list(decision.classes),
        "class_names": {"0": "benign", "1": "IDC"} if is_idc(patches) else None,
        "positive": decision.positive,
        "data": data,
        **figures,
        "decision": _describe_decision(decision),
        "expected_on_validation": decision.expected_on_validation,
        "neighbours": neighbours,
        "worst_errors": find_worst_errors(predictions, decision.classes),
    }, predictions


def _evaluate(predictions: Predictions, classes: Sequence[str], positive: str | None, prevalence: float | None) -> dict:
    return evaluate(
        predictions.labels,
        predictions.probabilities,
        predictions.predicted,
        [patch.patient for patch in predictions.patches],
        classes=classes,
        positive=positive,
        prevalence=prevalence,
    )


def _state(data: dict, evaluated_on: str, *, chose_model: bool, seen: Sequence[str]) -> str:
    split = data["splits"][evaluated_on]
    of_whom = f"{split['images']:,} images" + (f" of {split['patients']:,} patients" if split["patients"] else "")
    if chose_model:
        return f"There is no testing split: these figures come from the {of_whom} that chose the model, and flatter it."
    if seen:
        return f"No test: {len(seen):,} of these patients or images were in the run's own training or validation."
    if not split["patients"] or data["split_by"] == "image":
        return f"Tested on {split['images']:,} images that were not trained on."
    return f"Tested on {of_whom} that the model has never seen."


def _state_unseen(data: dict, patches: Sequence[Patch]) -> str:
    """Of all images of a cross-validation, what the model that judged each had not seen."""
    images, judged = f"{len(patches):,} images", "was judged by a model that had not seen"
    if data["split_by"] == "image" or not data["patients_known"]:
        return f"{images} {judged} it in training"
    if data["images_without_patient"]:
        return f"{images} {judged} it in training, nor its patient where that is known"
    return f"{images} of {len({patch.patient for patch in patches}):,} patients {judged} its patient"


def _warn(data: dict, patches: Sequence[Patch]) -> list[str]:
    warnings = []
    _, unplaceable = settle_places(patches)
    if unplaceable:
        warnings.append(
            f"{len(unplaceable):,} slide(s) are judged patch by patch, without neighbours or a map. First: "
            f"{next(iter(unplaceable.values()))}"
        )
    if data["patients_known"] and data["images_without_patient"]:
        warnings.append(
            f"The patient of {data['images_without_patient']:,} images is unknown; each of them counts as its own."
        )
    if data["duplicates_across_splits"]:
        warnings.append(f"{data['duplicates_across_splits']:,} images lie in two splits with the same bytes: a leak.")
    return warnings


def flatten(settings: dict, prefix: str = "") -> dict:
    """Nested settings as one level of `part.name`."""
    flat = {}
    for key, value in settings.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


def _describe_decision(decision: Decision) -> dict:
    left_out = ("curve", "without_neighbours", "expected_on_validation")
    return {key: value for key, value in dataclasses.asdict(decision).items() if key not in left_out}


def find_worst_errors(predictions: Predictions, classes: Sequence[str]) -> list[dict]:
    """The wrong answers that give the class they say the highest probability, the highest first."""
    rows = np.arange(len(predictions.labels))
    sureness = predictions.probabilities[rows, predictions.predicted]
    wrong = rows[predictions.predicted != predictions.labels]
    worst = wrong[np.argsort(-sureness[wrong], kind="stable")][:_WORST_ERRORS]
    return [
        {
            "file": predictions.patches[row].file,
            "label": classes[predictions.labels[row]],
            "predicted": classes[predictions.predicted[row]],
            "probability": float(sureness[row]),
        }
        for row in worst
    ]


def read_worst_errors(report: dict, dataset: Path) -> list[np.ndarray]:
    """The pictures of the report's worst errors, uint8 [height, width, 3]."""
    return [decode_image((dataset / error["file"]).read_bytes(), channels=3) for error in report["worst_errors"]]


def describe_seen(patches: Sequence[Patch]) -> dict:
    """What a run has seen in training and validation: `patients`, and `images`, their hashes' beginnings in a row.

    One string is read ten times faster than a list of 250,000.
    """
    seen = [patch for patch in patches if patch.split != "testing"]
    return {
        "patients": sorted({patch.patient for patch in seen if patch.patient}),
        "images": "".join(sorted({patch.sha256[:_HASH_DIGITS] for patch in seen})),
    }


def find_seen(config: dict, patches: Sequence[Patch]) -> list[str]:
    """Patients that the run of this config was trained or validated on, and files of such images of others.

    An image is known by its bytes, whatever its patient is called in the dataset that it now comes from.
    """
    patients, hashes = set(config["seen"]["patients"]), config["seen"]["images"]
    images = {hashes[start : start + _HASH_DIGITS] for start in range(0, len(hashes), _HASH_DIGITS)}
    found = {patch.patient for patch in patches if patch.patient in patients}
    found |= {
        patch.file for patch in patches if patch.patient not in patients and patch.sha256[:_HASH_DIGITS] in images
    }
    return sorted(found)


def check_same_kind(config: dict, patches: Sequence[Patch], summary: dict) -> None:
    """See that a run can judge these patches.

    Raises:
        InputError: classes that the run does not know, or grey images for colour ones or the reverse.
    """
    unknown = {patch.label for patch in patches} - set(config["classes"])
    if unknown:
        raise InputError(f"The run knows the classes {', '.join(config['classes'])}, not {', '.join(sorted(unknown))}.")
    kinds = {True: "grey", False: "colour"}
    trained, given = config["images_are_grey"], are_grey(summary)
    if trained != given:
        raise InputError(
            f"The run was trained on {kinds[trained]} images; these are {kinds[given]}. Train another run."
        )


def are_grey(summary: dict) -> bool:
    """Whether most images of a dataset are grey."""
    return 2 * summary["grey_images"] > summary["images"]


def compare_sizes(config: dict, summary: dict) -> list[str]:
    """A warning where images are of another usual size than those the run was trained on: probably another scale."""
    usual = next(iter(summary["sizes"]))
    if usual == config["usual_size"]:
        return []
    return [f"The images are {usual} pixels, those in training were {config['usual_size']}: is the scale the same?"]
