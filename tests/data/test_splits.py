from collections import Counter

import numpy as np
import pytest
from conftest import ROOT

from cancernet import InputError
from cancernet.config import SPLITS
from cancernet.data.dataset import Patch
from cancernet.data.splits import (
    assign_folds,
    assign_splits,
    leave_out_values,
    list_groups,
    plan_splits,
    read_split_file,
    split_members,
    split_training,
)


def make_images(patients=50, patches=20, given=""):
    """Patients whose share of IDC runs from 0 to 1."""
    return [
        Patch(f"{p}/{n}.png", str(int(n < patches * p / patients)), str(p), None, None, given, "")
        for p in range(patients)
        for n in range(patches)
    ]


def plan(images, split_by="patient", split_file=None, seed=42):
    return plan_splits(images, split_by=split_by, split_file=split_file, seed=seed)


def test_patients_stay_together_in_80_10_20():
    planned = plan(make_images())
    split_of = {(image.patient, image.split) for image in planned}
    assert len(split_of) == 50
    assert Counter(split for _, split in split_of) == {"training": 36, "validation": 4, "testing": 10}


@pytest.mark.parametrize("seed", range(5))
def test_every_split_has_the_wholes_share_of_each_class(seed):
    images = plan(make_images(), seed=seed)
    whole = np.mean([image.label == "1" for image in images])
    for split in SPLITS:
        share = np.mean([image.label == "1" for image in images if image.split == split])
        assert abs(share - whole) < 0.08


def test_the_seed_decides():
    assert plan(make_images()) == plan(make_images())
    assert plan(make_images(), seed=1) != plan(make_images(), seed=2)


def test_by_image_the_shares_are_exact():
    images = plan(make_images(), split_by="image")
    assert Counter(image.split for image in images) == {"training": 720, "validation": 80, "testing": 200}
    assert len({(image.patient, image.split) for image in images}) > 50  # patients are torn apart


def test_images_without_patient_are_their_own_group():
    images = [image._replace(patient="") for image in make_images(10, 10)]
    assert Counter(image.split for image in plan(images)) == {"training": 72, "validation": 8, "testing": 20}


def test_a_group_is_the_patient_where_asked_for_and_known():
    images = make_images(2, 1)
    images[1] = images[1]._replace(patient="")
    assert list_groups(images, by_patient=True) == ["0", "1/0.png"]
    assert list_groups(images, by_patient=False) == ["0/0.png", "1/0.png"]


def test_groups_that_share_a_file_with_the_same_bytes_are_one():
    images = [image._replace(sha256=image.file) for image in make_images(12, 2)]
    for row, sha256 in ((0, "x"), (4, "x"), (5, "y"), (8, "y"), *((row, "blank") for row in range(11, 21, 2))):
        images[row] = images[row]._replace(sha256=sha256)
    joined = {"0": "0", "2": "0", "4": "0"}  # five patients share the blank image
    assert list_groups(images, by_patient=True) == [joined.get(image.patient, image.patient) for image in images]
    alone = [image.file for image in images]
    alone[4], alone[8] = min(alone[0], alone[4]), min(alone[5], alone[8])
    alone[0], alone[5] = alone[4], alone[8]
    assert list_groups(images, by_patient=False) == alone


def test_three_patients_fill_three_splits():
    assert len({image.split for image in plan(make_images(3, 20))}) == 3


def test_fewer_patients_than_splits_are_refused():
    with pytest.raises(InputError, match=r"2 patient\(s\) cannot fill 3 splits"):
        assign_splits(["0", "1"] * 4, ["a", "a", "b", "b"] * 2, seed=1)


def test_a_class_with_one_image_is_named():
    with pytest.raises(InputError, match="Class rare has too few images"):
        assign_splits(["common"] * 20 + ["rare"], [str(n) for n in range(21)], seed=1)


def test_a_given_split_is_kept():
    images = [image._replace(split=SPLITS[n % 3]) for n, image in enumerate(make_images(9))]
    assert plan(images) == images


def test_validation_is_taken_from_training_where_it_is_missing():
    images = [image._replace(split="testing" if int(image.patient) < 10 else "training") for image in make_images()]
    planned = plan(images)
    assert [image for image in planned if image.split == "testing"] == images[:200]
    assert len({image.patient for image in planned if image.split == "validation"}) == 4


def test_images_beside_the_split_folders_are_refused():
    images = [image._replace(split="" if image.patient == "3" else "testing") for image in make_images(9)]
    with pytest.raises(InputError, match=r"20 image\(s\) are in no split folder, first 3/0\.png, while others are"):
        plan(images)
    assert len(plan(images, split_file={"3": "testing"})) == 180


def test_a_single_training_patient_leaves_none_for_validation():
    images = [image._replace(split="testing" if image.patient == "1" else "training") for image in make_images(2)]
    images[0] = images[0]._replace(label="1")
    images[1] = images[1]._replace(label="1")
    with pytest.raises(InputError, match="One patient cannot be divided between training and validation"):
        plan(images)
    assert {image.split for image in plan(images, split_by="image")} == set(SPLITS)


def test_a_split_file_decides_and_leaves_others_out():
    images = make_images(4, 1)
    planned = plan(images, split_file={"0": "training", "1": "testing", "3": "validation"})
    assert [image.split for image in planned] == ["training", "testing", "", "validation"]
    with pytest.raises(InputError, match="names none of the patients"):
        plan(images, split_file={"9": "training"})


