"""Which files there are, and which of them are scored together."""

import os
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from conftest import write_image

from cancernet import InputError
from cancernet.inference import work_list


def make_settings(mpp=4.0, patch_pixels=50):
    return SimpleNamespace(mpp=mpp, patch_pixels=patch_pixels)


def write(path, image):
    path.write_bytes(cv2.imencode(path.suffix, image[..., ::-1])[1])


def test_images_that_are_cut_into_patches_follow_the_written_rule(tmp_path):
    for name, shape in {"small.png": (900, 200), "large.png": (201, 201), "7_idx5_x1_y1.png": (900, 900)}.items():
        write(tmp_path / name, np.zeros((*shape, 3), np.uint8))
    (tmp_path / "slide.svs").write_bytes(b"?")
    (tmp_path / "broken.png").write_bytes(b"?")
    files = work_list.find_files([tmp_path]).files

    def cut(mpp, tile):
        planned = work_list.plan_work(files, make_settings(mpp), tile=tile)
        return {file.rsplit("/")[-1] for part in planned if part.kind == work_list.LARGE for file in part.files}

    assert cut(4.0, "auto") == {"large.png", "slide.svs"}
    assert cut(None, "auto") == {"slide.svs"}
    assert cut(4.0, "never") == set()
    assert len(cut(4.0, "always")) == 5


def test_a_pipe_is_not_opened_to_see_its_size(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert not work_list.is_tiled(str(tmp_path / "pipe.png"), make_settings())


def test_the_patches_of_a_run_on_other_tissue_are_not_tiled(tmp_path):
    write_image(tmp_path / "patch.png", 1, (224, 224, 3))
    planned = [
        work_list.plan_work([str(tmp_path / "patch.png")], make_settings(0.5, side), tile="auto")[0].kind
        for side in (50, 55, 56, 224)
    ]
    assert planned == ["large", "large", "single", "single"]  # 224 pixels are four patches of 56


def test_parts_are_slides_large_images_and_lots_of_loose_patches():
    loose = [f"loose {number:03}.png" for number in range(work_list.SINGLE_FILES + 1)]
    files = ["9_idx5_x1_y1.png", *loose, "8/8_idx5_x1_y1.png", "9_idx5_x51_y1.png", "8 .svs", "8.svs"]
    planned = work_list.plan_work(files, make_settings(None), tile="auto")
    assert [(part.kind, part.slide, part.stem, len(part.files)) for part in planned] == [
        ("slide", "9", "9", 2),
        ("single", "", "", work_list.SINGLE_FILES),
        ("single", "", "", 1),
        ("slide", "8", "8", 1),
        ("large", "8 .svs", "8_2", 1),  # no file of the output has the name of another
        ("large", "8.svs", "8_3", 1),
    ]
    assert work_list.describe_work(planned) == (
        f"3 patches of 2 slide(s), {work_list.SINGLE_FILES + 1} image(s) that are one patch each, "
        "2 large image(s) to be tiled into patches (see --help)."
    )
    assert work_list.describe_work([]) == "no images."


@pytest.mark.parametrize("of", [1, 3, 5, 9])
def test_shards_are_all_parts_once_and_in_order(of):
    planned = [work_list.WorkItem("slide", str(number), "", []) for number in range(5)]
    shards = [work_list.take_shard(planned, number, of) for number in range(1, of + 1)]
    assert [part for shard in shards for part in shard] == planned
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_files_come_in_order_and_once(tmp_path):
    for name in ("b/2.png", "b/1.tif", "a.PNG", ".hidden.png", ".thumbnails/2.png", "__MACOSX/b/2.png", "c.webp"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"?")
    found = work_list.find_files([str(tmp_path / "b" / "2.png"), str(tmp_path)])
    assert [path.removeprefix(f"{tmp_path}/") for path in found.files] == ["b/2.png", "a.PNG", "b/1.tif"]
    assert found.skipped == {".webp": 1}
    assert found.rejected == []


def test_a_path_without_images_is_refused(tmp_path):
    with pytest.raises(InputError, match=f"No images under {tmp_path}. Give a folder with images such as .png"):
        work_list.find_files([str(tmp_path)])
    with pytest.raises(InputError, match="There is no .*none. Give images, or folders with images."):
        work_list.find_files([str(tmp_path / "none")])


def test_files_with_the_same_reason_are_joined():
    rejected = [("a.png", "damaged"), ("b.png", "empty"), ("c.png", "damaged"), ("d.png", "damaged")]
    assert work_list.group_rejected(rejected) == [("a.png and 2 more", "damaged"), ("b.png", "empty")]


def test_a_name_that_is_not_text_can_be_shown():
    assert work_list.printable("\udcfcber.png") == "?ber.png"


def test_a_table_stands_for_its_paths_and_rejects_those_without_images(tmp_path):
    for name in ("first.png", "tables/one.svs", "far/two.png", "last.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"?")
    (tmp_path / "tables" / "empty").mkdir()
    table = tmp_path / "tables" / "slides.CSV"
    table.write_text(
        f"\ufeffpatient,path\n1,one.svs\n2,{tmp_path}/far\n\n3,\n4,gone.svs\n5,empty\n6\n", encoding="utf-8"
    )
    found = work_list.find_files([tmp_path / "first.png", str(table), tmp_path / "last.png"])
    names = ("first.png", "tables/one.svs", "far/two.png", "last.png")
    assert found.files == [f"{tmp_path}/{name}" for name in names]
    gone, empty = f"{tmp_path}/tables/gone.svs", f"{tmp_path}/tables/empty"
    assert found.rejected == [
        (gone, f"There is no {gone}. Give images, or folders with images."),
        (empty, f"No images under {empty}. Give a folder with images such as .png, .jpg, .tif, .svs."),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"file\na.svs\n", "has no column path. Name the columns in its first line"),
        (b"", "has no column path"),
        (b"path\n", "lists no image. Give one a row, in the column path"),
        (b"path\n\xff\n", "is not a CSV file in UTF-8"),
    ],
)
def test_a_table_that_lists_nothing_is_an_error(tmp_path, text, message):
    (tmp_path / "slides.csv").write_bytes(text)
    with pytest.raises(InputError, match=message):
        work_list.find_files([tmp_path / "slides.csv"])
    with pytest.raises(InputError, match="There is no none.csv. Give images, folders, or a table of them"):
        work_list.find_files(["none.csv"])


def test_a_dicom_image_is_a_patch_and_a_dicom_slide_is_tiled(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    for name, kind in (("xray.dcm", "1.2.840.10008.5.1.4.1.1.1.2"), ("slide.dcm", "1.2.840.10008.5.1.4.1.1.77.1.6")):
        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = kind
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3"
        dataset.save_as(tmp_path / name, enforce_file_format=True)
    files = [str(tmp_path / "xray.dcm"), str(tmp_path / "slide.dcm")]
    assert [item.kind for item in work_list.plan_work(files, make_settings(), tile="auto")] == ["single", "large"]
