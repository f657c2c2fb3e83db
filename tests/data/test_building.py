"""Images are checked, copied and counted; what an adversary, or bad luck, put into the source costs itself only."""

import csv
import errno
import hashlib
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest
from conftest import ROOT, make_summary, write_image, write_slides

from cancernet import CancerNetError, InputError, StorageError
from cancernet.config import SPLITS
from cancernet.data import building
from cancernet.data.building import Built, Check, Plan, check_apart, find_current, place_images, summarise
from cancernet.data.dataset import BuildSettings, Counts, Patch, hash_files, open_dataset, read_manifest, write_manifest
from cancernet.data.source import SourceFile
from cancernet.workflow import build as workflow
from cancernet.workflow.build import BuildOptions, write_dataset

NOT_AN_IMAGE = "cannot be decoded: not an image of a supported type (PNG, JPEG, TIFF, BMP, PGM, DICOM)"


@pytest.fixture(autouse=True)
def no_overview(monkeypatch):
    monkeypatch.setattr(workflow, "save_overview", lambda *_: None)


def build(source, output, **options):
    """File name and reason of each image that a build rejects."""
    write_dataset(BuildOptions(source=source, output=output, **options))
    with (output / "rejected.csv").open(newline="") as file:
        return {row["file"].rpartition("/")[2]: row["reason"] for row in csv.DictReader(file)}


def planned(file, label="0", patient="p", split="training"):
    return Patch(file, label, patient, None, None, split, "")


def place(source, output, patches, *, mode="copy", megapixels=50.0):
    return place_planned(source, output, patches, mode, megapixels, lambda _: None)


def place_planned(source, output, patches, mode, megapixels, progress):
    settings = BuildSettings(str(source), "patient", None, 42, mode, "", megapixels)
    return place_images(source, output, Plan(patches, [], "", "patient"), settings, progress)


@pytest.mark.parametrize(("source", "output"), [("a", "a"), ("a", "a/b"), ("a/b/c", "a"), ("a/x/../b", "a/b/c")])
def test_source_and_output_must_not_be_inside_each_other(tmp_path, source, output):
    with pytest.raises(InputError, match="must be two folders, neither inside the other") as caught:
        check_apart(tmp_path / source, tmp_path / output)
    assert f"--source {tmp_path / source} and --output {tmp_path / output} must" in str(caught.value)


def test_folders_beside_each_other_are_apart(tmp_path):
    check_apart(tmp_path / "a", tmp_path / "ab")
    check_apart(tmp_path / "a/b", tmp_path / "a/c")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(InputError):
        check_apart(tmp_path / "a", tmp_path / "link/b")


def test_name_size_and_nanosecond_show_a_change():
    files = [SourceFile("a", 1, 1), SourceFile("a", 2, 1), SourceFile("a", 1, 2), SourceFile("b", 1, 1)]
    assert len({hash_files([each]) for each in files}) == 4
    assert hash_files(files) != hash_files(files[:3])
    assert hash_files(files[:1]) == hashlib.sha256(b"a\x001\x001\n").hexdigest()


@pytest.fixture
def built(tmp_path):
    """A folder with a dataset of one image, and its summary."""
    write_image(tmp_path / "training/0/a.png")
    return tmp_path, write_manifest(tmp_path, [planned("training/0/a.png")], [], make_summary())


def test_a_dataset_is_current_where_nothing_has_changed(built):
    folder, summary = built
    assert find_current(folder, summary.settings, "ab") == summary
    assert find_current(folder, summary.settings, "cd") is None
    (folder / "training/0/a.png").unlink()
    assert find_current(folder, summary.settings, "ab") is None


def test_no_dataset_is_not_current(tmp_path):
    settings = make_summary().settings
    assert find_current(tmp_path, settings, "ab") is None
    assert find_current(tmp_path / "nowhere", settings, "ab") is None


def test_other_settings_are_listed_and_need_force(built):
    folder, summary = built
    other = replace(summary.settings, seed=7, mode="symlink")
    with pytest.raises(InputError, match=r"was built with other settings \(mode, seed\)\. Use --force to replace it\."):
        find_current(folder, other, "ab")


