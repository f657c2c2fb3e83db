"""The benchmark of building: its tree of images, its rows, and the cost of a command. Tests check no times."""

import hashlib
import re
import sys

import pytest

from benchmarks import building_speed
from benchmarks.building_speed import Cost, describe, repeat_images, run
from benchmarks.table import format_table
from cancernet.data.images import decode_image
from cancernet.data.source import find_images, list_files


def test_images_are_repeated_under_other_patients_names(slides, tmp_path):
    repeat_images(slides, tmp_path / "tree", 130)
    images = find_images(list_files(tmp_path / "tree")[0])
    assert len(images) == 130
    assert len({image.patient for image in images}) == 22  # ten of each whole repeat, and two for the last ten images
    data = [(tmp_path / "tree" / image.file).read_bytes() for image in images]
    assert len({hashlib.sha256(each).digest() for each in data}) == 130
    for image, each in zip(images, data, strict=True):
        original = int(image.patient) % 100_000
        name = image.file.rpartition("/")[2].replace(image.patient, str(original), 1)
        source = (slides / f"{original}/{image.label}/{name}").read_bytes()
        assert (decode_image(each, 3) == decode_image(source, 3)).all()


def test_rows_are_seconds_against_cp_and_memory_of_the_worst_build():
    found = {
        "cp -r": [Cost(10.0, 2.0), Cost(20.0, 2.0)],
        "copy": [Cost(20.0, 300.0), Cost(30.0, 246.0)],
        "unflushed": [Cost(20.0, 300.0), Cost(20.0, 246.0)],
        "share": [Cost(5.0, 100.0), Cost(6.0, 100.0)],
        "hardlink": [Cost(5.0, 330.0), Cost(8.0, 200.0)],
        "again": [Cost(0.5, 60.0), Cost(1.0, 60.0)],
        "start": [Cost(30.0, 900.0), Cost(12.0, 900.0)],
    }
    assert [re.split(r"\s{2,}", line) for line in format_table(describe(found, 10_000)).splitlines()[1:]] == [
        ["build of 10,000 files, copied", "25 s", "cp -r", "15 s", "1.75", "1.50 to 2.00", "<= 1.50", "missed"],
        ["build, --mode hardlink", "6.5 s", "cp -r", "15 s", "0.45", "0.40 to 0.50", "<= 0.50", "met"],
        ["build again, nothing changed", "0.75 s", "cp -r", "15 s", "0.05", "0.05 to 0.05", "<= 0.10", "met"],
        ["build, flushed to disk", "25 s", "not flushed", "20 s", "1.25", "1.00 to 1.50", "<= 1.30", "met"],
        ["time per file", "2500 µs", "2,000 files", "2750 µs", "0.90", "0.80 to 1.00", "<= 1.10", "met"],
        ["peak memory of a build", "288 MB", "the limit", "600 MB", "0.48", "0.41 to 0.55", "<= 1.00", "met"],
        ["train_model.py to its first step", "21 s", "the limit", "15 s", "1.40", "0.80 to 2.00", "<= 1.00", "missed"],
    ]


def test_a_command_costs_its_time_and_the_memory_of_what_it_starts():
    child = "data = bytearray(150_000_000); data[::4096] = b'x' * len(data[::4096]); import time; time.sleep(1)"
    cost = run([sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"])
    assert cost.seconds >= 1
    assert 150 < cost.peak < 300


def test_a_command_that_fails_says_why():
    with pytest.raises(SystemExit, match="(?s)no such thing.*failed with exit status 3"):
        run([sys.executable, "-c", "print('no such thing'); raise SystemExit(3)"])


def test_a_source_without_patches_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["building_speed.py", "--source", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        building_speed.main()
    assert caught.value.code == f"{tmp_path} contains no image like 10253/0/10253_idx5_x1351_y1101_class0.png."
