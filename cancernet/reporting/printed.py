"""The printed report: the key results first, and no more than fits on a screen. The rest is in report.html."""

import textwrap
from collections.abc import Callable, Mapping, Sequence

from cancernet.data.dataset import label_class
from cancernet.evaluation.metrics import METRICS, Place
from cancernet.evaluation.results import Estimate
from cancernet.reporting import wording
from cancernet.reporting.schema import Report
from cancernet.reporting.wording import count, cut, list_shown, number, share, signed

COLUMNS = 100  # of the printed text


def report_text(report: Report) -> str:
    """Write report.txt: at most 100 columns, unless a single name is wider.

    The key results, the confusion matrix and the main metrics come first, then how they were obtained.
    """
    unlike = wording.warn_of_distribution(report)
    parts = [wrap(unlike and f"WARNING: {unlike}"), wrap(report.title or ""), wrap(report.statement)]
    parts += [wrap(f"WARNING: {warning}") for warning in wording.list_warnings(report)]
    parts.append("\n".join(wrap(result.text) for result in wording.key_results(report)))
    parts += [_confusion_matrix(report), _metrics(report), _classes(report), _referral(report)]
    parts += [_groups(report), _folds(report)]
    origin = [wording.describe_decision(report), wording.describe_training(report)]
    origin += [wording.describe_source(report.data), wording.describe_label_check(report)]
    origin += [wording.explain_intervals(report), wording.describe_sample_size(report)]
    origin.append(wording.describe_learning_curve(report.learning_curve) if report.learning_curve else "")
    parts.append("\n".join(wrap(line) for line in origin if line))
    return "\n\n".join(part for part in parts if part) + "\n"


def _confusion_matrix(report: Report) -> str:
    labels = [cut(label_class(report.class_names, name), 24) for name in report.classes]
    width = max(map(len, labels))
    across = max(1, (COLUMNS - width - 7) // (max(width, 6) + 2))  # columns that fit beside the rows' names
    blocks = []
    for start in range(0, len(labels), across):
        shown = slice(start, start + across)
        counts = zip(labels, report.confusion_matrix, strict=True)
        rows = [[label, *map(count, row[shown])] for label, row in counts]
        blocks.append(table([["true", *labels[shown]], *rows]))
    return "CONFUSION MATRIX (rows: true class, columns: predicted class)\n" + "\n\n".join(blocks)


def _metrics(report: Report) -> str:
    place: Place = "many-class text" if report.positive is None else "two-class text"
    shown = [(METRICS[name].label, report.metrics[name]) for name in list_shown(place, report.metrics)]
    if report.prevalence:
        at = f"at prevalence {report.prevalence.value:g}"
        shown += [(f"PPV {at}", report.prevalence.ppv), (f"NPV {at}", report.prevalence.npv)]
    lines = [f"{'METRICS':<28}{'value':>8}  {wording.describe_intervals(report.interval)}"]
    for label, metric in shown:
        head = f"{label:<28}{number(metric.value):>8}  "
        lines += textwrap.wrap(head + wording.interval(metric), COLUMNS, subsequent_indent=" " * 38)
    return "\n".join(lines)


def _classes(report: Report) -> str:
    """Sensitivity and specificity of each of more than two classes; of two they are those of the positive class."""
    if report.positive is not None:
        return ""
    rows, undefined = [["BY CLASS", "images", "sensitivity (recall)", "specificity"]], set()
    for name, metrics in report.per_class.items():
        rates = metrics.sensitivity, metrics.specificity
        label = label_class(report.class_names, name)
        rows.append([label, count(metrics.images), *map(_with_bounds, rates)])
        undefined |= {f"n/a: {rate.reason}" for rate in rates if rate.value is None}
    return "\n".join([table(rows), *map(wrap, sorted(undefined))])


def _with_bounds(metric: Estimate) -> str:
    bounds = "" if metric.low is None else f" ({metric.low:.2f}-{metric.high:.2f})"
    return number(metric.value) + bounds


def _groups(report: Report) -> str:
    """The main metrics by the values of a column, and their differences from all other images."""
    groups = report.groups
    if not groups:
        return ""
    sections = {
        wording.describe_value(groups.column, each): [
            [
                f"  {METRICS[name].label}",
                *_with_interval(metric, number),
                *_with_interval(each.difference[name], signed),
            ]
            for name, metric in each.metrics.items()
        ]
        for each in groups.values
    }
    heading = [f"BY {groups.column.upper()}", "value", "95% interval", "minus the others", "95% interval"]
    return f"{sectioned_table(heading, sections)}\n{wrap(wording.describe_groups(groups))}"


def _with_interval(metric: Estimate, spell: Callable[[float | None], str]) -> tuple[str, str]:
    return spell(metric.value), "none" if metric.high is None else wording.interval(metric, spell)


def sectioned_table(heading: Sequence[str], sections: Mapping[str, Sequence[Sequence[str]]]) -> str:
    """Write a table with a line of text above the rows of each section."""
    first, *lines = table([heading, *(row for rows in sections.values() for row in rows)]).splitlines()
    written = [first]
    for text, rows in sections.items():
        written += [text, *lines[: len(rows)]]
        lines = lines[len(rows) :]
    return "\n".join(written)


def _referral(report: Report) -> str:
    rows = wording.list_referred(report)
    if not rows:
        return ""
    of_two = ["sensitivity", "specificity", "ppv"] if report.positive is not None else []
    head = ["REFERRED TO A PERSON", "errors caught", "errors in the rest"]
    head += [METRICS[name].label.split(" (")[0] for name in of_two]
    cells = [
        [name, share(row.caught.value), share(row.error.value), *(number(getattr(row, rate).value) for rate in of_two)]
        for name, row in rows.items()
    ]
    return table([head, *cells])


def _folds(report: Report) -> str:
    folds = report.cross_validation
    if not folds:
        return ""
    names = list_shown("folds", folds.mean)
    noun = folds.left_out or "fold"
    rows: list[tuple[str, Mapping[str, float | None]]] = [(f"{noun} {each.fold}", each.metrics) for each in folds.folds]
    rows += [("mean", folds.mean), ("standard deviation", folds.spread)]
    cells = [[first, *(number(values[name]) for name in names)] for first, values in rows]
    return table([["CROSS-VALIDATION", *(METRICS[name].label for name in names)], *cells])


def suggest_next(run: str) -> str:
    """Suggest what to do after a training into the folder `run`."""
    return (
        f"Compare it with another run: cancernet compare {run} OTHER_RUN\n"
        f"Test it on another dataset: cancernet evaluate {run} --dataset OTHER_DATASET\n"
        "Narrower intervals need more patients, not more images of the same patients."
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """Align the first column, at most 32 characters, to the left and the others to the right."""
    first, *others = zip(*rows, strict=True)
    names = [cut(cell, 32) for cell in first]
    columns = [[name.ljust(max(map(len, names))) for name in names]]
    columns += [[cell.rjust(max(map(len, column))) for cell in column] for column in others]
    return "\n".join("  ".join(row).rstrip() for row in zip(*columns, strict=True))


def wrap(text: str) -> str:
    """Break into lines of at most COLUMNS characters."""
    return textwrap.fill(text, COLUMNS, subsequent_indent="  ", break_on_hyphens=False)
