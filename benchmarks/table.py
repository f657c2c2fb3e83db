"""A table of measurements, each compared with a reference that was measured in the same rounds."""

import statistics
import sys
from collections.abc import Callable
from typing import NamedTuple


class Row(NamedTuple):
    """One line of the table."""

    name: str
    unit: str
    reference: str  # what it is compared with
    measured: list[float]  # one value per round
    compared: list[float]  # of the reference, in the same rounds
    least: float | None = None  # target: the ratio is at least this
    most: float | None = None  # target: the ratio is at most this
    reason: str = ""  # why nothing was measured

    def ratios(self) -> list[float]:
        return [one / other for one, other in zip(self.measured, self.compared, strict=True)]


def format_table(rows: list[Row]) -> str:
    """Format a line per row: medians, median and range of the ratio, the target, and whether it is met."""
    lines = [["", "measured", "compared with", "", "ratio", "range", "target", ""]]
    for row in rows:
        goal = f">= {row.least:.2f}" if row.least is not None else f"<= {row.most:.2f}" if row.most is not None else ""
        if not row.measured:
            lines.append([row.name, "n/a", row.reference, "", "n/a", row.reason, goal, ""])
            continue
        ratios, median = row.ratios(), statistics.median(row.ratios())
        met = median >= row.least if row.least is not None else row.most is None or median <= row.most
        figures = [f"{statistics.median(values):.4g} {row.unit}" for values in (row.measured, row.compared)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        lines.append([row.name, figures[0], row.reference, figures[1], f"{median:.2f}", spread, goal])
        lines[-1].append(("met" if met else "missed") if goal else "")
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def measure_in_turn(measures: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure everything once per round. A different measurement starts each round, so that the order favours none.

    Returns:
        The values of each measurement, one per round.
    """
    found: dict[str, list[float]] = {name: [] for name in measures}
    names = list(measures)
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}: {', '.join(names)}", file=sys.stderr)
        first = number % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(measures[name]())
    return found
