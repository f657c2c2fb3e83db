"""From the scores of a split to its report: every metric and sentence that follows from them."""

import dataclasses
import datetime
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cancernet.config import SPLITS, Experiment, describe_field
from cancernet.data.dataset import IDC_PIXELS, Patch, Summary, name_classes, read_column
from cancernet.data.grid import Layout, lay_out_patches
from cancernet.data.images import read_image
from cancernet.evaluation.comparison import compare_figures
from cancernet.evaluation.decision import Decision, decide_otherwise, expected_rates, load_decision
from cancernet.evaluation.evaluate import evaluate, evaluate_points
from cancernet.evaluation.groups import evaluate_groups
from cancernet.evaluation.predictions import Predictions, Scores, pool_predictions
from cancernet.evaluation.referral import Certainty, evaluate_referral, find_uncertain
from cancernet.evaluation.results import Estimate
from cancernet.evaluation.smoothing import predict_scores
from cancernet.explain.distances import find_outliers
from cancernet.reporting import schema
from cancernet.reporting.montages import FALSE_ALARM, MISSED, WRONG
from cancernet.reporting.schema import DataSummary, Report, count_split
from cancernet.reporting.wording import describe_counts, plural, warn_of_change
from cancernet.run import DECISION, Settings, read_predictions, read_report

_ERRORS_SHOWN = 6  # of each kind
_SHOWN_OF_DECISION = [each.name for each in dataclasses.fields(schema.DecisionSummary)]


@dataclasses.dataclass(frozen=True)
class ReportContext:
    """What a report says besides the results: which run, which data, and how the model was made."""

    name: str  # of the run
    evaluated_on: str  # the split, `all folds`, `folds 1, 2 of 5`, or `every site`
    data: DataSummary
    chose_model: bool = False  # whether the same images chose the model, for want of a testing split
    seen: Sequence[str] = ()  # training and validation patients or images among those evaluated, by `run.find_seen`
    warnings: Sequence[str] = ()
    prevalence: float | None = None  # at which to give PPV and NPV
    group: str | None = None  # column of the manifest to give results by
    left_out: str | None = None  # column whose values the folds leave out
    dataset: str = ""  # name of the dataset in the evaluation of a finished run
    class_weights: dict[str, float] | None = None
    training: schema.TrainingSummary | None = None
    settings: dict[str, schema.SettingValue] | None = None


class EvaluatedSplit(NamedTuple):
    """The report on a split, the predictions, and where the patches lie."""

    report: Report
    predictions: Predictions
    layout: Layout


def evaluate_split(scores: Scores, decision: Decision, context: ReportContext) -> EvaluatedSplit:
    """Evaluate the scores of one split with a frozen decision."""
    predictions, classes, positive = predict_scores(decision, scores), decision.classes, decision.positive
    certainty = find_uncertain(
        decision, predictions.probabilities, scores.layout.slides, distances=predictions.distances
    )
    predictions = dataclasses.replace(predictions, uncertain=certainty.uncertain)
    statement = _describe_test(context)
    report = _start_report(predictions, certainty, scores.layout, context, classes, positive, statement)
    neighbours: Mapping[str, Mapping[str, Estimate]] | None = None
    smoothed: int | None = None
    if decision.without_neighbours:
        alone = predict_scores(decision.without_neighbours, scores)
        (difference,) = compare_figures([alone, predictions], classes=classes, positive=positive)
        without = evaluate(alone, classes=classes, positive=positive).metrics
        smoothed = sum(len(slide.members) for slide in scores.layout.slides if slide.is_complete)
        neighbours = {"with": report.metrics, "without": without, "difference": difference}
    changed = warn_of_change(report.metrics, decision.expected_on_validation, decision.fitted_on)
    report = dataclasses.replace(
        report,
        title=f"Evaluation of {context.name} on {context.dataset}" if context.dataset else None,
        warnings=[*([] if context.chose_model else changed), *context.warnings, *report.warnings],
        decision=schema.DecisionSummary(**{name: getattr(decision, name) for name in _SHOWN_OF_DECISION}),
        expected_on_validation=decision.expected_on_validation,
        neighbours=neighbours,
        smoothed_images=smoothed,
        operating_points=_evaluate_points(decision, predictions, scores),
        outside=summarise_distances(scores) if context.dataset else None,
    )
    return EvaluatedSplit(report, predictions, scores.layout)


