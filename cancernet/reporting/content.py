"""From the scores of a split to its report: every metric and sentence that follows from them."""

import dataclasses
import datetime
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cancernet.config import SPLITS
from cancernet.data.dataset import Patch, Summary, count_patches, name_classes
from cancernet.data.grid import Layout, lay_out_patches
from cancernet.data.images import read_image
from cancernet.evaluation.comparison import compare_figures
from cancernet.evaluation.decision import Decision, decide_otherwise, expected_rates
from cancernet.evaluation.evaluate import evaluate, evaluate_points
from cancernet.evaluation.predictions import Predictions, Scores, pool_predictions
from cancernet.evaluation.results import Estimate, Evaluation
from cancernet.evaluation.smoothing import predict_scores
from cancernet.explain.distances import find_outliers
from cancernet.reporting.montages import FALSE_ALARM, MISSED, WRONG
from cancernet.reporting.schema import (
    ConfidentError,
    CrossValidation,
    DataSummary,
    DecisionSummary,
    DistantImage,
    Fold,
    OperatingPoint,
    OutOfDistribution,
    Report,
    SettingValue,
    SplitCounts,
    TrainingSummary,
)
from cancernet.reporting.wording import describe_counts, plural, warn_of_change
from cancernet.run import read_predictions, read_report

_ERRORS_SHOWN = 6  # of each kind


@dataclasses.dataclass(frozen=True)
class ReportContext:
    """What a report says besides the results: which run, which data, and how the model was made."""

    name: str  # of the run
    evaluated_on: str  # the split, `all folds`, or `folds 1, 2 of 5`
    data: DataSummary
    chose_model: bool = False  # whether the same images chose the model, for want of a testing split
    seen: Sequence[str] = ()  # training and validation patients or images among those evaluated, by `run.find_seen`
    warnings: Sequence[str] = ()
    prevalence: float | None = None  # at which to give PPV and NPV
    dataset: str = ""  # name of the dataset in the evaluation of a finished run
    class_weights: dict[str, float] | None = None
    training: TrainingSummary | None = None
    settings: dict[str, SettingValue] | None = None


class EvaluatedSplit(NamedTuple):
    """The report on a split, the predictions, and where the patches lie."""

    report: Report
    predictions: Predictions
    layout: Layout


def evaluate_split(scores: Scores, decision: Decision, context: ReportContext) -> EvaluatedSplit:
    """Evaluate the scores of one split with a frozen decision."""
    predictions = predict_scores(decision, scores)
    neighbours: Mapping[str, Mapping[str, Estimate]] | None = None
    if decision.without_neighbours:
        alone = predict_scores(decision.without_neighbours, scores)
        (difference,) = compare_figures([alone, predictions], classes=decision.classes, positive=decision.positive)
        neighbours = {
            "with": _evaluate(predictions, decision.classes, decision.positive, context).metrics,
            "without": _evaluate(alone, decision.classes, decision.positive, context).metrics,
            "difference": difference,
        }
    report = _start_report(
        predictions, scores.layout, context, decision.classes, decision.positive, _describe_test(context)
    )
    changed = warn_of_change(report.metrics, decision.expected_on_validation) if context.dataset else []
    report = dataclasses.replace(
        report,
        title=f"Evaluation of {context.name} on {context.dataset}" if context.dataset else None,
        warnings=[*changed, *context.warnings, *report.warnings],
        decision=_describe_decision(decision),
        expected_on_validation=decision.expected_on_validation,
        neighbours=neighbours,
        operating_points=_evaluate_points(decision, predictions, scores),
        outside=summarise_distances(scores) if context.dataset else None,
    )
    return EvaluatedSplit(report, predictions, scores.layout)


def pool_folds(folders: Sequence[Path], patches: Sequence[Patch], context: ReportContext) -> EvaluatedSplit:
    """Evaluate the test images of all folds together, each predicted by the model of its fold.

    Args:
        folders: of the folds' runs, `fold_1` and so on.
        patches: all rows of the manifest.
    """
    reports = [report for folder in folders if (report := read_report(folder, Report))]
    classes, positive = reports[0].classes, reports[0].positive
    parts = [read_predictions(folder, classes) for folder in folders]
    row_of = {patch.file: patch for patch in patches}
    pooled = pool_predictions(parts)
    pooled = dataclasses.replace(pooled, patches=[row_of[patch.file] for patch in pooled.patches])
    layout = lay_out_patches(pooled.patches)
    where = f"in {len(folders)} folds" if context.evaluated_on == "all folds" else f"on {context.evaluated_on}"
    statement = f"Cross-validated {where}: {_describe_folds(context.data, pooled.patches)}"
    report = _start_report(pooled, layout, context, classes, positive, statement)
    report = dataclasses.replace(
        report,
        class_names=reports[0].class_names,
        cross_validation=_summarise_folds(folders, reports, report.metrics),
        settings=reports[0].settings,
    )
    return EvaluatedSplit(report, pooled, layout)


