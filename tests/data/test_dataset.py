import json
import os
import re
from pathlib import Path

import pytest
from conftest import make_summary, write_image

from cancernet import InputError, StorageError
from cancernet.data.dataset import (
    Counts,
    Dataset,
    Patch,
    check_patients,
    check_trainable,
    count_patches,
    find_place,
    hash_manifest,
    is_idc,
    is_unchanged,
    label_class,
    list_classes,
    name_classes,
    open_dataset,
    read_column,
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
    assert list(json.loads((tmp_path / "dataset.json").read_text()))[-2:] == [
        "manifest_sha256",
        "files_sha256",
    ]


def test_an_opened_dataset_has_rows_summary_and_hash(tmp_path):
    write_image(tmp_path / "training/0/a.png")
    summary = write_manifest(tmp_path, [patch()], [], make_summary())
    assert open_dataset(tmp_path) == Dataset(tmp_path, [patch()], summary, summary.manifest_sha256)
    with pytest.raises(
        InputError, match=r"nowhere has no manifest.csv, so it is not a built dataset. Run build_dataset"
    ):
        open_dataset(Path("nowhere"))


def test_the_scale_of_the_idc_set_is_known_where_an_earlier_version_did_not_write_it(tmp_path):
    for name, mpp in (("10253_idx5_x51_y101_class0.png", 4.0), ("other.png", None)):
        folder = tmp_path / name
        write_image(folder / "training/0" / name)
        summary = write_manifest(folder, [patch(f"training/0/{name}")], [], make_summary())
        assert summary.mpp is None
        assert open_dataset(folder).summary.mpp == mpp


def test_a_summary_with_a_field_of_an_earlier_version_is_read(tmp_path):
    summary = write_manifest(tmp_path, [patch()], [], make_summary())
    fields = json.loads((tmp_path / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps(fields | {"source_patients": 2}))
    assert read_summary(tmp_path) == summary


def edit_a_row(folder):
    text = (folder / "manifest.csv").read_text()
    (folder / "manifest.csv").write_text(text.replace(",51,", ",52,"))


@pytest.mark.parametrize(
    "change",
    [
        edit_a_row,
        lambda folder: (folder / "training/0/a.png").unlink(),
        lambda folder: (folder / "training/0/a.png").rename(folder / "training/0/b.png"),
        lambda folder: write_image(folder / "validation/0/b.png"),
        lambda folder: (folder / "link.png").rename(folder / "elsewhere.png"),
        lambda folder: os.truncate(folder / "training/0/a.png", 0),
        lambda folder: (folder / "training/0/a.png").write_bytes((folder / "training/0/a.png").read_bytes()),
    ],
)
def test_a_changed_dataset_is_detected(tmp_path, change):
    patches = [patch(), patch("testing/1/b.png", "1", "2", "testing")]
    write_image(tmp_path / "training/0/a.png")
    (tmp_path / "testing/1").mkdir(parents=True)
    (tmp_path / "testing/1/b.png").symlink_to(write_image(tmp_path / "link.png"))
    summary = write_manifest(tmp_path, patches, [], make_summary())
    assert is_unchanged(tmp_path, summary)
    change(tmp_path)
    assert not is_unchanged(tmp_path, summary)


def test_a_manifest_that_was_changed_after_the_build_is_refused(tmp_path):
    patches = [patch(), patch("testing/1/b.png", "1", "2", "testing")]
    for each in patches:
        write_image(tmp_path / each.file)
    write_manifest(tmp_path, patches, [], make_summary())
    swapped = (tmp_path / "manifest.csv").read_text().replace("b.png,1,", "b.png,0,")
    (tmp_path / "manifest.csv").write_text(swapped)
    with pytest.raises(StorageError, match=r"manifest.csv was changed after the build: dataset.json has another hash"):
        open_dataset(tmp_path)


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
    with pytest.raises(StorageError, match=r"dataset\.json is damaged: .* Remove .* --force"):
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
    with pytest.raises(StorageError, match=rf"dataset\.json is damaged: .*{what}.* Remove .* --force"):
        read_summary(tmp_path)


def test_a_folder_without_a_manifest_is_no_dataset(tmp_path):
    with pytest.raises(InputError, match=r"has no manifest\.csv"):
        read_manifest(tmp_path)


HEADER = "file,label,patient,x,y,split,sha256\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must have the columns file,label,patient,x,y,split,sha256. Run build_dataset.py again."),
        ("file,label\n", "must have the columns file,label,patient,x,y,split,sha256. Run build_dataset.py again."),
        (HEADER, "lists no image. Run build_dataset.py again."),
        (HEADER + "a,0,1\n", "is damaged: not enough values to unpack"),
        (HEADER + "a,0,1,left,3,testing,00\n", "is damaged: invalid literal for int"),
        (HEADER + "a,0,1,2,3,test,00\n", "is damaged: unknown split 'test'. Run build_dataset.py again."),
        (HEADER + "a,0,1,,,testing,00\na,1,1,,,testing,01\n", "lists a file twice. Run build_dataset.py again."),
    ],
)
def test_broken_manifests_are_explained(tmp_path, text, message):
    (tmp_path / "manifest.csv").write_text(text)
    with pytest.raises(StorageError, match=re.escape(f"{tmp_path / 'manifest.csv'} {message}")):
        read_manifest(tmp_path)


