"""Training by this project against the tutorial's way, in one run, in turn: images a second and their ratio.

Each round trains the tutorial's way (benchmarks/tutorial_way.py), then with the recipe `tutorial`: the same network,
optimizer, batch size and random changes, then with the default recipe. The first epoch of each, slowed by tracing and
reading, does not count. Rounds are interleaved, for the machine's speed drifts; quote the median ratio.

    python benchmarks/training_speed.py --dataset datasets/idc --rounds 3 --epochs 3
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def time_tutorial_way(dataset: Path, epochs: int) -> float:
    """Images a second of the tutorial's way."""
    command = [sys.executable, str(ROOT / "benchmarks/tutorial_way.py"), "--dataset", str(dataset), "--json"]
    done = subprocess.run([*command, "--epochs", str(epochs)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])["images_per_second"]


def time_recipe(dataset: Path, epochs: int, recipe: str) -> float:
    """Images a second of train_model.py."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "train_model.py"), "--dataset", str(dataset), "--recipe", recipe]
        command += ["--epochs", str(epochs), "--output", f"{folder}/run"]
        subprocess.run(command, capture_output=True, check=True)
        return json.loads((Path(folder) / "run/report.json").read_text())["training"]["images_per_second"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", type=Path, default=Path("datasets/idc"), help="folder that build_dataset.py made")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3, help="of each training; the first does not count")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.epochs < 2:
        parser.error("--rounds must be 1 or more and --epochs 2 or more")
    ratios: dict[str, list[float]] = {"tutorial": [], "standard": []}
    for number in range(1, arguments.rounds + 1):
        plain = time_tutorial_way(arguments.dataset, arguments.epochs)
        for recipe, found in ratios.items():
            rate = time_recipe(arguments.dataset, arguments.epochs, recipe)
            found.append(rate / plain)
            print(
                f"round {number}: the tutorial's way {plain:.0f} images/s, recipe {recipe} {rate:.0f}, "
                f"ratio {found[-1]:.2f}",
                flush=True,
            )
    for recipe, found in ratios.items():
        print(f"recipe {recipe}: median ratio {statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})")


if __name__ == "__main__":
    main()
