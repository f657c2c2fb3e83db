"""Numbers in, matplotlib figure out; nothing here shows or saves a picture.

Classes are given by the names to print. A *metric* is `{"value", "low", "high"}`, or `{"value": None, "reason": ...}`
where it is undefined. Colours are Okabe and Ito's (2008), which stay apart for colour-blind readers.
"""

import re
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from sklearn.metrics import precision_recall_curve, roc_curve

from cancernet.reporting.captions import break_lines, shorten

BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SKY, AMBER, GREY = "#56B4E9", "#E69F00", "#6B6B6B"
COLOURS = (BLUE, ORANGE, GREEN, PINK, AMBER, SKY)
STYLES = [{"color": colour, "linestyle": dash} for dash in ("-", "--", ":") for colour in COLOURS]
CURVE_STYLES = {"training": (BLUE, "--"), "validation": (ORANGE, "-")}
TITLE_SIZE, TEXT_SIZE, NOTE_SIZE = 11, 10, 9  # points


class Curve(NamedTuple):
    """One class against the rest: what a ROC or precision-recall curve is drawn from."""

    positive: np.ndarray  # bool [n]: the image truly is of the class
    probabilities: np.ndarray  # float [n], 0..1: of the class
    metric: dict | None  # area under the curve; None where it was not worked out


def plot_history(*, history: dict[str, list[float]], kept_epochs: tuple[int, int]) -> Figure:
    """Loss and accuracy by epoch; `history` maps Keras' names (`loss`, `val_loss`, ...) to one value an epoch.

    `kept_epochs`, first and last of those whose mean weights are judged, count from 1 and are marked in every panel.
    Where there is no accuracy there is no panel of it. A loss far above the others is cut off, marked and told, so that
    one epoch does not flatten all others.
    """
    first, last = kept_epochs
    names = [name for name in ("loss", "accuracy") if name in history]
    figure, panels = new_figure(5.2, 0.8 + 2.2 * len(names), rows=len(names))
    for name, axes in zip(names, panels, strict=True):
        curves = {"training": history.get(name), "validation": history.get(f"val_{name}")}
        curves = {label: np.array(values, float) for label, values in curves.items() if values is not None}
        ceiling = _robust_ceiling(np.concatenate(list(curves.values()))) if name == "loss" else None
        for label, values in curves.items():
            colour, dash = CURVE_STYLES[label]
            epochs = np.arange(1, len(values) + 1)
            axes.plot(epochs, values, dash, color=colour, label=label, marker="o", markersize=3)
            if ceiling is not None:
                _mark_cut(axes, epochs, values, ceiling, colour)
        if first == last:
            axes.axvline(first, color=GREY, linestyle=":", label=f"epoch {first} is judged")
        else:
            axes.axvspan(first, last, color=GREY, alpha=0.18, label=f"mean of epochs {first} to {last} is judged")
        axes.set_ylabel(name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
    panels[0].set_title("Training and validation by epoch", fontsize=TITLE_SIZE)
    panels[-1].set_xlabel("epoch")
    return _legend_below(figure, panels[0], columns=3)


def _robust_ceiling(values: np.ndarray) -> float | None:
    """Where to cut an axis that single values would stretch; None where none lies far above the others."""
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    ceiling = known.min() + 4 * (np.quantile(known, 0.9) - known.min())
    return float(ceiling) if known.max() > ceiling > known.min() else None


def _mark_cut(axes: Axes, epochs: np.ndarray, values: np.ndarray, ceiling: float, colour: str) -> None:
    """Cut the axis at the ceiling; an arrow for each value above it, and the highest of them as a number."""
    axes.set_ylim(top=ceiling)
    above = np.flatnonzero(values > ceiling)
    if not len(above):
        return
    axes.plot(epochs[above], np.full(len(above), ceiling), "^", color=colour, markersize=7, clip_on=False)
    early = above[0] < len(epochs) / 2  # then there is room to the right
    at = (epochs[above[-1 if early else 0]], ceiling)
    place = {"xytext": (10 if early else -10, 0), "ha": "left" if early else "right"}
    said = f"cut off: {values[above].max():.3g}"
    axes.annotate(said, at, **place, textcoords="offset points", va="top", fontsize=NOTE_SIZE, color=colour)


def plot_confusion_matrix(*, matrix: list[list[int]], classes: list[str]) -> Figure:
    """Counts and row percentages; rows are the true class, columns what was predicted, in the order of `classes`."""
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
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class (images)")
    axes.set_title("Confusion matrix: images, share of the row", fontsize=TITLE_SIZE)
    return figure


def plot_roc(*, curves: dict[str, Curve], operating_point: tuple[float, float] | None = None) -> Figure:
    """ROC curve of each class of `curves` (name -> Curve), with its AUROC and interval; none where it is undefined.

    `operating_point` is the (sensitivity, specificity) of the decision, marked where given.
    """
    figure, (axes,) = new_figure(5.2, 5.4 + 0.18 * len(curves))
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (2, 3)), label="chance: 0.5")
    for (name, curve), style in zip(curves.items(), STYLES, strict=False):
        defined = 0 < curve.positive.sum() < len(curve.positive)
        fpr, tpr = roc_curve(curve.positive, curve.probabilities)[:2] if defined else ([], [])
        axes.plot(fpr, tpr, linewidth=2, label=break_lines(f"{name}: AUROC {metric_words(curve.metric)}", 62), **style)
    if operating_point:
        sensitivity, specificity = operating_point
        label = f"in use: sensitivity {sensitivity:.2f}, specificity {specificity:.2f}"
        axes.plot(1 - specificity, sensitivity, "o", markersize=9, color="black", label=label)
    title = "ROC" if len(curves) == 1 else "ROC: each class against the rest"
    frame_shares(axes, title, "false alarms (1 - specificity)", "found (sensitivity)")
    return _legend_below(figure, axes)


