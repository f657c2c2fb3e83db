"""Uploads: which files are accepted, and which are refused without losing the others."""

import io
import re
import struct
import tracemalloc
import zipfile
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from conftest import thin, zip_files
from hypothesis import given, settings
from hypothesis import strategies as st

from cancernet import InputError
from cancernet.data.dataset import find_place
from cancernet.data.images import decode_image
from cancernet.web.uploads import Limits, accept_uploads, sample_uploads, unpack_uploads


def encode(image, ending=".png"):
    return cv2.imencode(ending, image[..., ::-1])[1].tobytes()


def patch(seed=0, side=50):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def reasons(problems):
    return {problem.name: problem.reason for problem in problems}


def test_images_and_archives_come_in_the_order_they_were_sent():
    archive = zip_files([("10/b.png", encode(patch(2))), ("10/a.png", encode(patch(3)))])
    pictures, problems = accept_uploads([("one.png", encode(patch(1))), ("patient.zip", archive)])
    assert problems == []
    assert list(pictures) == ["one.png", "10/b.png", "10/a.png"]
    for data, seed in zip(pictures.values(), (1, 2, 3), strict=True):
        np.testing.assert_array_equal(decode_image(data, 3), patch(seed))


@pytest.mark.parametrize("broken", [b"no image", b"\x89PNG\r\n\x1a\n", b"GIF89a" + bytes(20)])
def test_a_broken_image_is_named_and_the_others_stay(broken):
    files = [("a.png", encode(patch(1))), ("broken.png", broken), ("c.png", encode(patch(2)))]
    pictures, problems = accept_uploads(files)
    assert list(pictures) == ["a.png", "c.png"]
    is_png, no_kind = b"PNG" in broken[:4], "not an image of a supported type (PNG, JPEG, TIFF, BMP, PGM, DICOM)"
    why = "not an image, damaged or cut off" if is_png else no_kind
    assert reasons(problems) == {"broken.png": f"cannot be decoded: {why}"}


@pytest.mark.parametrize(("ending", "dtype", "supported"), [(".webp", np.uint8, False), (".tif", np.uint16, True)])
def test_files_that_the_build_supports_are_supported_and_no_others(ending, dtype, supported):
    data = cv2.imencode(ending, patch(1).astype(dtype))[1].tobytes()
    pictures, problems = accept_uploads([("x.png", data)])
    assert (len(pictures), len(problems)) == (supported, not supported)
    if not supported:
        with pytest.raises(InputError, match=re.escape(problems[0].reason)):
            decode_image(data, 3)


def test_an_empty_file_is_named():
    _, problems = accept_uploads([("empty.png", b"")])
    assert reasons(problems) == {"empty.png": "the file is empty"}


def test_a_damaged_member_is_named_and_the_others_stay():
    data = bytearray(zip_files([("a.png", encode(patch(1))), ("b.png", encode(patch(2)))], zipfile.ZIP_STORED))
    data[data.index(b"IDAT") + 100] ^= 0xFF  # of a.png, so that its checksum is wrong
    pictures, problems = accept_uploads([("x.zip", bytes(data))])
    assert list(pictures) == ["b.png"]
    assert problems[0].name == "x.zip: a.png"
    assert "is damaged in the archive (Bad CRC-32" in problems[0].reason


@pytest.mark.parametrize(
    "name", ["/etc/a.png", "../a.png", "10/../../a.png", "..\\a.png", "C:\\a.png", "\\\\host\\a.png"]
)
def test_paths_that_lead_out_are_refused(name):
    pictures, problems = accept_uploads([("x.zip", zip_files([(name, encode(patch(1))), ("b.png", encode(patch(2)))]))])
    assert list(pictures) == ["b.png"]
    assert [problem.reason for problem in problems] == ["has a path that leads out of the archive"]


def test_two_dots_inside_a_name_lead_nowhere():
    pictures, problems = accept_uploads([("x.zip", zip_files([("10/a..b.png", encode(patch(1)))]))])
    assert len(pictures) == 1
    assert problems == []


def test_archives_inside_archives_and_other_files_are_refused():
    inner = zip_files([("a.png", encode(patch(1)))])
    accepted, problems = unpack_uploads([("x.zip", zip_files([("inner.zip", inner), ("notes.txt", b"hello")]))])
    assert accepted == []
    assert reasons(problems)["x.zip: inner.zip"] == "is an archive in an archive. Upload it separately."
    assert reasons(problems)["x.zip: notes.txt"].startswith("has an unsupported file type. Supported: .png")


