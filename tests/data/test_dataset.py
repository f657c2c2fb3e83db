import json

import pytest
from conftest import make_summary, write_image

from cancernet import InputError
from cancernet.data.dataset import (
    Patch,
    check_patients,
    check_trainable,
    hash_manifest,
    is_idc,
    list_classes,
    read_manifest,
    read_summary,
    write_manifest,
)


def patch(file="training/0/a.png", label="0", patient="1", split="training"):
    return Patch(file, label, patient, 51, 101, split, "00")


def test_a_manifest_comes_back_as_it_was_written(tmp_path):
    patches = [patch(), Patch("testing/1/b c,\u00e9.png", "1", "", None, None, "testing", "ff")]
    for each in patches:
        write_image(tmp_path / each.file)
    write_manifest(tmp_path, patches, [("broken.png", "damaged")], make_summary())
    assert read_manifest(tmp_path) == patches
    assert (tmp_path / "manifest.csv").read_text().splitlines()[0] == "file,label,patient,x,y,split,sha256"
    assert (tmp_path / "rejected.csv").read_text() == "file,reason\nbroken.png,damaged\n"


def test_a_summary_comes_back_as_it_was_written(tmp_path):
    write_manifest(tmp_path, [patch()], [], make_summary())
    read = read_summary(tmp_path)
    assert read == make_summary(manifest_sha256=read.manifest_sha256, files_sha256=read.files_sha256)
    assert read.manifest_sha256 == hash_manifest(tmp_path)
    assert list(json.loads((tmp_path / "dataset.json").read_text()))[-3:] == [
        "source_fingerprint",
        "manifest_sha256",
        "files_sha256",
    ]


def test_most_images_decide_colour_and_size():
    assert not make_summary(images=4, grey_images=2).are_grey
    assert make_summary(images=4, grey_images=3).are_grey
    assert make_summary().usual_size == "50x50"


def test_a_missing_summary_is_named(tmp_path):
    with pytest.raises(InputError, match=r"There is no .*dataset\.json\. Remove .* --force"):
        read_summary(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"split": "patient"}'])
def test_a_broken_summary_is_explained(tmp_path, text):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(InputError, match=r"dataset\.json is damaged: .* Remove .* --force"):
        read_summary(tmp_path)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda summary: summary.pop("sizes"), "sizes: Field required"),
        (lambda summary: summary.update(images=4.5), "images: Input should be a valid integer"),
        (lambda summary: summary["settings"].update(mode="move"), "mode: Input should be 'copy', 'hardlink' or 'sym"),
    ],
)
def test_a_wrong_field_of_a_summary_is_named(tmp_path, change, what):
    write_manifest(tmp_path, [patch()], [], make_summary())
    summary = json.loads((tmp_path / "dataset.json").read_text())
    change(summary)
    (tmp_path / "dataset.json").write_text(json.dumps(summary))
    with pytest.raises(InputError, match=rf"dataset\.json is damaged: .*{what}.* Remove .* --force"):
        read_summary(tmp_path)


def test_a_folder_without_a_manifest_is_no_dataset(tmp_path):
    with pytest.raises(InputError, match=r"has no manifest\.csv"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\n", "must have the columns"),
        ("file,label,patient,x,y,split,sha256\n", "names no image"),
        ("file,label,patient,x,y,split,sha256\na,0,1\n", "is damaged"),
        ("file,label,patient,x,y,split,sha256\na,0,1,2,3,test,00\n", "unknown split 'test'"),
    ],
)
def test_broken_manifests_are_explained(tmp_path, text, message):
    (tmp_path / "manifest.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_manifest(tmp_path)


def test_missing_and_foreign_files_are_named(tmp_path):
    write_manifest(tmp_path, [patch()], [], make_summary())
    with pytest.raises(InputError, match=r"1 file\(s\) are missing from .*training/0/a\.png"):
        read_manifest(tmp_path)
    write_image(tmp_path / "training/0/a.png")
    write_image(tmp_path / "training/0/z.png")
    with pytest.raises(InputError, match=r"not in the manifest .*training/0/z\.png"):
        read_manifest(tmp_path)


def test_a_patient_in_two_splits_is_named():
    patches = [patch(), patch("testing/0/b.png", split="testing")]
    with pytest.raises(InputError, match="Patient 1 is in both training and testing"):
        check_patients(patches)
    check_patients([each._replace(patient="") for each in patches])


def test_training_needs_two_classes_and_validation():
    benign, idc = patch(), patch("training/1/b.png", label="1")
    one_class = patch("validation/0/c.png", split="validation")
    validation = [one_class, patch("validation/1/d.png", label="1", split="validation")]
    check_trainable([benign, idc, *validation])
    for patches, message in (
        ([benign, idc], "no validation images"),
        (validation, "no training images"),
        ([benign, *validation], "Training has only the class 0"),
        ([benign, idc, one_class], "Validation has only the class 0"),
        ([benign, idc, *validation, patch(label="2", split="testing")], "Class 2 is in testing but not in training"),
    ):
        with pytest.raises(InputError, match=message):
            check_trainable(patches)


def test_classes_come_in_alphabetical_order():
    assert list_classes([patch(label="normal"), patch(label="benign"), patch(label="normal")]) == ["benign", "normal"]


@pytest.mark.parametrize(
    ("file", "label", "expected"),
    [
        ("training/1/10253_idx5_x1351_y1101_class1.png", "1", True),
        ("training/1/scan.png", "1", False),
        ("training/10253_idx/scan.png", "1", False),
        ("training/2/10253_idx5_x1351_y1101_class2.png", "2", False),
    ],
)
def test_the_idc_set_is_told_by_names_and_classes(file, label, expected):
    idc = patch("training/0/10253_idx5_x1_y1_class0.png")
    assert is_idc([idc, patch(file, label)]) is expected
