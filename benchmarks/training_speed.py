"""Measure the speed of training, data loading, prediction and start, and their memory, as a table of ratios.

The two sides of a ratio are measured in turn within one run, because the speed of the machine varies. A ratio is taken
within a round; the table gives the median and the range over all rounds. Training is compared with the tutorial's code
(benchmarks/tutorial_way.py), without the first epoch, which is slower because images are decoded and the graph is
built. feeding.py measures the rows inside one process.

    python benchmarks/training_speed.py --dataset datasets/idc --rounds 3 --json training_speed.json
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks import feeding  # noqa: E402
from benchmarks.recipes import stop_if_failed  # noqa: E402
from benchmarks.table import Row, format_table, measure_in_turn  # noqa: E402
from cancernet.cli import quiet_import  # noqa: E402

VERBS = ("build", "train", "evaluate", "predict")


def train_tutorials_way(dataset: Path, epochs: int) -> float:
    """Train the tutorial's code in a separate process; return images per second."""
    command = [sys.executable, str(ROOT / "benchmarks/tutorial_way.py"), "--dataset", str(dataset), "--json"]
    done = subprocess.run([*command, "--epochs", str(epochs)], capture_output=True, text=True)
    stop_if_failed(done, "The tutorial's code")
    return json.loads(done.stdout.splitlines()[-1])["images_per_second"]


def train_recipe(dataset: Path, epochs: int, recipe: str, run: Path, *options: str) -> dict[str, float]:
    """Train a recipe in a separate process.

    Returns:
        `rate` in images per second; memory in MB: the `peak`, `early` when epoch 2 starts, `late` when the last
        epoch starts.
    """
    import psutil

    command = [sys.executable, str(ROOT / "train_model.py"), "--dataset", str(dataset), "--recipe", recipe, "--force"]
    command += ["--epochs", str(epochs), "--output", str(run), *options]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
    )
    process, peak, ends, printed = psutil.Process(child.pid), 0.0, [], []

    def read_output() -> None:
        for line in child.stdout:
            printed.append(line)
            if re.match(r" *\d+/\d+ ", line):
                ends.append(process.memory_info().rss / 1e6)

    reader = threading.Thread(target=read_output)
    reader.start()
    while child.poll() is None:
        peak = max(peak, process.memory_info().rss / 1e6)
        time.sleep(0.05)
    reader.join()
    stop_if_failed(subprocess.CompletedProcess(command, child.returncode, "".join(printed), ""), f"Recipe {recipe}")
    rate = json.loads((run / "report.json").read_text())["training"]["images_per_second"]
    return {"rate": rate, "peak": peak, "early": ends[0], "late": ends[-2]}


def compare_trainings(dataset: Path, epochs: int, rounds: int, runs: Path) -> list[Row]:
    """Measure the rows of whole trainings, and leave a run of each recipe in the folder `runs`."""
    recipes: dict[str, list[str]] = {"tutorial": [], "standard": [], "standard, streaming": ["--cache-limit", "1e-6"]}
    trained: dict[str, list[dict]] = {name: [] for name in recipes}

    def train(name: str) -> float:
        recipe = name.partition(",")[0]
        trained[name].append(train_recipe(dataset, epochs, recipe, runs / name, *recipes[name]))
        return trained[name][-1]["rate"]

    measures = {"tutorial's code": lambda: train_tutorials_way(dataset, epochs)}
    rates = measure_in_turn(measures | {name: lambda name=name: train(name) for name in recipes}, rounds)

    def memory(name: str, moment: str) -> list[float]:
        return [each[moment] for each in trained[name]]

    streaming = "standard, streaming"
    return [
        *(
            Row(f"training, recipe {name}", "images/s", "the tutorial's code", rates[name], rates["tutorial's code"])
            for name in recipes
        ),
        Row("peak memory, cached", "MB", "streaming", memory("standard", "peak"), memory(streaming, "peak")),
        Row(
            "memory, streaming, last epoch",
            "MB",
            "epoch 2",
            memory(streaming, "late"),
            memory(streaming, "early"),
            most=1.02,
        ),
    ]


def start_row(rounds: int) -> Row:
    """Measure the seconds that the slowest command takes to print --help."""

    def time_help(verb: str) -> float:
        started = time.perf_counter()
        command = [sys.executable, "-m", "cancernet", verb, "--help"]
        subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
        return time.perf_counter() - started

    found = measure_in_turn({verb: lambda verb=verb: time_help(verb) for verb in VERBS}, rounds)
    slowest = max(found, key=lambda verb: statistics.median(found[verb]))
    return Row(f"cancernet {slowest} --help", "s", "half a second", found[slowest], [0.5] * rounds, most=1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--dataset", type=Path, default=Path("datasets/idc"), help="built dataset (default: %(default)s)"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds of training; quick measurements have four times as many"
    )
    parser.add_argument(
        "--epochs", type=int, default=3, help="epochs per training; the first does not count (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="file to write every figure to")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.epochs < 3:
        parser.error("--rounds must be 1 or more and --epochs 3 or more")
    files = sorted((arguments.dataset / "training").glob("*/*"))
    if len(files) < 256:
        parser.error(f"{arguments.dataset} has {len(files)} training images; at least 256 are needed")
    short = 4 * arguments.rounds
    with quiet_import():
        import keras  # noqa: F401
    with tempfile.TemporaryDirectory() as folder:
        rows = compare_trainings(arguments.dataset, arguments.epochs, arguments.rounds, Path(folder))
        rows += [start_row(short), feeding.cache_row(files), *feeding.feeding_rows(files, short)]
        rows.append(feeding.checkpoint_row(Path(folder), short))
        rows += feeding.prediction_rows(files[:1024], Path(folder) / "tutorial", short)
        rows += feeding.prediction_rows(files[:128], Path(folder) / "standard", short)
    print(format_table(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps([row._asdict() for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
