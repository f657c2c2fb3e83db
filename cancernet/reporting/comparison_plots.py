"""Pictures of runs over each other: a comparison's numbers in, matplotlib figure out; nothing is shown or saved.

The dict `comparison` is comparison.json, described in docs/reporting.md.
"""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from sklearn.metrics import precision_recall_curve, roc_curve

from cancernet.evaluation import metrics
from cancernet.evaluation.predictions import Predictions
from cancernet.reporting.captions import break_lines, cut, shorten
from cancernet.reporting.plots import (
    COLOURS,
    GREY,
    NOTE_SIZE,
    TEXT_SIZE,
    TITLE_SIZE,
    frame_shares,
    metric_words,
    new_figure,
)
from cancernet.reporting.wording import METRICS, class_label

SHOWN_DIFFERENCES = (
    *("auroc", "auprc", "balanced_accuracy", "sensitivity", "specificity"),
    *("f1", "macro_f1", "accuracy", "brier", "log_loss"),
)
DASHES = ("-", "--", "-.", ":")
MOST_PATIENTS = 12  # of those on whom two runs differ, that are named
NAME = 28  # characters of a run's name that fit into a legend
FALSE_ALARMS = np.linspace(0, 1, 1001)  # where the curves of several classes are averaged


def draw_figures(comparison: dict, predictions: Mapping[str, Predictions]) -> dict[str, Figure]:
    """Draw every picture of a comparison, by the name under which its page expects it.

    Args:
        predictions: of each run by its name, in the same order of images.
    """
    truth = predictions[comparison["baseline"]].labels
    probabilities = {name: each.probabilities for name, each in predictions.items()}
    figures = {"comparison": plot_comparison(comparison=comparison, truth=truth, probabilities=probabilities)}
    if comparison["differences"][0]["patients"]:
        figures["patients"] = plot_patients(comparison=comparison)
    return figures


def plot_comparison(*, comparison: dict, truth: np.ndarray, probabilities: Mapping[str, np.ndarray]) -> Figure:
    """The one picture: differences with intervals; ROC, precision and reliability of all runs over each other.

    With more than two classes the ROC is the mean of the classes' against the rest, and in place of precision stands
    the share that is found of each class.

    Args:
        truth: class index [n].
        probabilities: of each run by its name, [n, classes], 0 to 1.
    """
    names = [run["name"] for run in comparison["runs"]]
    styles = {name: (COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)]) for i, name in enumerate(names)}
    height = 5.0 + max(4.8, 1.6 + 0.42 * len(SHOWN_DIFFERENCES) + 0.9 * (len(names) - 2))
    figure, panels = new_figure(11.0, height, rows=2, columns=2, height_ratios=(height - 5.0, 5.0))
    _draw_differences(panels[0], comparison, styles)
    _draw_roc(panels[1], comparison, truth, probabilities, styles)
    if comparison["positive"] is None:
        _draw_classes(panels[2], comparison, styles)
    else:
        _draw_precision(panels[2], comparison, truth, probabilities, styles)
    _draw_reliability(panels[3], comparison, styles)
    return figure


def plot_patients(*, comparison: dict) -> Figure:
    """Of each run after the first: the difference of every patient, and the patients on whom they differ most surely.

    The difference is of the share of a patient's images that are given their own class.
    """
    first, pairs = comparison["baseline"], comparison["differences"]
    colours = {run["name"]: COLOURS[i % len(COLOURS)] for i, run in enumerate(comparison["runs"])}
    shown = min(MOST_PATIENTS, len(pairs[0]["patients"]))
    figure, panels = new_figure(11.0, len(pairs) * (1.7 + 0.26 * max(shown, 6)), rows=len(pairs), columns=2)
    for pair, (left, right) in zip(pairs, zip(panels[::2], panels[1::2], strict=True), strict=True):
        _draw_every_patient(left, pair, first, colours)
        _draw_named_patients(right, pair["patients"][:shown], (first, pair["run"]), colours)
    return figure