def plot_precision_recall(*, curves: dict[str, Curve], operating_point: tuple[float, float] | None = None) -> Figure:
    """Precision against sensitivity of each class of `curves` (name -> Curve); dotted: the class's share of the images.

    `operating_point` is the (sensitivity, precision) of the decision, marked where given.
    """
    figure, (axes,) = new_figure(5.2, 5.2 + 0.18 * len(curves))
    for (name, curve), style in zip(curves.items(), STYLES, strict=False):
        share = float(curve.positive.mean())
        points = precision_recall_curve(curve.positive, curve.probabilities)[:2] if share > 0 else ([], [])
        area = f"AUPRC {metric_words(curve.metric)}, " if curve.metric else ""
        axes.plot(*points[::-1], linewidth=2, label=break_lines(f"{name}: {area}share {share:.1%}", 62), **style)
        axes.axhline(share, color=style["color"], linestyle=":", linewidth=1.2)
    if operating_point:
        label = f"in use: sensitivity {operating_point[0]:.2f}, precision {operating_point[1]:.2f}"
        axes.plot(*operating_point, "o", markersize=9, color="black", label=label)
    title = "Precision and sensitivity (dotted: the class's share)"
    frame_shares(axes, title, "found (sensitivity, recall)", "right when it says so (precision)")
    return _legend_below(figure, axes)


def plot_reliability(*, bins: list[dict], probabilities: np.ndarray, ece: dict, event: str) -> Figure:
    """Share of images with the event against its mean predicted probability, over the count of images below.

    `bins` as in the report (`mean_probability`, `fraction_positive`, `images`; empty ones are not drawn);
    probabilities [n] of the event, in 0..1; `event` completes "the image is ...": a class's name, or `right`.
    """
    figure, (axes, counts) = new_figure(5.2, 5.6, rows=2, height_ratios=(3, 1), sharex=True)
    filled = [each for each in bins if each["images"]]
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=(0, (2, 3)), label="perfect")
    predicted, observed = ([each[key] for each in filled] for key in ("mean_probability", "fraction_positive"))
    axes.plot(predicted, observed, "o-", color=BLUE, label=f"this model, in {len(filled)} groups of images")
    title = f"Reliability; calibration error {metric_words(ece)}"
    frame_shares(axes, title, "", f"share that is {shorten(event, 24)}")
    counts.hist(probabilities, bins=np.linspace(0, 1, 21), color=SKY, edgecolor="white")
    counts.set(xlabel=f"predicted probability of being {shorten(event, 24)}", ylabel="images")
    counts.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    return _legend_below(figure, axes, columns=2)


