"""Apply a finished run to new images: single patches, slides of IDC patches, large images and whole slides."""

import argparse
import functools
import re
import time
from collections.abc import Sequence
from pathlib import Path

from cancernet import InputError
from cancernet.cli import Parser, positive_number, prevalence, quiet_import, run_script

OUTPUT = Path("predictions")

RULE = """Which images are one patch: if the run knows its scale (trained on IDC patches, 4 micrometres a pixel),
every whole slide, and every image larger than 200 x 200 pixels, four patches a side, is cut into patches of 50 pixels
at that scale. All other images, and all images named like IDC patches, are one patch each. --tile changes that. Patches
named like IDC's (8867_idx5_x1001_y101_class0.png) are put on their slide, which gets a map if it has few gaps."""


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="predict_images.py",
        description=__doc__,
        epilog=RULE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="folder made by train_model.py, such as runs/cancernet")
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="path",
        help="images, folders with images at any depth, or tables of them: .csv files with a column path",
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder for the results (%(default)s)")
    parser.add_argument(
        "--mpp", type=positive_number, help="micrometres a pixel of large images that do not say it (not given)"
    )
    parser.add_argument("--tile", choices=("auto", "always", "never"), default="auto", help="see below (%(default)s)")
    parser.add_argument("--no-neighbours", action="store_true", help="do not smooth over a slide's neighbours")
    parser.add_argument("--threshold", type=prevalence, help="on the positive class, 0 to 1 (the run's own)")
    parser.add_argument(
        "--shard",
        type=parse_shard,
        help="3/16: the third of sixteen parts; whole slides, in OUTPUT/shard_03_of_16 (all)",
    )
    parser.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="answer slides with Ray: on the cluster at ADDRESS, else on all cores of this machine (without Ray)",
    )
    parser.add_argument("--force", action="store_true", help="replace predictions that are there")
    return parser.parse_args(argv)


def parse_shard(text: str) -> tuple[int, int]:
    """Argument type: which part, counted from 1, of how many."""
    found = re.fullmatch("([0-9]{1,9})/([0-9]{1,9})", text)
    number, of = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= of:
        raise argparse.ArgumentTypeError(f"takes a part of a number of parts such as 3/16, not {text!r}")
    return number, of


def main(argv: Sequence[str]) -> None:
    arguments = parse_arguments(argv)
    if arguments.ray and arguments.shard:
        raise InputError("--shard divides the work between jobs, and --ray divides it itself. Give one of them.")
    from cancernet.inference import work_list
    from cancernet.storage import FolderKind, claim_folder

    output = name_output(arguments)
    arguments.paths = work_list.expand_tables(arguments.paths)
    if arguments.ray:
        with claim_folder(output, FolderKind.ARCHIVE, force=True):  # `open_folder` compares the request
            predict_archive(arguments, output)
        return
    with claim_folder(output, FolderKind.PREDICTIONS, force=arguments.force):
        predict_all(arguments, output)


def predict_all(arguments: argparse.Namespace, output: Path) -> None:
    """Find the images, score and decide them all, and write what comes of it."""
    from cancernet.inference import work_list

    files, others = work_list.find_files(arguments.paths)

    with quiet_import():
        import keras  # noqa: F401
    from cancernet import storage
    from cancernet.data.files import describe_unsupported
    from cancernet.inference.summary import SUMMARY
    from cancernet.run import load_run

    run = load_run(arguments.run)
    planned = work_list.plan_parts(files, mpp=run.settings.mpp, tile=arguments.tile)
    if others:
        print(describe_unsupported(others))
    print(work_list.describe_plan(planned))
    if arguments.shard:
        planned = work_list.take_shard(planned, *arguments.shard)
        print(f"Of these, part {arguments.shard[0]} of {arguments.shard[1]}: {work_list.describe_plan(planned)}")
    with storage.fresh_folder(output) as folder:
        summary, rejected = predict(run, planned, folder, arguments)
    print(f"\n{summary.describe()}\nEvery patch: {output / work_list.PREDICTIONS}; every slide: {output / SUMMARY}")
    if rejected:
        print(f"{len(rejected):,} file(s) could not be used, named in {output / work_list.REJECTED}")
    if rejected and not summary.count and not arguments.shard:
        raise InputError(f"No image could be used, first {work_list.printable(': '.join(rejected[0]))}")


def predict_archive(arguments: argparse.Namespace, output: Path) -> None:
    """Answer slides on a Ray cluster. What is finished stays: the same command goes on where it was ended."""
    try:
        from cancernet.inference import ray
    except ImportError as error:
        raise InputError(f'--ray needs Ray and PyArrow ({error}): pip install ".[cluster]"') from error
    from cancernet.inference import archive, work_list
    from cancernet.run import read_settings

    work = ray.Work(
        arguments.run.resolve(),
        read_settings(arguments.run),
        output.resolve(),
        arguments.tile,
        arguments.mpp,
        not arguments.no_neighbours,
        arguments.threshold,
    )
    archive.open_folder(output, ray.describe_work(work), force=arguments.force)
    kept = archive.Archive(output)
    ray.answer_archive(arguments.ray, work, kept, arguments.paths, say=functools.partial(print, flush=True))
    print(f"{len(kept.finished):,} slides: {output / archive.SUMMARY}, their patches: {output / archive.PATCHES}")
    if kept.failed:
        print(f"{len(kept.failed):,} file(s) could not be used, named in {output / archive.FAILED}")
    if not kept.finished:
        raise InputError(f"No slide could be used, first {work_list.printable(': '.join(kept.failed[0][1:]))}")


def name_output(arguments: argparse.Namespace) -> Path:
    """The folder for the results; a shard has its own within it."""
    output = arguments.output
    if arguments.shard:
        number, of = arguments.shard
        output = output / f"shard_{number:0{len(str(of))}d}_of_{of}"
    return output


def predict(run, planned: Sequence, folder: Path, arguments: argparse.Namespace) -> tuple:
    """Write the results of all parts into the folder, with a bar; see `results.predict_parts`."""
    from tqdm import tqdm

    from cancernet.inference import results, work_list

    options = results.Options(arguments.mpp, not arguments.no_neighbours, arguments.threshold)
    known = all(
        part.kind != work_list.CUT for part in planned
    )  # how many patches a large image has is not known before
    total = sum(len(part.files) for part in planned) if known else None
    started = time.monotonic()
    with tqdm(total=total, unit=" images", disable=None, smoothing=0.1) as bar:
        summary, rejected = results.predict_parts(run, planned, folder, options, bar)
    seconds, count = time.monotonic() - started, summary.count
    print(f"{count:,} images in {seconds:.1f} s, {count / max(seconds, 1e-9):,.0f} images a second.")
    return summary, rejected


if __name__ == "__main__":
    run_script(main)
