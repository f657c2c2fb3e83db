"""Compare runs on the same images with the first of them, and write the comparison as text, JSON and page."""

import datetime
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from cancernet import InputError
from cancernet.data.dataset import list_columns, read_column
from cancernet.evaluation import results
from cancernet.evaluation.comparison import align_predictions, compare_figures, compare_patients
from cancernet.evaluation.evaluate import evaluate
from cancernet.evaluation.groups import compare_groups, evaluate_groups
from cancernet.evaluation.metrics import METRICS
from cancernet.evaluation.predictions import Predictions
from cancernet.evaluation.results import Difference, Estimate
from cancernet.reporting import wording
from cancernet.reporting.printed import sectioned_table, table, wrap
from cancernet.reporting.report import draw_pictures, format_json, render_page, write_pages
from cancernet.reporting.schema import Heading, count_split
from cancernet.reporting.wording import describe_counts, list_shown, number, plural, shown_names, signed
from cancernet.run import PREDICTIONS, read_predictions, read_report

COMPARISON, COMPARISON_TEXT, COMPARISON_PAGE = "comparison.json", "comparison.txt", "comparison.html"
VERDICTS = {"better": "Better", "worse": "Worse", "unclear": "Inconclusive"}
NAMED_PATIENTS = 10  # in the printed text


@dataclass(frozen=True)
class ComparedRun:
    """One of the runs: what its report says, and its metrics on the images that all runs were evaluated on."""

    name: str
    created: str
    statement: str
    threshold: float | None  # on the probability of the positive class; None if each fold has its own
    metrics: dict[str, Estimate]
    sensitivity: dict[str, Estimate]  # of each class
    calibration: results.Calibration
    groups: results.ColumnResults | None = None


@dataclass(frozen=True)
class Pair:
    run: str  # that is compared with the first
    metrics: dict[str, Difference]
    patients: list[results.PatientDifference]  # the most significant difference first
    groups: dict[str, dict[str, Difference]] | None = None  # the main metrics on the images with each value of a column


@dataclass(frozen=True)
class Comparison:
    """comparison.json; docs/reporting.md describes every field."""

    created: str  # date
    statement: str
    warnings: list[str]
    classes: list[str]
    class_names: dict[str, str] | None
    positive: str | None
    interval: results.Interval
    baseline: str  # the first run
    runs: list[ComparedRun]
    differences: list[Pair]


class Line(NamedTuple):
    """A sentence about a run compared with the first."""

    text: str
    difference: Difference | None = None  # with the sign that above zero is better; None of patients


class KeyDifferences(NamedTuple):
    """The main differences between a run and the first."""

    run: str
    lines: list[Line]  # the most important first
    reach: float  # the end of an interval that is farthest from zero


def compare_runs(folders: Sequence[Path], group: str | None = None) -> tuple[Comparison, dict[str, Predictions]]:
    """Compare two or more evaluations or cross-validations on the same images with the first of them.

    `group` is a column of the manifest to compare them by, too. Returns the predictions of each run by its name, too,
    in the same order of images. InputError: a folder is given twice or holds no evaluation, the runs differ in their
    classes or images, or none has the column.
    """
    names = name_runs(folders)
    reports = {name: _read_report(folder) for name, folder in zip(names, folders, strict=True)}
    _check_classes(reports)
    first = reports[names[0]]
    classes, positive = first.classes, first.positive
    runs = align_predictions(
        {name: read_predictions(folder, classes) for name, folder in zip(names, folders, strict=True)}
    )
    evaluations = {name: evaluate(each, classes=classes, positive=positive) for name, each in runs.items()}
    baseline, *others = runs.values()
    differences = compare_figures([baseline, *others], classes=classes, positive=positive)
    patients = [compare_patients(baseline, other, classes=classes, positive=positive) for other in others]
    by_value: Sequence[dict[str, dict[str, Difference]] | None] = [None] * len(others)
    groups: dict[str, results.ColumnResults] = {}
    if group:
        values = _read_column(runs, group)
        for name, each in runs.items():
            groups[name] = evaluate_groups(each, group, values, classes=classes, positive=positive)
        by_value = compare_groups([baseline, *others], values, classes=classes, positive=positive)
    comparison = Comparison(
        created=datetime.datetime.now(datetime.UTC).date().isoformat(),
        statement=_describe_images(baseline, reports),
        warnings=_gather_warnings(reports),
        classes=classes,
        class_names=first.class_names,
        positive=positive,
        interval=evaluations[names[0]].interval,
        baseline=names[0],
        runs=[_describe_run(name, reports[name], evaluations[name], groups.get(name)) for name in names],
        differences=[Pair(*each) for each in zip(names[1:], differences, patients, by_value, strict=True)],
    )
    return comparison, runs


