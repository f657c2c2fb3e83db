import hashlib
import os
import struct
import subprocess
import sys
import time
import zlib

import cv2
import numpy as np
import pytest
from conftest import PRINT_PEAK_MB, ROOT, thin, write_image
from hypothesis import given, settings
from hypothesis import strategies as st

from cancernet import InputError
from cancernet.data.images import ImageStore, decode_image, fit_image, read_file, read_image, read_size


def encode(image, ending=".png"):
    return cv2.imencode(ending, image)[1].tobytes()


RED_BGR = np.full((4, 5, 3), (0, 0, 255), np.uint8)


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif", ".tiff"])
def test_colours_come_out_as_red_green_blue(ending):
    image = decode_image(encode(RED_BGR, ending), channels=3)
    assert image.shape == (4, 5, 3)
    assert (image == (255, 0, 0)).all()


def test_a_colour_profile_changes_and_prints_nothing(capfd):
    plain = encode(np.full((4, 5), 100, np.uint8))
    profile = b"iCCPname\0\0" + zlib.compress(b"RGB is not permitted in a grey file")
    chunk = (len(profile) - 4).to_bytes(4, "big") + profile + zlib.crc32(profile).to_bytes(4, "big")
    after_header = 8 + 12 + 13  # signature, and the chunk IHDR
    with_profile = plain[:after_header] + chunk + plain[after_header:]
    cv2.imdecode(np.frombuffer(with_profile, np.uint8), cv2.IMREAD_UNCHANGED)
    assert "libpng warning: iCCP" in capfd.readouterr().err
    assert (decode_image(with_profile, channels=3) == 100).all()
    assert capfd.readouterr().err == ""


def test_grey_is_the_weighted_mean_of_the_colours():
    assert decode_image(encode(RED_BGR), channels=1)[0, 0, 0] == 76  # 0.299 * 255


@pytest.mark.parametrize("ending", [".png", ".jpg", ".pgm", ".tif"])
def test_grey_files_fill_all_channels(ending):
    image = decode_image(encode(np.full((4, 5), 100, np.uint8), ending), channels=3)
    assert image.shape == (4, 5, 3)
    assert (image == 100).all()


def test_sixteen_bits_become_eight():
    values = np.array([[0, 257, 65535, 128, 129]], np.uint16)
    assert decode_image(encode(values), channels=1)[0, :, 0].tolist() == [0, 1, 255, 0, 1]


