"""The power fails right after a command ended with status 0: all of its files are on disk, on a real ext4 in a file."""

import hashlib
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, write_slides
from forking import TRAINER, ForkServer

pytestmark = pytest.mark.slow
WRITE = """
import sys
from pathlib import Path
from cancernet.storage import fresh_folder, lock_folder, write_files
folder = Path(sys.argv[1])
with lock_folder(folder), fresh_folder(folder) as partial:
    for number in range(int(sys.argv[2])):
        (partial / str(number)).write_text(f"new {number} " * 500)
write_files(folder, {"written": b"x" * 5000})
"""
SMALL = ["--model", "simple_cnn", "--image-size", "24", "--views", "one", "--epochs", "1", "--batch-size", "16"]


def hash_files(folder):
    """Hash the files of results. What is hidden is none, such as an old result whose deletion the disk has missed."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.glob("[!.]*/**/[!.]*")
        if path.is_file()
    }


@pytest.fixture
def cut_power(tmp_path):
    """Run commands on an ext4 of its own, with {} for where it is mounted, and return its files before and after a cut.

    `execute` runs a command, and fails if it does. The disk as it is when the last command has ended is copied, so that
    what is only in memory is lost.
    """
    disk, copy, mounted = tmp_path / "disk", tmp_path / "copy", tmp_path / "mounted"
    if not shutil.which("mkfs.ext4") or os.getuid():
        pytest.skip("needs mkfs.ext4 and the right to mount")
    mounted.mkdir()
    with disk.open("wb") as file:
        file.truncate(128 * 2**20)
    subprocess.run(["mkfs.ext4", "-q", "-F", disk], check=True)

    def mount(image):
        done = subprocess.run(["mount", "-o", "loop", image, mounted], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"cannot mount: {done.stderr}")

    def run(execute, *commands):
        mount(disk)
        try:
            for command in commands:
                os.sync()
                execute([str(each).replace("{}", str(mounted)) for each in command])
            shutil.copyfile(disk, copy)
            before = hash_files(mounted)
        finally:
            subprocess.run(["umount", mounted], check=True)
        mount(copy)
        try:
            return before, hash_files(mounted)
        finally:
            subprocess.run(["umount", mounted], check=True)

    return run


@pytest.mark.parametrize("files", [20, 400])
def test_a_folder(cut_power, files):
    def execute(command):
        subprocess.run([sys.executable, "-c", WRITE, *command], cwd=ROOT, check=True, capture_output=True, timeout=300)

    before, after = cut_power(execute, ["{}/folder", 5], ["{}/folder", files])
    assert before.items() <= after.items()  # a deletion may be missing
    assert len(after) >= files + 1


def test_build_train_and_predict(cut_power, tmp_path):
    """Each replaces an old result."""
    source = write_slides(tmp_path / "source", patients=12)
    server = ForkServer(TRAINER, tmp_path)

    def execute(command):
        status, said = server.start(command).finish()
        assert status == 0, said

    built = ["build", "--source", source, "--output", "{}/dataset", "--force"]
    trained = ["train", "--dataset", "{}/dataset", "--output", "{}/run", "--force", *SMALL]
    predicted = ["predict", "{}/run", source / "100", "--output", "{}/predicted", "--force"]
    try:
        before, after = cut_power(execute, built, built)
        assert before.items() <= after.items()  # a deletion may be missing
        assert sum(name.endswith(".png") for name in after) >= 72
        before, after = cut_power(execute, trained, trained)
        assert before.items() <= after.items()
        assert {"run/model.keras", "run/report.json", "run/report.html", "run/predictions.csv"} <= set(after)
        before, after = cut_power(execute, predicted, predicted)
        assert before.items() <= after.items()
        assert {"predicted/predictions.csv", "predicted/summary.csv"} <= set(after)
    finally:
        server.end()
