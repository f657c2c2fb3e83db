"""One dict of plain values in; its pictures, report.json, report.txt and report.html out.

The dict is `report.json` itself, described in docs/reporting.md. A *metric* is `{"value", "low", "high"}`; what is
undefined is None, with a `reason`. Keys that not every run has (`class_names`, `prevalence`, `slides`, `gradcam`,
`neighbours`, `cross_validation`, `training`, ...) may be missing or None, and their sections are then left out.
"""

import base64
import io
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from matplotlib.figure import Figure

from cancernet.evaluation.predictions import Predictions
from cancernet.reporting import montages, plots, wording
from cancernet.reporting.content import Report
from cancernet.reporting.printed import report_text
from cancernet.reporting.wording import all_warnings, class_label, class_word
from cancernet.run import REPORT, REPORT_PAGE, REPORT_TEXT
from cancernet.storage import write_files

PICTURE_DPI = 144
PICTURES = (  # that the page has a place for; others come at its end
    "confusion_matrix",
    "roc",
    "precision_recall",
    "threshold",
    "reliability",
    "patients",
    "worst_errors",
    "furthest",
    "history",
    "augmented",
)
SPELLED = (
    *(wording.number, wording.signed, wording.share, wording.count),
    *(wording.interval, wording.short_interval, wording.short_signed_interval, wording.of_hundred),
    *(wording.missing_reasons, wording.counted, wording.patches),
)


def draw_figures(
    report: Report,
    predictions: Predictions,
    *,
    history: dict[str, list[float]] | None = None,
    error_images: list[np.ndarray] | None = None,
    furthest_images: Sequence[np.ndarray] = (),
) -> dict[str, Figure]:
    """Draw every picture that the report's numbers allow, by the name under which `write_report` expects it.

    Args:
        predictions: that the report is of.
        history: as for `plots.plot_history`.
        error_images: uint8 pictures of `report["worst_errors"]`, in that order.
        furthest_images: the same of `report["outside"]["furthest"]`.
    """
    truth, probabilities = predictions.labels, predictions.probabilities
    classes, positive, metrics = report["classes"], report["positive"], report["metrics"]
    names = [class_label(report, name) for name in classes]
    figures = {"confusion_matrix": plots.plot_confusion_matrix(matrix=report["confusion_matrix"], classes=names)}
    areas = {name: (report["per_class"][name]["auroc"], None) for name in classes}
    if positive is not None:
        areas = {positive: (metrics["auroc"], metrics["auprc"])}
    shown = [(classes.index(name), *pair) for name, pair in areas.items()]
    roc = {names[i]: plots.Curve(truth == i, probabilities[:, i], area) for i, area, _ in shown}
    precision_recall = {names[i]: plots.Curve(truth == i, probabilities[:, i], area) for i, _, area in shown}
    figures["roc"] = plots.plot_roc(curves=roc, operating_point=_point(metrics, "sensitivity", "specificity"))
    figures["precision_recall"] = plots.plot_precision_recall(
        curves=precision_recall, operating_point=_point(metrics, "sensitivity", "precision")
    )
    index = None if positive is None else classes.index(positive)
    stated, event = (probabilities.max(axis=1), "right") if index is None else (probabilities[:, index], names[index])
    bins = report["calibration"]["bins"]
    figures["reliability"] = plots.plot_reliability(bins=bins, probabilities=stated, ece=metrics["ece"], event=event)
    if index is not None and report.get("decision"):
        threshold = report["decision"]["threshold"]
        figures["threshold"] = plots.plot_threshold(
            positive=truth == index, probabilities=stated, threshold=threshold, name=event
        )
    if report.get("patients"):
        figures["patients"] = plots.plot_patients(patients=report["patients"])
    if error_images is not None:
        said = [
            each | {key: class_label(report, each[key]) for key in ("label", "predicted")}
            for each in report["worst_errors"]
        ]
        words = None if index is None else tuple(class_word(report, classes[i]) for i in (index, 1 - index))
        figures["worst_errors"] = montages.plot_errors(images=error_images, errors=said, classes=words)
    if len(furthest_images):
        named = report["outside"]["furthest"]
        captions = [f"{each['file'].split('/')[-1]}\ndistance {each['distance']:.1f}" for each in named]
        figures["furthest"] = montages.plot_furthest(images=list(furthest_images), captions=captions)
    if history:
        figures["history"] = plots.plot_history(history=history, kept_epochs=report["training"]["kept_epochs"])
    return figures


