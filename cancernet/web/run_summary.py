"""What the page says of a run before any image is there: from its settings and its report, without Keras."""

import math
import re
from pathlib import Path
from typing import NamedTuple

from cancernet.evaluation.decision import ABOVE_ONE, Decision
from cancernet.reporting import wording
from cancernet.reporting.content import Metric, Report
from cancernet.run import SAMPLES, Settings, name_class

CARD_METRICS = ("sensitivity", "specificity", "ppv", "npv", "auroc", "accuracy", "macro_f1", "ece")
RATES = ("sensitivity", "specificity")
ONE_CLICK = {  # of Decision.other_points, those that the page has a button for, and what it says
    "specificity=0.95": "Fewer false alarms",
    "sensitivity=0.95": "Fewer misses",
}


class Card(NamedTuple):
    """How good a run is and what it was trained on, in words."""

    statement: str
    interval: str  # heading of the intervals
    over: str  # patients or images
    figures: list[tuple[str, str, str]]  # name, value and interval of each of CARD_METRICS that the run has
    images: str  # number of training images, and of the patients that are known
    classes: list[str]  # training images of each class
    network: str
    warnings: list[str]


def describe_run(settings: Settings, report: Report) -> Card:
    """What the page says of a run, from its report."""
    training, experiment = report["data"]["splits"]["training"], settings.experiment
    metrics, interval = report["metrics"], report["interval"]
    return Card(
        report["statement"],
        f"{interval['level']:.0%} interval",
        interval["over"],
        [
            (wording.METRICS[name][0].split(" (")[0], wording.number(metric["value"]), wording.interval(metric))
            for name, metric in ((name, metrics[name]) for name in CARD_METRICS if name in metrics)
        ],
        wording.counted(training),
        [f"{wording.class_label(report, name)}: {count:,}" for name, count in training["classes"].items()],
        f"{experiment.model}, {experiment.image_size} pixels, {_describe_length(report)}{report['created']}.",
        wording.all_warnings(report),
    )


def is_of_patches(settings: Settings) -> bool:
    """Whether a run is of patches of stained breast tissue, of which slides are made; else of images of any kind."""
    return settings.mpp is not None


def noun(settings: Settings, number: int = 2) -> str:
    """What a run is of: `patch` or `image`, or several of them."""
    one, many = ("patch", "patches") if is_of_patches(settings) else ("image", "images")
    return one if number == 1 else many


def count_images(settings: Settings, number: int) -> str:
    """`1 patch`, `85 patches`; `images` where the run is not of patches."""
    return f"{number:,} {noun(settings, number)}"


def welcome(settings: Settings) -> str:
    """What to send to a run, in a sentence or two."""
    figures = "The run's own figures are in the bar on the left (» opens it)."
    if is_of_patches(settings):
        return (
            "Send H&E-stained breast tissue: patches, a zip of a patient's patches, a large image or a whole slide; or "
            "try the sample. Each patch comes back with its probabilities and the decision, a slide also with a map. "
            + figures
        )
    classes = ", ".join(name_class(settings, name) for name in settings.classes)
    kind = "grey" if settings.images_are_grey else "colour"
    return (
        f"Send images like those that this run was trained on: {kind}, usually {settings.usual_size} pixels, of the "
        f"classes {classes}. Each comes back with its probabilities and the decision. {figures}"
    )


def find_samples(folder: Path) -> list[Path]:
    """The tested images that a run keeps, `<class>/<file>`; none of older runs."""
    return sorted(path for path in (folder / SAMPLES).glob("*/*") if path.is_file())


def choose_points(decision: Decision) -> dict[str, float]:
    """Thresholds that are one click away, by what the button says: the decision's own, and ONE_CLICK."""
    others = decision.other_points or {}
    found = {words: others[name] for name, words in ONE_CLICK.items() if others.get(name, ABOVE_ONE) < ABOVE_ONE}
    return {"The run's own": decision.threshold, **found}


def find_tested_rates(report: Report, decision: Decision, threshold: float, *, alone: bool) -> dict[str, Metric] | None:
    """Sensitivity and specificity of the tested images, for the thresholds that the report judges; None at others.

    Moving a threshold until the tested images look best would make them validation images, so there are no others.

    Args:
        decision: that is used, of the run.
        alone: whether that is the run's second decision, for patches without neighbours.
    """
    if alone:
        neighbours = report.get("neighbours")
        judged = [(decision.threshold, neighbours["without"])] if neighbours else []
    else:
        points = report.get("operating_points") or []
        judged = [(decision.threshold, report["metrics"]), *((point["threshold"], point) for point in points)]
    for at, metrics in judged:
        if math.isclose(at, threshold, rel_tol=1e-12):
            return {name: metrics[name] for name in RATES}
    return None


def describe_fit(decision: Decision) -> str:
    """On how much validation a decision rests: `566 images of 14 patients`."""
    images, patients = decision.fitted_on["images"], decision.fitted_on["patients"]
    return f"{images:,} images" + (f" of {patients:,} patient{'s' * (patients != 1)}" if patients else "")


def plain(text: str) -> str:
    """Text that Markdown shows as it is: a file's name must not become a link or a picture."""
    return re.sub(r"([\\`*_{}\[\]()<>#+\-.!|~$:&])", r"\\\1", text)


def _describe_length(report: dict) -> str:
    """For how many epochs a run was trained; nothing for a head that was not fitted by epochs."""
    epochs = (report.get("training") or {}).get("epochs")
    return f"{epochs} epochs, " if epochs else ""
