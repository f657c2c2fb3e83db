"""Copy image patches into training, validation and testing class folders: the verb `cancernet build`."""

from collections.abc import Sequence

from cancernet.__main__ import run_verb
from cancernet.cli import run_command


def main(argv: Sequence[str]) -> None:
    """Build a dataset with the options of the command line."""
    run_verb("build", argv, prog="build_dataset.py")


if __name__ == "__main__":
    run_command(main)