def test_a_damaged_summary_is_refused(built):
    folder, summary = built
    (folder / "dataset.json").write_text("{")
    with pytest.raises((InputError, StorageError), match=r"dataset\.json is damaged"):
        find_current(folder, summary.settings, "ab")


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ENOMEM])
def test_an_image_that_cannot_be_read_now_ends_the_build(slides, tmp_path, monkeypatch, number):
    build(slides, tmp_path / "built")
    read_file = building.read_file

    def fail(path, **options):
        if path.endswith("101_idx5_x51_y101_class0.png"):
            raise OSError(number, os.strerror(number), path)
        return read_file(path, **options)

    monkeypatch.setattr(building, "read_file", fail)
    said = rf"{os.strerror(number)}: .*/101/0/101_idx5_x51_y101_class0.png\. .*built is unchanged"
    with pytest.raises(StorageError, match=said):
        build(slides, tmp_path / "built", force=True)
    monkeypatch.undo()
    assert build(slides, tmp_path / "built", force=True) == {}
    assert len(read_manifest(tmp_path / "built")) == 60


def test_too_little_memory_to_decode_an_image_ends_the_build(slides, tmp_path, monkeypatch):
    def fail(*_):
        error = cv2.error()
        error.code = cv2.Error.StsNoMem
        raise error

    monkeypatch.setattr(cv2, "imdecode", fail)
    with pytest.raises(CancerNetError, match="Memory ran out at .*png. Start the build again with more memory"):
        build(slides, tmp_path / "built")


@pytest.mark.parametrize("split_by", ["patient", "image"])
def test_files_with_the_same_bytes_are_never_on_two_sides(tmp_path, split_by):
    """Patient 100 is also called 200, and so on: one image of each is the same, under another name."""
    source, splits = write_slides(tmp_path / "source", patients=12), {}
    for patient in range(100, 106):
        name = f"{patient + 100}_idx5_x51_y{51 + 50 * (patient % 2)}_class0.png"
        (source / f"{patient + 100}/0").mkdir(parents=True)
        shutil.copy(source / f"{patient}/0/{patient}{name[3:]}", source / f"{patient + 100}/0/{name}")
    write_dataset(BuildOptions(source=source, output=tmp_path / "built", split_by=split_by))
    dataset = open_dataset(tmp_path / "built")
    for patch in dataset.patches:
        splits.setdefault(patch.sha256, set()).add(patch.split)
        assert hashlib.sha256((tmp_path / "built" / patch.file).read_bytes()).hexdigest() == patch.sha256
    assert [len(found) for found in splits.values()] == [1] * 72
    assert dataset.summary.duplicates_across_patients == 6
    assert dataset.summary.duplicates_across_splits == 0
    assert sorted(path.name for path in (tmp_path / "built").iterdir() if path.is_dir()) == sorted(SPLITS)


def test_of_copies_in_a_split_that_was_given_those_for_training_are_rejected(tmp_path):
    for number, name in enumerate(("train/0/a", "train/1/b", "val/0/c", "val/1/d", "test/0/e", "test/1/f")):
        write_image(tmp_path / f"source/{name}.png", number)
    for copy in ("train/0/copy", "val/0/copied"):
        shutil.copy(tmp_path / "source/test/0/e.png", tmp_path / f"source/{copy}.png")
    shutil.copy(tmp_path / "source/val/1/d.png", tmp_path / "source/train/1/again.png")
    assert build(tmp_path / "source", tmp_path / "built", patient_pattern="^(.*)$") == {
        "copy.png": "a copy of testing/0/e.png",
        "copied.png": "a copy of testing/0/e.png",
        "again.png": "a copy of validation/1/d.png",
    }
    assert len(open_dataset(tmp_path / "built").patches) == 6


