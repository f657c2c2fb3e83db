"""Recipes against each other: AUROC of the test patients and time of training, on several splits by patient.

Each seed gives a split of the patients and the random numbers of the trainings. On each split every row is trained
once, rows in turn, for the machine's speed drifts. A row is a name and arguments of train_model.py. The first row is
what the others are compared with. The dataset is built anew for each seed, in a temporary folder (see TMPDIR).

    python benchmarks/recipes.py --source datasets/original --seeds 1 2 3 --json recipes.json \
        --row "standard: --recipe standard" --row "longer: --recipe standard --epochs 32"
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROWS = ("tutorial: --recipe tutorial", "standard: --recipe standard")


def parse_row(text: str) -> tuple[str, list[str]]:
    """Name and arguments of `NAME: train_model arguments`."""
    name, colon, options = text.partition(":")
    if not name.strip() or not colon:
        raise argparse.ArgumentTypeError(f"takes 'NAME: arguments of train_model.py', not {text!r}")
    return name.strip(), shlex.split(options)


def run_script(script: str, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(ROOT / script), *options], capture_output=True, text=True)


def stop_if_failed(done: subprocess.CompletedProcess, what: str) -> None:
    if done.returncode:
        sys.exit(f"{done.stdout[-2000:]}{done.stderr}{what} failed with exit status {done.returncode}; see above.")


def build(source: Path, output: Path, seed: int) -> None:
    """A dataset of hard links, or of copies where the temporary folder is on another disk than the images."""
    options = ["--source", str(source), "--output", str(output), "--seed", str(seed)]
    done = run_script("build_dataset.py", *options, "--mode", "hardlink")
    if done.returncode:
        print(f"Hard links failed, so images are copied: {done.stderr.strip().rpartition(chr(10))[2]}", flush=True)
        done = run_script("build_dataset.py", *options, "--mode", "copy")
    stop_if_failed(done, f"Building the dataset of seed {seed}")


def train(name: str, options: list[str], dataset: Path, run: Path, seed: int) -> dict:
    """Seed, epochs, seconds and AUROC (None where undefined) of one training."""
    fixed = ["--dataset", str(dataset), "--output", str(run), "--seed", str(seed)]
    stop_if_failed(run_script("train_model.py", *fixed, *options), f"Training {name!r} with seed {seed}")
    report = json.loads((run / "report.json").read_text())
    if report["evaluated_on"] != "testing":
        sys.exit(f"{name!r} was judged on {report['evaluated_on']}: {dataset} has no testing split.")
    training = report["training"]
    auroc = report["metrics"]["auroc"]["value"]
    return {"seed": seed, "epochs": training["epochs"], "seconds": training["seconds"], "auroc": auroc}


def summarise(trainings: dict[str, list[dict]]) -> dict[str, dict]:
    """Of each row its median epochs and seconds, mean and spread (standard deviation, n - 1) of the AUROCs, and the
    difference of its mean to the first row's; None where that is undefined."""
    rows = {}
    for name, done in trainings.items():
        found = [each["auroc"] for each in done]
        mean = None if None in found else statistics.mean(found)
        rows[name] = {
            "epochs": statistics.median(each["epochs"] for each in done),
            "seconds": statistics.median(each["seconds"] for each in done),
            "mean": mean,
            "spread": None if mean is None or len(found) < 2 else statistics.stdev(found),
        }
    first = next(iter(rows.values()))["mean"]
    for row in rows.values():
        row["difference"] = None if None in (row["mean"], first) else row["mean"] - first
    return rows


def format_table(trainings: dict[str, list[dict]]) -> str:
    """A line a row: epochs, seconds, the AUROC of each seed, their mean, spread and difference to the first row."""
    seeds = [f"seed {each['seed']}" for each in next(iter(trainings.values()))]
    lines = [["row", "epochs", "seconds", *seeds, "mean", "spread", "difference"]]
    for name, row in summarise(trainings).items():
        figures = [*(each["auroc"] for each in trainings[name]), row["mean"], row["spread"]]
        cells = ["n/a" if value is None else f"{value:.3f}" for value in figures]
        difference = "n/a" if row["difference"] is None else f"{row['difference']:+.3f}"
        lines.append([name, f"{row['epochs']:g}", f"{row['seconds']:.0f}", *cells, difference])
    widths = [max(map(len, column)) for column in zip(*lines)]
    table = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
    return "\n".join(table)


def write_json(file: Path | None, content: dict) -> None:
    if file:
        file.write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, default=Path("datasets/original"), help="images, as build_dataset.py's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument(
        "--row", type=parse_row, action="append", help="'NAME: arguments of train_model.py'; repeatable"
    )
    parser.add_argument("--json", type=Path, help="file for every figure, written after each training")
    arguments = parser.parse_args()
    rows = arguments.row or [parse_row(row) for row in ROWS]
    if len({name for name, _ in rows}) < len(rows) or len(set(arguments.seeds)) < len(arguments.seeds):
        parser.error("every --row needs its own name, and every seed counts once")
    trainings: dict[str, list[dict]] = {name: [] for name, _ in rows}
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            dataset = Path(folder) / "dataset"
            build(arguments.source, dataset, seed)
            for number, (name, options) in enumerate(rows):
                done = train(name, options, dataset, Path(folder) / f"run_{number}", seed)
                trainings[name].append(done)
                auroc = "n/a" if done["auroc"] is None else f"{done['auroc']:.3f}"
                print(f"seed {seed}, {name}: AUROC {auroc}, {done['seconds']:.0f} s", flush=True)
                write_json(arguments.json, {"arguments": dict(rows), "trainings": trainings})
    print(f"\nAUROC of the test patients\n{format_table(trainings)}")
    write_json(arguments.json, {"arguments": dict(rows), "trainings": trainings, "rows": summarise(trainings)})


if __name__ == "__main__":
    main()
