"""The verb predict, from arguments to files."""

import contextlib
import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import PRINT_PEAK_MB, ROOT
from pyramid import TUMOUR_LEFT, TUMOUR_SIDE, TUMOUR_TOP, write_pyramid

import cancernet.inference
from cancernet import InputError
from cancernet.__main__ import main
from cancernet.data.sample import cut_patches, make_slide


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, image[..., ::-1])[1])
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two complete slides of patches, loose patches, one broken, in a folder whose name has blanks and umlauts."""
    folder = tmp_path_factory.mktemp("bilder") / "mit Leerzeichen äöü"
    for patient in (5, 6):
        for image, label, x, y in cut_patches(make_slide(7, patient, side=350)):
            write(folder / str(patient) / label / f"{patient}_idx5_x{x}_y{y}_class{label}.png", image)
    for number in range(40):
        write(folder / "lose" / f"bild {number:02}.png", np.full((60, 30, 3), 5 * number, np.uint8))
    (folder / "lose" / "kaputt.png").write_bytes(b"\x89PNG\r\n\x1a\n short")
    return folder


def predict(*arguments):
    main(["predict", *map(str, arguments)])


def read_rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@pytest.fixture(scope="module")
def whole(tiny_run, pictures, tmp_path_factory):
    """The folder that comes of all the pictures at once, and what was printed."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    with contextlib.redirect_stdout(io.StringIO()) as said:
        predict(tiny_run, pictures, "--output", folder)
    return folder, said.getvalue()


def test_a_folder_becomes_a_table_maps_and_regions(pictures, whole):
    output, said = whole
    header, *rows = read_rows(output / "predictions.csv")
    shares = ["probability_benign", "probability_IDC"]
    assert header == ["file", "x", "y", *shares, "predicted", "threshold", "slide", "distance"]
    patches = sorted(str(path) for path in pictures.rglob("*.png") if path.name != "kaputt.png")
    assert sorted(row[0] for row in rows) == patches
    assert all(float(row[3]) + float(row[4]) == pytest.approx(1, abs=1e-4) for row in rows)
    loose = [row for row in rows if "/bild " in row[0]]
    assert all(row[1:3] == ["", ""] for row in loose)
    assert [row[0] for row in loose] == sorted(row[0] for row in loose)
    placed = next(row for row in rows if row[0].endswith("5_idx5_x101_y151_class0.png"))
    assert placed[1:3] == ["101", "151"]
    assert placed[7] == "5"
    assert {row[7] for row in loose} == {""}
    assert read_rows(output / "rejected.csv")[1:] == [
        [
            str(pictures / "lose" / "kaputt.png"),
            "cannot be decoded: not an image, damaged or cut off",
        ]
    ]
    called = sum(row[5] == "IDC" for row in rows if "/5_idx5" in row[0])
    regions = json.loads((output / "5.geojson").read_text())["features"]
    assert sum(each["properties"]["measurements"]["Patches"] for each in regions) == called > 0
    assert cv2.imread(str(output / "5.jpg")) is not None
    assert "of 2 slide(s), 41 image(s) that are one patch each." in said
    assert "not used:" in said
    assert "kaputt.png" in said
    assert "images per second" in said
    check_summary(output, said, rows)


def check_summary(output, said, rows):
    """The counts, the first answers, the images outside and the table of slides follow from predictions.csv."""
    header, first, second, loose = read_rows(output / "summary.csv")
    assert header == ["slide", "class", "patches", "predicted", "share", "mm2", "mean_probability"]
    assert [first[0], second[0], loose[0], loose[5]] == ["5", "6", "", ""]
    own = [row for row in rows if row[7] == "5"]
    called = sum(row[5] == "IDC" for row in own)
    assert first[1:4] == ["IDC", str(len(own)), str(called)]
    assert float(first[4]) == pytest.approx(called / len(own), abs=1e-4)
    assert float(first[5]) == pytest.approx(called * 0.04, abs=1e-4)  # 50 pixels of 4 micrometres: 0.2 mm
    assert float(first[6]) == pytest.approx(np.mean([float(row[4]) for row in own]), abs=1e-4)
    idc = sum(row[5] == "IDC" for row in rows)
    assert f"{len(rows):,} patches classified: {idc:,} IDC ({idc / len(rows):.0%}), {len(rows) - idc:,} benign" in said
    outside = [row for row in rows if float(row[8]) > 1]
    assert {Path(row[0]).name for row in outside} >= {"bild 00.png", "bild 05.png"}  # black
    assert f"{len(outside):,} of {len(rows):,} patches" in said
    assert "bild 00.png" in said.split("The furthest, where 1 is the limit: ")[1]
    assert cv2.imread(str(output / "furthest.jpg")) is not None
    table = said[said.index("image ") :].splitlines()
    answer = next(row for row in rows if row[0].endswith("bild 00.png"))
    assert table[1].split() == ["bild", "00.png", answer[5], f"{float(answer[4]):.3f}"]
    assert len([line for line in table if line.startswith("bild")]) == 10


