"""Compare runs that judged the same images, evaluations or cross-validations: which is better, and can that be told?

The first run given is the baseline that the others are compared with.
"""

from collections.abc import Sequence
from pathlib import Path

from cancernet import InputError
from cancernet.cli import Parser, run_script


def parse_arguments(argv: Sequence[str]):
    parser = Parser(prog="compare_runs.py", description=__doc__)
    parser.add_argument(
        "runs", type=Path, nargs="+", help="two or more folders of evaluate_model.py or of train_model.py, with --folds"
    )
    parser.add_argument("--output", type=Path, help="folder for the comparison with its pictures (none: printed only)")
    parser.add_argument("--force", action="store_true", help="replace a comparison that is there")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    arguments = parse_arguments(argv)
    from cancernet.storage import FolderKind, claim_folder

    output = arguments.output
    if len(arguments.runs) < 2:
        raise InputError(f"One run alone, {arguments.runs[0]}, cannot be compared. Give two or more.")
    with claim_folder(output, FolderKind.COMPARISON, force=arguments.force):
        compare(arguments.runs, output)


def compare(runs: Sequence[Path], output: Path | None) -> None:
    from cancernet import storage
    from cancernet.reporting import comparison, comparison_plots

    compared, predictions = comparison.compare_runs(runs)
    if output:
        figures = comparison_plots.draw_figures(compared, predictions)
        with storage.fresh_folder(output) as folder:
            comparison.write_comparison(folder, compared, figures)
    print(comparison.comparison_text(compared))
    if output:
        print(f"The comparison with its pictures: {output / comparison.COMPARISON_PAGE}")


if __name__ == "__main__":
    run_script(main)