def write_report(folder: Path, report: Report, figures: dict[str, Figure]) -> None:
    """Write report.json, report.txt, report.html and one `<name>.png` for each figure into an existing folder.

    Each file is either the old one or the whole new one. Raises ValueError before anything is written where the report
    holds NaN or an infinity, or a figure's name is not a plain one; OSError where the disk is full.
    """
    report = {**report, "warnings": all_warnings(report)}
    drawn = draw_pictures(figures)
    pages = {
        REPORT_TEXT: report_text(report),
        REPORT_PAGE: _render_html(report, pictures=drawn, folder=folder),
        REPORT: spell_json(report),
    }
    write_files(folder, drawn | {name: text.encode("utf-8", "backslashreplace") for name, text in pages.items()})


def draw_pictures(figures: dict[str, Figure]) -> dict[str, bytes]:
    """Every figure as a PNG file by its file name; ValueError where a figure's name is not a plain one."""
    for name in figures:
        if not re.fullmatch(r"[a-z0-9_]+", name):
            raise ValueError(f"Figure name {name!r}: use small letters, digits and _ only; it becomes a file's name.")
    return {f"{name}.png": _draw_png(figure) for name, figure in figures.items()}


def spell_json(content: dict) -> str:
    """The content as JSON; ValueError where it holds NaN or an infinity, which JSON has not."""
    _refuse_no_number(content, "report")
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def open_template(name: str) -> Template:
    """The template of a page, which spells figures as the printed text does."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for spell in SPELLED:
        environment.filters[spell.__name__] = spell
    return environment.get_template(name)


def _render_html(report: Report, *, pictures: dict[str, bytes], folder: Path) -> str:
    taken = {f"{name}.png" for name in PICTURES}
    galleries = {}
    for gallery in ("slides", "gradcam"):
        galleries[gallery] = [
            (each["title"], embed(_read_picture(each["picture"], pictures, folder)))
            for each in report.get(gallery) or []
        ]
        taken |= {_file_name(each["picture"]) for each in report.get(gallery) or []}
    patients = sorted(report.get("patients") or [], key=lambda each: each["accuracy"])
    patient_rates = ("accuracy",) if report["positive"] is None else wording.PATIENT_RATES
    rates_of_points = ("sensitivity", "specificity", "ppv", "f1", "balanced_accuracy")
    return open_template("report.html").render(
        report=report,
        answers=wording.answers(report),
        label=lambda name: class_label(report, name),
        word=lambda name: wording.class_word(report, name),
        metrics=wording.shown_metrics(report["metrics"]),
        metric_names={name: label for name, (label, _) in wording.METRICS.items()},
        interval_words=wording.interval_words(report),
        flaws=wording.possible_flaws(report),
        held_fixed=wording.held_fixed(report),
        outside=wording.report_outside(report),
        split_words=wording.split_words(report["data"]),
        twice=wording.TWICE,
        pictures={name.removesuffix(".png"): embed(content) for name, content in pictures.items()},
        others=[name.removesuffix(".png") for name in pictures if name not in taken],
        class_rates=wording.CLASS_RATES,
        class_metrics=[each[rate] for each in report["per_class"].values() for rate in wording.CLASS_RATES],
        point_metrics=[each[rate] for each in report.get("operating_points") or [] for rate in rates_of_points],
        patients=patients,
        patient_rates=patient_rates,
        some_undefined=any(each.get(rate) is None for each in patients for rate in patient_rates),
        without_patient=wording.count_without_patient(report),
        optional=lambda name: report.get(name) or None,
        **galleries,
    )


def _file_name(picture: str) -> str:
    return picture if picture.endswith((".png", ".jpg")) else f"{picture}.png"


def _read_picture(picture: str, pictures: dict[str, bytes], folder: Path) -> bytes:
    """A figure of this report by its name, or a PNG or JPEG file that lies in the folder already."""
    name = _file_name(picture)
    return pictures[name] if name in pictures else (folder / name).read_bytes()


def embed(content: bytes) -> str:
    """A PNG or JPEG file as the address of a picture in a page."""
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _draw_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=PICTURE_DPI)
    return buffer.getvalue()


def _point(metrics: dict[str, dict], *names: str) -> tuple[float, float] | None:
    """The two figures of the decision, None where one is undefined or there are more than two classes."""
    values = tuple(metrics.get(name, {"value": None})["value"] for name in names)
    return None if None in values else values


def _refuse_no_number(value: object, place: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{place} is {value}: an undefined figure is None, with a reason.")
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    )
    for key, child in children:
        _refuse_no_number(child, f"{place}.{key}")