@pytest.mark.parametrize("of", [3, 16])
def test_joined_shards_are_one_run(tiny_run, pictures, whole, tmp_path, of):
    digits = len(str(of))
    joined, rejected = [], []
    for number in range(1, of + 1):
        predict(tiny_run, pictures, "--output", tmp_path / "parts", "--shard", f"{number}/{of}")
        part = tmp_path / "parts" / f"shard_{number:0{digits}}_of_{of}"
        joined += (part / "predictions.csv").read_text().splitlines()[1:]
        rejected += (part / "rejected.csv").read_text().splitlines()[1:]
    assert joined == (whole[0] / "predictions.csv").read_text().splitlines()[1:]
    assert rejected == (whole[0] / "rejected.csv").read_text().splitlines()[1:]
    assert {path.name for path in (tmp_path / "parts").rglob("*.geojson")} == {"5.geojson", "6.geojson"}


def test_neighbours_and_threshold_can_be_switched(tiny_run, pictures, tmp_path):
    def called(name, *options):
        predict(tiny_run, pictures / "5", "--output", tmp_path / name, *options)
        rows = read_rows(tmp_path / name / "predictions.csv")[1:]
        return [row[4] for row in rows], sum(row[5] == "IDC" for row in rows)

    usual, alone = called("a"), called("b", "--no-neighbours")
    lenient, strict = called("c", "--threshold", "0.001"), called("d", "--threshold", "0.999")
    assert usual[0] != alone[0]
    assert usual[0] == lenient[0] == strict[0]
    assert strict[1] < usual[1] < lenient[1]


def test_overlapping_patches_spoil_their_slide_only(tiny_run, pictures, tmp_path, capsys):
    folder = tmp_path / "in"
    shutil.copytree(pictures / "5", folder / "5")
    for x in (1, 21):
        write(folder / f"77_idx5_x{x}_y1_class0.png", np.full((50, 50, 3), 200, np.uint8))
    predict(tiny_run, folder, "--output", tmp_path / "out")
    rejected = read_rows(tmp_path / "out" / "rejected.csv")[1:]
    assert [Path(row[0]).name for row in rejected] == ["77_idx5_x1_y1_class0.png", "77_idx5_x21_y1_class0.png"]
    assert all("Two patches of slide 77 overlap" in row[1] for row in rejected)
    assert len(read_rows(tmp_path / "out" / "predictions.csv")) > 1
    assert "77_idx5_x1_y1_class0.png and 1 more: Two patches of slide 77 overlap" in capsys.readouterr().out


def test_a_sample_of_a_slide_gets_no_map(tiny_run, pictures, tmp_path, capsys):
    some = sorted((pictures / "5").rglob("*.png"))[::9]
    predict(tiny_run, *some, "--output", tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names - {"furthest.jpg"} == {"predictions.csv", "rejected.csv", "summary.csv"}
    assert f"{len(some)} patches of 1 slide are too few or too far apart for a map." in capsys.readouterr().out


def test_bad_input_is_refused_before_anything_heavy(tmp_path):
    (tmp_path / "empty folder").mkdir()
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "text").write_text("")
    for arguments, message in {
        ("run", tmp_path / "empty folder"): "No images under .*empty folder. Give a folder",
        ("run", tmp_path / "none"): "There is no .*none. Give images",
        ("run", ".", "--output", taken): "taken contains other files, not predictions. Choose another",
        ("run", ".", "--output", taken, "--force"): "taken contains other files",
        ("run", ".", "--shard", "0/3"): "--shard takes a part of a number of parts such as 3/16, not '0/3'",
        ("run", ".", "--shard", "4/3"): "not '4/3'",
        ("run", ".", "--shard", "three"): "not 'three'",
        ("run", ".", "--shard", "１/3"): "not '１/3'",
        ("run", ".", "--shard", "1/" + "9" * 5000): "takes a part of a number of parts",
        ("run", ".", "--shard", "1/3", "--ray"): "--ray divides it itself. Give one of them",
        ("run", ".", "--mpp", "0"): "takes a number above 0",
        ("run", ".", "--threshold", "1"): "takes a number between 0 and 1",
    }.items():
        with pytest.raises(InputError, match=message):
            predict(*arguments)