def test_images_are_placed_by_split_and_class_and_checked(tmp_path):
    grey, coloured = np.full((4, 6, 3), 9, np.uint8), np.full((5, 5, 3), (1, 2, 16), np.uint8)
    for name, image in (("a/x.png", grey), ("b/x.png", coloured), ("c/x.png", grey + np.uint8(8))):
        (tmp_path / "source" / name).parent.mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "source" / name), image)
    (tmp_path / "source/bad.png").write_bytes(b"?")
    patches = [
        planned("c/x.png", "1", "p3", "testing"),
        planned("b/x.png", "0", "p2"),
        planned("a/x.png", "0", "p1"),
        planned("bad.png"),
        planned("left_out.png", split=""),
    ]
    done = []
    built = place_planned(tmp_path / "source", tmp_path / "out", patches, "copy", 1, done.append)
    files = ["training/0/x-2.png", "training/0/x.png", "testing/1/x.png"]  # by split, then by name
    assert [patch.file for patch in built.patches] == files
    assert [patch.patient for patch in built.patches] == ["p1", "p2", "p3"]
    assert [patch.sha256 for patch in built.patches] == [
        hashlib.sha256((tmp_path / "out" / file).read_bytes()).hexdigest() for file in files
    ]
    assert (tmp_path / "out/training/0/x-2.png").read_bytes() == (tmp_path / "source/a/x.png").read_bytes()
    assert [check[1:6] for check in built.checks] == [(4, 6, True, 9, ""), (5, 5, False, 16, ""), (4, 6, True, 17, "")]
    assert built.rejected == [("bad.png", NOT_AN_IMAGE)]
    assert sum(done) == 4


@pytest.mark.parametrize("pixel", [(0, 0), (49, 49)])
@pytest.mark.parametrize("colour", [(7, 7, 8), (7, 8, 8), (8, 7, 7)])
def test_one_coloured_pixel_makes_an_image_coloured(tmp_path, pixel, colour):
    image = np.full((50, 50, 3), 7, np.uint8)
    image[pixel] = colour
    cv2.imwrite(str(tmp_path / "x.png"), image)
    assert not place(tmp_path, tmp_path / "out", [planned("x.png")]).checks[0].is_grey


def test_a_second_copy_is_one_of_the_same_patient_class_name_and_bytes(tmp_path):
    for number, folder in enumerate(("one", "two", "three", "four", "five")):
        write_image(tmp_path / folder / "x.png", seed=number == 4)
    write_image(tmp_path / "one/y.png")
    patches = [
        planned("one/x.png"),
        planned("two/x.png"),  # the copy
        planned("three/x.png", patient="q"),
        planned("four/x.png", label="1"),
        planned("five/x.png"),  # other bytes
        planned("one/y.png"),  # another name
    ]
    built = place(tmp_path, tmp_path / "out", patches)
    assert built.rejected == [("two/x.png", "a second copy of one/x.png")]
    assert len(built.patches) == 5
    assert not (tmp_path / "out/training/0/x-2.png").exists()
    unknown = [patch._replace(patient="") for patch in patches]
    rejected = [file for file, _ in place(tmp_path, tmp_path / "unknown", unknown).rejected]
    assert rejected == ["two/x.png", "three/x.png", "one/y.png"]  # one is kept of each class


@pytest.mark.parametrize(("mode", "links"), [("copy", 1), ("hardlink", 2), ("symlink", 1)])
def test_links_point_to_the_source(tmp_path, mode, links):
    write_image(tmp_path / "source/x.png")
    (tmp_path / "source/y.png").symlink_to("x.png")
    place(tmp_path / "source", tmp_path / "out", [planned("y.png")], mode=mode)
    target = tmp_path / "out/training/0/y.png"
    assert target.is_symlink() == (mode == "symlink")
    assert target.stat().st_nlink == links
    assert target.read_bytes() == (tmp_path / "source/x.png").read_bytes()


def test_a_file_that_cannot_be_written_is_named_with_its_size(tmp_path):
    size = write_image(tmp_path / "x.png").stat().st_size
    (tmp_path / "out/training/0/x.png").mkdir(parents=True)
    with pytest.raises(OSError, match=rf"Is a directory \(for {size:,} bytes\)") as caught:
        place(tmp_path, tmp_path / "out", [planned("x.png")])
    assert caught.value.filename == str(tmp_path / "out/training/0/x.png")


def check(width=50, height=50, *, is_grey=False, brightest=200):
    return Check("", height, width, is_grey, brightest, "")


