"""Which files there are, and which of them are scored together."""

import os

import cv2
import numpy as np
import pytest

from cancernet import InputError
from cancernet.inference import work_list


def write(path, image):
    path.write_bytes(cv2.imencode(path.suffix, image[..., ::-1])[1])


def test_images_that_are_cut_into_patches_follow_the_written_rule(tmp_path):
    for name, shape in {"small.png": (900, 200), "large.png": (201, 201), "7_idx5_x1_y1.png": (900, 900)}.items():
        write(tmp_path / name, np.zeros((*shape, 3), np.uint8))
    (tmp_path / "slide.svs").write_bytes(b"?")
    (tmp_path / "broken.png").write_bytes(b"?")
    files, _ = work_list.find_files([str(tmp_path)])

    def cut(mpp, tile):
        planned = work_list.plan_parts(files, mpp=mpp, tile=tile)
        return {file.rsplit("/")[-1] for part in planned if part.kind == work_list.CUT for file in part.files}

    assert cut(4.0, "auto") == {"large.png", "slide.svs"}
    assert cut(None, "auto") == {"slide.svs"}
    assert cut(4.0, "never") == set()
    assert len(cut(4.0, "always")) == 5


def test_a_pipe_is_not_opened_to_see_its_size(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert not work_list.is_cut(str(tmp_path / "pipe.png"), 4.0)


def test_large_is_larger_than_four_patches_both_ways():
    assert not work_list.is_large(1000, 200)
    assert work_list.is_large(201, 201)


def test_parts_are_slides_large_images_and_lots_of_loose_patches():
    loose = [f"loose {number:03}.png" for number in range(work_list.LOOSE_FILES + 1)]
    files = ["9_idx5_x1_y1.png", *loose, "8/8_idx5_x1_y1.png", "9_idx5_x51_y1.png", "8 .svs", "8.svs"]
    planned = work_list.plan_parts(files, mpp=None, tile="auto")
    assert [(part.kind, part.slide, part.stem, len(part.files)) for part in planned] == [
        ("slide", "9", "9", 2),
        ("loose", "", "", work_list.LOOSE_FILES),
        ("loose", "", "", 1),
        ("slide", "8", "8", 1),
        ("cut", "8 .svs", "8_2", 1),  # no file of the output has the name of another
        ("cut", "8.svs", "8_3", 1),
    ]
    assert work_list.describe_plan(planned) == (
        f"3 patches of 2 slide(s), {work_list.LOOSE_FILES + 1} image(s) that are one patch each, "
        "2 large image(s) to be cut into patches (which: see --help)."
    )
    assert work_list.describe_plan([]) == "no images."


@pytest.mark.parametrize("of", [1, 3, 5, 9])
def test_shards_are_all_parts_once_and_in_order(of):
    planned = [work_list.Part("slide", str(number), "", []) for number in range(5)]
    shards = [work_list.take_shard(planned, number, of) for number in range(1, of + 1)]
    assert [part for shard in shards for part in shard] == planned
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_files_come_in_order_and_once(tmp_path):
    for name in ("b/2.png", "b/1.tif", "a.PNG", ".hidden.png", ".thumbnails/2.png", "__MACOSX/b/2.png", "c.webp"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"?")
    found, others = work_list.find_files([str(tmp_path / "b" / "2.png"), str(tmp_path)])
    assert [path.removeprefix(f"{tmp_path}/") for path in found] == ["b/2.png", "a.PNG", "b/1.tif"]
    assert others == {".webp": 1}


def test_a_path_without_images_is_refused(tmp_path):
    with pytest.raises(InputError, match=f"No images under {tmp_path}. Give a folder with images such as .png"):
        work_list.find_files([str(tmp_path)])
    with pytest.raises(InputError, match="There is no .*none. Give images, or folders with images."):
        work_list.find_files([str(tmp_path / "none")])


def test_a_name_that_is_not_text_can_be_shown():
    assert work_list.printable("\udcfcber.png") == "?ber.png"


def test_a_table_stands_for_its_paths(tmp_path):
    table = tmp_path / "slides.csv"
    table.write_text("\ufeffpatient,path\n1,one.svs\n2,/far/two.svs\n\n3,\n", encoding="utf-8")
    expected = ["first.png", f"{tmp_path}/one.svs", "/far/two.svs", "last.png"]
    assert work_list.expand_tables(["first.png", str(table), "last.png"]) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"file\na.svs\n", "has no column path. Its first line names the columns"),
        (b"", "has no column path"),
        (b"path\n", "names no slide. Give one a row, in the column path"),
        (b"path\n\xff\n", "is no CSV file in UTF-8"),
    ],
)
def test_a_table_that_names_nothing_is_refused(tmp_path, text, message):
    (tmp_path / "slides.csv").write_bytes(text)
    with pytest.raises(InputError, match=message):
        work_list.expand_tables([str(tmp_path / "slides.csv")])
    with pytest.raises(InputError, match="There is no none.csv"):
        work_list.expand_tables(["none.csv"])
