import contextlib

import pytest
from conftest import thin, write_image
from hypothesis import given, settings
from hypothesis import strategies as st

from cancernet import InputError
from cancernet.data.dataset import Patch
from cancernet.data.files import describe_unsupported
from cancernet.data.source import (
    SourceFile,
    describe_nesting,
    find_images,
    list_files,
    separate_misplaced,
)


def listed(source, *pattern):
    return find_images(list_files(source)[0], *pattern)


def test_an_idc_name_tells_patient_place_and_class(tmp_path):
    write_image(tmp_path / "10253" / "0" / "10253_idx5_x1351_y1101_class0.png")
    (image,) = listed(tmp_path)
    assert image == Patch("10253/0/10253_idx5_x1351_y1101_class0.png", "0", "10253", 1351, 1101, split="", sha256="")


def test_names_without_a_patient_leave_it_unknown(tmp_path):
    write_image(tmp_path / "benign" / "scan.png")
    (image,) = listed(tmp_path)
    assert image == Patch("benign/scan.png", "benign", "", None, None, split="", sha256="")


def test_a_pattern_finds_the_patient(tmp_path):
    write_image(tmp_path / "covid" / "person12_bacteria_3.jpeg")
    write_image(tmp_path / "covid" / "other.JPG")
    assert [image.patient for image in listed(tmp_path, r"^(person\d+)_")] == ["", "person12"]


@pytest.mark.parametrize("names", [("train", "val", "test"), ("training", "validation", "testing")])
def test_a_source_that_is_split_already_is_understood(tmp_path, names):
    for name in names:
        write_image(tmp_path / name / "cat" / "x.png")
    expected = {"tr": "training", "va": "validation", "te": "testing"}
    assert [image.split for image in listed(tmp_path)] == [expected[name[:2]] for name in sorted(names)]


def test_a_split_is_found_below_other_folders(tmp_path):
    for file in ("data/train/cat/x.png", "data/test/cat/x.png", "data/test/dog/x.png"):
        write_image(tmp_path / file)
    assert [(image.label, image.split) for image in listed(tmp_path)] == [
        ("cat", "testing"),
        ("dog", "testing"),
        ("cat", "training"),
    ]


def test_a_file_directly_in_a_split_folder_has_no_class(tmp_path):
    for file in ("test/loose.png", "test/cat/x.png", "train/cat/x.png", "train/loose.png"):
        write_image(tmp_path / file)
    placed, misplaced = separate_misplaced(listed(tmp_path))
    assert [(image.file, image.split) for image in placed] == [
        ("test/cat/x.png", "testing"),
        ("train/cat/x.png", "training"),
    ]
    assert misplaced == [(f"{name}/loose.png", "is in no class folder") for name in ("test", "train")]


def test_an_image_whose_name_says_another_class_than_its_folder_is_separated(tmp_path):
    for file in ("7/0/a_class0.png", "7/0/b_class1.png", "benign/c_class1.png"):
        write_image(tmp_path / file)
    placed, misplaced = separate_misplaced(listed(tmp_path))
    assert [image.file for image in placed] == ["7/0/a_class0.png", "benign/c_class1.png"]
    assert misplaced == [("7/0/b_class1.png", "its name says class 1, its folder says 0")]


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (["benign/x", "benign/more/x", "malignant/x"], "benign, benign/more, malignant"),
        ([f"{n}/{c}/x" for n in range(9) for c in "01"] + ["3/1/more/x"], "0/0, 0/1, 1/0"),
        (["benign/p1/x", "benign/p2/x", "malignant/p1/x", "malignant/p3/x"], "benign/p1, benign/p2, malignant/p1"),
        (["train/ill/p1/x", "train/well/p2/x", "test/ill/p3/x", "test/well/p4/x"], "ill/p1, ill/p3, well/p2"),
        (["train/ill/x", "train/well/x", "test/ill/x", "test/well/x", "val/ill/x"], ""),
        (["8863/0/x", "8863/1/x", "8864/0/x", "8865/0/x", "8865/1/x"], ""),
        (["ill/x", "well/x", "other/x"], ""),
        (["east/ill/x", "east/well/x", "west/ill/x", "west/well/x", "west/other/x"], "east/ill, east/well, west/ill"),
        (["data/ill/x", "data/well/x"], ""),
    ],
)
def test_folders_that_may_be_no_classes_are_told(tmp_path, files, told):
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{file}.png").write_bytes(b"?")
    said = describe_nesting(listed(tmp_path))
    assert said.partition("such as ")[2].partition(". ")[0] == told