def test_without_ray_one_line_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "cancernet.inference.ray", raising=False)
    monkeypatch.delattr(cancernet.inference, "ray", raising=False)
    with pytest.raises(InputError, match=r"--ray needs Ray and PyArrow .*: pip install \"\.\[cluster\]\""):
        predict("run", "slide.svs", "--output", tmp_path / "out", "--ray")


def test_a_table_names_the_images(tiny_run, pictures, tmp_path):
    (tmp_path / "images.csv").write_text(f"path\n{pictures / 'lose' / 'bild 00.png'}\n", encoding="utf-8")
    predict(tiny_run, tmp_path / "images.csv", "--output", tmp_path / "out")
    assert read_rows(tmp_path / "out" / "predictions.csv")[1][0] == str(pictures / "lose" / "bild 00.png")


def test_nothing_usable_is_an_error_and_its_reasons_are_kept(tiny_run, tmp_path):
    (tmp_path / "a.png").write_bytes(b"?")
    with pytest.raises(InputError, match=r"No image could be used, first .*a.png: cannot be decoded"):
        predict(tiny_run, tmp_path / "a.png", "--output", tmp_path / "out")
    assert len(read_rows(tmp_path / "out" / "rejected.csv")) == 2
    write(tmp_path / "a.png", np.zeros((50, 50, 3), np.uint8))
    predict(tiny_run, tmp_path / "a.png", "--output", tmp_path / "out", "--force")
    assert len(read_rows(tmp_path / "out" / "predictions.csv")) == 2


def test_an_image_without_scale_needs_mpp(tiny_run, tmp_path):
    image = np.full((400, 400, 3), (225, 150, 190), np.uint8)
    write(tmp_path / "core.png", image)
    with pytest.raises(InputError, match="does not give its scale. Give --mpp"):
        predict(tiny_run, tmp_path / "core.png", "--output", tmp_path / "out")
    predict(tiny_run, tmp_path / "core.png", "--output", tmp_path / "out", "--mpp", 4, "--force")
    rows = read_rows(tmp_path / "out" / "predictions.csv")[1:]
    assert [row[1:3] for row in rows] == [[str(x), str(y)] for y in range(0, 400, 50) for x in range(0, 400, 50)]
    assert (tmp_path / "out" / "core.geojson").is_file()


MEASURE = "import sys; from cancernet.__main__ import main; main(['predict', *sys.argv[1:]])\n" + PRINT_PEAK_MB


def write_colour_run(folder, tiny_run):
    """A run whose network goes by the mean red: tumour, 90, is called and stroma, 225, is not."""
    import keras

    layers = [keras.Input((48, 48, 3)), keras.layers.Conv2D(8, 3), keras.layers.GlobalAveragePooling2D()]
    model = keras.Sequential([*layers, keras.layers.Dense(2, activation="softmax")])
    kernel, dense = np.zeros((3, 3, 3, 8)), np.zeros((8, 2))
    kernel[1, 1, 0, 0], dense[0, 1] = 1, -0.1
    model.set_weights([kernel, np.zeros(8), dense, np.array([0, 15.0])])
    folder.mkdir()
    model.save(folder / "model.keras")
    config = json.loads((tiny_run / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_sha256": ""}))
    decision = json.loads((tiny_run / "decision.json").read_text())
    plain = {"temperature": 1.0, "bias": [0.0, 0.0], "threshold": 0.5, "neighbour_sigma": 0.0}
    (folder / "decision.json").write_text(json.dumps(decision | plain | {"without_neighbours": None}))
    return folder


@pytest.mark.slow
def test_a_whole_slide_is_predicted_in_a_bounded_memory_and_its_tumour_found(tiny_run, tmp_path):
    """20,000 x 20,000 pixels at 0.5 micrometres: 1.2 GB of pixels, 50 patches of 400 pixels a side."""
    run = write_colour_run(tmp_path / "run", tiny_run)
    slide = write_pyramid(tmp_path / "big slide.tif")
    command = [sys.executable, "-c", MEASURE, str(run), str(slide), "--output", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    # In MiB. 988 and 1,051 were measured on two machines, of which TensorFlow takes most; the pixels alone are 1,144.
    assert int(done.stdout.splitlines()[-1]) < 1280, done.stdout
    (region,) = json.loads((tmp_path / "out" / "big_slide.geojson").read_text())["features"]
    corners = np.array(region["geometry"]["coordinates"][0])
    planted = np.array([TUMOUR_LEFT, TUMOUR_TOP])
    assert np.abs(corners.min(axis=0) - planted).max() <= 400
    assert np.abs(corners.max(axis=0) - planted - TUMOUR_SIDE).max() <= 400
    called = [row for row in read_rows(tmp_path / "out" / "predictions.csv")[1:] if row[5] == "IDC"]
    assert abs(len(called) - (TUMOUR_SIDE / 400) ** 2) <= 25
