"""Plots of one report: numbers in, Matplotlib figure out; nothing is shown or saved here.

Classes are given by the names to print. Colours are from Okabe and Ito (2008) and are safe for colour-blind readers.
"""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import matplotlib
import numpy as np
from matplotlib import font_manager, ft2font
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from sklearn.metrics import precision_recall_curve, roc_curve

from cancernet.evaluation import results
from cancernet.evaluation.intervals import FEW_GROUPS
from cancernet.evaluation.metrics import METRICS
from cancernet.evaluation.results import Estimate
from cancernet.reporting.wording import cut, plural

BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SKY, AMBER, GREY = "#56B4E9", "#E69F00", "#6B6B6B"
COLOURS = (BLUE, ORANGE, GREEN, PINK, AMBER, SKY)
STYLES = [(colour, dash) for dash in ("-", "--", ":") for colour in COLOURS]
CURVE_STYLES = {"training": (BLUE, "--"), "validation": (ORANGE, "-")}
TITLE_SIZE, TEXT_SIZE, NOTE_SIZE = 11, 10, 9  # points


class Curve(NamedTuple):
    """One class against the rest, for a ROC or precision-recall curve."""

    positive: np.ndarray  # bool [n]: whether the image is of the class
    probabilities: np.ndarray  # of the class, float [n], 0 to 1
    auroc: Estimate
    auprc: Estimate | None = None  # of two classes


def plot_history(*, history: Mapping[str, Sequence[float | None]], kept_epochs: tuple[int, int]) -> Figure:
    """Plot loss and accuracy by epoch, and mark the first and the last epoch that the final model averages, from 1.

    `history` has one value an epoch under Keras' names; without `accuracy` there is one panel. Single very high losses
    are cut off and marked, so that they do not flatten the rest of the curve.
    """
    names = [name for name in ("loss", "accuracy") if name in history]
    figure, panels = new_figure(5.2, 0.8 + 2.2 * len(names), rows=len(names))
    for name, axes in zip(names, panels, strict=True):
        columns = {"training": name, "validation": f"val_{name}"}
        curves = {label: np.array(history[key], float) for label, key in columns.items() if key in history}
        limits = _robust_limits(np.concatenate(list(curves.values()))) if name == "loss" else None
        for label, values in curves.items():
            colour, dash = CURVE_STYLES[label]
            epochs = np.arange(1, len(values) + 1)
            axes.plot(epochs, values, dash, color=colour, label=label, marker="o", markersize=3)
            if limits is not None:
                _mark_cut(axes, epochs, values, limits[1], colour)
        axes.set_ylim(limits)
        first, last = kept_epochs
        if first == last:
            axes.axvline(first, color=GREY, linestyle=":", label=f"final model: epoch {first}")
        else:
            axes.axvspan(first, last, color=GREY, alpha=0.18, label=f"final model: mean of epochs {first} to {last}")
        axes.set_ylabel(name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
    panels[0].set_title("Training and validation by epoch", fontsize=TITLE_SIZE)
    panels[-1].set_xlabel("epoch")
    return _add_legend(figure, panels[0], columns=3)


def _robust_limits(values: np.ndarray) -> tuple[float, float] | None:
    """Find where to cut an axis that few high values would stretch; None if no value is far above the others."""
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    ceiling = known.min() + 4 * (np.quantile(known, 0.9) - known.min())
    bottom = known.min() - 0.05 * (ceiling - known.min())
    return (float(bottom), float(ceiling)) if known.max() > ceiling > known.min() else None


def _mark_cut(axes: Axes, epochs: np.ndarray, values: np.ndarray, ceiling: float, colour: str) -> None:
    """Mark each value above the ceiling, where the axis is cut, by an arrow and write down the highest."""
    above = np.flatnonzero(values > ceiling)
    if not len(above):
        return
    axes.plot(epochs[above], np.full(len(above), ceiling), "^", color=colour, markersize=7, clip_on=False)
    early = above[0] < len(epochs) / 2  # then there is room to the right
    axes.annotate(
        f"off scale: {values[above].max():.3g}",
        (epochs[above[-1 if early else 0]], ceiling),
        xytext=(10 if early else -10, 0),
        ha="left" if early else "right",
        textcoords="offset points",
        va="top",
        fontsize=NOTE_SIZE,
        color=colour,
    )


def plot_confusion_matrix(*, matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> Figure:
    """Plot counts and row percentages; rows are the true class, columns the predicted class."""
    counts = np.asarray(matrix)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    longest = max(len(word) for name in classes for word in re.split("[ _-]", name))
    width = min(max(12, longest), 18)  # of a class's name, in characters
    side = max(4.2, 1.4 + 0.95 * width / 12 * len(classes))
    figure, (axes,) = new_figure(side + 0.6 + 0.1 * (width - 12), side)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        share = f"{shares[row, column]:.1%}" if totals[row, 0] else "n/a"
        colour = "white" if shares[row, column] > 0.55 else "black"
        axes.text(column, row, f"{count:,}\n{share}", ha="center", va="center", color=colour, fontsize=TEXT_SIZE)
    labels = [break_lines(name, width, limit=3 * width) for name in classes]
    axes.set_xticks(range(len(labels)), labels, fontsize=NOTE_SIZE)
    named = [f"{label}\n({total:,})" for label, total in zip(labels, totals[:, 0], strict=True)]
    axes.set_yticks(range(len(labels)), named, fontsize=NOTE_SIZE)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="predicted class", ylabel="true class (images)")
    axes.set_title("Confusion matrix: images, % of the true class", fontsize=TITLE_SIZE)
    return figure


def plot_roc(*, curves: Mapping[str, Curve], operating_point: tuple[float, float] | None = None) -> Figure:
    """Plot the ROC curve of each class; a class whose AUROC is undefined has a legend entry only.

    `operating_point` is sensitivity and specificity at the decision threshold.
    """
    figure, (axes,) = new_figure(5.2, 5.4 + 0.18 * len(curves))
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (2, 3)), label="chance: 0.5")
    for (name, curve), (colour, dash) in zip(curves.items(), STYLES):
        defined = 0 < curve.positive.sum() < len(curve.positive)
        fpr, tpr = roc_curve(curve.positive, curve.probabilities)[:2] if defined else ([], [])
        label = break_lines(f"{name}: AUROC {format_estimate(curve.auroc)}", 62)
        axes.plot(fpr, tpr, dash, color=colour, linewidth=2, label=label)
    if operating_point:
        sensitivity, specificity = operating_point
        label = f"decision threshold: sensitivity {sensitivity:.2f}, specificity {specificity:.2f}"
        axes.plot(1 - specificity, sensitivity, "o", markersize=9, color="black", label=label)
    title = "ROC curve" if len(curves) == 1 else "ROC curves, each class against the rest"
    frame_shares(axes, title, "false positive rate (1 - specificity)", "sensitivity (true positive rate)")
    return _add_legend(figure, axes)