def test_a_pattern_that_finds_no_patient_is_refused(tmp_path):
    for number in range(5):
        write_image(tmp_path / f"cat/scan{number}.png")
    with pytest.raises(
        InputError, match=r"'\^\(person.* finds no patient in any name, such as scan0.png, scan1.png, scan2"
    ):
        listed(tmp_path, r"^(person\d+)_")
    write_image(tmp_path / "cat/person1_x.png")
    assert sum(image.patient == "person1" for image in listed(tmp_path, r"^(person\d+)_")) == 1


def test_a_class_called_test_is_no_split(tmp_path):
    write_image(tmp_path / "test" / "x.png")
    write_image(tmp_path / "control" / "x.png")
    assert [(image.label, image.split) for image in listed(tmp_path)] == [
        ("control", ""),
        ("test", ""),
    ]


def test_hidden_and_system_files_are_skipped(tmp_path):
    for file in ("a/x.png", "a/._x.png", ".thumbnails/x.png", "a/.ipynb_checkpoints/x.png", "__MACOSX/a/x.png"):
        write_image(tmp_path / file)
    (tmp_path / "a/Thumbs.db").write_text("x")
    files, unsupported = list_files(tmp_path)
    assert [each.file for each in files] == ["a/x.png"]
    assert not unsupported


def test_unsupported_files_are_counted_by_their_ending(tmp_path):
    for file in ("a/x.png", "a/x.webp", "a/y.WEBP", "b/x.gif", "README"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("x")
    files, unsupported = list_files(tmp_path)
    assert [each.file for each in files] == ["a/x.png"]
    said = "Skipped, unsupported file type: 2 .webp, 1 without an ending, 1 .gif."
    assert describe_unsupported(unsupported) == said


def test_a_source_of_unsupported_files_only_says_so(tmp_path):
    (tmp_path / "x.webp").write_text("x")
    with pytest.raises(InputError, match=r"No images under .* unsupported file type: 1 \.webp\."):
        list_files(tmp_path)


def test_a_missing_source_is_named(tmp_path):
    with pytest.raises(InputError, match="There is no folder .*nowhere"):
        list_files(tmp_path / "nowhere")


def test_an_empty_source_says_what_was_expected(tmp_path):
    with pytest.raises(InputError, match="No images under .* Expected names like 10253_idx5"):
        list_files(tmp_path)


@pytest.mark.parametrize(("pattern", "message"), [("(", "is not a regular expression"), ("person", "has no group")])
def test_bad_patterns_are_explained(pattern, message):
    with pytest.raises(InputError, match=message):
        find_images([], pattern)


NAMES = st.lists(
    st.lists(st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=30), min_size=1, max_size=4),
    min_size=1,
)


def find(names):
    files = [SourceFile("/".join([*name[:-1], name[-1] + ".png"]), 1, 1) for name in names]
    images = find_images(files)
    assert [image.file for image in images] == [file.file for file in files]
    describe_nesting(images)
    with contextlib.suppress(InputError):
        placed, misplaced = separate_misplaced(images)
        assert len(placed) + len(misplaced) == len(files)


@given(NAMES)
@settings(max_examples=200, deadline=None)
def test_every_name_is_placed_or_misplaced(names):
    find(names)


@pytest.mark.slow
@given(NAMES)
@settings(max_examples=thin(2000), deadline=None)
def test_no_name_ends_in_a_traceback(names):
    find(names)
