import pytest
from conftest import write_image

from cancernet import InputError
from cancernet.source import find_images, list_files


def listed(source, *pattern):
    return find_images(list_files(source), *pattern)


def test_an_idc_name_tells_patient_place_and_class(tmp_path):
    write_image(tmp_path / "10253" / "0" / "10253_idx5_x1351_y1101_class0.png")
    (image,) = listed(tmp_path)
    assert image[:6] == ("10253/0/10253_idx5_x1351_y1101_class0.png", "0", "10253", 1351, 1101, "")


def test_names_without_a_patient_leave_it_unknown(tmp_path):
    write_image(tmp_path / "benign" / "scan.png")
    (image,) = listed(tmp_path)
    assert image[:6] == ("benign/scan.png", "benign", "", None, None, "")


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


def test_a_class_called_test_is_no_split(tmp_path):
    write_image(tmp_path / "test" / "x.png")
    write_image(tmp_path / "control" / "x.png")
    assert [(image.label, image.split) for image in listed(tmp_path)] == [
        ("control", ""),
        ("test", ""),
    ]


def test_other_files_and_hidden_ones_are_passed_over(tmp_path):
    write_image(tmp_path / "a" / "x.png")
    (tmp_path / "a" / "notes.txt").write_text("x")
    (tmp_path / "a" / "._x.png").write_text("x")
    assert len(listed(tmp_path)) == 1


def test_a_missing_source_is_named(tmp_path):
    with pytest.raises(InputError, match="There is no folder .*nowhere"):
        list_files(tmp_path / "nowhere")


def test_an_empty_source_says_what_was_expected(tmp_path):
    with pytest.raises(InputError, match="No images under .* Expected names like 10253_idx5"):
        list_files(tmp_path)


@pytest.mark.parametrize(("pattern", "message"), [("(", "no regular expression"), ("person", "has no group")])
def test_bad_patterns_are_explained(pattern, message):
    with pytest.raises(InputError, match=message):
        find_images([], pattern)
