"""Runs on the same images against the first of them: read, compared, told in words, and written as text, JSON and page.

The dict that goes through here is comparison.json itself, described in docs/reporting.md.
"""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from matplotlib.figure import Figure

from cancernet import InputError
from cancernet.evaluation import metrics
from cancernet.evaluation.comparison import align_predictions, compare_figures, compare_patients
from cancernet.evaluation.evaluate import evaluate
from cancernet.evaluation.predictions import Predictions
from cancernet.evaluation.results import as_json
from cancernet.reporting import printed, wording
from cancernet.reporting import report as pages
from cancernet.reporting.content import Heading, Metric
from cancernet.run import PREDICTIONS, read_predictions, read_report
from cancernet.storage import write_files

COMPARISON, COMPARISON_TEXT, COMPARISON_PAGE = "comparison.json", "comparison.txt", "comparison.html"
TOLD = ("auroc", "balanced_accuracy", "f1", "macro_f1", "log_loss")  # in a sentence each, the most important first
VERDICTS = {"better": "Better", "worse": "Worse", "unclear": "Cannot be told"}
NAMED_PATIENTS = 10  # in the printed text


class Difference(Metric):
    """A figure less the first run's, with a paired interval."""

    verdict: str  # better | worse | unclear


class Judge(TypedDict):
    """One of the runs: what its report says, and its figures on the images that all have judged."""

    name: str
    created: str
    statement: str
    threshold: float | None  # on the positive class's probability; None where folds have their own
    metrics: dict[str, Metric]
    sensitivity: dict[str, Metric]  # of each class
    calibration: dict


class Pair(TypedDict):
    """A run after the first against the first."""

    run: str
    metrics: dict[str, Difference]
    patients: list[dict]  # as of `judging.comparison.compare_patients`


class Comparison(TypedDict):
    """comparison.json; see docs/reporting.md."""

    created: str  # a date
    statement: str
    warnings: list[str]
    classes: list[str]
    class_names: dict[str, str] | None
    positive: str | None
    interval: dict
    baseline: str  # the first run
    runs: list[Judge]
    differences: list[Pair]


def compare_runs(folders: Sequence[Path]) -> tuple[Comparison, dict[str, Predictions]]:
    """Compare two or more evaluations or cross-validations of the same images with the first of them.

    Returns:
        The comparison, and the predictions of each run by its name, in the same order of images.

    Raises:
        InputError: a folder is given twice or holds no such thing, or the runs are not of the same classes and images.
    """
    names = name_runs(folders)
    reports = {name: _read_report(folder) for name, folder in zip(names, folders, strict=True)}
    _check_classes(reports)
    classes, positive = reports[names[0]]["classes"], reports[names[0]]["positive"]
    runs = align_predictions(
        {name: read_predictions(folder, classes) for name, folder in zip(names, folders, strict=True)}
    )
    figures = {name: _evaluate(predictions, classes, positive) for name, predictions in runs.items()}
    first, *others = names
    differences = compare_figures(list(runs.values()), classes=classes, positive=positive)
    pairs: list[Pair] = [
        {
            "run": name,
            "metrics": as_json(compared),
            "patients": as_json(compare_patients(runs[first], runs[name], classes=classes, positive=positive)),
        }
        for name, compared in zip(others, differences, strict=True)
    ]
    comparison: Comparison = {
        "created": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "statement": _state(runs[first], len(names)),
        "warnings": _gather_warnings(reports),
        "classes": classes,
        "class_names": reports[first]["class_names"],
        "positive": positive,
        "interval": figures[first]["interval"],
        "baseline": first,
        "runs": [_describe_run(name, reports[name], figures[name]) for name in names],
        "differences": pairs,
    }
    return comparison, runs


def name_runs(folders: Sequence[Path]) -> list[str]:
    """The last part of each path, or as many of its last parts as tell them apart.

    Raises:
        InputError: a folder is given twice.
    """
    parts = [folder.resolve().parts for folder in folders]
    for path, folder in zip(parts, folders, strict=True):
        if parts.count(path) > 1:
            raise InputError(f"{folder} is given twice. Give two or more different runs.")
    length = 1
    while len({path[-length:] for path in parts}) < len(parts):
        length += 1
    return ["/".join(path[-length:]) for path in parts]


