"""From the scores of a split to its report: every figure and sentence that follows from them."""

import dataclasses
import datetime
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NotRequired

import numpy as np
from typing_extensions import TypedDict  # of which pydantic can read a field's types before Python 3.12

from cancernet.config import SPLITS
from cancernet.data.dataset import Patch, Summary, count_patches, name_classes
from cancernet.data.grid import Layout, lay_out_patches
from cancernet.data.images import read_image
from cancernet.evaluation.comparison import compare_figures
from cancernet.evaluation.decision import Decision, decide_otherwise, expected_rates
from cancernet.evaluation.evaluate import evaluate, evaluate_points
from cancernet.evaluation.predictions import Predictions, Scores, pool_predictions
from cancernet.evaluation.results import as_json
from cancernet.evaluation.smoothing import predict_scores
from cancernet.explain.outside import find_outside
from cancernet.reporting.montages import FALSE_ALARM, MISSED, WRONG
from cancernet.reporting.wording import counted, warn_of_change
from cancernet.run import read_predictions, read_report

OTHERS_TOO = {"extra": "allow"}  # a report of another version may have fields that this one does not know
_WORST_ERRORS = 6  # of each kind


class Metric(TypedDict):
    """A figure with its interval; what is undefined is None."""

    value: float | None
    low: float | None
    high: float | None
    reason: NotRequired[str]  # why something is None
    __pydantic_config__ = OTHERS_TOO


class Interval(TypedDict):
    """Which intervals the figures have."""

    level: float  # share of such intervals that hold the true value
    over: str  # what is left out in turn: patients or images
    groups: int  # how many of those
    __pydantic_config__ = OTHERS_TOO


class Split(TypedDict):
    """The fields of `dataset.Counts`."""

    images: int
    patients: int
    classes: dict[str, int]
    images_without_patient: NotRequired[int]
    __pydantic_config__ = OTHERS_TOO


class Splits(TypedDict):
    """What is in each split."""

    training: Split
    validation: Split
    testing: Split
    __pydantic_config__ = OTHERS_TOO


class Data(TypedDict):
    """What came in and what is in each split."""

    source_images: int
    rejected: int
    duplicates_across_patients: int
    duplicates_across_splits: int
    left_out: int
    split_by: str
    images_without_patient: int
    patients_known: bool
    splits: Splits
    __pydantic_config__ = OTHERS_TOO


class Heading(TypedDict):
    """What of a report is needed to set it beside others."""

    created: str  # a date
    statement: str
    warnings: list[str]
    classes: list[str]
    class_names: dict[str, str] | None
    positive: str | None
    decision: dict | None
    __pydantic_config__ = OTHERS_TOO


class Report(Heading):
    """report.json; see docs/reporting.md. What not every report has may be missing."""

    name: str
    title: NotRequired[str]  # of an evaluation
    chose_model: NotRequired[bool]
    evaluated_on: str
    data: Data
    metrics: dict[str, Metric]
    per_class: dict[str, dict]
    confusion_matrix: list[list[int]]
    calibration: dict
    interval: Interval
    prevalence: dict | None
    patients: list[dict]
    patient_spread: dict
    expected_on_validation: NotRequired[dict[str, float] | None]
    neighbours: NotRequired[dict | None]
    operating_points: NotRequired[list[dict] | None]
    cross_validation: NotRequired[dict]
    worst_errors: list[dict]
    outside: NotRequired[dict | None]
    class_weights: NotRequired[dict[str, float] | None]
    training: NotRequired[dict]
    settings: NotRequired[dict]
    slides: NotRequired[list[dict[str, str]]]
    gradcam: NotRequired[list[dict[str, str]]]
    __pydantic_config__ = OTHERS_TOO


class Subject(NamedTuple):
    """What a report is about, beside patches and scores."""

    name: str
    evaluated_on: str  # the split, or `all folds`, or `folds 1, 2 of 5`
    data: Data
    made: Mapping = {}
    chose_model: bool = False  # the split chose the epoch and fixed the decision: there was no testing split
    seen: Sequence[str] = ()  # what `run.find_seen` found
    warnings: Sequence[str] = ()
    prevalence: float | None = None
    dataset: str = ""  # of an evaluation: what the run is applied to


class Assessment(NamedTuple):
    """A report, what it is of, and where its patches lie."""

    report: Report
    predictions: Predictions
    layout: Layout


