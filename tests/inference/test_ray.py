"""predict --ray: the same predictions as in one process, whoever is killed. Needs Ray."""

import csv
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from conftest import ROOT

from cancernet.data.sample import cut_patches, make_slide

pytest.importorskip("ray", reason="needs Ray")
import psutil
import pyarrow.parquet

from cancernet.__main__ import main
from cancernet.inference import ray as archive_cluster

LARGE = 8
ITEMS = LARGE + 4  # two slides and twice single images
PATIENCE = 900  # seconds; idle it takes twenty
pytestmark = pytest.mark.slow


def write(path: Path, image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image[..., ::-1])
    return path


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """Large pictures, a folder with patches of two slides and single images, two broken files, and one that is gone."""
    folder = tmp_path_factory.mktemp("archive")
    names = [write(folder / f"slide_{i}.png", make_slide(7, i, side=350).image).name for i in range(LARGE)]
    for slide in (98, 99):
        for image, label, x, y in cut_patches(make_slide(7, slide, side=350)):
            write(folder / "patches" / f"{slide}_idx5_x{x}_y{y}_class{label}.png", image)
    for number in range(66):
        write(folder / "patches" / f"single {number}.png", np.full((50, 50, 3), 3 * number, np.uint8))
    (folder / "patches" / "99_idx5_x1001_y1001_class0.png").write_bytes(b"no image")
    (folder / "broken.svs").write_bytes(b"no slide")
    rows = ["path", *names, "patches", "broken.svs", "gone.svs"]
    (folder / "slides.csv").write_text("\n".join(rows) + "\n")
    return folder / "slides.csv"


def command(run: Path, table: Path, output: Path, *more: str) -> list[str]:
    options = ["--mpp", "4", "--output", str(output), *more]
    return [sys.executable, "-m", "cancernet", "predict", str(run), str(table), *options]