def _draw_differences(axes: Axes, comparison: dict, styles: dict) -> None:
    """A line a figure and run: the difference with its interval, turned so that better is to the right."""
    pairs = comparison["differences"]
    shown = [
        name
        for name in SHOWN_DIFFERENCES
        if name in pairs[0]["metrics"] and any(pair["metrics"][name]["value"] is not None for pair in pairs)
    ]
    axes.axvline(0, color="black", linewidth=1)
    for row, name in enumerate(shown):
        turn = -1 if metrics.METRICS[name].better == "lower" else 1
        for number, pair in enumerate(pairs):
            metric, (colour, _) = pair["metrics"][name], styles[pair["run"]]
            if metric["value"] is None:
                continue
            place = row + (number - (len(pairs) - 1) / 2) * 0.7 / len(pairs)
            if metric["low"] is not None and metric["high"] is not None:
                axes.plot([turn * metric["low"], turn * metric["high"]], [place, place], color=colour, linewidth=2.2)
            filled = colour if metric["verdict"] != "unclear" else "white"
            axes.plot(turn * metric["value"], place, "o", color=colour, markerfacecolor=filled, markersize=7)
    signs = {name: " (sign turned)" if metrics.METRICS[name].better == "lower" else "" for name in shown}
    labels = [METRICS[name][0] + sign for name, sign in signs.items()]
    axes.set_yticks(range(len(shown)), labels, fontsize=NOTE_SIZE)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    reach = 1.08 * max(abs(end) for end in axes.get_xlim())
    axes.set_xlim(-reach, reach)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+.3g}" if value else "0"))
    first = shorten(comparison["baseline"], NAME)
    axes.set_xlabel(f"←  worse than {first}      better  →", fontsize=TEXT_SIZE)
    axes.grid(axis="x", alpha=0.3)
    axes.set_title(
        f"Difference to {first}, 95% interval\n(filled: clear of zero; colours as in the ROC)", fontsize=TITLE_SIZE
    )


def _draw_roc(axes: Axes, comparison: dict, truth: np.ndarray, probabilities: Mapping, styles: dict) -> None:
    classes, positive = comparison["classes"], comparison["positive"]
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (2, 3)))
    shown = range(len(classes)) if positive is None else [classes.index(positive)]
    for run in comparison["runs"]:
        colour, dash = styles[run["name"]]
        curves = [
            roc_curve(truth == c, probabilities[run["name"]][:, c])[:2]
            for c in shown
            if 0 < (truth == c).sum() < len(truth)
        ]
        if len(curves) == 1:
            points = curves[0]
        else:
            points = FALSE_ALARMS, np.mean([np.interp(FALSE_ALARMS, *curve) for curve in curves], axis=0)
        label = f"{cut(run['name'], NAME)}: {metric_words(run['metrics']['auroc'])}"
        axes.plot(*points, dash, color=colour, linewidth=2, label=break_lines(label, 64))
        if positive is not None:
            _mark(axes, run, colour, x=lambda metrics: 1 - metrics["specificity"]["value"], y="sensitivity")
    title = "ROC and AUROC" if positive is not None else "ROC and AUROC: mean of each class against the rest"
    dots = "; dots: each run's own threshold" if positive is not None else ""
    frame_shares(axes, title, f"false alarms (1 - specificity){dots}", "found (sensitivity)")
    axes.legend(fontsize=NOTE_SIZE, loc="lower right")


def _draw_precision(axes: Axes, comparison: dict, truth: np.ndarray, probabilities: Mapping, styles: dict) -> None:
    index = comparison["classes"].index(comparison["positive"])
    is_positive = truth == index
    for run in comparison["runs"]:
        colour, dash = styles[run["name"]]
        if is_positive.any():
            precision, sensitivity, _ = precision_recall_curve(is_positive, probabilities[run["name"]][:, index])
            label = f"{cut(run['name'], NAME)}: {metric_words(run['metrics']['auprc'])}"
            axes.plot(sensitivity, precision, dash, color=colour, linewidth=2, label=break_lines(label, 64))
        _mark(axes, run, colour, x=lambda metrics: metrics["sensitivity"]["value"], y="precision")
    share = is_positive.mean()
    axes.axhline(share, color=GREY, linestyle=":", linewidth=1.2, label=f"guessing: {share:.3f}")
    frame_shares(axes, "Precision and AUPRC", "found (sensitivity, recall)", "right when it says so (precision)")
    axes.legend(fontsize=NOTE_SIZE, loc="lower left")


def _mark(axes: Axes, run: dict, colour: str, *, x, y: str) -> None:
    """The run's own threshold, where its rates are defined."""
    metrics = run["metrics"]
    if None not in [metrics[name]["value"] for name in ("sensitivity", "specificity", "precision")]:
        axes.plot(x(metrics), metrics[y]["value"], "o", color=colour, markeredgecolor="black", markersize=9)


