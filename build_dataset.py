"""Copy image patches into training, validation and testing class folders. Each patient is in one split only."""

from collections.abc import Sequence
from pathlib import Path

from cancernet.cli import Parser, positive_number, run_script, seed
from cancernet.workflow.build import BuildOptions, write_dataset


def parse_arguments(argv: Sequence[str]) -> BuildOptions:
    defaults = BuildOptions()
    parser = Parser(prog="build_dataset.py", description=__doc__)
    data, output = parser.add_argument_group("data"), parser.add_argument_group("output")
    data.add_argument(
        "--source", type=Path, help=f"Folder of images, one folder per class (default: {defaults.source})"
    )
    data.add_argument(
        "--split-by",
        choices=("patient", "image"),
        help="What is never divided between splits; by image, results are over-optimistic (default: patient)",
    )
    data.add_argument(
        "--split-file",
        type=Path,
        help="CSV with the columns patient,split: a published split (default: random)",
    )
    data.add_argument(
        "--patient-pattern",
        metavar="REGEX",
        help=r"Regular expression for file names; its first group is the patient, as in '^(person\d+)_' "
        "(default: that of the IDC set)",
    )
    data.add_argument("--megapixels", type=positive_number, help="Reject images of more pixels (default: 50)")
    data.add_argument("--sample", action="store_true", help="First write synthetic slides to --source")
    data.add_argument("--download", action="store_true", help="First download the IDC patches from Kaggle")
    data.add_argument("--seed", type=seed, help="Seed of the split and of synthetic slides (default: 42)")
    output.add_argument("--output", type=Path, help=f"Folder for the dataset (default: {defaults.output})")
    output.add_argument(
        "--mode", choices=("copy", "hardlink", "symlink"), help="Copy the images, or link to them (default: copy)"
    )
    output.add_argument("--force", action="store_true", help="Replace a dataset that was built with other settings")
    parser.set_defaults(**vars(defaults))
    return BuildOptions(**vars(parser.parse_args(argv)))


def main(argv: Sequence[str]) -> None:
    write_dataset(parse_arguments(argv))


if __name__ == "__main__":
    run_script(main)
