"""A build over what an adversary, or bad luck, put into the source: each costs itself only, and nothing hangs."""

import csv
import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import psutil
import pytest
from conftest import KILLS, ROOT, write_image, write_slides

import build_dataset
from cancernet import InputError, StorageError
from cancernet.data import building
from cancernet.data.dataset import Patch, read_manifest
from cancernet.data.source import SourceFile


@pytest.fixture(autouse=True)
def no_overview(monkeypatch):
    monkeypatch.setattr(build_dataset, "save_overview", lambda *_: None)


def build(source, output, *options):
    build_dataset.main(["--source", str(source), "--output", str(output), *options])
    with (output / "rejected.csv").open(newline="") as file:
        return {row["file"].rpartition("/")[2]: row["reason"] for row in csv.DictReader(file)}


def start(source, output, *options, **how):
    command = [sys.executable, ROOT / "build_dataset.py", "--source", source, "--output", output, *options]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how)


def write_bomb(path, side):
    """A picture of one colour: few bytes, and many pixels."""
    cv2.imwrite(str(path), np.zeros((side, side), np.uint8))


@pytest.mark.parametrize("mode", ["copy", "hardlink", "symlink"])
def test_what_is_no_file_costs_itself_only(slides, tmp_path, mode):
    folder = slides / "100/0"
    os.mkfifo(folder / "pipe.png")
    (folder / "endless.png").symlink_to("/dev/zero")
    (folder / "itself.png").symlink_to("itself.png")
    (folder / "loop").symlink_to("..")
    with (folder / "sparse.png").open("wb") as file:
        file.truncate(2**40)  # a terabyte, of which nothing is on disk
    refused = build(slides, tmp_path / "built", "--mode", mode)
    no_file = "is no regular file but a pipe or a device"
    assert refused == {
        "pipe.png": no_file,
        "endless.png": no_file,
        "itself.png": "cannot be read: Too many levels of symbolic links",
        "sparse.png": "has 1,099,511,627,776 bytes, more than an image of 50 megapixels can have",
    }
    assert len(read_manifest(tmp_path / "built")) == 60


def test_too_many_pixels_are_refused_by_the_header(slides, tmp_path):
    for ending in ("png", "jpg", "tif", "bmp"):
        write_bomb(slides / f"100/0/bomb.{ending}", 300)
    refused = build(slides, tmp_path / "built", "--megapixels", "0.05")
    told = "declares 300 x 300 pixels; images of up to 0.05 megapixels are taken"
    assert refused == {f"bomb.{ending}": told for ending in ("png", "jpg", "tif", "bmp")}
    with pytest.raises(InputError, match=r"made with other settings \(megapixels\)"):
        build(slides, tmp_path / "built")
    assert build(slides, tmp_path / "built", "--force") == {}
    assert len(read_manifest(tmp_path / "built")) == 64


def test_long_names_that_are_equal_are_both_kept(tmp_path):
    for number, (person, label) in enumerate((person, label) for person in "abc" for label in ("cat", "dog")):
        for stem in ("x" * 250, "ä" * 125):  # as many bytes
            write_image(tmp_path / f"source/{person}/{label}/s.png", number + 10 * (stem[0] == "x")).rename(
                tmp_path / f"source/{person}/{label}/{stem}.png"
            )
    assert build(tmp_path / "source", tmp_path / "built") == {}
    assert len(read_manifest(tmp_path / "built")) == 12


def test_very_many_equal_names_do_not_take_the_square_of_the_time():
    images = [Patch(f"{number}/cat/x.png", "cat", "", None, None, "training", "") for number in range(20_000)]
    started = time.perf_counter()
    targets = building._name_targets(images)
    assert time.perf_counter() - started < 2
    assert len(set(targets)) == 20_000
    assert targets[:2] + targets[-1:] == [f"training/cat/x{number}.png" for number in ("", "-2", "-20000")]


