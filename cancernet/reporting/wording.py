"""A run's report in words: what its figures are called, what they say, what to beware of, and the printed text."""

import textwrap
from collections.abc import Sequence

from cancernet.judging.bootstrap import FEW_GROUPS, LEAST_GROUPS
from cancernet.reporting.captions import cut

COLUMNS = 100  # widest line of the printed text
METRICS = {  # name in the report -> what it is called, what it says
    "accuracy": ("accuracy", "share of all images that are given their own class"),
    "sensitivity": ("sensitivity (recall)", "share of the positive images that are found"),
    "specificity": ("specificity", "share of the negative images that are cleared"),
    "ppv": ("PPV (precision)", "share of the images called positive that are; changes with how common the class is"),
    "npv": ("NPV", "share of the images called negative that are; changes with how common the class is"),
    "lr_positive": ("LR+", "how many times more often positive images are called positive than negative ones are"),
    "lr_negative": ("LR-", "how many times as often positive images are called negative as negative ones are"),
    "f1": ("F1", "harmonic mean of precision and sensitivity"),
    "balanced_accuracy": ("balanced accuracy", "mean over the classes of the share that is found"),
    "macro_precision": ("precision, macro mean", "mean over the classes, each counting the same"),
    "macro_sensitivity": ("sensitivity, macro mean", "mean over the classes, each counting the same"),
    "macro_specificity": ("specificity, macro mean", "mean over the classes, each counting the same"),
    "macro_f1": ("F1, macro mean", "mean over the classes, each counting the same"),
    "weighted_precision": ("precision, weighted mean", "mean over the classes, each counting by its images"),
    "weighted_sensitivity": ("sensitivity, weighted mean", "mean over the classes, each counting by its images"),
    "weighted_specificity": ("specificity, weighted mean", "mean over the classes, each counting by its images"),
    "weighted_f1": ("F1, weighted mean", "mean over the classes, each counting by its images"),
    "mcc": ("MCC", "correlation of truth and decision: 0 is guessing, 1 is perfect"),
    "auroc": ("AUROC", "chance that an image of the class scores above one that is not: 0.5 is guessing"),
    "auprc": ("AUPRC", "mean precision over all thresholds: guessing gives the share of positive images"),
    "brier": ("Brier score", "mean squared error of the probabilities: 0 is perfect"),
    "ece": ("calibration error (ECE)", "how far probabilities are from what is seen, on average: 0 is perfect"),
    "calibration_slope": ("calibration slope", "1 is right; below it probabilities are too sure, above it too modest"),
    "calibration_intercept": (
        "calibration intercept",
        "0 is right; below it probabilities are too high, above too low",
    ),
    "log_loss": ("log-loss", "what sure but wrong probabilities cost: 0 is perfect"),
}
TWICE = {"precision"}  # the same figure as ppv: shown once, as ppv
HELD_FIXED = (
    "The intervals hold the model and its threshold fixed: what another training, or other validation patients, would "
    "change comes on top."
)
FOLD_COLUMNS = ("accuracy", "sensitivity", "specificity", "ppv", "macro_sensitivity", "macro_f1", "auroc")
SPLIT_WORDS = {"file": "a given list", "given": "the source's own folders"}  # others are as they are called


def report_text(report: dict) -> str:
    """What train_model.py prints and report.txt holds: at most 100 columns, unless a single name is wider."""
    parts = [wrap(report["statement"])]
    parts += [wrap(f"WARNING: {warning}") for warning in all_warnings(report)]
    parts += [_describe_data(report), _describe_classes(report), _describe_confusion(report), _describe_metrics(report)]
    parts.append(_describe_points(report))
    parts += [_describe_patients(report), _describe_neighbours(report), _describe_folds(report)]
    parts.append("\n".join(wrap(answer["text"]) for answer in answers(report)))
    return "\n\n".join(part for part in parts if part) + "\n"