def _start_report(
    predictions: Predictions,
    layout: Layout,
    context: ReportContext,
    classes: Sequence[str],
    positive: str | None,
    statement: str,
) -> Report:
    """Everything that follows from the predictions and the context; no decision yet."""
    evaluation = _evaluate(predictions, classes, positive, context)
    return Report(
        **vars(evaluation),
        name=context.name,
        created=datetime.datetime.now(datetime.UTC).date().isoformat(),
        statement=statement,
        warnings=_warn(context.data, layout),
        classes=list(classes),
        class_names=name_classes(predictions.patches),
        positive=positive,
        decision=None,
        evaluated_on=context.evaluated_on,
        chose_model=context.chose_model,
        data=context.data,
        worst_errors=find_confident_errors(predictions, classes, positive),
        class_weights=context.class_weights,
        training=context.training,
        settings=context.settings,
    )


def _evaluate(
    predictions: Predictions, classes: Sequence[str], positive: str | None, context: ReportContext
) -> Evaluation:
    return evaluate(predictions, classes=classes, positive=positive, prevalence=context.prevalence)


def _evaluate_points(decision: Decision, predictions: Predictions, scores: Scores) -> list[OperatingPoint] | None:
    """Evaluate the threshold in use and the decision's other thresholds; None if it has no others."""
    if not decision.other_points or decision.positive is None or decision.threshold is None:
        return None
    thresholds = {f"{decision.operating_point} (in use)": decision.threshold, **decision.other_points}
    own, *others = thresholds
    decided = {own: predictions.predicted}
    decided |= {name: predict_scores(decide_otherwise(decision, name), scores).predicted for name in others}
    rates = evaluate_points(predictions, decided, classes=decision.classes, positive=decision.positive)
    return [
        OperatingPoint(
            **vars(rates[name]),
            name=name,
            threshold=threshold,
            on_validation=expected_rates(decision, threshold),
        )
        for name, threshold in thresholds.items()
    ]


def _summarise_folds(folders: Sequence[Path], reports: Sequence[Report], names: Iterable[str]) -> CrossValidation:
    folds = [
        Fold(int(folder.name.rpartition("_")[2]), {key: metric.value for key, metric in report.metrics.items()})
        for folder, report in zip(folders, reports, strict=True)
    ]
    columns = {name: [value for fold in folds if (value := fold.metrics[name]) is not None] for name in names}
    known = {name: values for name, values in columns.items() if len(values) > 1}
    return CrossValidation(
        folds,
        mean={name: float(np.mean(values)) for name, values in known.items()},
        spread={name: float(np.std(values, ddof=1)) for name, values in known.items()},
    )


def describe_data(patches: Sequence[Patch], summary: Summary) -> DataSummary:
    """Describe where the source images went, and count those in each split."""
    splits = {}
    for split in SPLITS:
        members = [patch for patch in patches if patch.split == split]
        counts = count_patches(members)
        unknown = sum(not patch.patient for patch in members)
        splits[split] = SplitCounts(counts.images, counts.patients, counts.classes, unknown)
    return DataSummary(
        source_images=summary.source_images,
        rejected=summary.rejected,
        left_out=summary.left_out_images,
        split_by=summary.split,
        patients_known=any(patch.patient for patch in patches),
        splits=splits,
        duplicates_across_patients=summary.duplicates_across_patients,
        duplicates_across_splits=summary.duplicates_across_splits,
        images_without_patient=sum(not patch.patient for patch in patches),
    )