def test_the_size_is_that_of_whole_blocks():
    files = [SourceFile("a", 1, 0), SourceFile("b", 4097, 0), SourceFile("sparse", 2**40, 0)]
    planned = [Patch(file.file, "cat", "", None, None, "training", "") for file in files]
    assert building.estimate_size(files, planned, mode="copy") == 4096 + 8192 + 3 * 300
    assert building.estimate_size(files, planned, mode="hardlink") == 900
    left_out = [planned[0], *(patch._replace(split="") for patch in planned[1:])]
    assert building.estimate_size(files, left_out, mode="hardlink") == 300


def test_a_build_that_does_not_fit_is_told_before_it_starts(slides, tmp_path, monkeypatch):
    monkeypatch.setattr(building, "_BYTES_A_ROW", 2**50)
    with pytest.raises(InputError, match=r"built needs about .* GB, and .* are free\. Give .* --mode hardlink\."):
        build(slides, tmp_path / "built")
    assert os.listdir(tmp_path) == ["source"]


def test_a_webp_is_refused_whatever_its_name_says(slides, tmp_path):
    done, data = cv2.imencode(".webp", np.zeros((50, 50, 3), np.uint8))
    assert done
    (slides / "100/0/x.png").write_bytes(data.tobytes())
    told = "cannot be decoded: not an image of a supported type (PNG, JPEG, TIFF, BMP, PGM)"
    assert build(slides, tmp_path / "built") == {"x.png": told}


def test_names_are_the_same_in_every_locale(slides, tmp_path):
    for seed, name in enumerate(("ä", "日本", "Z")):
        write_image(slides / "100/0/x.png", seed).rename(slides / f"100/0/{name}.png")
    manifests = []
    for number, locale in enumerate(({"LC_ALL": "C.UTF-8"}, {"LC_ALL": "POSIX", "PYTHONUTF8": "0"})):
        process = start(slides, tmp_path / f"built{number}", env=os.environ | locale)
        assert process.communicate()[1].count("error") == 0
        manifests.append((tmp_path / f"built{number}/manifest.csv").read_bytes())
    assert manifests[0] == manifests[1]
    assert len(manifests[0].splitlines()) == 64


def test_a_class_that_is_a_formula_is_text_in_the_manifest(tmp_path):
    for label in ("=1+1", "-1", "+1"):
        for number in range(9):
            write_image(tmp_path / f"source/{label}/{number}.png", 100 * len(label) + ord(label[0]) + number)
    build(tmp_path / "source", tmp_path / "built")
    assert {patch.label for patch in read_manifest(tmp_path / "built")} == {"=1+1", "-1", "+1"}
    text = (tmp_path / "built/manifest.csv").read_text()
    assert text.count(",'=1+1,") == text.count(",-1,") == text.count(",+1,") == 9


@pytest.fixture
def at_work(tmp_path):
    """A build of 2,000 files that has begun to copy, and those of its processes."""
    source = write_slides(tmp_path / "source", patients=40, patches=50)
    process = start(source, tmp_path / "built", start_new_session=True)
    while not list(tmp_path.glob("built.partial-*/*/*/*.png")):
        assert process.poll() is None
        time.sleep(0.002)
    yield process, psutil.Process(process.pid).children()
    process.kill()
    process.communicate()


def test_a_terminated_build_leaves_nothing_behind(at_work, tmp_path):
    process, workers = at_work
    process.terminate()
    _, error = process.communicate(timeout=20)
    assert (process.returncode, error.splitlines()[-1]) == (143, "error: ended by SIGTERM.")
    assert not any(worker.is_running() for worker in workers)
    assert os.listdir(tmp_path) == ["source"]


def test_workers_of_a_killed_build_end_and_the_next_one_clears_up(at_work, tmp_path):
    process, workers = at_work
    process.kill()
    process.communicate(timeout=20)  # until nobody holds its standard output
    assert psutil.wait_procs(workers, timeout=20)[1] == []
    assert ".built.lock" in os.listdir(tmp_path)
    build(tmp_path / "source", tmp_path / "built")
    assert sorted(os.listdir(tmp_path)) == ["built", "source"]


