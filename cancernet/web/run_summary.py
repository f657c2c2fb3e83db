"""What the page says about a run before any image is uploaded, from its settings and its report, without Keras."""

import math
import re
from collections.abc import Mapping

from cancernet.evaluation.decision import ABOVE_ONE, Decision
from cancernet.evaluation.results import Estimate
from cancernet.reporting.schema import Report
from cancernet.run import Settings, name_class

BUTTONS = {  # operating points of Decision.other_points that have a button, and its label
    "specificity=0.95": "Fewer false positives",
    "sensitivity=0.95": "Fewer false negatives",
}


def noun(settings: Settings, number: int = 2) -> str:
    """Return `patch` for a run on patches of slides, else `image`, in the plural unless the number is 1."""
    one, many = ("image", "images") if settings.mpp is None else ("patch", "patches")
    return one if number == 1 else many


def welcome(settings: Settings) -> str:
    """Say what to upload and what comes back."""
    sidebar = "The sidebar shows how well the run performs (» opens it)."
    if settings.mpp is not None:
        tissue = "H&E-stained breast tissue" if settings.class_names else "tissue like that the run was trained on"
        return (
            f"Upload {tissue}: patches, a zip of a patient's patches, a large image or a whole slide. "
            "Or try the sample. You get the probabilities and the predicted class of each patch, and a map of each "
            f"slide. {sidebar}"
        )
    classes = ", ".join(name_class(settings, name) for name in settings.classes)
    kind = "grey" if settings.images_are_grey else "colour"
    return (
        f"Upload images like those the run was trained on: {kind}, usually {settings.usual_size} pixels, of the "
        f"classes {classes}. You get the probabilities and the predicted class of each image. {sidebar}"
    )


def list_thresholds(decision: Decision) -> dict[str, float]:
    """Return the thresholds that have a button, by its label; empty for more than two classes."""
    if decision.threshold is None:
        return {}
    others = decision.other_points or {}
    found = {label: others[name] for name, label in BUTTONS.items() if others.get(name, ABOVE_ONE) < ABOVE_ONE}
    return {"Default": decision.threshold, **found}


def find_test_rates(report: Report, decision: Decision, threshold: float, *, unsmoothed: bool) -> dict[str, Estimate]:
    """Return sensitivity and specificity on the evaluated images; empty if the report lacks this threshold.

    Tuning a threshold on the test images would turn them into validation images, so only those in the report count.
    `unsmoothed` says that `decision` is the run's second one, for patches that are not smoothed.
    """
    rows: list[tuple[float | None, Mapping[str, Estimate]]] = []
    if not unsmoothed:
        points = report.operating_points or []
        rows = [(decision.threshold, report.metrics), *((point.threshold, vars(point)) for point in points)]
    elif report.neighbours:
        rows = [(decision.threshold, report.neighbours["without"])]
    for value, metrics in rows:
        if value is not None and math.isclose(value, threshold, rel_tol=1e-12):
            return {name: metrics[name] for name in ("sensitivity", "specificity")}
    return {}


def name_rates(report: Report, settings: Settings) -> str:
    """Say whether the rates of a report are of smoothed slides; "" for images that are not patches of slides."""
    if settings.mpp is None:
        return ""
    if report.smoothed_images:
        return f"{report.smoothed_images:,} of the patches were smoothed over their neighbours."
    return "These are rates of single patches, without smoothing."


def escape(text: str) -> str:
    """Escape Markdown: a file's name must not become a link or a picture."""
    return re.sub(r"([\\`*_{}\[\]()<>#+\-.!|~$:&])", r"\\\1", text)