def test_an_archive_called_png_inside_an_archive_is_no_image():
    inner = zip_files([("a.png", encode(patch(1)))])
    pictures, problems = accept_uploads([("x.zip", zip_files([("inner.png", inner)]))])
    assert pictures == {}
    assert reasons(problems)["inner.png"].startswith("cannot be decoded: not an image")


def test_files_that_systems_leave_in_archives_are_skipped():
    members = [("__MACOSX/._a.png", b"x"), ("10/.DS_Store", b"x"), ("10/Thumbs.db", b"x"), ("10/", b"")]
    members += [("10/.thumbnails/a.png", b"x"), ("10\\.ipynb_checkpoints\\a.png", b"x")]
    accepted, problems = unpack_uploads([("x.zip", zip_files([*members, ("10/a.png", b"data")]))])
    assert accepted == [("10/a.png", b"data")]
    assert problems == []


def test_unusual_packing_is_refused():
    _, problems = unpack_uploads([("x.zip", zip_files([("a.png", b"data")], zipfile.ZIP_BZIP2))])
    assert reasons(problems) == {
        "x.zip: a.png": "uses an unsupported compression method. Create the archive with deflate."
    }


def test_encrypted_members_are_refused():
    data = bytearray(zip_files([("a.png", b"data")]))
    data[data.index(b"PK\x01\x02") + 8] |= 1
    _, problems = unpack_uploads([("x.zip", bytes(data))])
    assert reasons(problems) == {"x.zip: a.png": "is encrypted. Upload it without a password."}


def test_the_same_file_twice_counts_once_and_another_of_its_name_twice():
    files = [("a.png", b"1"), ("a.png", b"1"), ("a.png", b"2")]
    accepted, problems = unpack_uploads(files)
    assert accepted == [("a.png", b"1"), ("a.png", b"2")]
    assert reasons(problems) == {"a.png": "was uploaded twice and is used once"}
    pictures, _ = accept_uploads([("10/a.png", encode(patch(seed))) for seed in (1, 2, 3)])
    assert list(pictures) == ["10/a.png", "10/a (2).png", "10/a (3).png"]


def test_more_files_than_the_limit_are_refused_the_first_stay():
    files = [(f"{number}.png", bytes([number])) for number in range(4)]
    accepted, problems = unpack_uploads(files, limits=Limits(files=3))
    assert [name for name, _ in accepted] == ["0.png", "1.png", "2.png"]
    assert reasons(problems) == {"3.png": "exceeds the limit of 3 files at a time. For more, use cancernet predict."}


def test_an_archive_of_more_files_than_the_limit_is_refused_whole():
    archive = zip_files([(f"{number}.png", b"x%d" % number) for number in range(4)])
    accepted, problems = unpack_uploads([("x.zip", archive), ("a.png", b"data")], limits=Limits(files=3))
    assert [name for name, _ in accepted] == ["a.png"]
    assert problems[0].reason.startswith("exceeds the limit of 3 files")


def test_a_directory_too_long_to_read_is_refused_before_it_is_read():
    archive = zip_files([(f"{number}.png", b"") for number in range(9)])
    _, problems = unpack_uploads([("x.zip", archive)], limits=Limits(files=4))
    assert problems[0].reason == "contains more than 4 files. For more, use cancernet predict."


def test_zip64_is_read():
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive, archive.open("a.png", "w", force_zip64=True) as file:
        file.write(b"data")
    accepted, problems = unpack_uploads([("x.zip", packed.getvalue())])
    assert accepted == [("a.png", b"data")]
    assert problems == []


def test_a_zip64_directory_that_lies_about_its_place_costs_itself_only():
    data = zip_files([("a.png", b"data")])
    end = data.rindex(b"PK\x05\x06")
    for offset in (0, 2**40, 2**63):
        locator = b"PK\x06\x07" + struct.pack("<LQL", 0, offset, 1)
        accepted, problems = unpack_uploads([("x.zip", data[:end] + locator + data[end:]), ("b.png", b"data")])
        assert accepted[-1] == ("b.png", b"data")
        assert len(accepted) + len(problems) == 2


