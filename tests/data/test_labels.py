"""A table gives images their labels, patients, splits and other columns."""

import pytest

from cancernet import InputError
from cancernet.data.dataset import Patch
from cancernet.data.labels import apply_labels, read_labels


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def images(*files):
    return [Patch(file, "folder", "named", None, None, "training", "") for file in files]


@pytest.mark.parametrize("separator", [",", ";", "\t", " "])
def test_a_table_gives_label_patient_split_and_other_columns(tmp_path, separator):
    lines = ["path,label,patient,split,site,x", "a/1.png,benign,p1,Train,north,7", "2,cancer,p2,test,south,8"]
    table = write(tmp_path / "t.csv", "\n".join(lines).replace(",", separator))
    labelled, left_out = apply_labels(images("in/a/1.png", "in/b/1.png", "2.jpg"), read_labels(table))
    assert labelled == [
        Patch("in/a/1.png", "benign", "p1", None, None, "training", "", (("site", "north"), ("table_x", "7"))),
        Patch("2.jpg", "cancer", "p2", None, None, "testing", "", (("site", "south"), ("table_x", "8"))),
    ]
    assert left_out == [("in/b/1.png", "has no label in the table")]


def test_without_these_columns_the_patient_is_that_of_the_name_and_there_is_no_split(tmp_path):
    labels = read_labels(write(tmp_path / "t.csv", "id,label\n1,0\n"))
    assert apply_labels(images("1.png"), labels)[0] == [Patch("1.png", "0", "named", None, None, "", "")]


def test_columns_may_have_other_names(tmp_path):
    table = write(tmp_path / "t.csv", 'patient_id,pathology,"image file path"\nP1,BENIGN,"a/1.dcm\n"\n')
    labels = read_labels(table, ("path=image file path", "label=pathology", "patient=patient_id"))
    assert labels == [("a/1.dcm", "BENIGN", "P1", "", ())]
    with pytest.raises(InputError, match="has no column path, only patient_id, pathology, image file path"):
        read_labels(table)
    with pytest.raises(InputError, match="--columns label=grade: give path=NAME, label=NAME"):
        read_labels(table, ("label=grade",))


def test_several_rows_of_an_image_must_agree(tmp_path):
    rows = "1,B,p,\n1,B,p,\n1,,q,\n2,B,p,\n2,M,p,\n3,,p,\n4,B,p,\n4,B,q,\n5,B,p,train\n5,B,p,test\n"
    labels = read_labels(write(tmp_path / "t.csv", "id,label,patient,split\n" + rows))
    labelled, left_out = apply_labels(images(*(f"{number}.png" for number in range(1, 6))), labels)
    assert [patch.label for patch in labelled] == ["B"]
    assert left_out == [
        ("2.png", "has several labels in the table: B, M"),
        ("3.png", "has no label in the table"),
        ("4.png", "has several patients in the table: p, q"),
        ("5.png", "has several splits in the table: testing, training"),
    ]


def test_a_table_with_a_row_for_each_box_of_an_image_keeps_all_boxes(tmp_path):
    """As the RSNA Pneumonia Detection Challenge has it."""
    rows = "a,,,,,0\nb,264.0,152.0,213.0,379.0,1\nb,562.0,152.0,256.0,453.0,1\n"
    table = write(tmp_path / "stage_2_train_labels.csv", "patientId,x,y,width,height,Target\n" + rows)
    labelled, left_out = apply_labels(images("a.dcm", "b.dcm"), read_labels(table, ("path=patientId", "label=Target")))
    assert ([patch.label for patch in labelled], left_out) == (["0", "1"], [])
    boxes = (("table_x", "264.0; 562.0"), ("table_y", "152.0"), ("width", "213.0; 256.0"), ("height", "379.0; 453.0"))
    assert labelled[1].more == boxes


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("id,label\n1,a/b\n", "the label 'a/b' cannot be the name of a folder"),
        ("id,label,split\n1,a,third\n", "1 has the split 'third'. Use one of training, validation, testing"),
        ("id,label\n9,a\n", "names none of 2 images. Its first row is 9, the first image is a/1.png"),
        ("id,label\n1,a\n", "1 of the table of labels names a/1.png and b/1.png. Give the folder, too"),
        ("", "has no column path, only an empty first line. Give --columns path=NAME"),
        (f"id,label\n{'1' * 140_000},a\n", "Cannot read the table"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(tmp_path, text, reason):
    with pytest.raises(InputError) as caught:
        apply_labels(images("a/1.png", "b/1.png"), read_labels(write(tmp_path / "t.csv", text)))
    assert reason in str(caught.value)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(InputError, match=r"Cannot read the table .*t\.csv: No such file"):
        read_labels(tmp_path / "t.csv")
