"""Plots of several runs: a comparison in, Matplotlib figure out; nothing is shown or saved here."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike
from sklearn.metrics import precision_recall_curve, roc_curve

from cancernet.data.dataset import label_class
from cancernet.evaluation.metrics import METRICS
from cancernet.evaluation.predictions import Predictions
from cancernet.evaluation.results import Estimate, PatientDifference
from cancernet.reporting import plots
from cancernet.reporting.comparison import ComparedRun, Comparison, Pair, turn
from cancernet.reporting.plots import COLOURS, GREY, NOTE_SIZE, format_estimate, shorten
from cancernet.reporting.wording import cut, list_shown

DASHES = ("-", "--", "-.", ":")
MOST_PATIENTS = 12  # that are named
NAME = 28  # characters of a run's name that fit into a legend
LEGEND_DROP = 0.12  # of a panel's height
FALSE_POSITIVE_RATES = np.linspace(0, 1, 1001)  # where the ROC curves of several classes are averaged


class Drawn(NamedTuple):
    """A run with its probabilities and its style."""

    run: ComparedRun
    probabilities: np.ndarray  # [n, classes]
    colour: str
    dash: str

    @property
    def name(self) -> str:
        return shorten(self.run.name, NAME)

    def draw_curve(self, axes: Axes, x: ArrayLike, y: ArrayLike, text: str, **style) -> None:
        """Draw a curve, with the run's name and a text in the legend."""
        label = plots.break_lines(f"{cut(self.run.name, NAME)}: {text}", 64)
        axes.plot(x, y, self.dash, color=self.colour, label=label, **style)

    def mark_threshold(self, axes: Axes, x: str, y: str) -> None:
        """Mark two metrics at the decision threshold; `specificity` as x is drawn as 1 - specificity."""
        across, up = self.run.metrics[x].value, self.run.metrics[y].value
        if across is not None and up is not None:
            across = 1 - across if x == "specificity" else across
            axes.plot(across, up, "o", color=self.colour, markeredgecolor="black", markersize=9)


def draw_figures(comparison: Comparison, predictions: Mapping[str, Predictions]) -> dict[str, Figure]:
    """Draw every plot of a comparison, from the predictions of each run by its name, in the same order of images."""
    plots.use_fonts([*predictions, *{patch.patient for patch in predictions[comparison.baseline].patches}])
    drawn = [
        Drawn(run, predictions[run.name].probabilities, colour, dash)
        for run, colour, dash in zip(comparison.runs, cycle(COLOURS), cycle(DASHES))
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
    figure, panels = plots.new_figure(11.0, upper + lower, rows=2, columns=2, height_ratios=(upper, lower))
    _draw_differences(panels[0], comparison, shown, drawn)
    _draw_roc(panels[1], comparison, truth, drawn)
    if comparison.positive is None:
        _draw_classes(panels[2], comparison, drawn)
    else:
        _draw_precision(panels[2], truth, comparison.classes.index(comparison.positive), drawn)
    _draw_reliability(panels[3], comparison, drawn)
    for axes in panels[1:]:
        plots.legend_below(axes, LEGEND_DROP)
    return figure


def _plot_patients(pairs: Sequence[Pair], drawn: Sequence[Drawn]) -> Figure:
    """Draw for each run after the first the difference of every patient, and the patients with the clearest ones."""
    shown = [[row for row in pair.patients if row.difference][:MOST_PATIENTS] for pair in pairs]
    height = 2.2 + 0.26 * max(6, *map(len, shown))  # inches, of a pair
    figure, panels = plots.new_figure(11.0, len(pairs) * height, rows=len(pairs), columns=2)
    for row, (pair, run) in enumerate(zip(pairs, drawn[1:], strict=True)):
        _draw_every_patient(panels[2 * row], pair.patients, drawn[0], run)
        _draw_named_patients(panels[2 * row + 1], shown[row], (drawn[0], run))
    return figure


def _draw_differences(axes: Axes, comparison: Comparison, shown: Sequence[str], drawn: Sequence[Drawn]) -> None:
    """Draw a line for each metric and run, with the sign that better is to the right."""
    axes.axvline(0, color="black", linewidth=1)
    for row, name in enumerate(shown):
        for number, (pair, run) in enumerate(zip(comparison.differences, drawn[1:], strict=True)):
            difference = turn(name, pair.metrics[name])
            place = row + (number - (len(drawn) - 2) / 2) * 0.7 / (len(drawn) - 1)
            _draw_estimate(axes, difference, place, run.colour, filled=difference.verdict != "unclear")
    reach = 1.08 * max(abs(end) for end in axes.get_xlim())
    axes.set_xlim(-reach, reach)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+.3g}" if value else "0"))
    lower = {name: " (sign reversed)" for name in shown if METRICS[name].better == "lower"}
    labels = [METRICS[name].label + lower.get(name, "") for name in shown]
    title = f"Difference from {drawn[0].name}, 95% interval\n(filled: significant; colours as in the ROC plot)"
    plots.frame_rows(axes, labels, title, f"←  worse than {drawn[0].name}      better  →", fontsize=NOTE_SIZE)


def _draw_estimate(axes: Axes, estimate: Estimate, place: float, colour: str, *, filled: bool = True) -> None:
    """Draw a dot with its interval at this height."""
    if estimate.low is not None and estimate.high is not None:
        axes.plot([estimate.low, estimate.high], [place, place], color=colour, linewidth=2.2)
    if estimate.value is not None:
        axes.plot(estimate.value, place, "o", color=colour, markerfacecolor=colour if filled else "white", markersize=7)