@pytest.mark.parametrize(("maxval", "dtype"), [(4095, ">u2"), (65535, ">u2"), (200, "u1"), (255, "u1")])
@pytest.mark.parametrize("as_text", [False, True])
def test_white_of_a_pgm_is_what_it_says(maxval, dtype, as_text):
    values = np.array([0, maxval // 5, maxval], dtype)
    pixels = " ".join(map(str, values)).encode() + b"\n" if as_text else values.tobytes()
    data = b"%s\n# 12 bits 7\n3 1\n%d\n" % (b"P2" if as_text else b"P5", maxval) + pixels
    assert decode_image(data, channels=1)[0, :, 0].tolist() == [0, 51, 255]


def test_values_above_a_pgms_white_are_white():
    data = b"P5 2 1 1000\n" + np.array([500, 5000], ">u2").tobytes()
    assert decode_image(data, channels=1)[0, :, 0].tolist() == [128, 255]


def test_transparency_lies_on_white():
    image = np.zeros((1, 3, 4), np.uint8)
    image[0, :, 3] = (0, 255, 51)  # black: fully transparent, opaque, a fifth
    assert decode_image(encode(image), channels=3)[0, :, 0].tolist() == [255, 0, 204]


def test_palette_files_give_their_colours(tmp_path):
    from PIL import Image

    Image.fromarray(np.full((3, 3, 3), (10, 200, 30), np.uint8)).convert("P").save(tmp_path / "p.png")
    image = decode_image((tmp_path / "p.png").read_bytes(), channels=3)
    assert abs(image[0, 0].astype(int) - (10, 200, 30)).max() <= 26  # the web palette's step


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
@pytest.mark.parametrize("ending", [".png", ".jpg", ".tif", ".bmp", ".pgm"])
def test_cut_off_files_are_refused(share, ending):
    image = np.random.default_rng(0).integers(0, 256, (50, 50) if ending == ".pgm" else (50, 50, 3), dtype=np.uint8)
    data = encode(image, ending)
    with pytest.raises(InputError, match="empty|cannot be decoded"):
        decode_image(data[: int(share * len(data))], channels=3)


@pytest.mark.parametrize("options", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 2)])
def test_a_jpeg_is_complete_only_with_its_own_end_not_with_that_of_its_thumbnail(options):
    image = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    data = cv2.imencode(".jpg", image, options)[1].tobytes()
    segment = b"\xff\xe1" + (len(data) + 2).to_bytes(2, "big") + data
    with_thumbnail = data[:2] + segment + data[2:]
    assert decode_image(with_thumbnail + b"other bytes", channels=3).shape == (50, 50, 3)
    for kept in (len(segment) + 2, len(with_thumbnail) // 4 * 3, len(with_thumbnail) - 1):
        with pytest.raises(InputError, match="cannot be decoded"):
            decode_image(with_thumbnail[:kept], channels=3)


def test_a_damaged_byte_is_found():
    data = bytearray(encode(np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)))
    data[len(data) // 2] ^= 255
    with pytest.raises(InputError, match="cannot be decoded"):
        decode_image(bytes(data), channels=3)


def test_floating_point_images_are_refused():
    with pytest.raises(InputError, match="holds float32 values"):
        decode_image(encode(np.ones((4, 4), np.float32), ".tiff"), channels=1)


def test_a_jpeg_image_of_twelve_bits_is_named():
    import imagecodecs

    data = imagecodecs.jpeg_encode(np.full((20, 30), 2000, np.uint16), bitspersample=12)
    with pytest.raises(InputError, match=r"^is a JPEG image of 12 bits, which is not supported. Save it as PNG.$"):
        decode_image(data, 3)


def test_shrinking_averages_pixels():
    image = np.array([[0, 100], [200, 100]], np.uint8)[..., None]
    assert fit_image(image, 1).tolist() == [[[100]]]


@pytest.mark.parametrize("shape", [(50, 1, 3), (1, 50, 3), (42, 50, 1), (48, 48, 3), (300, 200, 3)])
def test_any_shape_becomes_a_square(shape):
    assert fit_image(np.full(shape, 7, np.uint8), 48).tolist() == np.full((48, 48, shape[2]), 7).tolist()


@pytest.mark.parametrize("cache", [True, False])
def test_a_store_gives_images_in_the_order_asked(tmp_path, cache):
    files = [write_image(tmp_path / f"{seed}.png", seed) for seed in range(4)]
    store = ImageStore(files, image_size=50, channels=3, cache=cache)
    expected = [decode_image(file.read_bytes(), 3) for file in files]
    for order in ([2, 0, 3], [1, 1], [0, 1, 2, 3]):
        assert np.array_equal(store.fetch(np.array(order)), [expected[index] for index in order])


def test_a_cached_file_is_read_once(tmp_path):
    files = [write_image(tmp_path / "a.png")]
    kept = ImageStore(files, image_size=8, channels=3, cache=True)
    streamed = ImageStore(files, image_size=8, channels=3, cache=False)
    first = kept.fetch(np.array([0]))
    files[0].unlink()
    assert np.array_equal(kept.fetch(np.array([0])), first)
    with pytest.raises(InputError, match=r"a\.png: No such file"):
        streamed.fetch(np.array([0]))


def test_another_file_than_the_manifests_is_refused(tmp_path):
    files = [write_image(tmp_path / "a.png")]
    store = ImageStore(files, image_size=8, channels=3, sha256=["0" * 64])
    with pytest.raises(InputError, match="differs from the file that the manifest lists"):
        store.fetch(np.array([0]))
    assert "a.png" in str(store.problem)


def test_a_file_is_read_if_it_has_the_hash(tmp_path):
    file = write_image(tmp_path / "a.png", shape=(4, 5, 3))
    data = file.read_bytes()
    for sha256 in (None, hashlib.sha256(data).hexdigest()):
        assert np.array_equal(read_image(file, channels=3, sha256=sha256), decode_image(data, 3))
    assert read_image(str(file), channels=1, sha256=None).shape == (4, 5, 1)


@pytest.mark.parametrize(
    ("ending", "place", "padding"),
    [
        (".jpg", 2, b"\xff"),
        (".jpg", 2, b"\xff\xfe\x00\x02"),
        (".pgm", 3, b" "),
        (".pgm", 3, b"#\n"),
        (".png", 33, b"\0\0\0\0teXt" + struct.pack(">I", zlib.crc32(b"teXt"))),
    ],
)
def test_padding_takes_no_time(ending, place, padding):
    whole = encode(np.random.default_rng(1).integers(0, 256, (50, 50), dtype=np.uint8), ending)
    data = whole[:place] + padding * (20_000_000 // len(padding)) + whole[place:]
    started = time.monotonic()
    with pytest.raises(InputError, match="cannot be decoded"):
        decode_image(data, 3)
    assert time.monotonic() - started < 2  # it took 20 seconds
    decode_image(whole[:place] + padding * 100 + whole[place:], 3)


@pytest.mark.parametrize(
    ("data", "sha256", "reason"),
    [
        (None, None, "No such file or directory"),
        (b"", None, "the file is empty"),
        (b"x", "0" * 64, "differs from the file that the manifest lists. Run build_dataset.py --force."),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, data, sha256, reason):
    if data is not None:
        (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_image(tmp_path / "a.png", channels=3, sha256=sha256)
    assert str(caught.value) == f"{tmp_path / 'a.png'}: {reason}"


def noise(ending, dtype=np.uint8, *, grey=False):
    image = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (20, 30, 3), dtype)
    return encode(image[..., 0] if grey else image, ending)


@pytest.mark.parametrize("ending", [".png", ".jpg", ".tif", ".bmp", ".ppm"])
def test_the_size_is_read_from_the_header_alone(ending):
    assert read_size(noise(ending)) == (30, 20)
    assert read_size(noise(".tif", np.uint16)) == (30, 20)  # a kind that Pillow does not know


@pytest.mark.parametrize("ending", [".png", ".tif", ".bmp", ".jpg"])
def test_more_pixels_than_are_taken_are_refused(ending):
    data = encode(np.zeros((200, 300), np.uint8), ending)
    assert decode_image(data, 3, megapixels=0.06).shape == (200, 300, 3)
    with pytest.raises(InputError, match="declares 300 x 200 pixels, more than the limit of 0.059 megapixels"):
        decode_image(data, 3, megapixels=0.059)
    assert decode_image(data, 3, megapixels=None).shape == (200, 300, 3)


def measure_peak(code):
    """Memory, in MB, of a process that decodes `data`."""
    imports = (
        "import cv2, numpy as np; from cancernet import InputError; from cancernet.data.images import decode_image\n"
    )
    code = imports + code
    done = subprocess.run(
        [sys.executable, "-c", code + PRINT_PEAK_MB], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_a_bomb_takes_no_memory():
    bomb = """
data = cv2.imencode(".png", np.zeros((20_000, 20_000), np.uint8))[1].tobytes() if {side} else b""
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
try:
    decode_image(data, 3)
except InputError:
    pass
"""
    assert measure_peak(bomb.format(side=1)) < measure_peak(bomb.format(side=0)) + 50


def test_a_length_that_leads_out_of_a_png_takes_no_memory():
    data = bytearray(noise(".png"))
    start = data.index(b"IDAT") - 4
    data[start : start + 4] = struct.pack(">I", 2**32 - 200)
    code = f"try:\n    decode_image({bytes(data)!r}, 3)\nexcept InputError:\n    pass\n"
    assert measure_peak(code) < measure_peak("") + 50  # OpenCV alone takes 4 GB


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "/dev/zero"):
        with pytest.raises(InputError, match="is not a regular file"):
            read_file(path)
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(InputError, match="has 1,099,511,627,776 bytes, more than an image of 1.5 megapixels can have"):
        read_file(tmp_path / "large.png", megapixels=1.5)
    store = ImageStore([tmp_path / "pipe.png"], image_size=8, channels=3)
    with pytest.raises(InputError, match=r"pipe\.png: is not a regular file"):
        store.fetch(np.array([0]))


SEEDS = [noise(ending) for ending in (".png", ".jpg", ".tif", ".bmp", ".ppm")]
SEEDS += [noise(".png", np.uint16), noise(".tif", np.uint16, grey=True), b"P2\n# 12 bits\n3 1\n4095\n0 1 2\n"]
CHANGES = st.lists(st.tuples(st.integers(0, 2500), st.binary(max_size=5), st.integers(0, 5)), max_size=6)


def decode_damaged(data, changes):
    for place, put, removed in changes:
        data = data[: place % len(data)] + put + data[place % len(data) + removed :] or b"?"
    try:
        image = decode_image(data, 3, megapixels=0.1)
    except InputError:
        return
    assert image.dtype == np.uint8
    assert image.shape[2] == 3


@given(st.sampled_from(SEEDS), CHANGES)
@settings(max_examples=300, deadline=None)
def test_a_damaged_file_is_an_image_or_refused(data, changes):
    decode_damaged(data, changes)


@pytest.mark.slow
@given(st.sampled_from(SEEDS), CHANGES)
@settings(max_examples=thin(10_000), deadline=None)
def test_no_damaged_file_ends_in_a_traceback(data, changes):
    decode_damaged(data, changes)


def test_a_selection_has_its_rows_in_order_and_what_it_decodes_is_kept_for_all(tmp_path):
    files = [write_image(tmp_path / f"{number}.png", number, (8, 8, 3)) for number in range(4)]
    store = ImageStore(files, image_size=8, channels=3)
    chosen = store.select(np.array([3, 1]))
    assert len(chosen) == 2
    np.testing.assert_array_equal(chosen.fetch(np.array([1, 0])), store.fetch(np.array([1, 3])))
    for file in files:
        file.unlink()
    np.testing.assert_array_equal(store.fetch(np.array([3])), chosen.fetch(np.array([0])))
    with pytest.raises(InputError, match=r"2\.png"):
        store.select(np.array([2])).fetch(np.array([0]))
    assert "2.png" in str(store.problem)


def test_a_scaled_store_has_the_means_of_four_pixels(tmp_path):
    files = [write_image(tmp_path / f"{number}.png", number, (8, 8, 3)) for number in range(3)]
    store = ImageStore(files, image_size=8, channels=3)
    half = store.scale(4).select(np.array([2, 0]))
    assert half.shape == (4, 4, 3)
    by_hand = store.fetch(np.array([0]))[0].reshape(4, 2, 4, 2, 3).mean(axis=(1, 3))
    assert np.abs(half.fetch(np.array([1]))[0] - by_hand).max() <= 0.5
    assert store.scale(8) is store
