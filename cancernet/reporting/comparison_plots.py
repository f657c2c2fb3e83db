"""Plots of several runs: a comparison in, Matplotlib figure out; nothing is shown or saved here."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from sklearn.metrics import precision_recall_curve, roc_curve

from cancernet.data.dataset import label_class
from cancernet.evaluation.metrics import METRICS
from cancernet.evaluation.predictions import Predictions
from cancernet.evaluation.results import PatientDifference
from cancernet.reporting.captions import break_lines, cut, shorten
from cancernet.reporting.comparison import ComparedRun, Comparison, Pair, turn
from cancernet.reporting.plots import (
    COLOURS,
    GREY,
    NOTE_SIZE,
    TEXT_SIZE,
    TITLE_SIZE,
    format_estimate,
    frame_shares,
    new_figure,
)
from cancernet.reporting.wording import list_shown

DASHES = ("-", "--", "-.", ":")
MOST_PATIENTS = 12  # that are named
NAME = 28  # characters of a run's name that fit into a legend
FALSE_POSITIVE_RATES = np.linspace(0, 1, 1001)  # where the ROC curves of several classes are averaged


class Drawn(NamedTuple):
    """A run with its probabilities and its style."""

    run: ComparedRun
    probabilities: np.ndarray  # [n, classes]
    colour: str
    dash: str

    @property
    def name(self) -> str:
        """As it fits into a legend."""
        return cut(self.run.name, NAME)


def draw_figures(comparison: Comparison, predictions: Mapping[str, Predictions]) -> dict[str, Figure]:
    """Draw every plot of a comparison, by the name under which its page expects it.

    Args:
        predictions: of each run by its name, in the same order of images.
    """
    drawn = [
        Drawn(run, predictions[run.name].probabilities, COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)])
        for i, run in enumerate(comparison.runs)
    ]
    figures = {"comparison": _plot_comparison(comparison, predictions[comparison.baseline].labels, drawn)}
    if comparison.differences[0].patients:
        figures["patients"] = _plot_patients(comparison.differences, drawn)
    return figures


def _plot_comparison(comparison: Comparison, truth: np.ndarray, drawn: Sequence[Drawn]) -> Figure:
    """Draw differences with intervals, and ROC, precision-recall and reliability of all runs.

    Of more than two classes the ROC curve is the mean over the classes, and sensitivity by class replaces precision.
    """
    shown = list_shown("comparison plot", comparison.differences[0].metrics)
    lower = 5.2 + 0.2 * len(drawn)  # inches
    upper = max(lower, 1.6 + 0.42 * len(shown) + 0.9 * (len(drawn) - 2))
    figure, panels = new_figure(11.0, upper + lower, rows=2, columns=2, height_ratios=(upper, lower))
    _draw_differences(panels[0], comparison, shown, drawn)
    _draw_roc(panels[1], comparison, truth, drawn)
    if comparison.positive is None:
        _draw_classes(panels[2], comparison, drawn)
    else:
        _draw_precision(panels[2], truth == comparison.classes.index(comparison.positive), comparison, drawn)
    _draw_reliability(panels[3], comparison, drawn)
    return figure


def _plot_patients(pairs: Sequence[Pair], drawn: Sequence[Drawn]) -> Figure:
    """Draw for each run after the first the difference of every patient, and the patients with the clearest ones."""
    shown = {pair.run: [row for row in pair.patients if row.difference][:MOST_PATIENTS] for pair in pairs}
    height = 2.2 + 0.26 * max(6, *map(len, shown.values()))  # inches, of a pair
    figure, panels = new_figure(11.0, len(pairs) * height, rows=len(pairs), columns=2)
    for pair, run, left, right in zip(pairs, drawn[1:], panels[::2], panels[1::2], strict=True):
        _draw_every_patient(left, pair.patients, (drawn[0], run))
        _draw_named_patients(right, shown[pair.run], (drawn[0], run))
    return figure


def _draw_differences(axes: Axes, comparison: Comparison, shown: Sequence[str], drawn: Sequence[Drawn]) -> None:
    """Draw a line for each metric and run, with the sign that better is to the right."""
    axes.axvline(0, color="black", linewidth=1)
    for row, name in enumerate(shown):
        for number, (pair, run) in enumerate(zip(comparison.differences, drawn[1:], strict=True)):
            difference = turn(name, pair.metrics[name])
            place = row + (number - (len(drawn) - 2) / 2) * 0.7 / (len(drawn) - 1)
            if difference.low is not None and difference.high is not None:
                axes.plot([difference.low, difference.high], [place, place], color=run.colour, linewidth=2.2)
            if difference.value is not None:
                filled = run.colour if difference.verdict != "unclear" else "white"
                axes.plot(difference.value, place, "o", color=run.colour, markerfacecolor=filled, markersize=7)
    lower = {name: " (sign reversed)" for name in shown if METRICS[name].better == "lower"}
    labels = [METRICS[name].label + lower.get(name, "") for name in shown]
    axes.set_yticks(range(len(shown)), labels, fontsize=NOTE_SIZE)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    reach = 1.08 * max(abs(end) for end in axes.get_xlim())
    axes.set_xlim(-reach, reach)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+.3g}" if value else "0"))
    first = shorten(comparison.baseline, NAME)
    axes.set_xlabel(f"←  worse than {first}      better  →", fontsize=TEXT_SIZE)
    axes.grid(axis="x", alpha=0.3)
    title = f"Difference from {first}, 95% interval\n(filled: significant; colours as in the ROC plot)"
    axes.set_title(title, fontsize=TITLE_SIZE)


def _draw_roc(axes: Axes, comparison: Comparison, truth: np.ndarray, drawn: Sequence[Drawn]) -> None:
    classes, positive = comparison.classes, comparison.positive
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (2, 3)))
    shown = range(len(classes)) if positive is None else [classes.index(positive)]
    for run in drawn:
        curves = [
            roc_curve(truth == c, run.probabilities[:, c])[:2] for c in shown if 0 < (truth == c).sum() < len(truth)
        ]
        points = curves[0] if len(curves) == 1 else (FALSE_POSITIVE_RATES, _mean_curve(curves))
        label = f"{run.name}: {format_estimate(run.run.metrics['auroc'])}"
        axes.plot(*points, run.dash, color=run.colour, linewidth=2, label=break_lines(label, 64))
        if positive is not None:
            _mark(axes, run, "specificity", "sensitivity")
    title = "ROC and AUROC, mean of each class against the rest" if positive is None else "ROC and AUROC"
    dots = "" if positive is None else "; dots: decision thresholds"
    frame_shares(axes, title, f"false positive rate (1 - specificity){dots}", "sensitivity")
    _legend_below(axes)


def _legend_below(axes: Axes) -> None:
    axes.legend(fontsize=NOTE_SIZE, loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)


def _mean_curve(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    return np.mean([np.interp(FALSE_POSITIVE_RATES, *curve) for curve in curves], axis=0)


def _draw_precision(axes: Axes, is_positive: np.ndarray, comparison: Comparison, drawn: Sequence[Drawn]) -> None:
    index = comparison.classes.index(comparison.positive or "")
    for run in drawn:
        if is_positive.any():
            precision, recall, _ = precision_recall_curve(is_positive, run.probabilities[:, index])
            label = break_lines(f"{run.name}: {format_estimate(run.run.metrics['auprc'])}", 64)
            axes.plot(recall, precision, run.dash, color=run.colour, linewidth=2, label=label)
        _mark(axes, run, "sensitivity", "precision")
    prevalence = is_positive.mean()
    axes.axhline(prevalence, color=GREY, linestyle=":", linewidth=1.2, label=f"chance (prevalence): {prevalence:.3f}")
    frame_shares(axes, "Precision-recall and AUPRC", "recall (sensitivity)", "precision (PPV)")
    _legend_below(axes)


def _mark(axes: Axes, run: Drawn, x: str, y: str) -> None:
    """Mark the run's decision threshold; `specificity` as x is drawn as 1 - specificity."""
    across, up = run.run.metrics[x].value, run.run.metrics[y].value
    if across is not None and up is not None:
        across = 1 - across if x == "specificity" else across
        axes.plot(across, up, "o", color=run.colour, markeredgecolor="black", markersize=9)


