"""Apply a finished run to new images: single patches, slides of IDC patches, large images and whole slides."""

import argparse
import os
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

from cancernet import InputError
from cancernet.command_line import Parser, check_replaceable, positive_number, prevalence, quiet_import, run_script

OUTPUT = Path("predictions")
PREDICTIONS, REJECTED = "predictions.csv", "rejected.csv"
SLIDE_EXTENSIONS = (".svs", ".ndpi", ".mrxs", ".scn", ".svslide", ".vms", ".vmu", ".bif", ".dcm", ".qptiff")
CUT_FROM = 4  # patches a side: an image larger than this both ways is cut into patches
SLIDE, LOOSE, CUT = "slide", "loose", "cut"  # kinds of parts

RULE = """Which images are one patch: with a run that knows its scale (trained on IDC patches, 4 micrometres a pixel)
every whole slide, and every image larger than 200 x 200 pixels, four patches a side, is cut into patches of 50 pixels
at that scale. All others, and all images named like IDC patches, are one patch each. --tile changes that. Patches named
like IDC's (8867_idx5_x1001_y101_class0.png) are put on their slide, which gets a map if it is complete enough."""


class Part(NamedTuple):
    """What is scored together and never divided between shards."""

    kind: str  # SLIDE: patches of one slide | LOOSE: patches without a place | CUT: one large image
    slide: str  # what it is called; "" for loose patches
    stem: str  # of its files in the output
    files: list[str]


def parse_arguments(argv: Sequence[str]):
    parser = Parser(
        prog="predict_images.py",
        description=__doc__,
        epilog=RULE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="folder made by train_model.py, such as runs/cancernet")
    parser.add_argument("paths", nargs="+", metavar="path", help="images, or folders with images at any depth")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder for what comes out (%(default)s)")
    parser.add_argument("--mpp", type=positive_number, help="micrometres a pixel of images that do not say it")
    parser.add_argument("--tile", choices=("auto", "always", "never"), default="auto", help="see below (%(default)s)")
    parser.add_argument("--no-neighbours", action="store_true", help="do not smooth over a slide's neighbours")
    parser.add_argument("--threshold", type=prevalence, help="on the positive class, in place of the run's own")
    parser.add_argument(
        "--shard", type=parse_shard, help="3/16: the third of sixteen parts; whole slides, in OUTPUT/shard_03_of_16"
    )
    parser.add_argument("--force", action="store_true", help="replace predictions that are there")
    return parser.parse_args(argv)