def pool_folds(
    folders: Mapping[int | str, Path], patches: Sequence[Patch], context: ReportContext, step: float = IDC_PIXELS
) -> EvaluatedSplit:
    """Evaluate the test images of all folds together, each predicted by the model of its fold.

    `folders` are the folds' runs, by their numbers or by the values that they leave out, and `patches` all rows of the
    manifest, `step` pixels apart on a slide.
    """
    found = {name: report for name, folder in folders.items() if (report := read_report(folder, Report))}
    reports = list(found.values())
    classes, positive = reports[0].classes, reports[0].positive
    row_of = {patch.file: patch for patch in patches}
    parts = [read_predictions(folder, classes) for folder in folders.values()]
    parts = [dataclasses.replace(part, patches=[row_of[patch.file] for patch in part.patches]) for part in parts]
    pooled, certainty = pool_predictions(parts), _pool_certainty(list(folders.values()), parts, step)
    layout = lay_out_patches(pooled.patches, step)
    where = f"in {len(folders)} folds" if context.evaluated_on == "all folds" else f"on {context.evaluated_on}"
    if context.left_out:
        where = f"by {context.left_out} ({plural(len(folders), 'fold')})"
    statement = f"Cross-validated {where}: {_describe_folds(context, pooled.patches)}"
    report = _start_report(pooled, certainty, layout, context, classes, positive, statement)
    report = dataclasses.replace(
        report,
        class_names=reports[0].class_names,
        cross_validation=_summarise_folds(found, report.metrics, context.left_out),
        settings=reports[0].settings,
    )
    return EvaluatedSplit(report, pooled, layout)


def _pool_certainty(folders: Sequence[Path], parts: Sequence[Predictions], step: float) -> Certainty:
    """Find the certainty of the predictions of each fold by its own decision."""
    found = [
        find_uncertain(load_decision(folder / DECISION), part.probabilities, lay_out_patches(part.patches, step).slides)
        for folder, part in zip(folders, parts, strict=True)
    ]
    uncertain = [each.uncertain for each in found if each.uncertain is not None]
    values = np.concatenate([each.values for each in found])
    return Certainty(values, np.concatenate(uncertain) if len(uncertain) == len(found) else None)


def _start_report(
    predictions: Predictions,
    certainty: Certainty,
    layout: Layout,
    context: ReportContext,
    classes: Sequence[str],
    positive: str | None,
    statement: str,
) -> Report:
    """Everything that follows from the predictions and the context; no decision yet."""
    groups = None
    if context.group:
        values = read_column(predictions.patches, context.group, most=None)  # how many it has was checked before
        groups = evaluate_groups(predictions, context.group, values, classes=classes, positive=positive)
    return Report(
        **vars(evaluate(predictions, classes=classes, positive=positive, prevalence=context.prevalence)),
        referral=evaluate_referral(predictions, certainty, classes=classes, positive=positive),
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
        groups=groups,
        class_weights=context.class_weights,
        training=context.training,
        settings=context.settings,
    )


def _evaluate_points(
    decision: Decision, predictions: Predictions, scores: Scores
) -> list[schema.OperatingPoint] | None:
    """Evaluate the threshold in use and the decision's other thresholds; None if it has no others."""
    if not decision.other_points or decision.positive is None or decision.threshold is None:
        return None
    thresholds = {f"{decision.operating_point} (in use)": decision.threshold, **decision.other_points}
    own, *others = thresholds
    decided = {own: predictions.predicted}
    decided |= {name: predict_scores(decide_otherwise(decision, name), scores).predicted for name in others}
    rates = evaluate_points(predictions, decided, classes=decision.classes, positive=decision.positive)
    return [
        schema.OperatingPoint(
            **vars(rates[name]), name=name, threshold=threshold, on_validation=expected_rates(decision, threshold)
        )
        for name, threshold in thresholds.items()
    ]


def _summarise_folds(
    reports: Mapping[int | str, Report], names: Iterable[str], left_out: str | None
) -> schema.CrossValidation:
    folds = [
        schema.Fold(name, {key: metric.value for key, metric in report.metrics.items()})
        for name, report in reports.items()
    ]
    columns = {name: [value for fold in folds if (value := fold.metrics[name]) is not None] for name in names}
    known = {name: values for name, values in columns.items() if len(values) > 1}
    return schema.CrossValidation(
        folds,
        mean={name: float(np.mean(values)) for name, values in known.items()},
        spread={name: float(np.std(values, ddof=1)) for name, values in known.items()},
        left_out=left_out,
    )


