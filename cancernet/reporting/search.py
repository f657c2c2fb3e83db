"""The result of a search in words, as a table and in a plot."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from cancernet import storage
from cancernet.config import Setting
from cancernet.evaluation.results import Difference
from cancernet.reporting import printed
from cancernet.reporting.plots import BLUE, GREEN, GREY, NOTE_SIZE, ORANGE, TITLE_SIZE, frame, new_figure
from cancernet.reporting.report import render_page
from cancernet.reporting.wording import plural

SHOWN = 8  # of the finished trials, in the printed table
MOST_IMPORTANT = 10  # settings in the plot
VERDICTS = {
    "better": "It is better than the default on these patients.",
    "worse": "It is worse than the default on these patients.",
    "unclear": "Whether it is better than the default is inconclusive.",
}


@dataclass(frozen=True)
class TrialRow:
    """A trial that has ended."""

    number: int
    state: str  # finished | pruned | diverged | interrupted
    log_loss: float | None  # over all folds; of a pruned trial over the folds that it finished
    folds: int  # evaluated
    seconds: float
    settings: Mapping[str, Setting]


@dataclass(frozen=True)
class SearchResult:
    """The trials of a search, and how the best compares with the default settings."""

    rows: Sequence[TrialRow]
    best: TrialRow
    default: TrialRow
    difference: Difference | None  # log-loss of the best minus that of the default; None if the default is the best
    importance: Mapping[str, float]  # setting -> share, the largest first
    data: str  # the images and patients, in words
    running: int  # trials of other processes

    def finished(self) -> list[tuple[float, TrialRow]]:
        """The log-loss of each trial that was evaluated on all folds, and the trial, in the order of their numbers."""
        return [(row.log_loss, row) for row in self.rows if row.state == "finished" and row.log_loss is not None]


def search_text(result: SearchResult) -> str:
    """Write what is printed at the end of a search."""
    lines = [printed.wrap(line) for line in _count_trials(result)]
    finished = sorted(result.finished(), key=lambda each: each[0])
    default = result.default.number
    default_loss = next(loss for loss, row in finished if row.number == default)
    rows = [["best trials", "log-loss", "vs default", "seconds"]]
    for place, (loss, row) in enumerate(finished):
        name = f"{row.number}{' (default)' * (row.number == default)}"
        if place < SHOWN or row.number == default:
            rows.append([name, f"{loss:.4f}", f"{loss - default_loss:+.4f}", f"{row.seconds:.0f}"])
    texts = [_describe_verdict(result), describe_changes(result)]
    return "\n".join([*lines, "", printed.table(rows), "", *(printed.wrap(text) for text in texts if text)])


def search_page(result: SearchResult, name: str, pictures: Mapping[str, bytes]) -> str:
    """Write search.html of the search in the folder `name`, with the picture of `plot_search`."""
    order = sorted(
        result.rows, key=lambda row: (row.state != "finished", row.log_loss is None, row.log_loss or 0.0, row.number)
    )
    return render_page(
        "search.html",
        pictures,
        None,
        name=name,
        result=result,
        rows=order,
        statement=" ".join(_count_trials(result)),
        verdict=_describe_verdict(result),
        changes=describe_changes(result),
        spell=_format,
    )


def _count_trials(result: SearchResult) -> list[str]:
    """Sentences that count the trials that have ended, and those that run in other processes."""
    ended = [row for row in result.rows if row.state != "interrupted"]
    counts = {state: sum(row.state == state for row in ended) for state in ("finished", "pruned", "diverged")}
    states = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
    lines = [f"{plural(len(ended), 'trial')} ({states}), {result.data}. Test patients were not used."]
    if result.running:
        lines.append(f"Still running in other processes: {plural(result.running, 'trial')}.")
    return lines


def _describe_verdict(result: SearchResult) -> str:
    difference = result.difference
    if difference is None or difference.value is None:
        return "No trial was better than the default settings."
    low, high = difference.low, difference.high
    interval = difference.reason
    if low is not None and high is not None:
        interval = f"95% interval over patients {low:+.4f} to {high:+.4f}"
    return (
        f"Trial {result.best.number} is the best: its log-loss minus that of the default is {difference.value:+.4f} "
        f"({interval}). {VERDICTS[difference.verdict]} This is over-optimistic, because the trial was selected as the "
        "best on the same patients: test it on patients that the search has not used."
    )


def describe_changes(result: SearchResult) -> str:
    """Name the settings in which the best trial differs from the default; "" for none."""
    usual = result.default.settings
    best = {name: value for name, value in result.best.settings.items() if value != usual[name]}
    changed = [f"{name} {_format(value)} ({_format(usual[name])})" for name, value in best.items()]
    return f"Changed settings, with the default in parentheses: {', '.join(changed)}." if changed else ""


def trials_csv(result: SearchResult) -> str:
    """Write all trials that have ended as CSV, in the order of their numbers."""
    names = list(result.default.settings)
    text = io.StringIO(newline="")
    rows = (
        [row.number, row.state, "" if row.log_loss is None else row.log_loss, row.folds, f"{row.seconds:.1f}"]
        + [row.settings.get(name, "") for name in names]
        for row in result.rows
    )
    storage.write_rows(text, [["trial", "state", "log_loss", "folds", "seconds", *names], *rows])
    return text.getvalue()


def plot_search(result: SearchResult) -> Figure:
    """Plot the log-loss of each trial with the best so far, and the importance of the settings."""
    figure, (left, right) = new_figure(11.0, 4.4, columns=2, width_ratios=(3, 2))
    _draw_history(left, result)
    _draw_importance(right, result.importance)
    return figure


def _draw_history(axes: Axes, result: SearchResult) -> None:
    loss_of = {row.number: loss for loss, row in result.finished()}
    numbers, losses = list(loss_of), np.array(list(loss_of.values()))
    pruned = [(row.number, row.log_loss) for row in result.rows if row.state == "pruned" and row.log_loss is not None]
    axes.plot(numbers, losses, "o", color=BLUE, markersize=5, label="finished")
    axes.plot(numbers, np.minimum.accumulate(losses), color=BLUE, drawstyle="steps-post", label="best so far")
    if pruned:
        axes.plot(*zip(*pruned, strict=True), "x", color=GREY, markersize=5, label="pruned (fewer folds)")
    axes.axhline(loss_of[result.default.number], color=ORANGE, linestyle="--", label="default")
    best = result.best.number
    axes.plot(best, loss_of[best], "*", color=GREEN, markersize=14, label="best")
    _cut_off(axes, losses, [loss for _, loss in pruned])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    frame(axes, "Trials (lower is better)", "trial", "cross-validated log-loss")
    axes.legend(fontsize=NOTE_SIZE, frameon=False)


def _cut_off(axes: Axes, finished: np.ndarray, pruned: Sequence[float]) -> None:
    """Cut off and count losses far above the median, so that they do not flatten the others."""
    every = np.array([*finished, *pruned])
    ceiling = finished.min() + 6 * max(np.median(finished) - finished.min(), 1e-4)
    above = int((every > ceiling).sum())
    if above:
        axes.set_ylim(top=ceiling)
        text = f"{plural(above, 'trial')} off scale, up to {every.max():.3g}"
        axes.text(0.01, 0.99, text, transform=axes.transAxes, va="top", fontsize=NOTE_SIZE, color=GREY)


def _draw_importance(axes: Axes, importance: Mapping[str, float]) -> None:
    shown = list(importance.items())[:MOST_IMPORTANT][::-1]
    axes.set_title("Importance of the settings", fontsize=TITLE_SIZE)
    if not shown:
        axes.axis("off")
        axes.text(0.5, 0.5, "too few trials", ha="center", color=GREY, fontsize=NOTE_SIZE)
        return
    names, shares = zip(*shown, strict=True)
    axes.barh(names, shares, color=BLUE)
    for row, value in enumerate(shares):
        axes.text(value, row, f" {value:.0%}", va="center", fontsize=NOTE_SIZE)
    axes.set_xlim(0, max(shares) * 1.18)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("share of the importance")


def _format(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