def plot_threshold(*, positive: np.ndarray, probabilities: np.ndarray, threshold: float, name: str) -> Figure:
    """Sensitivity and specificity against the threshold, the one in use marked; positive is >= threshold.

    positive [n] bool: the image truly is of the positive class `name`; probabilities [n] of that class, in 0..1.
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
    axes.axvline(threshold, color="black", linestyle=":", label=f"threshold in use: {threshold:.3f}")
    xlabel = f"threshold on the probability of {shorten(name, 26)}"
    frame_shares(axes, "What another threshold would do", xlabel, "share of the images")
    return _legend_below(figure, axes)


def plot_patients(*, patients: list[dict]) -> Figure:
    """One dot a patient, lowest first, for each of accuracy, sensitivity and specificity that any patient has.

    `patients` as in the report. A dot's area grows with the images behind it; the line is the median, the band the
    middle half. Patients without the images that a rate needs are counted below the panel.
    """
    behind = {"accuracy": ("tp", "fp", "tn", "fn"), "sensitivity": ("tp", "fn"), "specificity": ("tn", "fp")}
    rates = [rate for rate in behind if any(patient.get(rate) is not None for patient in patients)]
    if not rates:
        raise ValueError("plot_patients: none of the patients has an accuracy, sensitivity or specificity.")
    figure, panels = new_figure(8.7, 4.0, columns=len(rates), sharey=True)
    for axes, rate in zip(panels, rates, strict=True):
        known = sorted((each for each in patients if each.get(rate) is not None), key=lambda each: each[rate])
        values = [each[rate] for each in known]
        sizes = [sum(each.get(count) or 0 for count in behind[rate]) or each["images"] for each in known]
        low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
        axes.axhspan(low, high, color=SKY, alpha=0.25, linewidth=0)
        axes.axhline(median, color=BLUE, linewidth=1.2)
        area = 14 + 90 * np.sqrt(np.array(sizes) / max(sizes)) / max(1, len(known) / 40)
        axes.scatter(range(len(known)), values, s=area, color=BLUE, alpha=0.75, edgecolor="white", linewidth=0.5)
        axes.set_title(f"{rate}\nmedian {median:.2f}, half in {low:.2f} to {high:.2f}", fontsize=NOTE_SIZE)
        without = len(patients) - len(known)
        note = f"\n({without} more without such images)" if without else ""
        axes.set_xlabel(f"{len(known)} patients, lowest first{note}", fontsize=NOTE_SIZE)
        names = [shorten(each["patient"], 14) for each in known] if len(known) <= 12 else []  # while there is room
        axes.set_xticks(range(len(names)), names, rotation=90 if len(names) > 3 else 0, fontsize=NOTE_SIZE)
        axes.margins(x=0.2 if len(known) <= 3 else 0.05)
        axes.grid(axis="y", alpha=0.3)
    panels[0].set_ylim(-0.04, 1.04)
    panels[0].yaxis.set_major_formatter(PercentFormatter(1))
    return figure


def new_figure(width: float, height: float, *, rows: int = 1, columns: int = 1, **grid) -> tuple[Figure, list[Axes]]:
    """A figure of so many inches, and its panels row by row."""
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False, **grid).flat)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _legend_below(figure: Figure, axes: Axes, columns: int = 1) -> Figure:
    keys = axes.get_legend_handles_labels()
    figure.legend(*keys, loc="outside lower center", ncols=columns, fontsize=NOTE_SIZE, frameon=False)
    return figure


def frame_shares(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    """Both axes are shares, 0 to 1."""
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=xlabel, ylabel=ylabel)
    axes.set_title(title, fontsize=TITLE_SIZE)
    axes.grid(alpha=0.3)


def metric_words(metric: dict) -> str:
    """`0.912 (0.880 to 0.940)`, or why it is undefined."""
    if metric["value"] is None:
        return f"n/a ({metric['reason']})"
    low, high = metric["low"], metric["high"]
    return f"{metric['value']:.3f}" + (f" ({low:.3f} to {high:.3f})" if low is not None and high is not None else "")