def plot_precision_recall(*, curves: Mapping[str, Curve], operating_point: tuple[float, float] | None = None) -> Figure:
    """Plot precision against recall of each class, with its prevalence as a dotted line.

    `operating_point` is recall and precision at the decision threshold.
    """
    figure, (axes,) = new_figure(5.2, 5.2 + 0.18 * len(curves))
    for (name, curve), (colour, dash) in zip(curves.items(), STYLES):
        prevalence = float(curve.positive.mean())
        points = precision_recall_curve(curve.positive, curve.probabilities)[:2] if prevalence > 0 else ([], [])
        area = f"AUPRC {format_estimate(curve.auprc)}, " if curve.auprc else ""
        label = break_lines(f"{name}: {area}prevalence {prevalence:.1%}", 62)
        axes.plot(*points[::-1], dash, color=colour, linewidth=2, label=label)
        axes.axhline(prevalence, color=colour, linestyle=":", linewidth=1.2)
    if operating_point:
        label = f"decision threshold: recall {operating_point[0]:.2f}, precision {operating_point[1]:.2f}"
        axes.plot(*operating_point, "o", markersize=9, color="black", label=label)
    title = "Precision-recall curve" if len(curves) == 1 else "Precision-recall curves, each class against the rest"
    frame_shares(axes, f"{title}\n(dotted: prevalence)", "recall (sensitivity)", "precision (PPV)")
    return _add_legend(figure, axes)