def _draw_classes(axes: Axes, comparison: dict, styles: dict) -> None:
    classes, runs = comparison["classes"], comparison["runs"]
    for number, run in enumerate(runs):
        colour, _ = styles[run["name"]]
        places = np.arange(len(classes)) + (number - (len(runs) - 1) / 2) * 0.6 / len(runs)
        for place, name in zip(places, classes, strict=True):
            rate = run["sensitivity"][name]
            if rate["value"] is None:
                continue
            if rate["low"] is not None and rate["high"] is not None:
                axes.plot([rate["low"], rate["high"]], [place, place], color=colour, linewidth=2.2)
            axes.plot(rate["value"], place, "o", color=colour, markersize=7)
        axes.plot([], [], "o-", color=colour, label=shorten(run["name"], NAME))
    axes.set_yticks(range(len(classes)), [shorten(class_label(comparison, name), 20) for name in classes])
    axes.set_ylim(len(classes) - 0.4, -0.6)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("share that is found (sensitivity)")
    axes.set_title("Found, class by class", fontsize=TITLE_SIZE)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=NOTE_SIZE, loc="lower left")


def _draw_reliability(axes: Axes, comparison: dict, styles: dict) -> None:
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=(0, (2, 3)), label="perfect")
    for run in comparison["runs"]:
        colour, dash = styles[run["name"]]
        bins = run["calibration"]["bins"]
        points = ([each[key] for each in bins] for key in ("mean_probability", "fraction_positive"))
        label = f"{cut(run['name'], NAME)}: log-loss {metric_words(run['metrics']['log_loss'])}"
        axes.plot(*points, dash, marker="o", markersize=5, color=colour, label=break_lines(label, 64))
    positive = comparison["positive"]
    event = "right" if positive is None else class_label(comparison, positive)
    what = f"predicted probability of being {shorten(event, 24)}"
    frame_shares(axes, "Reliability and log-loss", what, f"share that is {shorten(event, 24)}")
    axes.legend(fontsize=NOTE_SIZE, loc="upper left")


def _draw_every_patient(axes: Axes, pair: dict, first: str, colours: dict[str, str]) -> None:
    values = np.sort([row["difference"] for row in pair["patients"]])
    axes.bar(range(len(values)), values, width=1, color=[colours[pair["run"] if v > 0 else first] for v in values])
    axes.axhline(0, color="black", linewidth=1)
    reach = max(0.05, 1.1 * np.abs(values).max())
    axes.set_ylim(-reach, reach)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{abs(value):.0%}"))
    other, this = shorten(first, NAME), shorten(pair["run"], NAME)
    axes.set_ylabel("more of a patient's images right by", fontsize=NOTE_SIZE)
    axes.set_xlabel(f"all {len(values):,} patients, sorted", fontsize=NOTE_SIZE)
    axes.set_xticks([])
    axes.text(0.98, 0.04, f"{other} better", ha="right", transform=axes.transAxes, fontsize=NOTE_SIZE)
    axes.text(0.02, 0.92, f"{this} better", ha="left", transform=axes.transAxes, fontsize=NOTE_SIZE)
    axes.set_title(f"{this} against {other}", fontsize=TITLE_SIZE)
    axes.grid(axis="y", alpha=0.3)


def _draw_named_patients(axes: Axes, rows: list[dict], names: tuple[str, str], colours: dict[str, str]) -> None:
    for place, row in enumerate(rows):
        ends = row["first"]["accuracy"], row["other"]["accuracy"]
        axes.plot(ends, [place, place], color=GREY, linewidth=1.5, zorder=1)
        for name, end, size in zip(names, ends, (64, 36), strict=True):
            axes.scatter(end, place, s=size, color=colours[name], edgecolor="white", linewidth=0.5, zorder=2)
    for name in names:
        axes.scatter([], [], s=50, color=colours[name], label=shorten(name, NAME))
    labels = [f"{shorten(row['patient'], 16)} ({row['images']:,})" for row in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=NOTE_SIZE)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(-0.02, 1.02)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("share of the patient's images given their own class", fontsize=NOTE_SIZE)
    axes.set_title("Where they differ most surely: patient (images)", fontsize=TITLE_SIZE)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=NOTE_SIZE, loc="lower left")