def test_missing_and_unlisted_files_are_named(tmp_path):
    write_manifest(tmp_path, [patch()], [], make_summary())
    with pytest.raises(
        StorageError, match=r"1 file\(s\) are listed in manifest.csv but missing from .*, first training/0/a"
    ):
        read_manifest(tmp_path)
    write_image(tmp_path / "training/0/a.png")
    for name in "zyx":
        write_image(tmp_path / f"testing/0/{name}.png")
    with pytest.raises(
        StorageError, match=r"3 file\(s\) are not listed in manifest.csv but in .*, first testing/0/x\.png"
    ):
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


def test_every_class_of_a_split_must_be_in_training():
    rows = [
        patch(f"{split}/{label}/a.png", label, split=split) for split in ("training", "validation") for label in "01"
    ]
    for split in ("validation", "testing"):
        with pytest.raises(InputError, match=f"Class 2 is in {split} but not in training. Check the folders' names."):
            check_trainable([*rows, patch(label="2", split=split)])
    check_trainable([*rows, patch(label="2"), patch(label="2", split="testing")])  # a class may lack validation


def test_a_class_is_labelled_with_its_meaning_where_that_is_known():
    names = name_classes([patch("training/0/8863_idx5_x1_y1_class0.png")])
    assert names == {"0": "benign", "1": "IDC"}
    assert [label_class(names, name) for name in "012"] == ["0 (benign)", "1 (IDC)", "2"]
    assert label_class(None, "0") == label_class({"0": "0"}, "0") == "0"
    assert name_classes([patch()]) is None


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("10253/1/10253_idx5_x1351_y1101_class1.png", ("10253", 1351, 1101)),
        ("10253_idx5.png", ("10253", None, None)),
        ("scan_x5_y7.png", ("", 5, 7)),
        ("10253_idx5_x13.png", ("10253", None, None)),
        ("a10253_idx5", ("", None, None)),
    ],
)
def test_patient_and_place_are_read_from_a_name(name, place):
    assert find_place(name) == place


def test_a_group_that_took_no_part_in_the_match_is_no_patient():
    assert find_place("b7", re.compile(r"a(\d)|b")) == ("", None, None)


def test_patches_are_counted_by_known_patient_and_class():
    patches = [patch(), patch(patient="2"), patch(label="1", patient="2"), patch(label="1", patient="")]
    assert count_patches(patches) == Counts(images=4, patients=2, classes={"0": 2, "1": 2})


def test_classes_come_in_alphabetical_order():
    assert list_classes([patch(label="normal"), patch(label="benign"), patch(label="normal")]) == ["benign", "normal"]


def test_a_column_of_the_manifest_is_read_by_its_name():
    sites = [patch()._replace(more=(("site", site), ("age", f"{age}"))) for age, site in enumerate(["a", "", "b"] * 4)]
    assert read_column(sites, "site") == ["a", "", "b"] * 4
    only_from = "Columns come from the table of build_dataset.py --labels."
    with pytest.raises(InputError, match=f"^The images have no column Site, only site, age. {only_from}$"):
        read_column(sites, "Site")
    with pytest.raises(InputError, match=f"^The images have no column site. {only_from}$"):
        read_column([patch()], "site")
    with pytest.raises(
        InputError, match="^The column age has 12 values, such as 0 and 1; results are given by at most 10"
    ):
        read_column(sites, "age")
    assert len(read_column(sites, "age", most=None)) == 12
    assert len(read_column(sites[:10], "age")) == 10


@pytest.mark.parametrize(
    ("file", "label", "expected"),
    [
        ("training/1/10253_idx5_x1351_y1101_class1.png", "1", True),
        ("training/1/scan.png", "1", False),
        ("training/10253_idx/scan.png", "1", False),
        ("training/2/10253_idx5_x1351_y1101_class2.png", "2", False),
    ],
)
def test_the_idc_set_is_recognised_by_names_and_classes(file, label, expected):
    idc = patch("training/0/10253_idx5_x1_y1_class0.png")
    assert is_idc([idc, patch(file, label)]) is expected
