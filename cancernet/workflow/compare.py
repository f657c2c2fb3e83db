"""Compare runs evaluated on the same images: evaluations, or cross-validations.

The first run is the baseline that the others are compared with. Every difference has a paired interval.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from cancernet import InputError
from cancernet.config import group_option, option

if TYPE_CHECKING:
    from cancernet.reporting.comparison import Comparison


@dataclasses.dataclass(frozen=True)
class ComparisonOptions:
    """Which runs are compared."""

    runs: tuple[Path, ...] = option(
        (), help="Two or more folders of evaluations, runs or cross-validations", group="data", positional=True
    )
    group: str | None = group_option()
    output: Path | None = option(None, help="Folder for the comparison with its pictures", default="print only")
    force: bool = option(False, help="Replace a comparison that exists")


def compare(options: ComparisonOptions) -> "Comparison":
    """Compare runs with the first of them, and print the comparison.

    Raises InputError for fewer than two runs, or if they were not evaluated on the same images.
    """
    from cancernet.reporting import comparison, comparison_plots
    from cancernet.storage import FolderKind, claim_folder, fresh_folder

    output = options.output
    if len(options.runs) < 2:
        raise InputError(f"One run alone, {options.runs[0]}, cannot be compared. Give two or more.")
    with claim_folder(output, FolderKind.COMPARISON, force=options.force):
        compared, predictions = comparison.compare_runs(options.runs, options.group)
        if output:
            figures = comparison_plots.draw_figures(compared, predictions)
            with fresh_folder(output) as folder:
                comparison.write_comparison(folder, compared, figures)
    print(comparison.comparison_text(compared))
    if output:
        print(f"The comparison with its pictures: {output / comparison.COMPARISON_PAGE}")
    return compared