def test_a_bomb_that_declares_its_size_is_refused_unread():
    archive = zip_files([("a.png", bytes(50_000_000))])
    assert len(archive) < 60_000
    tracemalloc.start()
    accepted, problems = unpack_uploads([("bomb.zip", archive)], limits=Limits(bytes=1_000_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert accepted == []
    assert problems[0].reason.startswith("exceeds the limit of 1 MB at a time, after unpacking")
    assert peak < 2_000_000


def test_a_bomb_that_lies_about_its_size_is_refused_at_what_it_declared():
    data = bytearray(zip_files([("a.png", bytes(50_000_000))]))
    size = struct.pack("<L", 50_000_000)
    assert data.count(size) == 2  # in the member's own header and in the directory
    lying = bytes(data).replace(size, struct.pack("<L", 1000))
    tracemalloc.start()
    accepted, problems = unpack_uploads([("bomb.zip", lying)], limits=Limits(bytes=1_000_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert accepted == []
    assert "is damaged in the archive" in problems[0].reason
    assert peak < 2_000_000


def test_a_file_that_is_no_archive_is_named():
    _, problems = unpack_uploads([("x.zip", b"hello"), ("y.zip", zip_files([("a.png", b"data")])[:-30])])
    assert [problem.reason for problem in problems] == [
        "cannot be unpacked (File is not a zip file). Create the archive again."
    ] * 2


def test_a_directory_of_nonsense_is_an_error_in_words():
    data = zip_files([("a.png", b"data")])
    _, problems = unpack_uploads([("x.zip", data.replace(b"PK\x01\x02", b"XX\x01\x02"))])
    assert problems[0].reason.startswith("cannot be unpacked (")


def test_a_picture_of_too_many_pixels_is_refused_by_its_header():
    def chunk(kind, data):
        return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))

    header = struct.pack(">LLBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))
    _, problems = accept_uploads([("bomb.png", bomb)])
    assert reasons(problems) == {
        "bomb.png": "has 900,000,000 pixels; the limit is 50,000,000. For more, use cancernet predict."
    }
    _, problems = accept_uploads([("a.png", encode(patch(1)))], limits=Limits(picture_pixels=2499))
    assert problems[0].reason == "has 2,500 pixels; the limit is 2,499. For more, use cancernet predict."


def test_all_pictures_together_have_a_limit():
    files = [(f"{seed}.png", encode(patch(seed))) for seed in range(3)]
    pictures, problems = accept_uploads(files, limits=Limits(pixels=5000))
    assert list(pictures) == ["0.png", "1.png"]
    assert "exceeds the limit of 5,000 pixels for all images" in problems[0].reason


def test_pixels_of_a_pyramid_are_not_counted():
    packed = io.BytesIO()
    tifffile.imwrite(packed, patch(1, 256), tile=(128, 128))
    files = [("flat.tif", encode(patch(1, 256), ".tif")), ("tiled.tif", packed.getvalue())]
    pictures, problems = accept_uploads(files, limits=Limits(picture_pixels=1000))
    assert list(pictures) == ["tiled.tif"]
    assert reasons(problems) == {"flat.tif": "has 65,536 pixels; the limit is 1,000. For more, use cancernet predict."}


def test_the_sample_is_one_slide_of_placed_patches():
    files = sample_uploads()
    assert len(files) > 50
    assert files == sample_uploads()
    assert {find_place(name)[0] for name, _ in files} == {"79001"}
    assert len(accept_uploads(files)[0]) == len(files)


WHOLE = zip_files([("a.png", encode(patch(1))), ("slides/b.jpg", encode(patch(2), ".jpg")), ("c.txt", b"x")])
CHANGES = st.lists(st.tuples(st.integers(0, len(WHOLE)), st.binary(max_size=6), st.integers(0, 6)), max_size=5)


def read_damaged(changes):
    data = WHOLE
    for place, put, removed in changes:
        data = data[:place] + put + data[place + removed :]
    pictures, problems = accept_uploads([("x.zip", data), ("good.png", encode(patch(3)))], limits=Limits(bytes=10**7))
    assert list(pictures)[-1] == "good.png"  # whatever its neighbour is
    assert len(pictures) + len(problems) >= 2


@given(CHANGES)
@settings(max_examples=200, deadline=None)
def test_a_damaged_archive_costs_itself_only(changes):
    read_damaged(changes)


@pytest.mark.slow
@given(CHANGES)
@settings(max_examples=thin(5000), deadline=None)
def test_no_damaged_archive_ends_in_a_traceback(changes):
    read_damaged(changes)
