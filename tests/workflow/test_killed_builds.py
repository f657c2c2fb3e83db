"""Builds that are ended, killed, run twice, or run out of space: the last whole dataset survives, nothing is left."""

import hashlib
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from conftest import KILLS, ROOT, write_image, write_slides

from cancernet import InputError, StorageError
from cancernet.data.dataset import read_manifest
from cancernet.workflow import build as workflow
from cancernet.workflow.build import BuildOptions, write_dataset


@pytest.fixture(autouse=True)
def no_overview(monkeypatch):
    monkeypatch.setattr(workflow, "save_overview", lambda *_: None)


def build(source, output):
    write_dataset(BuildOptions(source=source, output=output))


def start(source, output, **how):
    command = [sys.executable, ROOT / "build_dataset.py", "--source", source, "--output", output]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how)


@pytest.fixture
def at_work(tmp_path):
    """A build of 2,000 files that has begun to copy, and those of its processes."""
    source = write_slides(tmp_path / "source", patients=40, patches=50)
    process = start(source, tmp_path / "built", start_new_session=True)
    while not list(tmp_path.glob(".built.cancernet-new/*/*/*.png")):
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
    assert ".built.cancernet-lock" in os.listdir(tmp_path)
    build(tmp_path / "source", tmp_path / "built")
    assert sorted(os.listdir(tmp_path)) == ["built", "source"]


def test_a_killed_worker_is_one_line(at_work, tmp_path):
    process, workers = at_work
    for worker in workers:
        worker.send_signal(signal.SIGKILL)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 2
    assert error.splitlines()[-1].startswith("error: A worker process was killed, most likely because memory ran")
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
            while not list(tmp_path.glob(".built.cancernet-new/*/*/*.png")):  # half of them while it copies
                assert process.poll() is None
        time.sleep(rng.uniform(0, 0.1 if number % 2 else 1.5))
        process.kill()
        process.communicate(timeout=20)
        if (tmp_path / ".built.cancernet-old").exists():
            assert not (tmp_path / "built").exists() or process.returncode == 0
        patches = build_again(source, tmp_path / "built")
        assert len(patches) == 1001
    (source / "100/0/new.png").unlink()
    assert len(build_again(source, tmp_path / "built")) == 1000
    assert (tmp_path / "built/manifest.csv").read_bytes() == manifest
    assert sorted(os.listdir(tmp_path)) == ["built", "source"]


def build_again(source, output):
    """The rows of the manifest, whose files have the hashes that it names."""
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
        with pytest.raises(StorageError, match="built needs about 1.7 MB; 1.0 MB are free"):
            build(source, disk / "built")
        process = start(source, disk / "built", env=os.environ | {"PYTHONPATH": str(write_blind(tmp_path))})
        error = process.communicate()[1].splitlines()[-1]
        assert process.returncode == 2
        assert error.startswith("error: No space left on device (for ")
        assert error.endswith("1.0 MB had been written, 0 bytes are free.")
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