def test_a_killed_worker_is_one_line(at_work, tmp_path):
    process, workers = at_work
    for worker in workers:
        worker.send_signal(signal.SIGKILL)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 2
    assert error.splitlines()[-1].startswith("error: A worker of the build was killed, most likely because memory ran")
    assert os.listdir(tmp_path) == ["source"]


def test_a_second_build_at_once_is_refused(at_work, tmp_path):
    process, _ = at_work
    with pytest.raises(StorageError, match=rf"Another process is writing .*built \(process {process.pid}\)"):
        build(tmp_path / "source", tmp_path / "built")
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert len(read_manifest(tmp_path / "built")) == 2000


@pytest.mark.parametrize("what", ["link", "mount"])
def test_an_output_that_cannot_be_renamed_is_refused(slides, tmp_path, monkeypatch, what):
    output = tmp_path / "built"
    if what == "link":
        (tmp_path / "elsewhere").mkdir()
        output.symlink_to(tmp_path / "elsewhere")
    else:
        monkeypatch.setattr(os.path, "ismount", lambda path: path == output)
    said = {
        "link": "is a link. Give the folder that it points to",
        "mount": "is a mount point and cannot be renamed",
    }
    with pytest.raises(InputError, match=said[what]):
        build(slides, output)


@pytest.mark.slow
def test_a_build_killed_at_any_moment_leaves_the_last_whole_one(tmp_path):
    source = write_slides(tmp_path / "source", patients=20, patches=50)
    build(source, tmp_path / "built")
    manifest = (tmp_path / "built/manifest.csv").read_bytes()
    rng = np.random.default_rng(0)
    for number in range(4 * KILLS):
        write_image(source / "100/0/new.png", number)
        process = start(source, tmp_path / "built", start_new_session=True)
        if number % 2:
            while not list(tmp_path.glob("built.partial-*/*/*/*.png")):  # half of them while it copies
                assert process.poll() is None
        time.sleep(rng.uniform(0, 0.1 if number % 2 else 1.5))
        process.kill()
        process.communicate(timeout=20)
        if (tmp_path / "built.replaced").exists():
            assert not (tmp_path / "built").exists() or process.returncode == 0
        patches = build_again(source, tmp_path / "built")
        assert len(patches) == 1001
    (source / "100/0/new.png").unlink()
    assert len(build_again(source, tmp_path / "built")) == 1000
    assert (tmp_path / "built/manifest.csv").read_bytes() == manifest
    assert sorted(os.listdir(tmp_path)) == ["built", "source"]


def build_again(source, output):
    """The rows of the manifest, whose files have the hashes that it names."""
    import hashlib

    build(source, output)
    patches = read_manifest(output)
    for patch in patches:
        assert hashlib.sha256((output / patch.file).read_bytes()).hexdigest() == patch.sha256
    return patches


@pytest.mark.slow
def test_a_full_file_system_is_told_with_the_file_and_what_it_needed(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounts are not allowed here")
    try:
        source = write_slides(tmp_path / "source", patients=20, patches=10)  # 1.5 MB
        with pytest.raises(InputError, match="built needs about 1.7 MB, and 1.0 MB are free"):
            build(source, disk / "built")
        process = start(source, disk / "built", env=os.environ | {"PYTHONPATH": str(write_blind(tmp_path))})
        error = process.communicate()[1].splitlines()[-1]
        assert process.returncode == 2
        assert error.startswith("error: No space left on device (for ")
        assert error.endswith("1.0 MB were written before, 0 bytes are free.")
        assert os.listdir(disk) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def write_blind(folder):
    """A folder for PYTHONPATH in which a file system always says that it has room."""
    (folder / "blind").mkdir()
    (folder / "blind/sitecustomize.py").write_text(
        "from cancernet import storage\nstorage.check_space = lambda *_, **__: 0"
    )
    return f"{folder / 'blind'}:{ROOT}"