def all_warnings(report: dict) -> list[str]:
    """The report's own warnings, and those that follow from how its data came about, none twice."""
    data = report["data"]
    found = list(report["warnings"])
    answered = [name for name, column in zip(report["classes"], zip(*report["confusion_matrix"])) if any(column)]
    if len(answered) == 1 and sum(map(any, report["confusion_matrix"])) > 1:
        found.append(
            f"The network answers {class_word(report, answered[0])} for every image: it tells no class from another. "
            "Train again with a smaller --learning-rate, more epochs or more images."
        )
    if report.get("chose_model"):
        found.append(
            "There is no testing split: these figures come from the images that chose the model, and flatter it."
        )
    if data["split_by"] == "image":
        found.append(
            "Split by image: images of one patient are in training and in testing alike, which flatters these figures. "
            "Build the dataset with --split-by patient for figures that hold for new patients."
        )
    if not data["patients_known"]:
        found.append(
            "The patients are unknown: images of one patient may be in several splits, and the intervals are over "
            "images, so that they may be too narrow. Give --patient-pattern if the file names tell the patient."
        )
    if report["interval"]["groups"] < FEW_GROUPS:
        found.append(_warn_of_few(**report["interval"]))
    if data.get("duplicates_across_patients"):
        found.append(f"{data['duplicates_across_patients']:,} images appear, byte for byte, under two patients.")
    return list(dict.fromkeys(found))


def answers(report: dict) -> list[dict]:
    """The main figures as sentences, the most important first: dicts with `text`, and `metric` or None.

    Two classes: sensitivity, specificity, PPV (also at the given prevalence). More: accuracy, best and worst class.
    """
    metrics, positive = report["metrics"], report["positive"]
    if positive is None:
        first = _answer(report, "Of 100 images it gives {} their own class{}.", metrics["accuracy"])
        return [first, *_best_and_worst(report)]
    negative = next(name for name in report["classes"] if name != positive)
    ill, well = class_word(report, positive), class_word(report, negative)
    called = f"{{}} of 100 that it calls {ill} are so{{}}."
    found = [
        _answer(report, f"Of 100 {ill} images it finds {{}}{{}}.", metrics["sensitivity"]),
        _answer(report, f"Of 100 {well} images it clears {{}}{{}}.", metrics["specificity"]),
        _answer(report, f"Where {_share(report)} in 100 images are {ill}, as here, {called}", metrics["ppv"]),
    ]
    prevalence = report.get("prevalence")
    if prevalence:
        where = f"Where {of_hundred(prevalence['value'])} in 100 images are {ill}, {called}"
        found.append(_answer(report, where, prevalence["ppv"]))
    return found


def split_words(data: dict) -> str:
    """By what the images were split."""
    if data["split_by"] == "patient" and not data["patients_known"]:
        return "image (patients unknown)"
    return SPLIT_WORDS.get(data["split_by"], data["split_by"])


def class_label(report: dict, name: str) -> str:
    """For tables and pictures: the class's folder, and its meaning where the report knows one, as `1 (IDC)`."""
    meaning = (report.get("class_names") or {}).get(name, name)
    return name if meaning == name else f"{name} ({meaning})"


def class_word(report: dict, name: str) -> str:
    """For sentences: `IDC`, `malignant`, or `class 1` where a number is all there is."""
    meaning = (report.get("class_names") or {}).get(name, name)
    return f"class {meaning}" if meaning.isdigit() else meaning


def number(value: float | None) -> str:
    """Three decimals, fewer above 10; n/a for None."""
    if value is None:
        return "n/a"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def signed(value: float | None) -> str:
    """A difference, with its sign; n/a for None."""
    return "n/a" if value is None else f"{'+' if value > 0 else ''}{number(value)}"


def share(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.1%}"


def count(value: int | None) -> str:
    return "n/a" if value is None else f"{value:,}"


def interval(metric: dict) -> str:
    """`0.790 to 0.880`, `at most 0.050`, or why there is none."""
    if metric["low"] is None and metric["high"] is not None:
        return f"at most {number(metric['high'])}"
    if metric["low"] is None or metric["high"] is None:
        return metric.get("reason", "")
    return f"{number(metric['low'])} to {number(metric['high'])}"


def signed_interval(metric: dict) -> str:
    """Of a difference: `+0.004 to +0.027`, or why there is none."""
    if metric["low"] is None or metric["high"] is None:
        return metric.get("reason", "")
    return f"{signed(metric['low'])} to {signed(metric['high'])}"