def assess(patches: Sequence[Patch], scores: np.ndarray, decision: Decision, subject: Subject) -> Assessment:
    """Judge one split by a frozen decision.

    Args:
        scores: log-probabilities [n, classes] in the order of `patches`.
    """
    scored = Scores(patches, scores)
    layout = scored.layout
    predictions = predict_scores(decision, scored)
    figures = _evaluate(predictions, decision.classes, decision.positive, subject.prevalence)
    alone, neighbours = decision.without_neighbours, None
    if alone:
        without = predict_scores(alone, scored)
        figures_alone = _evaluate(without, alone.classes, alone.positive, subject.prevalence)
        (difference,) = compare_figures([without, predictions], classes=alone.classes, positive=alone.positive)
        neighbours = {
            "with": figures["metrics"],
            "without": figures_alone["metrics"],
            "difference": as_json(difference),
        }
    report: Report = {
        "name": subject.name,
        "created": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "statement": _state(subject),
        "chose_model": subject.chose_model,
        "evaluated_on": subject.evaluated_on,
        "warnings": [
            *(warn_of_change(figures["metrics"], decision.expected_on_validation) if subject.dataset else ()),
            *subject.warnings,
            *_warn(subject.data, layout),
        ],
        "classes": list(decision.classes),
        "class_names": name_classes(patches),
        "positive": decision.positive,
        "data": subject.data,
        **figures,
        "decision": _describe_decision(decision),
        "expected_on_validation": decision.expected_on_validation,
        "neighbours": neighbours,
        "operating_points": _compare_points(decision, predictions, scored),
        "worst_errors": find_worst_errors(predictions, decision.classes, decision.positive),
        **subject.made,
    }
    if subject.dataset:
        report["title"] = f"Evaluation of {subject.name} on {subject.dataset}"
    return Assessment(report, predictions, layout)


def pool_folds(folders: Sequence[Path], patches: Sequence[Patch], subject: Subject) -> Assessment:
    """Judge the test images of all folds together, each by the run that had not seen it.

    Args:
        folders: of the folds' runs, `fold_1` and so on.
        patches: all rows of the manifest.
    """
    reports = [read_report(folder, Report) for folder in folders]
    classes, positive = reports[0]["classes"], reports[0]["positive"]
    row_of = {patch.file: patch for patch in patches}
    pooled = pool_predictions([read_predictions(folder, classes) for folder in folders])
    pooled = dataclasses.replace(pooled, patches=[row_of[patch.file] for patch in pooled.patches])
    layout = lay_out_patches(pooled.patches)
    figures = _evaluate(pooled, classes, positive, subject.prevalence)
    how = f"in {len(folders)} folds" if subject.evaluated_on == "all folds" else f"on {subject.evaluated_on}"
    report: Report = {
        "name": subject.name,
        "created": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "statement": f"Cross-validated {how}: each of the {_state_unseen(subject.data, pooled.patches)}.",
        "evaluated_on": subject.evaluated_on,
        "warnings": _warn(subject.data, layout),
        "classes": classes,
        "class_names": reports[0]["class_names"],
        "positive": positive,
        "data": subject.data,
        **figures,
        "decision": None,
        "cross_validation": _describe_folds(folders, reports, figures["metrics"]),
        "class_weights": None,
        "settings": reports[0]["settings"],
        "worst_errors": find_worst_errors(pooled, classes, positive),
    }
    return Assessment(report, pooled, layout)


def _compare_points(decision: Decision, predictions: Predictions, scores: Scores) -> list[dict] | None:
    """A row for the threshold in use and for each of the decision's others; None where it has none."""
    if not decision.other_points:
        return None
    own = f"{decision.operating_point} (in use)"
    predicted = {own: predictions.predicted}
    for name in decision.other_points:
        predicted[name] = predict_scores(decide_otherwise(decision, name), scores).predicted
    rates = as_json(evaluate_points(predictions, predicted, classes=decision.classes, positive=decision.positive))
    thresholds = {own: decision.threshold, **decision.other_points}
    return [
        {"name": name, "threshold": threshold, "on_validation": expected_rates(decision, threshold), **rates[name]}
        for name, threshold in thresholds.items()
    ]


def _describe_folds(folders: Sequence[Path], reports: Sequence[Report], names: Iterable[str]) -> dict:
    """The figures of each fold, and their mean and standard deviation over the folds that have them."""
    table = [
        {
            "fold": int(folder.name.rpartition("_")[2]),
            "metrics": {key: metric["value"] for key, metric in report["metrics"].items()},
        }
        for folder, report in zip(folders, reports, strict=True)
    ]
    columns = {name: [row["metrics"][name] for row in table if row["metrics"][name] is not None] for name in names}
    known = {name: values for name, values in columns.items() if len(values) > 1}
    return {
        "folds": table,
        "mean": {name: float(np.mean(values)) for name, values in known.items()},
        "spread": {name: float(np.std(values, ddof=1)) for name, values in known.items()},
    }


def describe_data(patches: Sequence[Patch], summary: Summary) -> Data:
    """The report's part on data: what came in and what is in each split."""
    parts = {split: count_patches([patch for patch in patches if patch.split == split]) for split in SPLITS}
    return {
        "source_images": summary.source_images,
        "rejected": summary.rejected,
        "duplicates_across_patients": summary.duplicates_across_patients,
        "duplicates_across_splits": summary.duplicates_across_splits,
        "left_out": summary.left_out_images,
        "split_by": summary.split,
        "images_without_patient": sum(not patch.patient for patch in patches),
        "patients_known": any(patch.patient for patch in patches),
        "splits": {
            split: dataclasses.asdict(counts)
            | {"images_without_patient": sum(each.split == split and not each.patient for each in patches)}
            for split, counts in parts.items()
        },
    }


