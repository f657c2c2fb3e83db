"""Progress of long work: one live display on a terminal, nothing of it in a log file.

Commands open the display. Other code reports to it and prints nothing; without a display the reports are ignored.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_KERNEL = "JPY_PARENT_PID"  # in a Jupyter cell, `!python ...` has a terminal that cannot move its cursor up
_SECONDS_BETWEEN_REPORTS = 0.5
_SECONDS_OF_SPEED = 900  # from which the time left is estimated: long enough to contain validation


class _Display:
    """The rows on the terminal: the whole command, divided into parts, and below it what is being counted."""

    def __init__(self, rows: "Progress"):
        self.rows, self.parts = rows, list[tuple[int, int, str]]()
        self.whole: TaskID | None = None
        self.reported = 0.0

    def show(self, fraction: float, text: str) -> None:
        """Show the whole command when this fraction of the current part is done."""
        done, share = 0.0, 1.0
        for number, of, _ in self.parts:
            share /= of
            done += (number - 1) * share
        names = [f"{name} {number} of {of}" for number, of, name in self.parts if of > 1]
        title = ", ".join([*names, text] if text else names)
        done += fraction * share
        shown: dict[str, Any] = {"description": title[:1].upper() + title[1:], "note": f"{done:.0%}"}
        if self.whole is None:
            self.whole = self.rows.add_task(total=1.0, **shown)
        self.rows.update(self.whole, completed=done, **shown)


_display: ContextVar[_Display | None] = ContextVar("display", default=None)


@contextlib.contextmanager
def show_progress() -> Iterator[None]:
    """Show what the body reports, if standard output is a terminal. What it prints appears above the display."""
    if not sys.stdout.isatty() or _KERNEL in os.environ or _display.get():
        yield
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(30),
        progress.TextColumn("{task.fields[note]}", markup=False),
        progress.TimeRemainingColumn(elapsed_when_finished=True),
    )
    rows = progress.Progress(
        *columns,
        console=Console(file=sys.stdout, soft_wrap=True),  # long paths are not broken into lines
        transient=True,
        refresh_per_second=4,
        redirect_stderr=sys.stderr.isatty(),
        speed_estimate_period=_SECONDS_OF_SPEED,
    )
    token = _display.set(_Display(rows))
    try:
        with rows:
            yield
    finally:
        _display.reset(token)


@contextlib.contextmanager
def part(number: int, of: int, name: str) -> Iterator[None]:
    """Tell that the body is one of several equal parts of the work around it, such as member 2 (`number`) of 3."""
    display = _display.get()
    if display is None or of == 1:
        yield
        return
    display.parts.append((number, of, name))
    display.show(0.0, "")
    try:
        yield
        display.show(1.0, "")
    finally:
        display.parts.pop()


def report(fraction: float, text: str) -> None:
    """Report what fraction (0 to 1) of the current part is done, and what it is busy with."""
    display, now = _display.get(), time.monotonic()
    if display and now - display.reported > _SECONDS_BETWEEN_REPORTS:
        display.reported = now
        display.show(fraction, text)


@contextlib.contextmanager
def count(what: str, total: int | None, *, done: int = 0, unit: str = "images") -> Iterator[Callable[[int], None]]:
    """Count things of which there are `total`, as far as is known; yield a function that adds to those done."""
    display, started, first = _display.get(), time.monotonic(), done
    if display is None:
        yield lambda more: None
        return
    rows = display.rows
    row = rows.add_task(what, total=total, completed=done, note="")

    def add(more: int) -> None:
        nonlocal done
        done += more
        rate = (done - first) / max(time.monotonic() - started, 1e-9)
        of = "" if total is None else f"/{total:,}"
        rows.update(row, completed=done, note=f"{done:,}{of} {unit}, {rate:,.0f} {unit}/s")

    add(0)
    try:
        yield add
    finally:
        rows.remove_task(row)
