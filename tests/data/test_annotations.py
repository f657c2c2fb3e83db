"""Slides with annotations: which patches they give, with which class, and what is refused."""

import errno
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import tifffile

from cancernet import CancerNetError, InputError
from cancernet.data import building, tiles
from cancernet.data.annotations import classify_cells, read_regions
from cancernet.data.dataset import Patch, open_dataset
from cancernet.data.grid import lay_out_patches
from cancernet.workflow import build as workflow
from cancernet.workflow.build import BuildOptions, write_dataset

RED, GREEN = [200, 0, 0], [0, 200, 0]


@pytest.fixture(autouse=True)
def no_overview(monkeypatch):
    monkeypatch.setattr(workflow, "save_overview", lambda *_: None)


def box(left, top, right, bottom):
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def annotate(name, *rings, color=RED):
    kind = {"name": name, "color": color} if name else None
    geometry = {"type": "Polygon", "coordinates": list(rings)}
    return {
        "type": "Feature",
        "geometry": geometry,
        "properties": {"objectType": "annotation", **({"classification": kind} if kind else {})},
    }


def write_annotations(path, *features):
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}))
    return path


def write_slide(path, *, seed=1, mpp=0.5):
    """640 x 480 stained pixels of noise, but for white glass in the 64 columns on the right."""
    pixels = np.random.default_rng(seed).integers(0, 255, (480, 640, 3), dtype=np.uint8)
    pixels[:, 576:] = 255
    given = {"resolution": (1e4 / mpp,) * 2, "resolutionunit": "CENTIMETER"} if mpp else {}
    tifffile.imwrite(path, pixels, tile=(128, 128), photometric="rgb", **given)
    return pixels


def write_table(folder, *rows, header="path,annotations,patient"):
    (folder / "slides.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder / "slides.csv"


def build(folder, **options):
    given = {"mpp": 0.5, "patch_pixels": 64, "split_by": "image", "slides": folder / "slides.csv"} | options
    write_dataset(BuildOptions(output=folder / "built", **given))
    return open_dataset(folder / "built")


def write_source(folder):
    """One slide: left half tumour, right half with the glass stroma."""
    pixels = write_slide(folder / "a.tif")
    halves = annotate("Tumor", box(0, 0, 320, 480)), annotate("Stroma", box(320, 0, 640, 480), color=GREEN)
    write_annotations(folder / "a.geojson", *halves)
    write_table(folder, "a.tif,a.geojson,p1")
    return pixels


def test_patches_have_the_class_of_their_annotation_and_the_pixels_of_the_slide(tmp_path, capsys):
    pixels = write_source(tmp_path)
    dataset = build(tmp_path)
    assert {(patch.label, patch.x // 64) for patch in dataset.patches} == (
        {("Tumor", column) for column in range(5)} | {("Stroma", column) for column in range(5, 9)}
    )
    assert len(dataset.patches) == 9 * 8  # 480 pixels are seven and a half rows
    for patch in dataset.patches[::7]:
        stored = cv2.imread(str(dataset.folder / patch.file))[..., ::-1]
        seen = pixels[patch.y : patch.y + 64, patch.x : patch.x + 64]
        assert np.array_equal(stored[: len(seen)], seen)
    assert {(patch.patient, patch.more) for patch in dataset.patches} == {("p1", (("slide", "a"),))}
    (grid,) = lay_out_patches(dataset.patches, dataset.summary.patch_pixels).slides
    assert grid.is_complete
    summary = dataset.summary
    assert (summary.mpp, summary.patch_pixels) == (0.5, 64)
    assert summary.class_colours == {"Tumor": (200, 0, 0), "Stroma": (0, 200, 0)}
    rejected = (dataset.folder / "rejected.csv").read_text().splitlines()[1:]
    assert rejected == [f"a_x576_y{y}.png,shows background only" for y in sorted(range(0, 512, 64), key=str)]
    capsys.readouterr()
    build(tmp_path)
    assert "is up to date" in capsys.readouterr().out
    write_annotations(tmp_path / "a.geojson", annotate("A", box(0, 0, 320, 64)), annotate("B", box(320, 0, 640, 64)))
    assert {patch.label for patch in build(tmp_path).patches} == {"A", "B"}


def test_patches_are_read_at_their_scale(tmp_path):
    pixels = write_source(tmp_path)
    dataset = build(tmp_path, mpp=1.0)
    (patch,) = (each for each in dataset.patches if (each.x, each.y) == (64, 64))
    seen = pixels[128:256, 128:256].reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
    assert np.abs(cv2.imread(str(dataset.folder / patch.file))[..., ::-1] - seen).max() <= 1


@pytest.mark.parametrize(("share", "columns"), [(0.5, [0, 1]), (0.25, [0, 1, 2]), (0.75, [0])])
def test_the_share_that_annotations_must_cover_is_an_option(share, columns):
    regions = read(annotate("Tumor", box(0, 0, 15, 10)), annotate("Tumor", box(20, 0, 23, 10)))
    found = classify_cells(regions, (2, 4), 10, share)
    assert [list(row) for row in found] == [[0 if column in columns else -1 for column in range(4)], [-1] * 4]


def read(*features):
    with tempfile.TemporaryDirectory() as folder:
        return read_regions(write_annotations(Path(folder) / "a.geojson", *features))


def test_the_class_that_covers_most_wins_and_of_two_the_smaller_region():
    around, inside = annotate("Stroma", box(0, 0, 40, 10)), annotate("Tumor", box(0, 0, 16, 10))
    regions = read(around, inside)
    assert [region.label for region in regions] == ["Tumor", "Stroma"]
    assert classify_cells(regions, (1, 5), 10, 0.5).tolist() == [[0, 1, 1, 1, -1]]


def test_holes_and_other_kinds_of_annotations_give_no_patches():
    point = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [5, 5]}, "properties": {}}
    point["properties"]["classification"] = {"name": "Positive"}
    ring = annotate("Tumor", box(0, 0, 30, 30), box(10, 10, 20, 20))
    regions = read(ring, point, annotate("Ignore*", box(0, 0, 30, 30)), annotate("", box(0, 0, 30, 30)))
    assert [region.label for region in regions] == ["Tumor"]
    assert classify_cells(regions, (3, 3), 10, 0.5).tolist() == [[0, 0, 0], [0, -1, 0], [0, 0, 0]]


