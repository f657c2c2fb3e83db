"""Rows of what was measured against a yardstick, in the same rounds, and the table of them."""

import statistics
import sys
from collections.abc import Callable
from typing import NamedTuple


class Row(NamedTuple):
    """One line of the table."""

    name: str
    unit: str
    yardstick: str  # what it is compared with
    measured: list[float]  # a value a round
    compared: list[float]  # of the yardstick, in the same rounds
    least: float | None = None  # what the ratio should reach
    most: float | None = None  # what it should not pass
    reason: str = ""  # why nothing was measured

    def ratios(self) -> list[float]:
        return [one / other for one, other in zip(self.measured, self.compared, strict=True)]


def format_table(rows: list[Row]) -> str:
    """A line a row: medians, the ratio's median, least and greatest, and whether it is what it should be."""
    lines = [["", "measured", "compared with", "", "ratio", "least to greatest", "should be", ""]]
    for row in rows:
        goal = f">= {row.least:.2f}" if row.least is not None else f"<= {row.most:.2f}" if row.most is not None else ""
        if not row.measured:
            lines.append([row.name, "n/a", row.yardstick, "", "n/a", row.reason, goal, ""])
            continue
        ratios, median = row.ratios(), statistics.median(row.ratios())
        met = median >= row.least if row.least is not None else row.most is None or median <= row.most
        figures = [f"{statistics.median(values):.4g} {row.unit}" for values in (row.measured, row.compared)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        lines.append([row.name, figures[0], row.yardstick, figures[1], f"{median:.2f}", spread, goal])
        lines[-1].append(("met" if met else "missed") if goal else "")
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def measure_in_turn(measures: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Each measure once a round; another goes first in every round, so that none gains from its place."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    names = list(measures)
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}: {', '.join(names)}", file=sys.stderr)
        first = number % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(measures[name]())
    return found