def _read_report(folder: Path) -> Heading:
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}. Make one with train_model.py or evaluate_model.py --output.")
    report = read_report(folder, Heading)
    if report is None or not (folder / PREDICTIONS).is_file():
        raise InputError(
            f"{folder} has no report.json with a predictions.csv. Give folders that train_model.py, its --folds, or "
            "evaluate_model.py --output has written."
        )
    return report


def _check_classes(reports: dict[str, Heading]) -> None:
    (first, reference), *others = reports.items()
    for name, report in others:
        if report["classes"] != reference["classes"]:
            raise InputError(
                f"{first} tells {', '.join(reference['classes'])} apart and {name} {', '.join(report['classes'])}. "
                "Only runs of the same classes can be compared."
            )
        if report["positive"] != reference["positive"]:
            raise InputError(
                f"The positive class is {reference['positive']} in {first} and {report['positive']} in {name}. Train "
                "or evaluate both with the same --positive."
            )


def _evaluate(predictions: Predictions, classes: Sequence[str], positive: str | None) -> dict:
    return as_json(evaluate(predictions, classes=classes, positive=positive))


def _state(predictions: Predictions, n_runs: int) -> str:
    patients = [patch.patient for patch in predictions.patches]
    known, unknown = len(set(patients) - {""}), patients.count("")
    of_whom = f"the same {len(patients):,} images" + (f" of {known:,} patients" if known and not unknown else "")
    if known and unknown:
        of_whom += f", of {known:,} patients and {unknown:,} of unknown patients"
    return f"{'Both' if n_runs == 2 else f'All {n_runs}'} runs judged {of_whom}."


def _gather_warnings(reports: dict[str, Heading]) -> list[str]:
    """What the reports warn of, each once, with the runs that it is said of unless it is said of all."""
    said: dict[str, list[str]] = {}
    for name, report in reports.items():
        for warning in report["warnings"]:
            said.setdefault(warning, []).append(name)
    return [
        warning if len(names) == len(reports) else f"{', '.join(names)}: {warning}" for warning, names in said.items()
    ]


def _describe_run(name: str, report: Heading, figures: dict) -> Judge:
    return {
        "name": name,
        "created": report["created"],
        "statement": report["statement"],
        "threshold": (report["decision"] or {}).get("threshold"),
        "metrics": figures["metrics"],
        "sensitivity": {key: rates["sensitivity"] for key, rates in figures["per_class"].items()},
        "calibration": figures["calibration"],
    }


def answers(comparison: Comparison) -> list[dict]:
    """For each run after the first: its name, and the sentences that say whether it is better, most important first.

    Dicts with `run`, `lines` and `reach`, the end farthest from zero; a line has `verdict`, in words, `text`, and
    `difference`, turned so that above zero is better, None for the patients.
    """
    first = comparison["runs"][0]
    found = []
    for run, pair in zip(comparison["runs"][1:], comparison["differences"], strict=True):
        lines = [_tell(first, run, name, pair["metrics"][name]) for name in TOLD if name in pair["metrics"]]
        ends = [line["difference"][end] for line in lines for end in ("low", "high")]
        reach = max((abs(end) for end in ends if end is not None), default=1.0)
        if pair["patients"]:
            lines.append({"verdict": "", "text": _tell_patients(pair), "difference": None})
        found.append({"run": run["name"], "lines": lines, "reach": reach})
    return found


def _tell(first: Judge, run: Judge, name: str, difference: Difference) -> dict:
    values = [f"{each['name']} {wording.number(each['metrics'][name]['value'])}" for each in (run, first)]
    change = wording.signed(difference["value"])
    bounds = (
        difference["reason"] if difference["low"] is None else f"95% interval {wording.signed_interval(difference)}"
    )
    better = " Lower is better." if metrics.METRICS[name].better == "lower" else ""
    text = f"{wording.METRICS[name][0]}: {', '.join(values)}, difference {change} ({bounds}).{better}"
    return {"verdict": VERDICTS[difference["verdict"]], "text": text, "difference": _turn(name, difference)}