def test_classes_and_colours_of_other_versions_of_qupath_are_read():
    (old,) = read(annotate(" Tumor ", box(0, 0, 9, 9)) | {"properties": {"classification": OLD}})
    assert (old.label, old.colour) == ("Tumor", (200, 0, 0))
    (derived,) = read(annotate("x", box(0, 0, 9, 9)) | {"properties": {"classification": {"names": ["Tumor", "Pos"]}}})
    assert (derived.label, derived.colour) == ("Tumor: Pos", None)
    bow_tie = [[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]]  # drawn by hand
    assert read(annotate("Tumor", bow_tie))[0].shape.area == 50


OLD = {"name": "Tumor", "colorRGB": -3670016}  # 0xffc80000


def test_two_slides_of_a_patient_are_two_grids_and_a_bad_slide_is_rejected(tmp_path):
    write_source(tmp_path)
    (tmp_path / "two").mkdir()
    write_slide(tmp_path / "two/a.tif", seed=2, mpp=None)
    (tmp_path / "bad.tif").write_bytes(b"II*\0")
    rows = ["a.tif,a.geojson,p1,,x", "two/a.tif,a.geojson,p1,0.5,y", "bad.tif,a.geojson,p2,,x"]
    write_table(tmp_path, *rows, "two/a.tif,a.geojson,,,", header="path,annotations,patient,mpp,site")
    dataset = build(tmp_path)
    slides = lay_out_patches(dataset.patches, 64).slides
    assert [(grid.slide, len(grid.members)) for grid in slides] == [("a", 72), ("a_2", 72)]
    assert {dict(patch.more)["site"] for patch in dataset.patches} == {"x", "y"}
    rejected = (dataset.folder / "rejected.csv").read_text()
    assert "bad.tif,cannot be read as TIFF" in rejected
    assert 'two/a.tif,"does not give its scale. Give it in a column mpp, micrometres per pixel' in rejected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: write_table(folder, "b.tif,a.geojson,p"), "names .*b.tif, which is no file"),
        (lambda folder: write_table(folder, "a.tif", header="path"), "has no column annotations"),
        (lambda folder: (folder / "a.geojson").write_text("[1]"), "a.geojson: is not GeoJSON as QuPath exports it"),
        (
            lambda folder: write_annotations(folder / "a.geojson"),
            "No patch is covered by annotations of a class to ",
        ),
        (
            lambda folder: write_annotations(folder / "a.geojson", annotate("a/b", box(0, 0, 99, 99))),
            "the class 'a/b' cannot be the name of a folder. Rename it in QuPath",
        ),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, change, message):
    write_source(tmp_path)
    change(tmp_path)
    with pytest.raises(InputError, match=message):
        build(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mpp": None}, "--slides needs --mpp and --patch-pixels"),
        ({"annotated_share": 1.5}, "--annotated-share is at most 1, the whole patch; got 1.5"),
        ({"sample": True}, "--slides and --sample are two sources"),
    ],
)
def test_options_that_do_not_fit_slides_are_refused(tmp_path, options, message):
    write_source(tmp_path)
    with pytest.raises(InputError, match=message):
        build(tmp_path, **options)


@pytest.mark.parametrize("number", [errno.EIO, None])
def test_a_failing_read_ends_a_build_and_a_damaged_block_is_rejected(tmp_path, monkeypatch, number):
    def fail(*_, **__):
        try:
            raise OSError(number, "Input/output error") if number else ValueError("damaged")
        except (OSError, ValueError) as error:
            raise InputError("slide.tif: a chunk cannot be read.") from error

    monkeypatch.setattr(tiles, "iterate_tiles", fail)
    write_slide(tmp_path / "slide.tif")
    slides = {"s": SimpleNamespace(path=tmp_path / "slide.tif", mpp=0.5)}
    tasks = [(Patch("s_x0_y0.png", "a", "s", 0, 0, "", ""), "training/a/s_x0_y0.png")]
    settings = SimpleNamespace(patch_pixels=32, mpp=0.5)
    if number:
        with pytest.raises(CancerNetError, match="a chunk cannot be read") as raised:
            building._cut_patches(slides, str(tmp_path), settings, tasks)
        assert not isinstance(raised.value, InputError)
    else:
        (check,) = building._cut_patches(slides, str(tmp_path), settings, tasks)
        assert check.reason == "slide.tif: a chunk cannot be read."
