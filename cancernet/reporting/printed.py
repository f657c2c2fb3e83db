"""What is printed of a run: the answer first, and no more than fits a screen; the rest is in the report."""

import textwrap
from collections.abc import Sequence

from cancernet.reporting.captions import cut
from cancernet.reporting.wording import (
    METRICS,
    all_warnings,
    answers,
    class_label,
    class_word,
    count,
    held_fixed,
    interval,
    interval_words,
    number,
    patches,
    report_outside,
    split_words,
)

COLUMNS = 100  # widest line of the printed text
MAIN = ("sensitivity", "specificity", "auroc")  # of two classes
MAIN_OF_SEVERAL = ("accuracy", "balanced_accuracy", "macro_f1", "auroc")
FOLD_COLUMNS = ("accuracy", "sensitivity", "specificity", "ppv", "macro_sensitivity", "macro_f1", "auroc")


def report_text(report: dict) -> str:
    """What train_model.py prints and report.txt holds: at most 100 columns, unless a single name is wider.

    The answer in sentences, the confusion matrix and the main figures come first, then how they came about. All other
    figures are in report.json and report.html.
    """
    outside = report_outside(report)
    said = [wrap(f"WARNING: {outside}")] if outside else []
    said += [wrap(report["title"])] if report.get("title") else []
    said += [wrap(report["statement"]), *(wrap(f"WARNING: {warning}") for warning in all_warnings(report))]
    said.append("\n".join(wrap(answer["text"]) for answer in answers(report)))
    said += [_describe_confusion(report), _describe_metrics(report), _describe_classes(report), _describe_folds(report)]
    made = [_describe_decision(report), _describe_training(report), _describe_data(report), held_fixed(report)]
    said.append("\n".join(wrap(line) for line in made if line))
    return "\n\n".join(part for part in said if part) + "\n"


def _describe_confusion(report: dict) -> str:
    labels = [cut(class_label(report, name), 24) for name in report["classes"]]
    matrix, width = report["confusion_matrix"], max(map(len, labels))
    across = max(1, (COLUMNS - width - 7) // (max(width, 6) + 2))  # columns that fit beside the rows' names
    blocks = []
    for start in range(0, len(labels), across):
        rows = [["true", *labels[start : start + across]]]
        rows += [[label, *map(count, row[start : start + across])] for label, row in zip(labels, matrix, strict=True)]
        blocks.append(table(rows))
    return "CONFUSION MATRIX (rows: true class, columns: predicted class)\n" + "\n\n".join(blocks)


def _describe_metrics(report: dict) -> str:
    metrics, prevalence = report["metrics"], report.get("prevalence")
    names = [name for name in (MAIN if report["positive"] is not None else MAIN_OF_SEVERAL) if name in metrics]
    shown = [(METRICS[name][0], metrics[name]) for name in names]
    if prevalence:
        at = f"at prevalence {prevalence['value']:g}"
        shown += [(f"{rate.upper()} {at}", prevalence[rate]) for rate in ("ppv", "npv")]
    lines = [f"{'FIGURES':<28}{'value':>8}  {interval_words(report)}"]
    for label, metric in shown:
        head = f"{label:<28}{number(metric['value']):>8}  "
        lines += textwrap.wrap(head + interval(metric), COLUMNS, subsequent_indent=" " * 38, drop_whitespace=True)
    return "\n".join(lines)


def _describe_classes(report: dict) -> str:
    """Sensitivity and specificity of each of more than two classes; of two they are those of the positive one."""
    if report["positive"] is not None:
        return ""
    rows = [["BY CLASS", "images", "sensitivity (recall)", "specificity"]]
    for name, figures in report["per_class"].items():
        cells = [_with_bounds(figures[rate]) for rate in ("sensitivity", "specificity")]
        rows.append([class_label(report, name), count(figures["images"]), *cells])
    undefined = {
        f"n/a: {figures[rate]['reason']}"
        for figures in report["per_class"].values()
        for rate in ("sensitivity", "specificity")
        if figures[rate]["value"] is None
    }
    return "\n".join([table(rows), *map(wrap, sorted(undefined))])


def _with_bounds(metric: dict) -> str:
    bounds = "" if metric["low"] is None else f" ({metric['low']:.2f}-{metric['high']:.2f})"
    return number(metric["value"]) + bounds


def _describe_folds(report: dict) -> str:
    folds = report.get("cross_validation")
    if not folds:
        return ""
    names = [name for name in FOLD_COLUMNS if name in folds["mean"]]
    rows = [["CROSS-VALIDATION", *(METRICS.get(name, (name,))[0] for name in names)]]
    rows += [[f"fold {each['fold']}", *(number(each["metrics"][name]) for name in names)] for each in folds["folds"]]
    rows += [[end, *(number(folds[end][name]) for name in names)] for end in ("mean", "spread")]
    return table(rows)


def _describe_decision(report: dict) -> str:
    """The threshold and how it was chosen; nothing of pooled folds, which have one each."""
    decision = report.get("decision")
    if not decision:
        return ""
    fitted = f"{decision['fitted_on']['images']:,} validation images"
    if decision["fitted_on"].get("patients"):
        fitted += f" of {decision['fitted_on']['patients']:,} patients"
    if report["positive"] is None:
        said = f"An image is given its most probable class. Probabilities were fitted on {fitted}."
    else:
        rule = decision["operating_point"]
        how = "the highest balanced accuracy to be expected" if rule == "balanced" else rule
        said = (
            f"An image is called {class_word(report, report['positive'])} from a probability of "
            f"{number(decision['threshold'])}: {how}, fixed on {fitted}."
        )
    if decision.get("neighbour_sigma"):
        said += f" Neighbours on a slide are averaged: a Gaussian of {patches(decision['neighbour_sigma'])}."
    return said


def _describe_training(report: dict) -> str:
    training = report.get("training")
    if not training:
        return ""
    if not training.get("epochs"):
        return f"A head was fitted to features in {_duration(training['seconds'])}."
    first, last = training["kept_epochs"]
    kept = f"epoch {first} is judged" if first == last else f"the mean of epochs {first} to {last} is judged"
    return f"Trained {training['epochs']:,} epochs in {_duration(training['seconds'])} on {training['device']}; {kept}."


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def _describe_data(report: dict) -> str:
    data = report["data"]
    return (
        f"Source images {count(data['source_images'])}: rejected {count(data['rejected'])}, left out "
        f"{count(data['left_out'])}; split by {split_words(data)}."
    )


def suggest_next(run: str) -> str:
    """What to do after a training.

    Args:
        run: its folder.
    """
    return (
        f"Is another run better, and can that be told? python compare_runs.py {run} ANOTHER_RUN\n"
        f"Does it hold elsewhere? python evaluate_model.py {run} --dataset ANOTHER_DATASET\n"
        "Narrower intervals need more patients, not more images of the same."
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """The first column to the left, at most 32 wide; the others to the right."""
    rows = [[cut(first, 32), *others] for first, *others in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def wrap(text: str) -> str:
    """In lines of at most COLUMNS characters."""
    return textwrap.fill(text, COLUMNS, subsequent_indent="  ", break_on_hyphens=False)
