"""Measure the speed of building a dataset and starting a training on it, mostly as ratios to `cp -r`.

The images of --source are repeated under the names of other patients until there are --files of them. A number is
appended to the bytes of each, so that no two files are equal. Each round copies this tree with `cp -r` and builds
datasets from it in turn, all on one disk; the write cache of the disk is flushed before each. Memory is the sum over
all processes, with shared pages counted once (Linux).

    python benchmarks/building_speed.py --source datasets/original --files 277524 --rounds 3 --json building.json
"""

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.recipes import stop_if_failed  # noqa: E402
from benchmarks.table import Row, format_table, measure_in_turn  # noqa: E402

MEMORY_LIMIT, START_LIMIT = 600.0, 15.0  # MB, seconds
SHARE = 5  # building a fifth of the files shows whether the cost is linear
FIRST_STEP = """
import os, sys
import train_model
from cancernet.cli import quiet_import
with quiet_import():
    import keras
keras.callbacks.Callback.on_train_batch_end = lambda self, batch, logs=None: os._exit(0)
train_model.main(sys.argv[1:])
sys.exit("There was no step.")
"""


UNFLUSHED = """
import sys
import build_dataset
from cancernet import storage
storage.flush = storage.flush_folder = lambda _: None
build_dataset.main(sys.argv[1:])
"""


class Cost(NamedTuple):
    """Seconds and peak memory of a command."""

    seconds: float
    peak: float  # MB


def repeat_images(source: Path, folder: Path, files: int) -> None:
    """Write `files` copies of the images of `source`, `<patient>/<class>/<patient>_...`, for other patients."""
    originals = [
        (path.parent.name, *re.fullmatch(r"(\d+)(_.*)", path.name).groups(), path.read_bytes())
        for path in sorted(source.glob("*/*/*_idx5_x*_y*_class*.png"))
    ]
    if not originals:
        sys.exit(f"{source} contains no image like 10253/0/10253_idx5_x1351_y1101_class0.png.")
    for number in range(files):
        repeat, index = divmod(number, len(originals))
        label, patient, ending, data = originals[index]
        patient = f"{int(patient) + 100_000 * repeat}"
        target = folder / patient / label / f"{patient}{ending}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data + b"%d" % repeat)


def run(command: list[str]) -> Cost:
    """Run a command to its end. If it fails, exit with its output."""
    os.sync()
    with tempfile.TemporaryFile("w+") as output:
        started, peak = time.perf_counter(), 0.0
        child = psutil.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        while True:
            try:
                child.wait(timeout=0.2)
                break
            except psutil.TimeoutExpired:
                peak = max(peak, measure_memory(child))
        seconds = time.perf_counter() - started
        output.seek(0)
        done = subprocess.CompletedProcess(command, child.returncode, output.read(), "")
    stop_if_failed(done, " ".join(command[:4]))
    return Cost(seconds, peak)


def measure_memory(process: psutil.Process) -> float:
    """Measure the memory in MB of a process and its children, with shared pages counted once."""
    total = 0.0
    for each in [process, *process.children(recursive=True)]:
        try:
            total += each.memory_full_info().pss / 1e6
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # it ended in the meantime
            continue
    return total


def build(source: Path, output: Path, *options: str) -> Cost:
    script = [sys.executable, str(ROOT / "build_dataset.py")]
    return run([*script, "--source", str(source), "--output", str(output), *options])


def start_training(dataset: Path, output: Path) -> Cost:
    """Run train_model.py until the end of its first training step."""
    return run([sys.executable, "-c", FIRST_STEP, "--dataset", str(dataset), "--output", str(output)])


def measure(source: Path, files: int, rounds: int, folder: Path) -> dict[str, list[Cost]]:
    """Measure the cost of each command in each round; all write into `folder`.

    Nothing is deleted before the end, because ext4 creates files slowly for half a minute after many were deleted.
    """
    tree, share = folder / "tree", folder / "share"
    repeat_images(source, tree, files)
    repeat_images(source, share, files // SHARE)
    numbers = itertools.count()
    built: list[Path] = []

    def fresh(name: str) -> Path:
        return folder / f"{name}_{next(numbers)}"

    def build_copy() -> Cost:
        built.append(fresh("copy"))
        return build(tree, built[-1])

    measures = {
        "cp -r": lambda: run(["cp", "-r", str(tree), str(fresh("copied"))]),
        "copy": build_copy,
        "unflushed": lambda: run(
            [sys.executable, "-c", UNFLUSHED, "--source", str(tree), "--output", str(fresh("un"))]
        ),
        "share": lambda: build(share, fresh("share")),
        "hardlink": lambda: build(tree, fresh("hardlink"), "--mode", "hardlink"),
        "again": lambda: build(tree, built[-1]),
        "start": lambda: start_training(built[-1], fresh("run")),
    }
    return measure_in_turn(measures, rounds)


def describe(found: dict[str, list[Cost]], files: int) -> list[Row]:
    """Make the rows of the table from the costs measured with this number of files."""
    rounds = len(found["cp -r"])
    seconds = {name: [each.seconds for each in costs] for name, costs in found.items()}
    peaks = [max(each.peak for each in turn) for turn in zip(found["copy"], found["hardlink"], found["again"])]
    per_file = [[each * 1e6 / n for each in seconds[name]] for name, n in (("copy", files), ("share", files // SHARE))]
    copied = ("s", "cp -r")
    return [
        Row(f"build of {files:,} files, copied", *copied, seconds["copy"], seconds["cp -r"], most=1.5),
        Row("build, --mode hardlink", *copied, seconds["hardlink"], seconds["cp -r"], most=0.5),
        Row("build again, nothing changed", *copied, seconds["again"], seconds["cp -r"], most=0.1),
        Row("build, flushed to disk", "s", "not flushed", seconds["copy"], seconds["unflushed"], most=1.3),
        Row("time per file", "µs", f"{files // SHARE:,} files", *per_file, most=1.1),
        Row("peak memory of a build", "MB", "the limit", peaks, [MEMORY_LIMIT] * rounds, most=1.0),
        Row("train_model.py to its first step", "s", "the limit", seconds["start"], [START_LIMIT] * rounds, most=1.0),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--source",
        type=Path,
        default=Path("datasets/original"),
        help="IDC patches, one folder per patient (default: %(default)s)",
    )
    parser.add_argument(
        "--files", type=int, default=277_524, help="files to build from (default: %(default)s, as in the IDC set)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file to write every figure to")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.files < 5_000:
        parser.error("--rounds must be 1 or more and --files 5000 or more")
    with tempfile.TemporaryDirectory() as folder:
        rows = describe(measure(arguments.source, arguments.files, arguments.rounds, Path(folder)), arguments.files)
        print(format_table(rows), flush=True)  # deleting the folder takes a while
    if arguments.json:
        arguments.json.write_text(json.dumps([row._asdict() for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