def name_runs(folders: Sequence[Path]) -> list[str]:
    """Name each run by as many last parts of its path as make the names differ; InputError: a folder is given twice."""
    parts = [Path(os.path.realpath(folder)).parts for folder in folders]
    for path, folder in zip(parts, folders, strict=True):
        if parts.count(path) > 1:
            raise InputError(f"{folder} is given twice. Give two or more different runs.")
    length = 1
    while len({path[-length:] for path in parts}) < len(parts):
        length += 1
    return ["/".join(path[-length:]) for path in parts]


def _read_report(folder: Path) -> Heading:
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}. Make one with `cancernet train` or `cancernet evaluate`.")
    report = read_report(folder, Heading)
    if report and (folder / PREDICTIONS).is_file():
        return report
    raise InputError(
        f"{folder} has no report.json with a predictions.csv. Give the output folders of `cancernet train` or "
        "`cancernet evaluate`."
    )


def _check_classes(reports: Mapping[str, Heading]) -> None:
    (first, reference), *others = reports.items()
    for name, report in others:
        if report.classes != reference.classes:
            raise InputError(
                f"The classes of {first} are {', '.join(reference.classes)}, those of {name} "
                f"{', '.join(report.classes)}. Compare runs with the same classes."
            )
        if report.positive != reference.positive:
            raise InputError(
                f"The positive class is {reference.positive} in {first} and {report.positive} in {name}. Train both "
                "with the same --positive."
            )


def _read_column(runs: Mapping[str, Predictions], name: str) -> list[str]:
    """Read a column from the first run that has it; those that earlier versions made do not."""
    columns = {run: list_columns(each.patches) for run, each in runs.items()}
    having = [run for run, names in columns.items() if name in names]
    if not having:
        known = ", ".join(sorted({column for names in columns.values() for column in names}))
        raise InputError(
            f"predictions.csv of these runs has no column {name}{known and f', only {known}'}. Evaluate one of them "
            f"again on a dataset whose manifest has it: cancernet evaluate RUN --group {name} --output FOLDER."
        )
    return read_column(runs[having[0]].patches, name)


def _describe_images(predictions: Predictions, reports: Mapping[str, Heading]) -> str:
    runs = "Both runs" if len(reports) == 2 else f"All {len(reports)} runs"
    text = f"{runs} were evaluated on the same {describe_counts(count_split(predictions.patches))}."
    bands = {name: report.referral.band for name, report in reports.items() if report.referral}
    referred = ", ".join(f"{name}: {wording.percent(band.share)}" for name, band in bands.items() if band)
    return text + (referred and f" Images that a run refers to a person ({referred}) count with their predicted class.")


def _gather_warnings(reports: Mapping[str, Heading]) -> list[str]:
    """The warnings of the reports, each once, with the names of its runs unless all have it."""
    names: dict[str, list[str]] = {}
    for name, report in reports.items():
        for warning in report.warnings:
            names.setdefault(warning, []).append(name)
    return [text if len(of) == len(reports) else f"{', '.join(of)}: {text}" for text, of in names.items()]


def _describe_run(
    name: str, report: Heading, evaluation: results.Evaluation, groups: results.ColumnResults | None
) -> ComparedRun:
    return ComparedRun(
        name=name,
        created=report.created,
        statement=report.statement,
        threshold=report.decision.threshold if report.decision else None,
        metrics=evaluation.metrics,
        sensitivity={key: rates.sensitivity for key, rates in evaluation.per_class.items()},
        calibration=evaluation.calibration,
        groups=groups,
    )


def key_differences(comparison: Comparison) -> list[KeyDifferences]:
    """Write the main differences of each run after the first as sentences."""
    first, *others = comparison.runs
    found = []
    for run, pair in zip(others, comparison.differences, strict=True):
        shown = list_shown("comparison text", pair.metrics)
        lines = [_describe_difference(first, run, name, pair.metrics[name]) for name in shown]
        ends = [end for line in lines if line.difference for end in (line.difference.low, line.difference.high)]
        reach = max((abs(end) for end in ends if end is not None), default=1.0)
        if pair.patients:
            better, worse = (sum(sign * row.difference > 0 for row in pair.patients) for sign in (1, -1))
            equal = len(pair.patients) - better - worse
            better_for = f"{pair.run} is more accurate for {plural(better, 'patient')}"
            lines.append(Line(f"{better_for}, less for {worse:,}, equal for {equal:,}."))
        found.append(KeyDifferences(run.name, lines, reach))
    return found