def plot_reliability(
    *, bins: Sequence[results.CalibrationBin], probabilities: np.ndarray, ece: Estimate, positive: str | None
) -> Figure:
    """Plot the observed share of images against the predicted probability, above a histogram of the probabilities.

    `probabilities`, [n] from 0 to 1, are of the positive class; of more than two classes (`positive` is None) they are
    of the predicted class.
    """
    figure, (axes, counts) = new_figure(5.2, 5.6, rows=2, height_ratios=(3, 1), sharex=True)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=(0, (2, 3)), label="perfect calibration")
    predicted, observed = [each.mean_probability for each in bins], [each.fraction_positive for each in bins]
    axes.plot(predicted, observed, "o-", color=BLUE, label=f"this model, in {plural(len(bins), 'bin')}")
    observed_share = "share classified correctly" if positive is None else f"observed share of {shorten(positive, 24)}"
    frame_shares(axes, f"Reliability; calibration error {format_estimate(ece)}", "", observed_share)
    counts.hist(probabilities, bins=np.linspace(0, 1, 21).tolist(), color=SKY, edgecolor="white")
    of_class = "the predicted class" if positive is None else shorten(positive, 24)
    counts.set(xlabel=f"predicted probability of {of_class}", ylabel="images")
    counts.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    return _add_legend(figure, axes, columns=2)


def plot_net_benefit(*, curve: Sequence[results.NetBenefit], positive: str) -> Figure:
    """Plot the decision curve of the model with its intervals, and of classifying all or no images as positive."""
    figure, (axes,) = new_figure(5.2, 4.8)
    thresholds, values, low, high = _tabulate((each.threshold, each.model) for each in curve).T
    name = shorten(positive, 24)
    axes.plot(thresholds, values, color=BLUE, linewidth=2, label="this model (band: 95% interval)")
    axes.fill_between(thresholds, low, high, color=BLUE, alpha=0.18, linewidth=0)
    axes.plot(thresholds, [each.all_positive for each in curve], "--", color=ORANGE, label=f"classify all as {name}")
    axes.axhline(0, color=GREY, linestyle=":", label=f"classify none as {name}")
    highest = np.nanmax([0.05, *values, *high])
    axes.set(xlim=(0, 0.5), ylim=(-0.25 * highest, 1.1 * highest))
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    frame(axes, "Decision curve", f"threshold probability of {name}", "net benefit per image")
    return _add_legend(figure, axes)


def plot_distribution(
    *, distribution: Mapping[str, Sequence[int]], positive: str, threshold: float | None = None
) -> Figure:
    """Plot histograms of the positive class's probability, a panel for each true class."""
    figure, panels = new_figure(5.2, 4.8, rows=len(distribution), sharex=True)
    for (name, counts), axes, colour in zip(distribution.items(), panels, (BLUE, ORANGE)):
        bins = np.linspace(0, 1, len(counts) + 1)
        axes.bar(bins[:-1], counts, width=np.diff(bins), align="edge", color=colour, alpha=0.8, edgecolor="white")
        axes.set_title(f"true class {shorten(name, 24)}: {plural(sum(counts), 'image')}", fontsize=TEXT_SIZE)
        axes.set(xlim=(0, 1), ylabel="images")
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        if threshold is not None:
            axes.axvline(threshold, color="black", linestyle=":", label=f"decision threshold: {threshold:.3f}")
    panels[-1].set_xlabel(f"predicted probability of {shorten(positive, 24)}")
    return _add_legend(figure, panels[0])


def plot_risk_coverage(*, referral: results.Referral, interval: results.Interval) -> Figure:
    """Plot the share of errors among the most certain images by their share of all, and the decision's own point.

    The band of intervals ends with the errors: where none is left, the intervals are exact, not the jackknife's, and
    only the first of them, the narrowest, is marked. Few patients have neither: their band would jump up and down.
    """
    figure, (axes,) = new_figure(5.2, 4.8)
    points = _tabulate((each.coverage, each.error) for each in referral.curve)
    errors = points[:, 1]
    few = interval.groups < FEW_GROUPS
    note = f"no band: only {plural(interval.groups, interval.over.removesuffix('s'))}" if few else "band: 95% interval"
    axes.plot(points[:, 0], errors, "o-", color=BLUE, markersize=3, label=f"error rate ({note})")
    band, exact = points[(errors > 0) & (not few)], points[(errors == 0) & (not few)][:1]
    axes.fill_between(band[:, 0], band[:, 2], band[:, 3], color=BLUE, alpha=0.18, linewidth=0)
    for x, _, low, high in exact:
        label = f"no error left: exact 95% interval up to {high:.1%}"
        axes.plot([x, x], [low, high], "_-", color=GREY, markersize=10, label=label)
    highest = np.nanmax([0.05, *errors, *band[:, 3], *exact[:, 3]])
    if referral.band and referral.band.error.value is not None:
        label = f"uncertain images of this run referred: {referral.band.share:.1%}"
        axes.plot(1 - referral.band.share, referral.band.error.value, "o", color="black", markersize=9, label=label)
    axes.set(xlim=(1.02, 0), ylim=(0, 1.05 * highest))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    frame(axes, "Risk-coverage curve", "share of the images that is not referred", "error rate of these images")
    return _add_legend(figure, axes)


