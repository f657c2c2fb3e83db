"""Train a network on a built dataset, then report on patients it has never seen: the verb `cancernet train`."""

from collections.abc import Sequence

from cancernet.__main__ import run_verb
from cancernet.cli import run_command


def main(argv: Sequence[str]) -> None:
    """Train with the options of the command line; with --check, check this machine instead."""
    if "--check" in argv:
        run_verb("check", [word for word in argv if word != "--check"], prog="train_model.py --check")
    else:
        run_verb("train", argv, prog="train_model.py")


if __name__ == "__main__":
    run_command(main)
