"""A report as files: its plots, report.json, report.txt and report.html."""

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from matplotlib.figure import Figure

from cancernet.data.dataset import label_class
from cancernet.evaluation.metrics import CLASS_METRICS, METRICS
from cancernet.evaluation.predictions import Predictions
from cancernet.evaluation.results import Estimate, PointRates, as_json
from cancernet.reporting import montages, plots, wording
from cancernet.reporting.printed import report_text
from cancernet.reporting.schema import Picture, Report
from cancernet.reporting.wording import class_word
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
FILTERS = (
    *(wording.number, wording.signed, wording.share, wording.count, wording.percent, wording.plural),
    *(wording.interval, wording.signed_interval, wording.missing_reasons, wording.describe_counts),
)
POINT_METRICS = [each.name for each in fields(PointRates)]


def draw_figures(
    report: Report,
    predictions: Predictions,
    *,
    history: Mapping[str, Sequence[float | None]] | None = None,
    error_images: Sequence[np.ndarray] | None = None,
    furthest_images: Sequence[np.ndarray] = (),
) -> dict[str, Figure]:
    """Draw every plot that a report allows, by the name under which `write_report` expects it.

    Args:
        predictions: that the report is of.
        history: for `plots.plot_history`.
        error_images: uint8 pictures of `report.worst_errors`, in that order.
        furthest_images: those of `report.outside.furthest`.
    """
    truth, probabilities = predictions.labels, predictions.probabilities
    classes, positive, metrics = report.classes, report.positive, report.metrics
    names = [label_class(report.class_names, name) for name in classes]
    figures = {"confusion_matrix": plots.plot_confusion_matrix(matrix=report.confusion_matrix, classes=names)}
    roc, precision_recall = {}, {}
    for index, name in enumerate(classes):
        if positive in (None, name):
            areas = (metrics["auroc"], metrics["auprc"]) if positive else (report.per_class[name].auroc, None)
            curves = [plots.Curve(truth == index, probabilities[:, index], area) for area in areas]
            roc[names[index]], precision_recall[names[index]] = curves
    figures["roc"] = plots.plot_roc(curves=roc, operating_point=_point(metrics, "sensitivity", "specificity"))
    figures["precision_recall"] = plots.plot_precision_recall(
        curves=precision_recall, operating_point=_point(metrics, "sensitivity", "precision")
    )
    stated = probabilities.max(axis=1) if positive is None else probabilities[:, classes.index(positive)]
    event = None if positive is None else label_class(report.class_names, positive)
    bins = report.calibration.bins
    figures["reliability"] = plots.plot_reliability(bins=bins, probabilities=stated, ece=metrics["ece"], positive=event)
    if positive is not None and event and report.decision and report.decision.threshold is not None:
        figures["threshold"] = plots.plot_threshold(
            positive=truth == classes.index(positive),
            probabilities=stated,
            threshold=report.decision.threshold,
            name=event,
        )
    if report.patients:
        figures["patients"] = plots.plot_patients(patients=report.patients)
    if history and report.training and report.training.kept_epochs:
        figures["history"] = plots.plot_history(history=history, kept_epochs=report.training.kept_epochs)
    return figures | _draw_montages(report, error_images, furthest_images)


def _draw_montages(
    report: Report, error_images: Sequence[np.ndarray] | None, furthest_images: Sequence[np.ndarray]
) -> dict[str, Figure]:
    figures = {}
    if error_images is not None:
        labelled = [
            replace(
                each,
                label=label_class(report.class_names, each.label),
                predicted=label_class(report.class_names, each.predicted),
            )
            for each in report.worst_errors
        ]
        words = None
        if report.positive is not None:
            (negative,) = (name for name in report.classes if name != report.positive)
            words = class_word(report.class_names, report.positive), class_word(report.class_names, negative)
        figures["worst_errors"] = montages.plot_errors(images=error_images, errors=labelled, classes=words)
    if len(furthest_images) and report.outside:
        captions = [f"{each.file.split('/')[-1]}\ndistance {each.distance:.1f}" for each in report.outside.furthest]
        figures["furthest"] = montages.plot_furthest(images=furthest_images, captions=captions)
    return figures