def plot_threshold(*, positive: np.ndarray, probabilities: np.ndarray, threshold: float, name: str) -> Figure:
    """Plot sensitivity and specificity against the threshold, with the decision threshold marked.

    `positive`, bool [n], says whether an image is of the positive class, `name`. It is classified as that class if its
    probability, 0 to 1, is at least the threshold.
    """
    figure, (axes,) = new_figure(5.2, 4.8)
    grid = np.unique(np.append(np.linspace(0, 1, 1001), threshold))
    for label, scores, falling, colour, dash in (
        ("sensitivity", probabilities[positive], True, BLUE, "-"),
        ("specificity", probabilities[~positive], False, ORANGE, "--"),
    ):
        if not len(scores):
            axes.plot([], [], dash, color=colour, label=f"{label}: n/a (no such images)")
            continue
        below = np.searchsorted(np.sort(scores), grid, side="left") / len(scores)
        shares = 1 - below if falling else below
        chosen = shares[np.searchsorted(grid, threshold)]
        axes.plot(grid, shares, dash, linewidth=2, color=colour, label=f"{label}: {chosen:.3f} at the threshold")
        axes.plot(threshold, chosen, "o", color=colour, markersize=8)
    axes.axvline(threshold, color="black", linestyle=":", label=f"decision threshold: {threshold:.3f}")
    xlabel = f"threshold on the probability of {shorten(name, 26)}"
    frame_shares(axes, "Sensitivity and specificity by threshold", xlabel, "share of images")
    return _add_legend(figure, axes)


def plot_learning_curve(*, curve: results.LearningCurve) -> Figure:
    """Plot AUROC and log-loss against the number of training patients, with their intervals."""
    figure, panels = new_figure(8.7, 3.6, columns=2)
    for axes, name, colour in zip(panels, curve.change, (BLUE, ORANGE)):
        patients, values, low, high = _tabulate((each.patients, getattr(each, name)) for each in curve.points).T
        axes.plot(patients, values, "o-", color=colour, linewidth=2)
        axes.vlines(patients, low, high, color=colour, alpha=0.5)
        axes.set_xlim(0, 1.05 * patients[-1])
        frame(axes, METRICS[name].label, "training patients")
    panels[0].set_ylabel("out-of-fold, with 95% interval")
    return figure


def plot_patients(*, patients: Sequence[results.PatientRow | results.TwoClassPatientRow]) -> Figure:
    """Plot one dot a patient, in ascending order, for accuracy and, of two classes, sensitivity and specificity."""
    two_classes = [each for each in patients if isinstance(each, results.TwoClassPatientRow)]
    rates: dict[str, list[tuple[float | None, int, str]]] = {
        "accuracy": [(each.accuracy, each.images, each.patient) for each in patients],
        "sensitivity": [(each.sensitivity, each.tp + each.fn, each.patient) for each in two_classes],
        "specificity": [(each.specificity, each.tn + each.fp, each.patient) for each in two_classes],
    }
    defined = {rate: sorted((v, n, name) for v, n, name in dots if v is not None) for rate, dots in rates.items()}
    known = {rate: dots for rate, dots in defined.items() if dots}
    figure, panels = new_figure(8.7, 4.0, columns=len(known), sharey=True)
    for axes, (rate, dots) in zip(panels, known.items(), strict=True):
        values, images, names = zip(*dots, strict=True)
        low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
        axes.axhspan(low, high, color=SKY, alpha=0.25, linewidth=0)
        axes.axhline(median, color=BLUE, linewidth=1.2)
        area = 14 + 90 * np.sqrt(np.array(images) / max(images)) / max(1, len(dots) / 40)
        axes.scatter(range(len(dots)), values, s=area, color=BLUE, alpha=0.75, edgecolor="white", linewidth=0.5)
        axes.set_title(f"{rate}\nmedian {median:.2f}, quartiles {low:.2f} to {high:.2f}", fontsize=NOTE_SIZE)
        without = len(patients) - len(dots)
        note = f"\n(undefined for {plural(without, 'patient')})" if without else ""
        axes.set_xlabel(f"{plural(len(dots), 'patient')}, lowest first{note}", fontsize=NOTE_SIZE)
        shown = [shorten(name, 14) for name in names] if len(names) <= 12 else []  # while there is room
        axes.set_xticks(range(len(shown)), shown, rotation=90 if len(shown) > 3 else 0, fontsize=NOTE_SIZE)
        axes.margins(x=0.2 if len(dots) <= 3 else 0.05)
        axes.grid(axis="y", alpha=0.3)
    panels[0].set_ylim(-0.04, 1.04)
    panels[0].yaxis.set_major_formatter(PercentFormatter(1))
    return figure