def test_a_summary_has_the_step_of_patches_and_no_duplicates_of_one_patient_and_class():
    def summarise_copies(names, **changes):
        patches = [planned(name, "0", "p1")._replace(sha256="1") for name in names]
        settings = replace(make_summary().settings, **changes)
        return summarise(Plan(patches, [], "nested", "patient"), Built(patches, [check(70, 60)] * 2, []), settings, "")

    other = summarise_copies(["a.png", "b.png"])
    assert (other.duplicates, other.patch_pixels, other.mpp) == ((), 60, None)
    assert summarise_copies(["a.png", "b.png"], patch_pixels=20).patch_pixels == 20
    idc = summarise_copies([f"10253_idx5_x{x}_y1_class0.png" for x in (1, 51)])
    assert (idc.patch_pixels, idc.mpp) == (50, 4.0)


def test_a_summary_counts_what_was_built_rejected_and_left_out():
    patches = [
        planned("a", "0", "p1")._replace(sha256="1"),
        planned("b", "1", "p1")._replace(sha256="2"),
        planned("c", "0", "p2", "testing")._replace(sha256="1"),  # the bytes of a
        planned("d", "0", "", "validation")._replace(sha256="3"),
        planned("e", "0", "", "validation")._replace(sha256="3"),  # two groups of their own
        planned("f", "0", "p1")._replace(sha256="4"),
        planned("g", "1", "p1")._replace(sha256="4"),  # one patient
    ]
    checks = [check(), check(is_grey=True), check(60, 50), check(49, 50), check(50, 49, brightest=16), check(), check()]
    checks[5] = check(brightest=17)
    rejected = [("h", "damaged")]
    everything = [*patches, planned("h", patient="p3"), *[planned(name, "0", "p4", "") for name in "ij"]]
    plan = Plan([*everything, planned("k", "0", "", "")], [("m", "is in no class folder")], "nested", "file")
    near = [[patches[0], patches[1]], [patches[2], patches[3], patches[4]]]
    summary = summarise(plan, Built(patches, checks, rejected), make_summary().settings, "abc", near)
    expected = make_summary(
        source_images=12,
        images=7,
        splits={
            "training": Counts(4, 1, {"0": 2, "1": 2}),
            "validation": Counts(2, 0, {"0": 2}),
            "testing": Counts(1, 1, {"0": 1}),
            "all": Counts(7, 2, {"0": 5, "1": 2}),
        },
        images_without_patient=2,
        rejected=2,
        left_out_images=3,
        left_out_patients=2,  # p3, whose image was rejected, and p4
        grey_images=1,
        almost_black=1,
        same_pixels=7,
        edge_tiles=2,
        sizes={"50x50": 4, "60x50": 1, "49x50": 1, "50x49": 1},
        duplicates_across_patients=1,
        duplicates_across_classes=1,
        duplicates_across_splits=1,
        duplicates=(("a", "c"), ("d", "e"), ("f", "g")),
        near_duplicates_across_splits=1,
        near_duplicates=(("a", "b"), ("c", "d", "e")),
        split="file",
        nesting="nested",
        source_fingerprint="abc",
    )
    assert summary == expected


@pytest.mark.parametrize("mode", ["copy", "hardlink", "symlink"])
def test_what_is_no_file_costs_itself_only(slides, tmp_path, mode):
    folder = slides / "100/0"
    os.mkfifo(folder / "pipe.png")
    (folder / "endless.png").symlink_to("/dev/zero")
    (folder / "itself.png").symlink_to("itself.png")
    (folder / "loop").symlink_to("..")
    with (folder / "sparse.png").open("wb") as file:
        file.truncate(2**40)  # a terabyte, of which nothing is on disk
    refused = build(slides, tmp_path / "built", mode=mode)
    no_file = "is not a regular file but a pipe or a device"
    assert refused == {
        "pipe.png": no_file,
        "endless.png": no_file,
        "itself.png": "cannot be read: Too many levels of symbolic links",
        "sparse.png": "has 1,099,511,627,776 bytes, more than an image of 50 megapixels can have",
    }
    assert len(read_manifest(tmp_path / "built")) == 60