def test_a_split_file_is_read(tmp_path):
    file = tmp_path / "split.csv"
    file.write_text("# from a paper\npatient,split\n8863,training\n9346 , Test\n")
    assert read_split_file(file) == {"8863": "training", "9346": "testing"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("patient,split\n1,holdout\n", "patient 1 has the split 'holdout'. Use one of training, validation, testing."),
        ("patient,split\n1,training\n1,testing\n", "patient 1 is listed twice"),
        ("name,part\n1,training\n", "must have the columns patient,split"),
        ("patient,split\n", "must have the columns patient,split and at least one row"),
    ],
)
def test_bad_split_files_are_explained(tmp_path, text, message):
    file = tmp_path / "split.csv"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        read_split_file(file)


def test_a_missing_split_file_is_named(tmp_path):
    with pytest.raises(InputError, match="Cannot read the split file .*nowhere"):
        read_split_file(tmp_path / "nowhere.csv")


@pytest.mark.parametrize("by_image", [False, True])
def test_every_image_is_tested_in_one_fold(by_image):
    images = make_images(20, 10)
    labels = [image.label for image in images]
    groups = [image.file if by_image else image.patient for image in images]
    folds = assign_folds(labels, groups, folds=5, seed=1)
    assert len(folds) == 5
    for fold in folds:
        assert len({(group, split) for group, split in zip(groups, fold, strict=True)}) == len(set(groups))
        assert set(fold) == set(SPLITS)
    assert [sum(fold[image] == "testing" for fold in folds) for image in range(200)] == [1] * 200


def test_each_value_is_tested_once_and_validation_is_of_patients_of_the_others():
    images = make_images(patients=40, patches=4)
    labels, groups = [image.label for image in images], [image.patient for image in images]
    values = ["north" if int(group) % 4 else "south" for group in groups]
    folds = leave_out_values(labels, groups, values, seed=1)
    assert list(folds) == ["north", "south"]
    for left_out, splits in folds.items():
        assert [split == "testing" for split in splits] == [value == left_out for value in values]
        patients = {split: {group for group, own in zip(groups, splits) if own == split} for split in set(splits)}
        assert not patients["training"] & patients["validation"]
        assert len(patients["validation"]) == round(0.1 * len(patients["training"] | patients["validation"]))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (["a", "a", "", "b"], "1 images have no value. Fill in the column"),
        (["a"] * 4, "All images have the value a. Leaving out values needs two or more."),
        (["a", "b", "b", "b"], "Images of p, or copies of them, have several values, a and b: training without one of"),
    ],
)
def test_a_column_that_cannot_be_left_out_is_explained(values, said):
    with pytest.raises(InputError, match=said):
        leave_out_values(["0", "1"] * 2, ["p", "p", "q", "q"], values, seed=1)


def test_more_folds_than_patients_are_refused():
    with pytest.raises(InputError, match=r"4 patient\(s\) and .* cannot fill 5 folds"):
        assign_folds(["0", "1"] * 10, [str(n % 4) for n in range(20)], folds=5, seed=1)


def test_training_is_divided_by_patient_and_validation_is_untouched():
    images = plan(make_images())
    folds = split_training(images, by_patient=True, seed=1)
    training = [row for row, image in enumerate(images) if image.split == "training"]
    assert len(folds) == 5
    assert sorted(np.concatenate([fold.validation for fold in folds])) == training
    for fold in folds:
        assert sorted(np.concatenate([*fold])) == training
        seen, left_out = ({images[row].patient for row in rows} for rows in fold)
        assert not seen & left_out


@pytest.mark.parametrize(("patients", "folds"), [(6, 4), (4, 2), (3, 0)])
def test_few_training_patients_give_fewer_folds(patients, folds):
    images = plan(make_images(patients))
    assert len({image.patient for image in images if image.split == "training"}) == max(folds, 1)
    assert len(split_training(images, by_patient=True, seed=1)) == folds


def test_a_rare_class_gives_fewer_folds():
    images = [image._replace(split="training", label="1") for image in make_images(9, 2)]
    for row in (0, 4, 8):
        images[row] = images[row]._replace(label="0")
    assert len(split_training(images, by_patient=True, seed=1)) == 3


def test_a_single_member_takes_the_splits_of_the_dataset():
    images = plan(make_images())
    (fold,) = split_members(images, 1, by_patient=True, seed=1)
    assert {images[row].split for row in fold.training} == {"training"}
    assert {images[row].split for row in fold.validation} == {"validation"}
    assert len(fold.training) + len(fold.validation) == sum(image.split != "testing" for image in images)


@pytest.mark.parametrize("by_patient", [True, False])
def test_members_leave_out_each_image_but_those_for_testing_once(by_patient):
    images = plan(make_images())
    known = [row for row, image in enumerate(images) if image.split != "testing"]
    folds = split_members(images, 4, by_patient=by_patient, seed=1)
    assert len(folds) == 4
    assert sorted(np.concatenate([fold.validation for fold in folds])) == known
    for fold in folds:
        assert sorted(np.concatenate([*fold])) == known
        seen, left_out = ({images[row].patient for row in rows} for rows in fold)
        assert bool(seen & left_out) != by_patient
        assert list(fold.training) == sorted(fold.training)


def test_as_many_members_as_patients_are_the_most():
    images = [image._replace(split="training") for image in make_images(4)]
    assert len(split_members(images, 4, by_patient=True, seed=1)) == 4
    with pytest.raises(InputError, match=r"4 patient\(s\) and 30 images of class 1 cannot fill 5 members. Use fewer"):
        split_members(images, 5, by_patient=True, seed=1)


def test_the_published_split_is_whole():
    split = read_split_file(ROOT / "datasets/splits/cruz_roa_2014.csv")
    assert Counter(split.values()) == {"training": 84, "validation": 29, "testing": 49}