def _draw_classes(axes: Axes, comparison: Comparison, drawn: Sequence[Drawn]) -> None:
    classes = comparison.classes
    for number, run in enumerate(drawn):
        places = np.arange(len(classes)) + (number - (len(drawn) - 1) / 2) * 0.6 / len(drawn)
        for place, name in zip(places, classes, strict=True):
            rate = run.run.sensitivity[name]
            if rate.low is not None and rate.high is not None:
                axes.plot([rate.low, rate.high], [place, place], color=run.colour, linewidth=2.2)
            if rate.value is not None:
                axes.plot(rate.value, place, "o", color=run.colour, markersize=7)
        axes.plot([], [], "o-", color=run.colour, label=shorten(run.run.name, NAME))
    labels = [shorten(label_class(comparison.class_names, name), 20) for name in classes]
    axes.set_yticks(range(len(classes)), labels)
    axes.set_ylim(len(classes) - 0.4, -0.6)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("sensitivity")
    axes.set_title("Sensitivity by class", fontsize=TITLE_SIZE)
    axes.grid(axis="x", alpha=0.3)
    _legend_below(axes)


def _draw_reliability(axes: Axes, comparison: Comparison, drawn: Sequence[Drawn]) -> None:
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=(0, (2, 3)), label="perfect calibration")
    for run in drawn:
        bins = run.run.calibration.bins
        points = [each.mean_probability for each in bins], [each.fraction_positive for each in bins]
        label = break_lines(f"{run.name}: log-loss {format_estimate(run.run.metrics['log_loss'])}", 64)
        axes.plot(*points, run.dash, marker="o", markersize=5, color=run.colour, label=label)
    x, y = "predicted probability of the predicted class", "share classified correctly"
    if comparison.positive is not None:
        event = shorten(label_class(comparison.class_names, comparison.positive), 24)
        x, y = f"predicted probability of {event}", f"observed share of {event}"
    frame_shares(axes, "Reliability and log-loss", x, y)
    _legend_below(axes)