def describe_data(patches: Sequence[Patch], summary: Summary) -> DataSummary:
    """Describe where the source images went, and count those in each split."""
    every = count_split(patches)
    return DataSummary(
        source_images=summary.source_images,
        rejected=summary.rejected,
        left_out=summary.left_out_images,
        split_by=summary.split,
        patients_known=every.patients > 0,
        splits={split: count_split([patch for patch in patches if patch.split == split]) for split in SPLITS},
        duplicates_across_patients=summary.duplicates_across_patients,
        duplicates_across_splits=summary.duplicates_across_splits,
        near_duplicates=len(summary.near_duplicates),
        near_duplicates_across_splits=summary.near_duplicates_across_splits,
        images_without_patient=every.images_without_patient,
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


def _describe_folds(context: ReportContext, patches: Sequence[Patch]) -> str:
    """Say what the model that predicted an image had not been trained on."""
    data, counts = context.data, count_split(patches)
    images, trained = describe_counts(counts), "not trained on its patient"
    if context.left_out:
        trained = f"trained on no image of the same {context.left_out}"
    elif data.split_by == "image" or not data.patients_known:
        images, trained = plural(counts.images, "image"), "not trained on it"
    elif counts.images_without_patient:
        trained = "trained neither on it nor on its known patient"
    return f"each of the {images} was predicted by a model that was {trained}."


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
    if data.near_duplicates_across_splits:
        warnings.append(
            f"Probable data leakage: {plural(data.near_duplicates_across_splits, 'group')} of near-duplicate images of "
            "different patients in two splits. dataset.json lists them."
        )
    return warnings


def list_settings(settings: Settings) -> dict[str, object]:
    """List what a report shows: the settings that this way of training uses, and a file of weights by its name."""
    experiment = settings.experiment
    shown = {
        name: value
        for name, value in dataclasses.asdict(experiment).items()
        if experiment.way in describe_field(Experiment, name).applies_to
    }
    if Path(experiment.weights).is_absolute():
        shown["weights"] = Path(experiment.weights).name
    left_out = ("class_names", "seen", "model_sha256")
    return {name: value for name, value in dataclasses.asdict(settings).items() if name not in left_out} | {
        "experiment": shown
    }


def flatten(settings: Mapping, prefix: str = "") -> dict[str, schema.SettingValue]:
    """Flatten nested settings to one level of `part.name`."""
    flat: dict[str, schema.SettingValue] = {}
    for key, value in settings.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


def find_confident_errors(
    predictions: Predictions, classes: Sequence[str], positive: str | None
) -> list[schema.ConfidentError]:
    """Find the most confident errors: six missed images, then six false alarms; of more than two classes twelve."""
    labels, probabilities, predicted = predictions.labels, predictions.probabilities, predictions.predicted
    confidence = probabilities[np.arange(len(labels)), predicted]
    order = np.argsort(-confidence, kind="stable")
    wrong = order[predicted[order] != labels[order]]
    if positive is None:
        kinds, shown = {WRONG: wrong[: 2 * _ERRORS_SHOWN]}, confidence
    else:
        index = list(classes).index(positive)
        missed = labels[wrong] == index
        kinds = {MISSED: wrong[missed][:_ERRORS_SHOWN], FALSE_ALARM: wrong[~missed][:_ERRORS_SHOWN]}
        shown = probabilities[:, index]
    return [
        schema.ConfidentError(
            file=predictions.patches[row].file,
            kind=kind,
            label=classes[labels[row]],
            predicted=classes[predicted[row]],
            probability=float(shown[row]),
        )
        for kind, rows in kinds.items()
        for row in rows
    ]


def summarise_distances(scores: Scores) -> schema.OutOfDistribution | None:
    """Count the out-of-distribution images and list the most distant; None if the run cannot measure it."""
    found = None if scores.distances is None else find_outliers(scores.distances)
    if found is None:
        return None
    furthest = [schema.DistantImage(scores.patches[row].file, distance) for row, distance in found.furthest]
    return schema.OutOfDistribution(found.images, found.outside, furthest)


def read_images(files: Iterable[str], predictions: Predictions, dataset: Path) -> list[np.ndarray]:
    """Read images of a dataset, uint8 [height, width, 3]; InputError if one has changed since it was evaluated."""
    sha256 = {patch.file: patch.sha256 for patch in predictions.patches}
    return [read_image(dataset / file, channels=3, sha256=sha256[file]) for file in files]