def start(*arguments) -> subprocess.Popen:
    return subprocess.Popen(command(*arguments), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(*arguments) -> str:
    process = start(*arguments)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    return said


def read_rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def read_patches(output: Path) -> list[dict]:
    """The rows of all Parquet files, those of a slide together, in the order of their paths."""
    rows = pyarrow.parquet.read_table(output / "patches").to_pylist()
    return sorted(rows, key=lambda row: row["file"])


@pytest.fixture(scope="module")
def whole(tiny_run, table, tmp_path_factory):
    """The results of two actors that nobody disturbed, and what was printed."""
    output = tmp_path_factory.mktemp("whole") / "out"
    return output, finish(tiny_run, table, output, "--ray")


def test_both_ways_give_the_same_tables(tiny_run, table, whole, tmp_path):
    output, text = whole
    text_of_one = finish(tiny_run, table, tmp_path / "out")
    header, *rows = read_rows(tmp_path / "out" / "predictions.csv")
    expected = [dict(zip(header, row, strict=True)) for row in sorted(rows, key=lambda row: (row[0], row[2], row[1]))]
    found = sorted(read_patches(output), key=lambda row: (row["file"], str(row["y"]), str(row["x"])))
    expected.sort(key=lambda row: (row["file"], row["y"] or "None", row["x"] or "None"))
    assert len(found) == len(expected) > 40 * LARGE
    for row, other in zip(found, expected, strict=True):
        assert list(row) == header
        for name, value in row.items():
            if isinstance(value, float):
                assert value == pytest.approx(float(other[name]), abs=1.5e-4)  # rounded to four digits
            else:
                assert other[name] == ("" if value is None else str(value))
    for name in ("summary.csv", "rejected.csv"):
        assert read_rows(output / name) == read_rows(tmp_path / "out" / name)
    for path in (tmp_path / "out").glob("*.geojson"):
        assert (output / "slides" / path.name).read_text() == path.read_text()
    files = {path.name for path in (tmp_path / "out").iterdir() if path.suffix in (".geojson", ".jpg")}
    assert {path.name for path in (output / "slides").iterdir()} == files - {"furthest.jpg"}
    end, end_of_one = (each.partition("\n\n")[2].partition("All results")[0] for each in (text, text_of_one))
    assert end == end_of_one != ""


def test_what_cannot_be_read_is_a_row_and_not_the_end(table, whole):
    output, text = whole
    folder = table.parent
    patch, broken, gone = (
        f"{folder}/{name}" for name in ("patches/99_idx5_x1001_y1001_class0.png", "broken.svs", "gone.svs")
    )
    rows = read_rows(output / "rejected.csv")
    assert rows[0] == ["file", "reason"]
    assert [file for file, _ in rows[1:]] == [gone, patch, broken]
    for (_, reason), beginning in zip(rows[1:], ("There is no", "cannot be decoded", "cannot be read"), strict=True):
        assert reason.startswith(beginning)
    assert [row[0] for row in read_rows(output / "summary.csv")[1:]] == [
        *(f"{folder}/slide_{i}.png" for i in range(LARGE)),
        "98",
        "99",
        "",
    ]
    assert f"{ITEMS + 1} slides to predict; 0 are finished." in text
    assert "3 files could not be used" in text


def wait_for(process: subprocess.Popen, finished: Path, items: int) -> None:
    """Wait until so many items are finished."""
    deadline = time.monotonic() + PATIENCE
    while not finished.is_file() or finished.read_text().count("\n") < items:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_nothing_is_lost_and_nothing_twice_whoever_is_killed(tiny_run, table, whole, tmp_path):
    output = tmp_path / "out"
    driver = start(tiny_run, table, output, "--ray")
    wait_for(driver, output / "finished.jsonl", 1)
    actors = [
        each for each in psutil.Process(driver.pid).children(recursive=True) if each.name().startswith("ray::Predictor")
    ]
    actors[0].kill()
    wait_for(driver, output / "finished.jsonl", 5)
    driver.kill()
    driver.communicate()
    assert len(actors) == 2
    before = (output / "finished.jsonl").read_text().count("\n")
    assert 5 <= before < ITEMS
    said = finish(tiny_run, table, output, "--ray")
    assert f"{before} are finished." in said
    for name in ("summary.csv", "rejected.csv"):
        assert read_rows(output / name) == read_rows(whole[0] / name)
    assert read_patches(output) == read_patches(whole[0])
    files = [sorted(path.name for path in folder.rglob("*")) for folder in (output, whole[0])]
    assert files[0] == files[1]
    assert f"1 slides to predict; {ITEMS} are finished." in finish(tiny_run, table, output, "--ray")  # broken.svs


def start_node(*options: str) -> subprocess.Popen:
    """A Ray node with one core, once it is ready."""
    ray = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus=1", *options]
    ray += ["--object-store-memory=100000000", "--node-ip-address=127.0.0.1"]
    # Ray asks for a token where it finds one, but does not show it to a cluster whose address is given.
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    node = subprocess.Popen(ray, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said = []
    for line in node.stdout:
        said.append(line)
        if "Ray runtime started" in line:
            return node
    raise AssertionError("".join(said))


@pytest.fixture
def cluster():
    """The address of two nodes on this machine, a core each."""
    address, folder = "127.0.0.1:26379", f"/tmp/cancernet_{os.getpid()}"  # a socket's path is short
    head = start_node("--head", "--port=26379", "--include-dashboard=false", f"--temp-dir={folder}")
    other = start_node(f"--address={address}")
    yield address
    for node in (other, head):
        node.terminate()
        node.wait(60)
    shutil.rmtree(folder)


def test_a_cluster_of_two_nodes_gives_the_same_with_actors_that_are_replaced(
    tiny_run, table, whole, cluster, tmp_path, monkeypatch
):
    started, real = [], archive_cluster.RemotePredictor
    counted = SimpleNamespace(options=lambda **needs: started.append(needs) or real.options(**needs))
    monkeypatch.setattr(archive_cluster, "RemotePredictor", counted)
    monkeypatch.setattr(archive_cluster, "ITEMS_PER_ACTOR", 3)
    monkeypatch.chdir(ROOT)
    main(command(tiny_run, table, tmp_path / "out", "--ray", cluster)[3:])
    assert started == [{"num_cpus": 0.8}] * len(started)
    assert len(started) >= ITEMS / 3
    assert read_rows(tmp_path / "out" / "summary.csv") == read_rows(whole[0] / "summary.csv")
    assert read_patches(tmp_path / "out") == read_patches(whole[0])