def _draw_every_patient(axes: Axes, patients: Sequence[PatientDifference], runs: tuple[Drawn, Drawn]) -> None:
    values = np.sort([row.difference for row in patients])
    first, other = runs
    colours = [other.colour if value > 0 else first.colour for value in values]
    axes.bar(range(len(values)), values, width=1, color=colours)
    axes.axhline(0, color="black", linewidth=1)
    reach = max(0.05, 1.1 * np.abs(values).max())
    axes.set_ylim(-reach, reach)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{abs(value):.0%}"))
    names = [shorten(run.run.name, NAME) for run in runs]
    axes.set_ylabel("difference in accuracy", fontsize=NOTE_SIZE)
    axes.set_xlabel(f"all {len(values):,} patients, sorted", fontsize=NOTE_SIZE)
    axes.set_xticks([])
    axes.text(0.98, 0.04, f"{names[0]} better", ha="right", transform=axes.transAxes, fontsize=NOTE_SIZE)
    axes.text(0.02, 0.92, f"{names[1]} better", ha="left", transform=axes.transAxes, fontsize=NOTE_SIZE)
    axes.set_title(f"{names[1]} compared with {names[0]}", fontsize=TITLE_SIZE)
    axes.grid(axis="y", alpha=0.3)


def _draw_named_patients(axes: Axes, rows: Sequence[PatientDifference], runs: tuple[Drawn, Drawn]) -> None:
    for place, row in enumerate(rows):
        ends = row.first.accuracy, row.other.accuracy
        axes.plot(ends, [place, place], color=GREY, linewidth=1.5, zorder=1)
        for run, end, size in zip(runs, ends, (64, 36), strict=True):
            axes.scatter(end, place, s=size, color=run.colour, edgecolor="white", linewidth=0.5, zorder=2)
    for run in runs:
        axes.scatter([], [], s=50, color=run.colour, label=shorten(run.run.name, NAME))
    labels = [f"{shorten(row.patient, 16)} ({row.images:,})" for row in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=NOTE_SIZE)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(-0.02, 1.02)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("accuracy", fontsize=NOTE_SIZE)
    axes.set_title("Most significant differences: patient (images)", fontsize=TITLE_SIZE)
    axes.grid(axis="x", alpha=0.3)
    _legend_below(axes)
