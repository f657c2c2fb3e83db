"""Measure how fast `cancernet predict` predicts slides, alone and with `--ray`, and what each step costs.

One process and Ray predict synthetic slides in turn. The rate of each is measured from its first to its last slide,
which excludes the start of TensorFlow and Ray. The cost of a step is the time that one core works on it.

    python benchmarks/archive_speed.py runs/cancernet --slides 200 --output /tmp/archive
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from cancernet.data.sample import make_slide  # noqa: E402


def write_slides(folder: Path, slides: int, side: int) -> Path:
    """Write synthetic slides as pictures, unless they exist, and the table of them."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"slide_{number:04}.png" for number in range(slides)]
    for number, file in enumerate(files):
        if not file.exists():
            cv2.imwrite(str(file), make_slide(7, number, side=side).image[..., ::-1])
    (folder / "slides.csv").write_text("\n".join(["path", *(file.name for file in files)]) + "\n")
    return folder / "slides.csv"


def predict(run: Path, table: Path, output: Path, *more: str) -> float:
    """Predict all slides; return slides per second, from the times of their pictures."""
    command = [sys.executable, "-m", "cancernet", "predict", str(run), str(table), "--output", str(output), *more]
    subprocess.run([*command, "--mpp", "4", *["--force"] * output.exists()], cwd=ROOT, check=True)
    times = sorted(path.stat().st_mtime for path in output.rglob("*.jpg"))
    return (len(times) - 1) / (times[-1] - times[0])


@contextmanager
def work_of_one_core(costs: dict[str, float], step: str) -> Iterator[None]:
    begun = time.process_time()
    yield
    costs[step] = costs.get(step, 0.0) + time.process_time() - begun


def measure_steps(run_folder: Path, files: list[Path]) -> tuple[dict[str, float], int]:
    """Return the seconds of one core that each step takes for these files, and the number of their patches."""
    os.environ |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
    cv2.setNumThreads(1)
    from cancernet.inference import prediction, reading, results, work_list
    from cancernet.run import load_run

    run, costs, patches = load_run(run_folder), {}, 0
    found = [work_list.find_files([file]).files for file in files]
    items = [item for each in found for item in work_list.plan_work(each, run.settings, tile="auto")]
    for number, item in enumerate([items[0], *items]):  # the first compiles
        if number == 1:
            costs.clear()
        with work_of_one_core(costs, "read"), reading.open_item(run.settings, item, mpp=4) as opened:
            opened = opened._replace(tiles=list(opened.tiles))
        with work_of_one_core(costs, "predict"):
            predictions = prediction.decide_item(run, prediction.score_tiles(run, opened))
        with work_of_one_core(costs, "draw"), TemporaryDirectory() as folder:
            results.write_slide(run, item, predictions, Path(folder))
        patches += len(opened.tiles) if number else 0
    return costs, patches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--slides", type=int, default=200)
    parser.add_argument("--side", type=int, default=540, help="pixels of a slide (%(default)s: about 85 patches)")
    parser.add_argument("--steps-of", type=Path, nargs="*", help="measure the steps on these files instead")
    parser.add_argument("--only-steps", action="store_true")
    parser.add_argument("--output", type=Path, required=True, help="folder for slides and results")
    arguments = parser.parse_args()
    table = write_slides(arguments.output / "slides", arguments.slides, arguments.side)
    if not arguments.only_steps:
        one = predict(arguments.run, table, arguments.output / "one")
        ray = predict(arguments.run, table, arguments.output / "ray", "--ray")
        print(f"slides per second: one process {one:.2f}, with --ray {ray:.2f}, {ray / one:.2f} times")
    files = arguments.steps_of or sorted(table.parent.glob("*.png"))[:10]
    costs, patches = measure_steps(arguments.run, files)
    for step, seconds in costs.items():
        print(
            f"{step}: {1000 * seconds / patches:.2f} ms per patch, {seconds / len(files):.3f} s per slide, of one core"
        )
    print(
        f"{patches / sum(costs.values()):.0f} patches per second and core, {patches / len(files):.0f} patches per slide"
    )


if __name__ == "__main__":
    main()
