"""Export a finished run to a format that other programs load; its predictions are compared with the run's first."""

from collections.abc import Sequence
from pathlib import Path

from cancernet.cli import Parser, run_script
from cancernet.inference.export import FORMATS, ExportOptions, export


def main(argv: Sequence[str]) -> None:
    parser = Parser(prog="export_model.py", description=__doc__)
    parser.add_argument("run", type=Path, help="Folder of a finished run, such as runs/cancernet")
    parser.add_argument("--format", choices=list(FORMATS), required=True, help="Format of the file")
    parser.add_argument(
        "--dataset", type=Path, default=ExportOptions.dataset, help="Dataset to verify on (default: %(default)s)"
    )
    export(ExportOptions(**vars(parser.parse_args(argv))))


if __name__ == "__main__":
    run_script(main)