def _tabulate(estimates: Iterable[tuple[float, Estimate]]) -> np.ndarray:
    """Place, value, low and high end of each estimate, [n, 4]; NaN for None, which plots leave out."""
    return np.array([(at, each.value, each.low, each.high) for at, each in estimates], float).reshape(-1, 4)


def use_fonts(names: Iterable[str]) -> str:
    """Let pictures use installed fonts for the characters of these names that Matplotlib's own font lacks.

    Returns a sentence about characters that no installed font has; "" without any.
    """
    families = ["DejaVu Sans"]
    missing = set("".join(names)) - _list_characters(font_manager.findfont(families[0]))
    if not missing:
        return ""
    for font in font_manager.fontManager.ttflist:
        # Matplotlib's "Last Resort" has boxes for all characters.
        if missing and "Last Resort" not in font.name and (found := missing & _list_characters(font.fname)):
            families.append(font.name)
            missing -= found
    matplotlib.rcParams["font.family"] = families
    if not missing:
        return ""
    return f"No installed font has {' '.join(sorted(missing))}; pictures show boxes. Noto Sans CJK has most."


@functools.cache
def _list_characters(path: str) -> set[str]:
    try:
        return set(map(chr, ft2font.FT2Font(path).get_charmap()))
    except (OSError, RuntimeError):  # damaged, or a kind without outlines
        return set()


def new_figure(width: float, height: float, *, rows: int = 1, columns: int = 1, **grid) -> tuple[Figure, list[Axes]]:
    """Make a figure of this size in inches, and return its panels row by row."""
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False, **grid).flat)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def legend_below(axes: Axes, drop: float, **options) -> None:
    """Put a legend below the panel, a share `drop` of its height lower."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -drop), fontsize=NOTE_SIZE, frameon=False, **options)


def _add_legend(figure: Figure, axes: Axes, columns: int = 1) -> Figure:
    keys = axes.get_legend_handles_labels()
    figure.legend(*keys, loc="outside lower center", ncols=columns, fontsize=NOTE_SIZE, frameon=False)
    return figure


def frame(
    axes: Axes, title: str, xlabel: str = "", ylabel: str = "", *, grid: Literal["both", "x", "y"] = "both"
) -> None:
    """Name a panel and its axes, and draw a light grid."""
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.set_title(title, fontsize=TITLE_SIZE)
    axes.grid(axis=grid, alpha=0.3)


def frame_rows(axes: Axes, labels: Sequence[str], title: str, xlabel: str = "", **text) -> None:
    """Name the rows of a plot, the first at the top."""
    axes.set_yticks(range(len(labels)), labels, **text)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    frame(axes, title, xlabel, grid="x")


def frame_shares(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    """Let both axes go from 0 to 1."""
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    frame(axes, title, xlabel, ylabel)


def format_estimate(estimate: Estimate) -> str:
    """Write `0.912 (0.880 to 0.940)`, or why the value is undefined."""
    if estimate.value is None:
        return f"n/a ({estimate.reason})"
    low, high = estimate.low, estimate.high
    return f"{estimate.value:.3f}" + (f" ({low:.3f} to {high:.3f})" if low is not None and high is not None else "")


def shorten(text: str, limit: int) -> str:
    """Cut to `limit` characters, with `$` escaped: Matplotlib reads a pair of them as a formula."""
    return cut(text, limit).replace("$", r"\$")


def break_lines(text: str, width: int, *, limit: int = 999) -> str:
    """Shorten to `limit` characters, in lines of at most `width`; `$` is escaped.

    Lines end after a blank, `_` or `-`, which may exceed `width` by one; words that are longer are cut.
    """
    lines = [""]
    for part in re.findall(rf"[^ _-]{{1,{width}}}[ _-]?|[ _-]", cut(text, limit)):
        lines += [""] if lines[-1] and len(lines[-1]) + len(part.rstrip(" _-")) > width else []
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines).replace("$", r"\$")