def test_too_many_pixels_are_rejected_by_the_header(tmp_path):
    for ending in ("png", "jpg", "tif", "bmp"):
        cv2.imwrite(str(tmp_path / f"bomb.{ending}"), np.zeros((300, 300), np.uint8))
    patches = [planned(f"bomb.{ending}") for ending in ("png", "jpg", "tif", "bmp")]
    reason = "declares 300 x 300 pixels, more than the limit of 0.05 megapixels"
    rejected = place(tmp_path, tmp_path / "out", patches, megapixels=0.05).rejected
    assert rejected == [(patch.file, reason) for patch in patches]
    assert place(tmp_path, tmp_path / "more", patches, megapixels=0.09).rejected == []


def test_long_names_that_are_equal_are_both_kept(tmp_path):
    for number, (person, label) in enumerate((person, label) for person in "abc" for label in ("cat", "dog")):
        for stem in ("x" * 250, "ä" * 125):  # as many bytes
            write_image(tmp_path / f"source/{person}/{label}/s.png", number + 10 * (stem[0] == "x")).rename(
                tmp_path / f"source/{person}/{label}/{stem}.png"
            )
    assert build(tmp_path / "source", tmp_path / "built") == {}
    assert len(read_manifest(tmp_path / "built")) == 12


def test_very_many_equal_names_do_not_take_the_square_of_the_time():
    images = [planned(f"{number}/cat/x.png", "cat") for number in range(20_000)]
    started = time.perf_counter()
    targets = building._name_targets(images)
    assert time.perf_counter() - started < 2
    assert len(set(targets)) == 20_000
    assert targets[:2] + targets[-1:] == [f"training/cat/x{number}.png" for number in ("", "-2", "-20000")]


def test_names_that_differ_in_case_only_are_numbered():
    images = [planned(file) for file in ("a/x.png", "a/X.PNG", "b/x.png", "b/x-2.png", "c/x.png")]
    targets = ["x.png", "X-2.PNG", "x-3.png", "x-2-2.png", "x-4.png"]
    assert building._name_targets(images) == [f"training/0/{target}" for target in targets]


def test_the_size_is_that_of_whole_blocks():
    files = [SourceFile("a", 1, 0), SourceFile("b", 4097, 0), SourceFile("sparse", 2**40, 0)]
    patches = [planned(file.file, "cat", "") for file in files]
    assert building.estimate_size(files, patches, mode="copy") == 4096 + 8192 + 3 * 300
    assert building.estimate_size(files, patches, mode="hardlink") == 900
    left_out = [patches[0], *(patch._replace(split="") for patch in patches[1:])]
    assert building.estimate_size(files, left_out, mode="hardlink") == 300


def test_a_webp_is_rejected_whatever_its_name_says(tmp_path):
    done, data = cv2.imencode(".webp", np.zeros((50, 50, 3), np.uint8))
    assert done
    (tmp_path / "x.png").write_bytes(data.tobytes())
    assert place(tmp_path, tmp_path / "out", [planned("x.png")]).rejected == [("x.png", NOT_AN_IMAGE)]


def test_names_are_the_same_in_every_locale(slides, tmp_path):
    for seed, name in enumerate(("ä", "日本", "Z")):
        write_image(slides / "100/0/x.png", seed).rename(slides / f"100/0/{name}.png")
    build(slides, tmp_path / "here")
    undrawn = "from cancernet.workflow import build; build.save_overview = lambda *_: ''"
    code = f"import sys; {undrawn}; import build_dataset; build_dataset.main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "--source", slides, "--output", tmp_path / "posix"]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"LC_ALL": "POSIX"}, check=True, capture_output=True)
    here, posix = ((tmp_path / name / "manifest.csv").read_bytes() for name in ("here", "posix"))
    assert here == posix
    assert len(here.splitlines()) == 64


def test_a_class_that_is_a_formula_is_text_in_the_manifest(tmp_path):
    for label in ("=1+1", "-1", "+1"):
        for number in range(9):
            write_image(tmp_path / f"source/{label}/{number}.png", 100 * len(label) + ord(label[0]) + number)
    build(tmp_path / "source", tmp_path / "built")
    assert {patch.label for patch in read_manifest(tmp_path / "built")} == {"=1+1", "-1", "+1"}
    text = (tmp_path / "built/manifest.csv").read_text()
    assert text.count(",'=1+1,") == text.count(",-1,") == text.count(",+1,") == 9
