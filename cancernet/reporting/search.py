"""A search in words, as a table and in a picture: what was tried, what was best, and how sure that is."""

import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from cancernet import storage
from cancernet.reporting import printed
from cancernet.reporting.plots import BLUE, GREEN, GREY, NOTE_SIZE, ORANGE, TITLE_SIZE, new_figure

SHOWN = 8  # of the finished trials, in the printed table
MOST_IMPORTANT = 10  # settings in the picture


class TrialRow(NamedTuple):
    """A trial that has ended."""

    number: int
    state: str  # finished | pruned | diverged | given back
    log_loss: float | None  # over all folds; of a pruned one over those that it had
    folds: int  # judged
    seconds: float
    settings: Mapping[str, object]


class Outcome(NamedTuple):
    """What came of a search."""

    rows: Sequence[TrialRow]
    best: TrialRow
    default: TrialRow
    difference: dict | None  # log-loss of the best less the default's, a metric with a verdict; None if they are one
    importance: Mapping[str, float]  # setting -> share, the largest first
    data: str  # on which images and patients, in words
    running: int  # trials of other processes that had not ended


def tell_search(outcome: Outcome) -> str:
    """What is printed at the end of a search."""
    ended = [row for row in outcome.rows if row.state != "given back"]
    counts = {state: sum(row.state == state for row in ended) for state in ("finished", "pruned", "diverged")}
    first = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
    lines = [printed.wrap(f"{len(ended)} trials ({first}), {outcome.data}. Test patients were not read.")]
    if outcome.running:
        lines.append(f"{outcome.running} more are being judged by other processes.")
    finished = sorted((row for row in ended if row.state == "finished"), key=lambda row: row.log_loss)
    head = ["best trials", "log-loss", "less default", "seconds"]
    cells = [
        [
            f"{row.number}{' (the default)' if row.number == outcome.default.number else ''}",
            f"{row.log_loss:.4f}",
            f"{row.log_loss - outcome.default.log_loss:+.4f}",
            f"{row.seconds:.0f}",
        ]
        for row in finished
    ]
    shown = [*cells[:SHOWN], *(cell for cell in cells[SHOWN:] if "default" in cell[0])]
    lines += ["", printed.table([head, *shown]), "", printed.wrap(tell_verdict(outcome))]
    changes = tell_changes(outcome)
    return "\n".join([*lines, *([printed.wrap(changes)] if changes else [])])


def tell_verdict(outcome: Outcome) -> str:
    """Whether the best is better than the default, and how sure that is."""
    if outcome.difference is None:
        return "No trial was better than the default settings."
    difference = outcome.difference
    low, high = difference["low"], difference["high"]
    within = difference.get("reason", "") if low is None else f"95% interval over patients {low:+.4f} to {high:+.4f}"
    told = {
        "better": "it is better than the default",
        "worse": "it is worse than the default",
        "unclear": "it cannot be told apart from the default",
    }[difference["verdict"]]
    return (
        f"Best is trial {outcome.best.number}: its log-loss less the default's is {difference['value']:+.4f} "
        f"({within}), so {told} on these patients. It was chosen as the best on the same patients, which flatters it: "
        "only patients that the search has not read tell how good it is."
    )


def tell_changes(outcome: Outcome) -> str:
    """What the best sets otherwise than the default; "" for nothing."""
    usual = outcome.default.settings
    changed = [
        f"{name} {_spell(value)} ({_spell(usual[name])})"
        for name, value in outcome.best.settings.items()
        if value != usual[name]
    ]
    return f"It changes, with the default in brackets: {', '.join(changed)}." if changed else ""


def write_table(outcome: Outcome) -> str:
    """All trials that have ended as CSV, in their order."""
    names = list(outcome.default.settings)
    text = io.StringIO(newline="")
    rows = (
        [row.number, row.state, "" if row.log_loss is None else row.log_loss, row.folds, f"{row.seconds:.1f}"]
        + [row.settings.get(name, "") for name in names]
        for row in outcome.rows
    )
    storage.write_rows(text, [["trial", "state", "log_loss", "folds", "seconds", *names], *rows])
    return text.getvalue()


def plot_search(outcome: Outcome) -> Figure:
    """The log-loss of each trial with the best so far, and which settings made the difference."""
    figure, (left, right) = new_figure(11.0, 4.4, columns=2, width_ratios=(3, 2))
    _draw_history(left, outcome)
    _draw_importance(right, outcome.importance)
    return figure


def _draw_history(axes: Axes, outcome: Outcome) -> None:
    finished = [row for row in outcome.rows if row.state == "finished"]
    pruned = [row for row in outcome.rows if row.state == "pruned" and row.log_loss is not None]
    numbers, losses = np.array([(row.number, row.log_loss) for row in finished]).T
    axes.plot(numbers, losses, "o", color=BLUE, markersize=5, label="finished")
    axes.plot(numbers, np.minimum.accumulate(losses), color=BLUE, drawstyle="steps-post", label="best so far")
    if pruned:
        places = [row.number for row in pruned], [row.log_loss for row in pruned]
        axes.plot(*places, "x", color=GREY, markersize=5, label="pruned: on the folds it had")
    axes.axhline(outcome.default.log_loss, color=ORANGE, linestyle="--", label="the default")
    axes.plot(outcome.best.number, outcome.best.log_loss, "*", color=GREEN, markersize=14, label="best")
    _cut_off(axes, losses, [row.log_loss for row in pruned])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="trial", ylabel="cross-validated log-loss")
    axes.set_title("Trials (lower is better)", fontsize=TITLE_SIZE)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=NOTE_SIZE, frameon=False)


def _cut_off(axes: Axes, finished: np.ndarray, pruned: Sequence[float]) -> None:
    """Let single bad trials not flatten all others: those far above the middle are cut off, and counted."""
    every = np.array([*finished, *pruned])
    ceiling = finished.min() + 6 * max(np.median(finished) - finished.min(), 1e-4)
    above = int((every > ceiling).sum())
    if above:
        axes.set_ylim(top=ceiling)
        told = f"{above} above, up to {every.max():.3g}"
        axes.text(0.01, 0.99, told, transform=axes.transAxes, va="top", fontsize=NOTE_SIZE, color=GREY)


def _draw_importance(axes: Axes, importance: Mapping[str, float]) -> None:
    shown = list(importance.items())[:MOST_IMPORTANT][::-1]
    axes.set_title("What made the difference", fontsize=TITLE_SIZE)
    if not shown:
        axes.axis("off")
        axes.text(0.5, 0.5, "too few trials to tell", ha="center", color=GREY, fontsize=NOTE_SIZE)
        return
    names, shares = zip(*shown, strict=True)
    axes.barh(names, shares, color=BLUE)
    for row, value in enumerate(shares):
        axes.text(value, row, f" {value:.0%}", va="center", fontsize=NOTE_SIZE)
    axes.set_xlim(0, max(shares) * 1.18)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("share of the importance")


def _spell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