def _draw_roc(axes: Axes, comparison: Comparison, truth: np.ndarray, drawn: Sequence[Drawn]) -> None:
    classes, positive = comparison.classes, comparison.positive
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (2, 3)))
    shown = range(len(classes)) if positive is None else [classes.index(positive)]
    for run in drawn:
        curves = [
            roc_curve(truth == c, run.probabilities[:, c])[:2] for c in shown if 0 < (truth == c).sum() < len(truth)
        ]
        x, y = curves[0] if curves else ([], [])
        if len(curves) > 1:
            x, y = FALSE_POSITIVE_RATES, np.mean([np.interp(FALSE_POSITIVE_RATES, *each) for each in curves], axis=0)
        run.draw_curve(axes, x, y, format_estimate(run.run.metrics["auroc"]), linewidth=2)
        if positive is not None:
            run.mark_threshold(axes, "specificity", "sensitivity")
    title = "ROC and AUROC, mean of each class against the rest" if positive is None else "ROC and AUROC"
    dots = "" if positive is None else "; dots: decision thresholds"
    plots.frame_shares(axes, title, f"false positive rate (1 - specificity){dots}", "sensitivity")


def _draw_precision(axes: Axes, truth: np.ndarray, index: int, drawn: Sequence[Drawn]) -> None:
    is_positive = truth == index
    for run in drawn:
        if is_positive.any():
            precision, recall, _ = precision_recall_curve(is_positive, run.probabilities[:, index])
            run.draw_curve(axes, recall, precision, format_estimate(run.run.metrics["auprc"]), linewidth=2)
        run.mark_threshold(axes, "sensitivity", "precision")
    prevalence = is_positive.mean()
    axes.axhline(prevalence, color=GREY, linestyle=":", linewidth=1.2, label=f"chance (prevalence): {prevalence:.3f}")
    plots.frame_shares(axes, "Precision-recall and AUPRC", "recall (sensitivity)", "precision (PPV)")


def _draw_classes(axes: Axes, comparison: Comparison, drawn: Sequence[Drawn]) -> None:
    for number, run in enumerate(drawn):
        for row, name in enumerate(comparison.classes):
            place = row + (number - (len(drawn) - 1) / 2) * 0.6 / len(drawn)
            _draw_estimate(axes, run.run.sensitivity[name], place, run.colour)
        axes.plot([], [], "o-", color=run.colour, label=run.name)
    labels = [shorten(label_class(comparison.class_names, name), 20) for name in comparison.classes]
    plots.frame_rows(axes, labels, "Sensitivity by class", "sensitivity")
    axes.set_xlim(-0.02, 1.02)


def _draw_reliability(axes: Axes, comparison: Comparison, drawn: Sequence[Drawn]) -> None:
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=(0, (2, 3)), label="perfect calibration")
    for run in drawn:
        bins = run.run.calibration.bins
        x, y = [each.mean_probability for each in bins], [each.fraction_positive for each in bins]
        run.draw_curve(axes, x, y, f"log-loss {format_estimate(run.run.metrics['log_loss'])}", marker="o", markersize=5)
    xlabel, ylabel = "predicted probability of the predicted class", "share classified correctly"
    if comparison.positive is not None:
        event = shorten(label_class(comparison.class_names, comparison.positive), 24)
        xlabel, ylabel = f"predicted probability of {event}", f"observed share of {event}"
    plots.frame_shares(axes, "Reliability and log-loss", xlabel, ylabel)


def _draw_every_patient(axes: Axes, patients: Sequence[PatientDifference], first: Drawn, other: Drawn) -> None:
    values = np.sort([row.difference for row in patients])
    colours = [other.colour if value > 0 else first.colour for value in values]
    axes.bar(range(len(values)), values, width=1, color=colours)
    axes.axhline(0, color="black", linewidth=1)
    reach = max(0.05, 1.1 * np.abs(values).max())
    axes.set_ylim(-reach, reach)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{abs(value):.0%}"))
    plots.frame(axes, f"{other.name} compared with {first.name}", grid="y")
    axes.set_ylabel("difference in accuracy", fontsize=NOTE_SIZE)
    axes.set_xlabel(f"all {len(values):,} patients, sorted", fontsize=NOTE_SIZE)
    axes.set_xticks([])
    axes.text(0.98, 0.04, f"{first.name} better", ha="right", transform=axes.transAxes, fontsize=NOTE_SIZE)
    axes.text(0.02, 0.92, f"{other.name} better", ha="left", transform=axes.transAxes, fontsize=NOTE_SIZE)


def _draw_named_patients(axes: Axes, rows: Sequence[PatientDifference], runs: tuple[Drawn, Drawn]) -> None:
    for place, row in enumerate(rows):
        ends = row.first.accuracy, row.other.accuracy
        axes.plot(ends, [place, place], color=GREY, linewidth=1.5, zorder=1)
        for run, end, size in zip(runs, ends, (64, 36), strict=True):
            axes.scatter(end, place, s=size, color=run.colour, edgecolor="white", linewidth=0.5, zorder=2)
    for run in runs:
        axes.scatter([], [], s=50, color=run.colour, label=run.name)
    labels = [f"{shorten(row.patient, 16)} ({row.images:,})" for row in rows]
    plots.frame_rows(axes, labels, "Most significant differences: patient (images)", fontsize=NOTE_SIZE)
    axes.set_xlim(-0.02, 1.02)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("accuracy", fontsize=NOTE_SIZE)
    plots.legend_below(axes, LEGEND_DROP)