def _describe_test(context: ReportContext) -> str:
    data, split = context.data, context.data.splits[context.evaluated_on]
    images = describe_counts(split)
    if context.chose_model:
        return (
            f"There is no testing split: these results are over-optimistic, because the same {images} were used to "
            "choose the model."
        )
    if context.seen:
        return (
            "Not an independent test: the training or validation data of the run include "
            f"{len(context.seen):,} of these patients or images."
        )
    if not split.patients or data.split_by == "image":
        return f"Tested on {plural(split.images, 'image')} that the model was not trained on."
    if split.images_without_patient:
        return f"Tested on {images}; the model was trained on none of these images and known patients."
    return f"Tested on {images} that the model was not trained on."


def _describe_folds(data: DataSummary, patches: Sequence[Patch]) -> str:
    """Say what the model that predicted an image had not been trained on."""
    images = plural(len(patches), "image")
    if data.split_by == "image" or not data.patients_known:
        return f"each of the {images} was predicted by a model that was not trained on it."
    unknown = sum(not patch.patient for patch in patches)
    patients = len({patch.patient for patch in patches if patch.patient})
    images = describe_counts(SplitCounts(len(patches), patients, {}, unknown))
    if unknown:
        return f"each of the {images} was predicted by a model that was trained neither on it nor on its known patient."
    return f"each of the {images} was predicted by a model that was not trained on its patient."


def _warn(data: DataSummary, layout: Layout) -> list[str]:
    warnings = []
    if layout.unplaceable:
        slides = plural(len(layout.unplaceable), "slide")
        warnings.append(
            f"{slides} evaluated patch by patch, without smoothing and without a map. Reason: "
            f"{next(iter(layout.unplaceable.values()))}"
        )
    if data.patients_known and data.images_without_patient:
        warnings.append(
            f"{plural(data.images_without_patient, 'image')} without a known patient: each counts as a patient of its "
            "own."
        )
    if data.duplicates_across_splits:
        warnings.append(
            f"Data leakage: {plural(data.duplicates_across_splits, 'group')} of identical image files in two splits."
        )
    return warnings


def flatten(settings: Mapping, prefix: str = "") -> dict[str, SettingValue]:
    """Flatten nested settings to one level of `part.name`."""
    flat: dict[str, SettingValue] = {}
    for key, value in settings.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


def _describe_decision(decision: Decision) -> DecisionSummary:
    return DecisionSummary(
        temperature=decision.temperature,
        threshold=decision.threshold,
        operating_point=decision.operating_point,
        fitted_on=decision.fitted_on,
        classes=list(decision.classes),
        positive=decision.positive,
        bias=list(decision.bias),
        neighbour_sigma=decision.neighbour_sigma,
    )


def find_confident_errors(
    predictions: Predictions, classes: Sequence[str], positive: str | None
) -> list[ConfidentError]:
    """Find the most confident errors: six missed images, then six false alarms; of more than two classes twelve."""
    labels, probabilities, predicted = predictions.labels, predictions.probabilities, predictions.predicted
    confidence = probabilities[np.arange(len(labels)), predicted]
    order = np.argsort(-confidence, kind="stable")
    wrong = order[(predicted != labels)[order]]
    if positive is None:
        kinds, shown = {WRONG: wrong[: 2 * _ERRORS_SHOWN]}, confidence
    else:
        index = list(classes).index(positive)
        kinds = {
            MISSED: wrong[labels[wrong] == index][:_ERRORS_SHOWN],
            FALSE_ALARM: wrong[labels[wrong] != index][:_ERRORS_SHOWN],
        }
        shown = probabilities[:, index]
    return [
        ConfidentError(
            file=predictions.patches[row].file,
            kind=kind,
            label=classes[labels[row]],
            predicted=classes[predicted[row]],
            probability=float(shown[row]),
        )
        for kind, rows in kinds.items()
        for row in rows
    ]


def summarise_distances(scores: Scores) -> OutOfDistribution | None:
    """Count the out-of-distribution images and list the most distant; None if the run cannot measure it."""
    found = None if scores.distances is None else find_outliers(scores.distances)
    if found is None:
        return None
    furthest = [DistantImage(scores.patches[row].file, distance) for row, distance in found.furthest]
    return OutOfDistribution(found.images, found.outside, furthest)


def read_images(files: Iterable[str], predictions: Predictions, dataset: Path) -> list[np.ndarray]:
    """Read images of a dataset, uint8 [height, width, 3].

    Raises:
        InputError: a file has changed since it was evaluated.
    """
    sha256 = {patch.file: patch.sha256 for patch in predictions.patches}
    return [read_image(dataset / file, channels=3, sha256=sha256[file]) for file in files]
