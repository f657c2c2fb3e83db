"""Apply a finished run to new images: single patches, slides of IDC patches, large images and whole slides."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from cancernet.cli import Parser, positive_number, prevalence, run_script
from cancernet.inference.predict import TILE_CHOICES, PredictOptions, predict

RULE = """Which images are one patch: if the run knows its scale (trained on IDC patches, 4 micrometres per pixel),
every whole slide, and every image larger than 200 x 200 pixels, four patches a side, is tiled into patches of 50 pixels
at that scale. All other images, and all images named like IDC patches, are one patch each. --tile changes that. Patches
named like IDC's (8867_idx5_x1001_y101_class0.png) are put on their slide, which gets a map if it has few gaps."""


def parse_shard(text: str) -> tuple[int, int]:
    """Argument type: which part, counted from 1, of how many."""
    found = re.fullmatch("([0-9]{1,9})/([0-9]{1,9})", text)
    number, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= count:
        raise argparse.ArgumentTypeError(f"takes a part of a number of parts such as 3/16, not {text!r}")
    return number, count


def main(argv: Sequence[str]) -> None:
    parser = Parser(
        prog="predict_images.py",
        description=__doc__,
        epilog=RULE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("run", type=Path, help="Folder of a finished run, such as runs/cancernet")
    add(
        "paths",
        nargs="+",
        metavar="path",
        help="Images, folders with images at any depth, or tables of them: .csv files with a column path",
    )
    add("--output", type=Path, default=PredictOptions.output, help="Folder for the results (default: %(default)s)")
    add("--mpp", type=positive_number, help="Micrometres per pixel of large images that do not state it")
    add("--tile", choices=TILE_CHOICES, default="auto", help="Tile images into patches, see below (default: auto)")
    add("--no-neighbours", action="store_false", dest="neighbours", help="Do not smooth over neighbouring patches")
    add("--threshold", type=prevalence, help="Threshold on the positive class, 0 to 1 (default: the run's own)")
    add("--shard", type=parse_shard, help="Predict one part of the work: 3/16, into OUTPUT/shard_03_of_16")
    add(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="Predict with Ray: on the cluster at ADDRESS, or on all cores of this machine",
    )
    add("--force", action="store_true", help="Replace predictions that are there")
    predict(PredictOptions(**vars(parser.parse_args(argv))))


if __name__ == "__main__":
    run_script(main)