def of_hundred(value: float) -> str:
    """A share as a number of 100; 0 and 100 only where it is exactly none or all."""
    whole = f"{100 * value:.0f}"
    if whole in ("0", "100") and 0 < value < 1:
        return f"{min(max(100 * value, 0.1), 99.9):.1f}"
    return whole


def shown_metrics(metrics: dict[str, dict]) -> list[tuple[str, str, dict]]:
    """(label, what it says, metric) in the order of METRICS; one that is not in it comes last, under its own name."""
    names = [name for name in METRICS if name in metrics]
    names += [name for name in metrics if name not in METRICS and name not in TWICE]
    return [(*METRICS.get(name, (name.replace("_", " "), "")), metrics[name]) for name in names]


def shown_names(metrics: dict[str, dict]) -> list[str]:
    """Those figures' names in the order in which they are shown, each figure once."""
    return [name for name in METRICS if name in metrics]


def interval_words(report: dict) -> str:
    """`95% interval over patients`."""
    return f"{report['interval']['level']:.0%} interval over {report['interval']['over']}"


def _warn_of_few(level: float, over: str, groups: int) -> str:
    judged = f"Only {groups} {over} were judged:"
    if groups < LEAST_GROUPS:
        return f"{judged} too few to say how far the figures may be from those of other {over}."
    return f"{judged} the intervals are rough, and others may give quite other figures."


def _answer(report: dict, sentence: str, metric: dict) -> dict:
    """Fills the two places of the sentence: the number of 100, and its interval."""
    if metric["value"] is None:
        return {"text": f"{sentence.format('n/a', '')[:-1]} ({metric['reason']}).", "metric": None}
    bounds = ""
    if metric["low"] is not None and metric["high"] is not None:
        bounds = (
            f" ({report['interval']['level']:.0%} interval {of_hundred(metric['low'])} to {of_hundred(metric['high'])})"
        )
    return {"text": sentence.format(of_hundred(metric["value"]), bounds), "metric": metric}


def _best_and_worst(report: dict) -> list[dict]:
    rates = {name: report["per_class"][name]["sensitivity"] for name in report["classes"]}
    known = sorted((name for name in rates if rates[name]["value"] is not None), key=lambda name: rates[name]["value"])
    values = [rates[name]["value"] for name in known]
    ends = [("worst", known[0]), ("best", known[-1])] if values and values[0] < values[-1] else []
    return [
        _answer(
            report, f"It is {end} at {class_word(report, name)}: of 100 such images it finds {{}}{{}}.", rates[name]
        )
        for end, name in ends
    ]


def _share(report: dict) -> str:
    images = {name: report["per_class"][name]["images"] for name in report["classes"]}
    return of_hundred(images[report["positive"]] / sum(images.values()))


def _describe_data(report: dict) -> str:
    splits, positive = report["data"]["splits"], report["positive"]
    rows = [["", *splits]]
    rows.append(["images", *(count(split["images"]) for split in splits.values())])
    known = report["data"]["patients_known"]
    rows.append(["patients", *(count(split["patients"] if known else None) for split in splits.values())])
    for name in report["classes"]:
        rows.append(
            [f"class {class_label(report, name)}", *(count(each["classes"].get(name, 0)) for each in splits.values())]
        )
    if positive is not None:
        shares = [
            each["classes"].get(positive, 0) / each["images"] if each["images"] else None for each in splits.values()
        ]
        rows.append([f"share of {class_label(report, positive)}", *map(share, shares)])
    data, weights = report["data"], report.get("class_weights")
    lines = [table(rows)]
    lines.append(
        f"Source images {count(data['source_images'])}: rejected {count(data['rejected'])}, left out "
        f"{count(data['left_out'])}; split by {split_words(data)}."
    )
    if weights:
        each = ", ".join(f"{class_label(report, name)} {number(weight)}" for name, weight in weights.items())
        lines.append(wrap(f"Class weights in training: {each}"))
    return "DATA\n" + "\n".join(lines)


