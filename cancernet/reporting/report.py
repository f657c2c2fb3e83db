"""A report as files: its plots, report.json, report.txt and report.html."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import cache, partial
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
from cancernet.reporting.schema import Report
from cancernet.reporting.wording import class_word
from cancernet.run import REPORT, REPORT_PAGE, REPORT_TEXT
from cancernet.storage import write_files

PICTURE_DPI = 144
FILTERS = (
    *(wording.number, wording.signed, wording.share, wording.count, wording.percent, wording.plural),
    *(wording.interval, wording.signed_interval, wording.missing_reasons, wording.describe_counts, wording.anchor),
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

    `history` is that of `plots.plot_history`; `error_images` and `furthest_images` are the uint8 pictures of
    `report.worst_errors` and of `report.outside.furthest`.
    """
    truth, probabilities = predictions.labels, predictions.probabilities
    classes, positive, metrics = report.classes, report.positive, report.metrics
    names = [label_class(report.class_names, name) for name in classes]
    plots.use_fonts([*names, *(each.patient for each in report.patients)])
    curves = {}
    for index, name in enumerate(classes):
        if positive in (None, name):
            areas = (metrics["auroc"], metrics["auprc"]) if positive else (report.per_class[name].auroc, None)
            curves[names[index]] = plots.Curve(truth == index, probabilities[:, index], *areas)
    figures = {
        "confusion_matrix": plots.plot_confusion_matrix(matrix=report.confusion_matrix, classes=names),
        "roc": plots.plot_roc(curves=curves, operating_point=_point(metrics, "sensitivity", "specificity")),
        "precision_recall": plots.plot_precision_recall(
            curves=curves, operating_point=_point(metrics, "sensitivity", "precision")
        ),
    }
    event, stated = None, probabilities.max(axis=1)
    if positive is not None:
        index = classes.index(positive)
        event, stated = names[index], probabilities[:, index]
        threshold = report.decision.threshold if report.decision else None
        if threshold is not None:
            figures["threshold"] = plots.plot_threshold(
                positive=truth == index, probabilities=stated, threshold=threshold, name=event
            )
        if report.distribution:
            named = dict(zip(names, report.distribution.values(), strict=True))
            figures["distribution"] = plots.plot_distribution(distribution=named, positive=event, threshold=threshold)
        if report.decision_curve:
            figures["net_benefit"] = plots.plot_net_benefit(curve=report.decision_curve, positive=event)
    if report.referral:
        figures["risk_coverage"] = plots.plot_risk_coverage(referral=report.referral, interval=report.interval)
    bins = report.calibration.bins
    figures["reliability"] = plots.plot_reliability(bins=bins, probabilities=stated, ece=metrics["ece"], positive=event)
    if report.patients:
        figures["patients"] = plots.plot_patients(patients=report.patients)
    if history and report.training and report.training.kept_epochs:
        figures["history"] = plots.plot_history(history=history, kept_epochs=report.training.kept_epochs)
    if report.learning_curve:
        figures["learning_curve"] = plots.plot_learning_curve(curve=report.learning_curve)
    if error_images is not None:
        figures["worst_errors"] = _draw_errors(report, error_images)
    if len(furthest_images) and report.outside:
        captions = [f"{each.file.split('/')[-1]}\ndistance {each.distance:.1f}" for each in report.outside.furthest]
        figures["furthest"] = montages.plot_captioned(images=furthest_images, captions=captions)
    return figures


def _draw_errors(report: Report, images: Sequence[np.ndarray]) -> Figure:
    label = partial(label_class, report.class_names)
    errors = [replace(each, label=label(each.label), predicted=label(each.predicted)) for each in report.worst_errors]
    classes = None if report.positive is None else wording.class_words(report)
    return montages.plot_errors(images=images, errors=errors, classes=classes)


def _point(metrics: Mapping[str, Estimate], first: str, second: str) -> tuple[float, float] | None:
    """Two metrics at the decision threshold; None if one is undefined or there are more than two classes."""
    if first not in metrics or second not in metrics:
        return None
    one, two = metrics[first].value, metrics[second].value
    return None if one is None or two is None else (one, two)


def write_report(folder: Path, report: Report, figures: Mapping[str, Figure]) -> None:
    """Write report.json, report.txt, report.html and one `<name>.png` for each figure into an existing folder.

    A run also gets MODEL_CARD.md. Each file is either the old one or the whole new one. The pictures that the report
    names are in the folder already. ValueError: the report contains NaN or infinity; nothing is written. OSError: the
    disk is full.
    """
    report = replace(report, warnings=wording.list_warnings(report))
    drawn = draw_pictures(figures)
    html = render_page(
        "report.html",
        drawn,
        report.class_names,
        report=report,
        word=partial(class_word, report.class_names),
        class_estimates=[getattr(each, rate) for each in report.per_class.values() for rate in CLASS_METRICS],
        point_metrics=POINT_METRICS,
        point_estimates=[getattr(each, rate) for each in report.operating_points or [] for rate in POINT_METRICS],
        some_undefined=any(getattr(each, rate) is None for each in report.patients for rate in report.patient_spread),
        embed=lambda picture: embed((folder / picture).read_bytes()),
    )
    texts = {REPORT_TEXT: report_text(report), REPORT_PAGE: html, REPORT: format_json(report)}
    if report.title is None and report.cross_validation is None:  # of a run, which has a model
        texts["MODEL_CARD.md"] = write_model_card(report)
    write_pages(folder, drawn, texts)


def write_model_card(report: Report) -> str:
    """Write a model card in Markdown, whose front matter has the metadata that the Hugging Face hub reads."""
    names = wording.shown_names(report.metrics)
    return render_page(
        "model_card.md",
        {},
        report.class_names,
        report=report,
        shown=[name for name in names if report.metrics[name].value is not None],
        names=[label_class(report.class_names, name) for name in report.classes],
    )


def write_pages(folder: Path, pictures: Mapping[str, bytes], texts: Mapping[str, str]) -> None:
    """Write pictures and texts; names of files that are not valid UTF-8 are escaped."""
    encoded = {name: text.encode("utf-8", "backslashreplace") for name, text in texts.items()}
    write_files(folder, {**pictures, **encoded})


def draw_pictures(figures: Mapping[str, Figure]) -> dict[str, bytes]:
    """Render every figure as a PNG file, by its file name."""
    drawn = {}
    for name, figure in figures.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=PICTURE_DPI)
        drawn[f"{name}.png"] = buffer.getvalue()
    return drawn


def format_json(content: object) -> str:
    """Format a report or comparison as JSON; ValueError for NaN or infinity: undefined values are None."""
    return json.dumps(as_json(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def render_page(
    template: str, drawn: Mapping[str, bytes], class_names: Mapping[str, str] | None, **values: object
) -> str:
    """Fill in a template, in which numbers are formatted by the functions of the printed text."""
    return _load_template(template).render(
        label=partial(label_class, class_names),
        sections=[],  # the titles, in the order in which the template starts them
        pictures={name.removesuffix(".png"): embed(content) for name, content in drawn.items()},
        **values,
    )


@cache  # compiling it takes longer than filling it in
def _load_template(template: str) -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=template.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {function.__name__: function for function in FILTERS}
    environment.globals |= {"METRICS": METRICS, "CLASS_METRICS": CLASS_METRICS, "wording": wording}
    return environment.get_template(template)


def embed(content: bytes) -> str:
    """Encode a PNG or JPEG file as the source of an image in a page."""
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