def parse_shard(text: str) -> tuple[int, int]:
    """Argument type: which part, counted from 1, of how many."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    number, of = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= of:
        raise argparse.ArgumentTypeError(f"takes a part of a number of parts such as 3/16, not {text!r}")
    return number, of


def main(argv: Sequence[str]) -> None:
    arguments = parse_arguments(argv)
    output = choose_output(arguments)
    files, others = find_files(arguments.paths)

    with quiet_import():
        import keras  # noqa: F401
    from cancernet import folders, run

    loaded = run.load_classifier(arguments.run)
    parts = plan_parts(files, mpp=loaded.config.get("mpp"), tile=arguments.tile)
    if others:
        print(folders.describe_unsupported(others))
    print(describe_plan(parts))
    if arguments.shard:
        parts = take_shard(parts, *arguments.shard)
        print(f"Of these, part {arguments.shard[0]} of {arguments.shard[1]}: {describe_plan(parts)}")
    with folders.fresh_folder(output) as folder:
        images, rejected = predict_parts(loaded, parts, folder, arguments)
    print(f"{images:,} predictions: {output / PREDICTIONS}")
    if rejected:
        print(f"{len(rejected):,} file(s) could not be used, named in {output / REJECTED}")
    if rejected and not images and not arguments.shard:
        raise InputError(f"No image could be used, first {printable(': '.join(rejected[0]))}")


def choose_output(arguments) -> Path:
    """The folder for what comes out; a shard has its own within it.

    Raises:
        InputError: as `check_replaceable`.
    """
    output = arguments.output
    if arguments.shard:
        number, of = arguments.shard
        output = output / f"shard_{number:0{len(str(of))}d}_of_{of}"
    check_replaceable(output, holds=PREDICTIONS, called="predictions", force=arguments.force)
    return output


def find_files(paths: Sequence[str]) -> tuple[list[str], Counter]:
    """The given files, and the images in the given folders at any depth in the order of their names; none twice.

    Returns:
        The files, and the number of other files in the folders by their ending.

    Raises:
        InputError: a path is not there, or a folder has no image.
    """
    from cancernet.data.images import EXTENSIONS
    from cancernet.folders import walk

    endings = EXTENSIONS + SLIDE_EXTENSIONS
    found: dict[str, str] = {}
    others: Counter = Counter()
    for path in paths:
        if not os.path.exists(path):
            raise InputError(f"There is no {printable(path)}. Give images, or folders with images.")
        inside = [entry.path for _, entry in walk(path, endings, others=others)] if os.path.isdir(path) else [path]
        if not inside:
            raise InputError(
                f"No images under {printable(path)}. Give a folder with images such as .png, .jpg, .tif, .svs."
            )
        for file in inside:
            found.setdefault(os.path.abspath(file), Path(file).as_posix())
    return list(found.values()), others


def plan_parts(files: Sequence[str], *, mpp: float | None, tile: str) -> list[Part]:
    """What is scored together: each slide, each large image, and the loose patches in lots; by their first file.

    The lots do not depend on how the work is divided, so that every image is scored in the same company and gets the
    same probability to the last digit.

    Args:
        mpp: the run's scale, micrometres a pixel; None where it has none.
        tile: auto, always or never.
    """
    from cancernet.data.dataset import find_place
    from cancernet.reporting.illustration import file_stem
    from cancernet.using.prediction import BATCH

    parts: list[Part] = []
    slides: dict[str, Part] = {}
    lot, taken = None, set()
    for file in files:
        patient, x, _ = find_place(file)
        placed = bool(patient) and x is not None
        if tile == "always" or (tile == "auto" and not placed and is_cut(file, mpp)):
            parts.append(Part(CUT, file, file_stem(Path(file).stem, taken), [file]))
        elif placed and patient in slides:
            slides[patient].files.append(file)
        elif placed:
            slides[patient] = Part(SLIDE, patient, file_stem(patient, taken), [file])
            parts.append(slides[patient])
        elif lot and len(lot.files) < BATCH:
            lot.files.append(file)
        else:
            lot = Part(LOOSE, "", "", [file])
            parts.append(lot)
    return parts


def is_cut(file: str, mpp: float | None) -> bool:
    """Whether an image is cut into patches unless told otherwise: see RULE."""
    from PIL import Image, UnidentifiedImageError

    from cancernet.data.grid import PATCH_STEP

    if file.lower().endswith(SLIDE_EXTENSIONS):
        return True
    if mpp is None:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as header:
                return min(header.size) > CUT_FROM * PATCH_STEP
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        return True
    except (UnidentifiedImageError, OSError, ValueError):
        return file.lower().endswith((".tif", ".tiff"))  # a kind of TIFF that Pillow does not know, or a broken file


def describe_plan(parts: Sequence[Part]) -> str:
    """In words, how many files are treated how."""
    files = {kind: sum(len(part.files) for part in parts if part.kind == kind) for kind in (SLIDE, LOOSE, CUT)}
    slides = sum(part.kind == SLIDE for part in parts)
    said = []
    if slides:
        said.append(f"{files[SLIDE]:,} patches of {slides:,} slide(s)")
    if files[LOOSE]:
        said.append(f"{files[LOOSE]:,} image(s) that are one patch each")
    if files[CUT]:
        said.append(f"{files[CUT]:,} large image(s) to be cut into patches (which: see --help)")
    return (", ".join(said) or "no images") + "."


def take_shard(parts: Sequence[Part], number: int, of: int) -> list[Part]:
    """One of `of` shares of about as many parts each, one after the other; `number` counts from 1."""
    return list(parts[len(parts) * (number - 1) // of : len(parts) * number // of])


def predict_parts(loaded, parts: Sequence[Part], folder: Path, arguments) -> tuple[int, list[tuple[str, str]]]:
    """Score and decide part after part and write what comes out. Returns the number of predictions and what failed."""
    import csv

    from tqdm import tqdm

    from cancernet.using import prediction

    classes = loaded.decision.classes
    images, rejected, started = 0, [], time.monotonic()
    total = sum(len(part.files) for part in parts)
    total = None if any(part.kind == CUT for part in parts) else total
    with (
        open_table(folder / PREDICTIONS) as table,
        tqdm(total=total, unit=" images", disable=None, smoothing=0.1) as bar,
    ):
        prediction.write_header(table, classes)
        for part in parts:
            try:
                found = score_part(loaded, part, arguments, rejected, bar.update)
                decided = prediction.decide_prediction(
                    loaded, found, neighbours=not arguments.no_neighbours, threshold=arguments.threshold
                )
            except InputError as error:
                reject(rejected, part.files, str(error))
                bar.update(len(part.files))
                continue
            prediction.write_rows(table, found, *decided, classes)
            images += len(found.names)
            if part.kind != LOOSE and found.names:
                bar.write(write_slide(loaded, part, found, *decided, folder, arguments.threshold))
    with open_table(folder / REJECTED) as table:
        csv.writer(table, lineterminator="\n").writerows([("file", "reason"), *rejected])
    seconds = time.monotonic() - started
    print(f"{images:,} images in {seconds:.1f} s, {images / max(seconds, 1e-9):,.0f} images a second.")
    return images, rejected


def score_part(loaded, part: Part, arguments, rejected: list, progress: Callable[[int], object]):
    """The Prediction of one part; files that cannot be used are rejected.

    Raises:
        InputError: the part cannot be used as a whole.
    """
    from cancernet.data import dataset, grid
    from cancernet.data.images import decode_image
    from cancernet.using import prediction

    if part.kind == CUT:
        return prediction.predict_large_image(
            loaded, Path(part.files[0]), mpp=arguments.mpp, name=part.files[0], progress=progress
        )
    places = [dataset.find_place(file) if part.kind == SLIDE else ("", None, None) for file in part.files]
    patients, x, y = zip(*places, strict=True)
    grid.mean_neighbours(patients, x, y, files=part.files)  # refuses patches that overlap

    def read() -> Iterator[prediction.PlacedImage]:
        channels = loaded.config["experiment"]["channels"]
        for file, place in zip(part.files, places, strict=True):
            try:
                image = decode_image(Path(file).read_bytes(), channels)
            except (InputError, OSError) as error:
                reject(rejected, [file], error.strerror if isinstance(error, OSError) else str(error))
                progress(1)
                continue
            yield prediction.PlacedImage(image, file, *place)

    side = prediction.thumbnail_side(x, y)
    return prediction.predict_patches(loaded, read(), thumbnail_pixels=side, progress=progress)


def write_slide(loaded, part: Part, found, probabilities, predicted, folder: Path, threshold: float | None) -> str:
    """Write the map and the regions of one slide, if it is complete enough. Returns what to say of it."""
    import json

    from cancernet.reporting import illustration
    from cancernet.using import prediction

    positive = loaded.decision.positive
    said = f"{printable(part.slide)}: {len(found.names):,} patches"
    if positive is not None:
        label = prediction.class_label(loaded, positive)
        said += f", {(predicted == loaded.decision.classes.index(positive)).sum():,} called {label}"
    if part.kind == SLIDE and not illustration.is_worth_drawing(found.x, found.y):
        return f"{said}; too few or too far apart for a map"
    names = [f"{part.stem}.geojson"]
    regions = prediction.find_regions(loaded, found, probabilities, predicted)
    (folder / names[0]).write_text(json.dumps(regions) + "\n", encoding="utf-8")
    if positive is not None:
        names.append(f"{part.stem}.jpg")
        figure = illustration.draw_slide(
            loaded,
            title=printable(said),
            thumbnails=found.thumbnails,
            thumbnail_pixels=found.thumbnail_pixels,
            x=found.x,
            y=found.y,
            probabilities=probabilities,
            predicted=predicted,
            threshold=threshold,
        )
        illustration.save_picture(figure, folder / names[1])
    return f"{said}; {', '.join(names)}"


def reject(rejected: list[tuple[str, str]], files: Sequence[str], reason: str) -> None:
    """Note files that cannot be used, and say so at once."""
    from tqdm import tqdm

    rejected += [(file, reason.removeprefix(f"{file}: ")) for file in files]
    tqdm.write(f"not used: {printable(': '.join(rejected[-len(files)]))}")
    if len(files) > 1:
        tqdm.write(f"          and {len(files) - 1:,} more for the same reason")


def open_table(path: Path) -> TextIO:
    """A CSV file to write; names of files that are no UTF-8 keep their bytes."""
    return path.open("w", newline="", encoding="utf-8", errors="surrogateescape")


def printable(text: str) -> str:
    """Text that every terminal takes, whatever bytes a file's name has."""
    return text.encode("utf-8", "replace").decode("utf-8")


if __name__ == "__main__":
    run_script(main)