def _describe_classes(report: dict) -> str:
    rates = ("precision", "sensitivity", "specificity", "f1")
    rows = [[f"on {report['evaluated_on']}", "precision", "sensitivity (recall)", "specificity", "F1", "images"]]
    for name, figures in report["per_class"].items():
        cells = [number(figures[rate]["value"]) for rate in rates]
        rows.append([f"class {class_label(report, name)}", *cells, count(figures["images"])])
    undefined = {
        f"n/a: {figures[rate]['reason']}"
        for figures in report["per_class"].values()
        for rate in rates
        if figures[rate]["value"] is None
    }
    return "\n".join(["CLASSIFICATION REPORT", table(rows), *map(wrap, sorted(undefined))])


def _describe_confusion(report: dict) -> str:
    labels = [cut(class_label(report, name), 16) for name in report["classes"]]
    matrix, width = report["confusion_matrix"], max(map(len, labels))
    across = max(1, (COLUMNS - width - 7) // (max(width, 6) + 2))  # columns that fit beside the rows' names
    blocks = []
    for start in range(0, len(labels), across):
        rows = [["true", *labels[start : start + across]]]
        rows += [[label, *map(count, row[start : start + across])] for label, row in zip(labels, matrix, strict=True)]
        blocks.append(table(rows))
    return "CONFUSION MATRIX (rows: true class, columns: predicted class)\n" + "\n\n".join(blocks)


def _describe_metrics(report: dict) -> str:
    shown = [(label, metric) for label, _, metric in shown_metrics(report["metrics"])]
    prevalence = report.get("prevalence")
    if prevalence:
        at = f"at prevalence {prevalence['value']:g}"
        shown += [(f"{rate.upper()} {at}", prevalence[rate]) for rate in ("ppv", "npv")]
    lines = [f"{'FIGURES':<28}{'value':>8}  {interval_words(report)}"]
    for label, metric in shown:
        head = f"{label:<28}{number(metric['value']):>8}  "
        lines += textwrap.wrap(head + interval(metric), COLUMNS, subsequent_indent=" " * 38, drop_whitespace=True)
    return "\n".join([*lines, wrap(HELD_FIXED)])


def _describe_points(report: dict) -> str:
    points = report.get("operating_points")
    if not points:
        return ""
    rows = [["THRESHOLDS OF VALIDATION", "threshold", "sensitivity", "specificity", "PPV"]]
    for each in points:
        rates = [_with_bounds(each[rate]) for rate in ("sensitivity", "specificity", "ppv")]
        rows.append([each["name"], number(each["threshold"]), *rates])
    return table(rows)


def _with_bounds(metric: dict) -> str:
    bounds = "" if metric["low"] is None else f" ({metric['low']:.2f}-{metric['high']:.2f})"
    return number(metric["value"]) + bounds


def _describe_patients(report: dict) -> str:
    spread = {name: each for name, each in (report.get("patient_spread") or {}).items() if each["median"] is not None}
    if not spread:
        return ""
    rows = [
        [f"PER PATIENT ({len(report['patients'])})", "median", "lower quartile", "upper quartile", "lowest", "highest"]
    ]
    keys = ("median", "q1", "q3", "min", "max")
    return table(rows + [[METRICS[name][0], *(number(each[key]) for key in keys)] for name, each in spread.items()])


def _describe_neighbours(report: dict) -> str:
    neighbours = report.get("neighbours")
    if not neighbours:
        return ""
    rows = [["NEIGHBOURS ON THE SLIDE", "without", "with", "difference", "95% interval"]]
    for name in shown_names(neighbours["difference"]):
        values = [number(neighbours[key][name]["value"]) for key in ("without", "with")]
        difference = neighbours["difference"][name]
        bounds = "none" if difference["low"] is None else signed_interval(difference)
        rows.append([METRICS[name][0], *values, signed(difference["value"]), bounds])
    return table(rows)


def _describe_folds(report: dict) -> str:
    folds = report.get("cross_validation")
    if not folds:
        return ""
    names = [name for name in FOLD_COLUMNS if name in folds["mean"]]
    rows = [["CROSS-VALIDATION", *(METRICS.get(name, (name,))[0] for name in names)]]
    rows += [[f"fold {each['fold']}", *(number(each["metrics"][name]) for name in names)] for each in folds["folds"]]
    rows += [[end, *(number(folds[end][name]) for name in names)] for end in ("mean", "spread")]
    return table(rows)


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