def _describe_difference(first: ComparedRun, run: ComparedRun, name: str, difference: Difference) -> Line:
    values = " and ".join(f"{number(each.metrics[name].value)} for {each.name}" for each in (run, first))
    bounds = difference.reason
    if difference.low is not None:
        bounds = f"95% interval {wording.signed_interval(difference)}"
    better = " Lower is better." if METRICS[name].better == "lower" else ""
    label = METRICS[name].label
    text = f"{label[0].upper()}{label[1:]}: {values}; difference {signed(difference.value)} ({bounds}).{better}"
    return Line(text, turn(name, difference))


def turn(name: str, difference: Difference) -> Difference:
    """Change the sign of a metric of which lower is better, so that above zero is better."""
    if METRICS[name].better != "lower":
        return difference
    value, low, high = (None if end is None else -end for end in (difference.value, difference.low, difference.high))
    return replace(difference, value=value, low=high, high=low)


def comparison_text(comparison: Comparison) -> str:
    """Write comparison.txt, which is also what is printed."""
    parts = [wrap(comparison.statement), *(wrap(f"WARNING: {warning}") for warning in comparison.warnings)]
    for result in key_differences(comparison):
        verdicts = [f"{VERDICTS[line.difference.verdict]}. " if line.difference else "" for line in result.lines]
        parts.append("\n".join(wrap(verdict + line.text) for verdict, line in zip(verdicts, result.lines)))
    first, *others = comparison.runs
    for run, pair in zip(others, comparison.differences, strict=True):
        head = [f"{run.name} vs {first.name}", "first run", "this run", "difference", "95% interval", ""]
        parts.append(table([head, *_metrics_rows(first.metrics, run.metrics, pair.metrics)]))
        if first.groups and run.groups and pair.groups:
            column = first.groups.column
            sections = {
                wording.describe_value(column, one): _metrics_rows(one.metrics, two.metrics, pair.groups[one.value])
                for one, two in zip(first.groups.values, run.groups.values, strict=True)
            }
            parts.append(f"BY {column.upper()}\n{sectioned_table(head, sections)}")
        parts.append(_patients_table(pair))
    parts.append(wrap(explain(comparison)))
    return "\n\n".join(part for part in parts if part) + "\n"


def explain(comparison: Comparison) -> str:
    """Say what the intervals mean and what they do not include."""
    over = comparison.interval.over
    return (
        f"The intervals show how much a difference would vary with other {over} like these: each "
        f"{over.removesuffix('s')} was left out of all runs at once. {wording.FIXED_MODEL} Even between equal runs, 1 "
        "in 20 such intervals excludes zero: decide in advance which metric counts."
    )


def _metrics_rows(
    first: Mapping[str, Estimate], other: Mapping[str, Estimate], differences: Mapping[str, Difference]
) -> list[list[str]]:
    rows = []
    for name in shown_names(differences):
        difference = differences[name]
        values = [number(each[name].value) for each in (first, other)]
        bounds = wording.signed_interval(difference) if difference.low is not None else "none"
        verdict = "" if difference.verdict == "unclear" else difference.verdict
        rows.append([METRICS[name].label, *values, signed(difference.value), bounds, verdict])
    return rows


def _patients_table(pair: Pair) -> str:
    rows = [["MOST SIGNIFICANT PATIENTS", "images", "correct by the first run only", "by this run only"]]
    rows += [
        [row.patient, f"{row.images:,}", f"{row.only_first:,}", f"{row.only_other:,}"]
        for row in pair.patients[:NAMED_PATIENTS]
        if row.difference
    ]
    return table(rows) if len(rows) > 1 else ""


def write_comparison(folder: Path, comparison: Comparison, figures: Mapping[str, Figure]) -> None:
    """Write comparison.json, comparison.txt, comparison.html and the figures into an existing folder."""
    drawn = draw_pictures(figures)
    html = render_page(
        "comparison.html",
        drawn,
        comparison.class_names,
        comparison=comparison,
        results=key_differences(comparison),
        explanation=explain(comparison),
        verdicts=VERDICTS,
    )
    texts = {COMPARISON_TEXT: comparison_text(comparison), COMPARISON_PAGE: html, COMPARISON: format_json(comparison)}
    write_pages(folder, drawn, texts)