def _evaluate(predictions: Predictions, classes: Sequence[str], positive: str | None, prevalence: float | None) -> dict:
    return as_json(evaluate(predictions, classes=classes, positive=positive, prevalence=prevalence))


def _state(subject: Subject) -> str:
    data, split = subject.data, subject.data["splits"][subject.evaluated_on]
    unknown, of_whom = split["images_without_patient"], counted(split)
    if subject.chose_model:
        chose = f"{of_whom}, that chose" if unknown and split["patients"] else f"{of_whom} that chose"
        return f"There is no testing split: these figures come from the {chose} the model, and flatter it."
    if subject.seen:
        return (
            f"No test: {len(subject.seen):,} of these patients or images were in the run's own training or validation."
        )
    if not split["patients"] or data["split_by"] == "image":
        return f"Tested on {split['images']:,} images that were not trained on."
    if unknown:
        return f"Tested on {of_whom}; the model has never seen these patients, nor the other images."
    return f"Tested on {of_whom} that the model has never seen."


def _state_unseen(data: Data, patches: Sequence[Patch]) -> str:
    """Of all images of a cross-validation, what the model that judged each had not seen."""
    images, judged = f"{len(patches):,} images", "was judged by a model that had not seen"
    if data["split_by"] == "image" or not data["patients_known"]:
        return f"{images} {judged} it in training"
    unknown = sum(not patch.patient for patch in patches)
    patients = len({patch.patient for patch in patches if patch.patient})
    of_whom = counted({"images": len(patches), "patients": patients, "images_without_patient": unknown})
    if unknown:
        return f"{of_whom}, {judged} it in training, nor its patient where that is known"
    return f"{of_whom} {judged} its patient"


def _warn(data: Data, layout: Layout) -> list[str]:
    warnings = []
    if layout.unplaceable:
        warnings.append(
            f"{len(layout.unplaceable):,} slide(s) are judged patch by patch, without neighbours or a map. First: "
            f"{next(iter(layout.unplaceable.values()))}"
        )
    if data["patients_known"] and data["images_without_patient"]:
        warnings.append(
            f"The patient of {data['images_without_patient']:,} images is unknown; each of them counts as its own."
        )
    if data["duplicates_across_splits"]:
        warnings.append(f"{data['duplicates_across_splits']:,} images lie in two splits with the same bytes: a leak.")
    return warnings


def flatten(settings: Mapping, prefix: str = "") -> dict:
    """Nested settings as one level of `part.name`."""
    flat = {}
    for key, value in settings.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


def _describe_decision(decision: Decision) -> dict:
    left_out = ("curve", "without_neighbours", "expected_on_validation", "other_points")
    return {key: value for key, value in dataclasses.asdict(decision).items() if key not in left_out}


def find_worst_errors(predictions: Predictions, classes: Sequence[str], positive: str | None) -> list[dict]:
    """The surest wrong answers: of two classes six that were missed, then six false alarms; of more classes twelve.

    `probability` is that of the positive class, whatever was said; of more than two classes that of the class said.
    """
    labels, probabilities, predicted = predictions.labels, predictions.probabilities, predictions.predicted
    sureness = probabilities[np.arange(len(labels)), predicted]
    order = np.argsort(-sureness, kind="stable")
    wrong = order[(predicted != labels)[order]]
    if positive is None:
        kinds = {WRONG: wrong[: 2 * _WORST_ERRORS]}
        shown = sureness
    else:
        index = classes.index(positive)
        kinds = {
            MISSED: wrong[labels[wrong] == index][:_WORST_ERRORS],
            FALSE_ALARM: wrong[labels[wrong] != index][:_WORST_ERRORS],
        }
        shown = probabilities[:, index]
    return [
        {
            "file": predictions.patches[row].file,
            "kind": kind,
            "label": classes[labels[row]],
            "predicted": classes[predicted[row]],
            "probability": float(shown[row]),
        }
        for kind, rows in kinds.items()
        for row in rows
    ]


def describe_outside(distances: np.ndarray, patches: Sequence[Patch]) -> dict | None:
    """Which images lie outside what the run was made for; None where the run does not know.

    Args:
        distances: as `learning.familiarity.watch` answers, in the order of `patches`.
    """
    found = find_outside(distances)
    if found is None:
        return None
    furthest = [{"file": patches[row].file, "distance": distance} for row, distance in found.furthest]
    return {"images": found.images, "outside": found.outside, "furthest": furthest}


def read_pictures(named: Sequence[Mapping], predictions: Predictions, dataset: Path) -> list[np.ndarray]:
    """The pictures of what a report names by its `file`, uint8 [height, width, 3].

    Raises:
        InputError: a file is not the one that was judged.
    """
    sha256 = {patch.file: patch.sha256 for patch in predictions.patches}
    return [read_image(dataset / each["file"], channels=3, sha256=sha256[each["file"]]) for each in named]