def _turn(name: str, difference: Difference) -> dict:
    """The difference with its ends for a bar, on which better is to the right."""
    if metrics.METRICS[name].better != "lower":
        return dict(difference)
    value, low, high = (None if difference[key] is None else -difference[key] for key in ("value", "low", "high"))
    return {**difference, "value": value, "low": high, "high": low}


def _tell_patients(pair: Pair) -> str:
    differences = [row["difference"] for row in pair["patients"]]
    more, fewer = sum(each > 0 for each in differences), sum(each < 0 for each in differences)
    return (
        f"Of {len(differences):,} patients, {more:,} have more images given their own class by {pair['run']}, "
        f"{fewer:,} have fewer, {len(differences) - more - fewer:,} as many."
    )


def comparison_text(comparison: Comparison) -> str:
    """What compare_runs.py prints and comparison.txt holds."""
    parts = [printed.wrap(comparison["statement"])]
    parts += [printed.wrap(f"WARNING: {warning}") for warning in comparison["warnings"]]
    for answer in answers(comparison):
        lines = [f"{line['verdict']}: {line['text']}" if line["verdict"] else line["text"] for line in answer["lines"]]
        parts.append("\n".join(printed.wrap(line) for line in lines))
    for run, pair in zip(comparison["runs"][1:], comparison["differences"], strict=True):
        parts.append(_describe_figures(comparison, run, pair))
        parts.append(_describe_patients(pair))
    parts.append(printed.wrap(explain(comparison)))
    return "\n\n".join(part for part in parts if part) + "\n"


def explain(comparison: Comparison) -> str:
    """What the intervals mean and what they leave out."""
    over = comparison["interval"]["over"]
    return (
        f"The intervals say how a difference would vary with other {over} like these: each of the {over} was left out "
        f"of all runs at once. {wording.HELD_FIXED} Where nothing differs, one of twenty such intervals still leaves "
        "zero out: go by the figure named beforehand."
    )


def _describe_figures(comparison: Comparison, run: Judge, pair: Pair) -> str:
    first = comparison["runs"][0]
    rows = [[f"{run['name']} against {first['name']}", "first", "this", "difference", "95% interval", ""]]
    for key in wording.shown_names(pair["metrics"]):
        difference = pair["metrics"][key]
        values = [wording.number(each["metrics"][key]["value"]) for each in (first, run)]
        bounds = wording.signed_interval(difference) if difference["low"] is not None else "none"
        verdict = "" if difference["verdict"] == "unclear" else difference["verdict"]
        rows.append([wording.METRICS[key][0], *values, wording.signed(difference["value"]), bounds, verdict])
    return printed.table(rows)


def _describe_patients(pair: Pair) -> str:
    """The patients on whom the two differ most surely."""
    rows = [["SUREST DIFFERENCES BY PATIENT", "images", "right by the first only", "by this one only"]]
    rows += [
        [row["patient"], wording.count(row["images"]), str(row["only_first"]), str(row["only_other"])]
        for row in pair["patients"][:NAMED_PATIENTS]
        if row["difference"]
    ]
    return printed.table(rows) if len(rows) > 1 else ""


def write_comparison(folder: Path, comparison: Comparison, figures: dict[str, Figure]) -> None:
    """Write comparison.json, comparison.txt, comparison.html and the figures into an existing folder."""
    drawn = pages.draw_pictures(figures)
    html = pages.open_template("comparison.html").render(
        comparison=comparison,
        answers=answers(comparison),
        explanation=explain(comparison),
        label=lambda name: wording.class_label(comparison, name),
        names=wording.shown_names(comparison["differences"][0]["metrics"]),
        metric_names=wording.METRICS,
        verdicts=VERDICTS,
        pictures={name.removesuffix(".png"): pages.embed(content) for name, content in drawn.items()},
    )
    texts = {
        COMPARISON_TEXT: comparison_text(comparison),
        COMPARISON_PAGE: html,
        COMPARISON: pages.spell_json(comparison),
    }
    write_files(folder, drawn | {name: text.encode("utf-8", "backslashreplace") for name, text in texts.items()})