def write_report(folder: Path, report: Report, figures: Mapping[str, Figure]) -> None:
    """Write report.json, report.txt, report.html and one `<name>.png` for each figure into an existing folder.

    Each file is either the old one or the whole new one.

    Raises:
        ValueError: the report contains NaN or infinity, or a figure's name is not plain; nothing is written.
        OSError: the disk is full.
    """
    report = replace(report, warnings=wording.list_warnings(report))
    drawn = draw_pictures(figures)
    texts = {
        REPORT_TEXT: report_text(report),
        REPORT_PAGE: _render_html(report, pictures=drawn, folder=folder),
        REPORT: format_json(report),
    }
    write_pages(folder, drawn, texts)


def write_pages(folder: Path, pictures: Mapping[str, bytes], texts: Mapping[str, str]) -> None:
    """Write pictures and texts; names of files that are not valid UTF-8 are escaped."""
    write_files(
        folder, {**pictures, **{name: text.encode("utf-8", "backslashreplace") for name, text in texts.items()}}
    )


def draw_pictures(figures: Mapping[str, Figure]) -> dict[str, bytes]:
    """Render every figure as a PNG file, by its file name.

    Raises:
        ValueError: a figure's name is not plain.
    """
    for name in figures:
        if not re.fullmatch(r"[a-z0-9_]+", name):
            raise ValueError(f"Figure name {name!r}: use small letters, digits and _ only, because it names a file.")
    return {f"{name}.png": _draw_png(figure) for name, figure in figures.items()}


def format_json(content: object) -> str:
    """Format a report or comparison as JSON.

    Raises:
        ValueError: it contains NaN or infinity, which JSON does not have; undefined values are None.
    """
    return json.dumps(as_json(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def open_template(name: str) -> Template:
    """Open the template of a page, with the functions that format numbers as in the printed text."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {function.__name__: function for function in FILTERS}
    environment.globals |= {"METRICS": METRICS, "CLASS_METRICS": CLASS_METRICS, "wording": wording}
    return environment.get_template(name)


def _render_html(report: Report, *, pictures: Mapping[str, bytes], folder: Path) -> str:
    galleries = {"slides": report.slides or [], "gradcam": report.gradcam or []}
    shown = {f"{name}.png" for name in PICTURES}
    shown |= {_file_name(each) for gallery in galleries.values() for each in gallery}
    return open_template("report.html").render(
        report=report,
        label=lambda name: label_class(report.class_names, name),
        word=lambda name: class_word(report.class_names, name),
        pictures={name.removesuffix(".png"): embed(content) for name, content in pictures.items()},
        others=[name.removesuffix(".png") for name in pictures if name not in shown],
        class_estimates=[getattr(each, rate) for each in report.per_class.values() for rate in CLASS_METRICS],
        point_metrics=POINT_METRICS,
        point_estimates=[getattr(each, rate) for each in report.operating_points or [] for rate in POINT_METRICS],
        patients=sorted(report.patients, key=lambda each: each.accuracy),
        some_undefined=any(getattr(each, rate) is None for each in report.patients for rate in report.patient_spread),
        galleries={
            name: [(each.title, embed(_read_picture(_file_name(each), pictures, folder))) for each in gallery]
            for name, gallery in galleries.items()
        },
    )


def _file_name(picture: Picture) -> str:
    return picture.picture if picture.picture.endswith((".png", ".jpg")) else f"{picture.picture}.png"


def _read_picture(name: str, pictures: Mapping[str, bytes], folder: Path) -> bytes:
    """A figure of this report, or a file that is in the folder already."""
    return pictures[name] if name in pictures else (folder / name).read_bytes()


def embed(content: bytes) -> str:
    """Encode a PNG or JPEG file as the source of an image in a page."""
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _draw_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=PICTURE_DPI)
    return buffer.getvalue()


def _point(metrics: Mapping[str, Estimate], first: str, second: str) -> tuple[float, float] | None:
    """Two metrics at the decision threshold; None if one is undefined or there are more than two classes."""
    if first not in metrics or second not in metrics:
        return None
    one, two = metrics[first].value, metrics[second].value
    return None if one is None or two is None else (one, two)
