"""Export a finished run to a format that other programs load; its answers are compared with the run's first."""

from collections.abc import Sequence
from pathlib import Path

from cancernet.cli import Parser, quiet_import, run_script
from cancernet.config import DATASET

CHECKED = 500  # images that the run and the export are both asked for


def parse_arguments(argv: Sequence[str]):
    parser = Parser(prog="export_model.py", description=__doc__)
    parser.add_argument("run", type=Path, help="folder made by train_model.py, such as runs/cancernet")
    parser.add_argument("--format", choices=("onnx", "litert", "saved_model"), required=True, help="of the file")
    parser.add_argument(
        "--dataset", type=Path, default=DATASET, help="whose images the answers are compared on (%(default)s)"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    arguments = parse_arguments(argv)
    from cancernet import run
    from cancernet.data import dataset
    from cancernet.storage import lock_folder

    run.read_settings(arguments.run)
    patches, summary = dataset.read_manifest(arguments.dataset), dataset.read_summary(arguments.dataset)
    with quiet_import():
        import keras  # noqa: F401
    import numpy as np

    from cancernet.inference import export
    from cancernet.training import pipeline

    export.check_packages(arguments.format)
    judge = run.load_run(arguments.run)
    run.check_same_kind(judge.settings, patches, are_grey=summary.are_grey)
    rows = np.unique(np.linspace(0, len(patches) - 1, CHECKED).astype(int))
    images = pipeline.open_store(arguments.dataset, [patches[row] for row in rows], judge.settings.experiment)
    print(f"Exporting {arguments.run} and comparing its answers on {len(rows)} images ...", flush=True)
    with lock_folder(arguments.run / arguments.format), quiet_import():  # the converters talk, too
        folder, difference = export.export_run(judge, arguments.format, images)
    print(f"No probability differs by more than {difference:.1g} from the run's on {len(rows)} images.")
    file = folder / export.FORMATS[arguments.format].file
    print(f"The export: {file}, with classes and threshold in {export.DESCRIPTION} beside it.")


if __name__ == "__main__":
    run_script(main)
