"""One image in all kinds of TIFF: each is decoded to the right pixels or refused by name, never to wrong ones."""

import io
import itertools

import numpy as np
import pytest
import tifffile
from PIL import Image

from cancernet import InputError
from cancernet.data.images import decode_image

ROWS, COLUMNS = np.mgrid[:48, :64]
RGB = np.stack([COLUMNS * 3 + 20, ROWS * 4 + 10, 255 - (ROWS + COLUMNS) * 2], axis=-1).clip(0, 255).astype(np.uint8)
GREY, OPACITY = RGB[..., 0], (COLUMNS * 4).astype(np.uint8)
LOSSY = {"jpeg": 4.0, "webp": 4.0}  # allowed mean difference in grey levels
COMPRESSIONS = [
    None,
    "lzw",
    "deflate",
    "packbits",
    "zstd",
    "lzma",
    "jpeg",
    "jpeg2000",
    "jpegxl",
    "jpegxr",
    "lerc",
    "png",
    "webp",
]


def write(*arguments, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, *arguments, **options)
    return file.getvalue()


def save(image, **options):
    file = io.BytesIO()
    image.save(file, options.pop("format", "TIFF"), **options)
    return file.getvalue()


def make_tiff(bits, photometric, planar, compression, alpha):
    """Return a file, and the picture that it shows; None if tifffile does not write this combination."""
    colours = (RGB if photometric == "rgb" else GREY[..., None]).astype(float)
    shown = colours if alpha in (None, "unspecified") else 255 + (colours - 255) * (OPACITY[..., None] / 255)
    stored = np.rint(colours * OPACITY[..., None] / 255) if alpha == "assocalpha" else colours
    stored = 255 - stored if photometric == "miniswhite" else stored
    stored = np.concatenate([stored, OPACITY[..., None]], axis=-1) if alpha else stored
    stored = stored.astype(np.uint8) if bits == 8 else stored.astype(np.uint16) * 257
    stored = stored[..., 0] if stored.shape[-1] == 1 else np.moveaxis(stored, -1, 0) if planar == "separate" else stored
    options = {"extrasamples": [alpha]} if alpha else {}
    options |= {"planarconfig": planar} if stored.ndim == 3 else {}
    try:
        return write(stored, photometric=photometric, compression=compression, metadata=None, **options), shown
    except (ValueError, RuntimeError, NotImplementedError):
        return None


def difference(data, shown):
    decoded = decode_image(data, 3)
    assert decoded.shape == (48, 64, 3)
    return np.abs(decoded.astype(float) - shown).mean()


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite", "rgb"])
@pytest.mark.parametrize("bits", [8, 16])
def test_every_kind_of_tiff_is_right_or_refused_by_name(bits, photometric):
    right = refused = 0
    alphas = (None, "unassalpha", "assocalpha", "unspecified")
    for planar, compression, alpha in itertools.product(("contig", "separate"), COMPRESSIONS, alphas):
        if bits == 16 and compression == "jpeg":
            continue  # has 12 bits
        made = make_tiff(bits, photometric, planar, compression, alpha)
        if made is None:
            continue
        if alpha == "unspecified" and photometric != "rgb":  # a second channel of whatever it may be
            with pytest.raises(InputError, match="has 2 channels; only grey and RGB images are supported"):
                decode_image(made[0], 3)
            refused += 1
        else:
            assert difference(*made) <= LOSSY.get(compression, 0.6), (planar, compression, alpha)
            right += 1
    assert right >= 50
    assert refused <= 24


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "zstd"])
def test_the_kinds_that_pillow_writes(mode, compression):
    picture = Image.fromarray(RGB).convert(mode)
    try:
        data = save(picture, compression=compression)
    except OSError:
        pytest.skip("Pillow does not write this combination")
    if mode == "CMYK" and compression == "jpeg":
        with pytest.raises(InputError, match="has 4 channels of 8 bits as SEPARATED with JPEG, which is not supported"):
            decode_image(data, 3)
    else:
        assert difference(data, np.asarray(picture.convert("RGB"), float)) <= 2


@pytest.mark.parametrize("bits", [1, 2, 4, 10, 12, 14])
def test_white_is_the_largest_value_of_its_bits(bits):
    stored = (GREY.astype(np.uint16) * (2**bits - 1) // 255).astype(np.uint8 if bits < 8 else np.uint16)
    try:
        data = write(stored, bitspersample=bits, photometric="minisblack")
    except NotImplementedError:
        pytest.skip("This version of imagecodecs does not pack bits")
    assert difference(data, (stored * (255 / (2**bits - 1)))[..., None]) <= 0.5


@pytest.mark.parametrize("writer", ["ome", "imagej"])
def test_three_channels_that_are_stored_apart_are_red_green_and_blue(writer):
    planes = np.moveaxis(RGB, -1, 0).copy()
    data = write(planes, photometric="minisblack", metadata={"axes": "CYX"}, **{writer: True})
    assert difference(data, RGB) == 0
    assert difference(write(planes, photometric="minisblack", planarconfig="separate"), RGB) == 0


@pytest.mark.parametrize(
    ("shape", "axes", "reason"),
    [
        ((2, 48, 64), "CYX", "is a stack of images (2 C x 48 Y x 64 X)"),
        ((5, 48, 64), "CYX", "is a stack of images (5 C x 48 Y x 64 X)"),
        ((2, 3, 48, 64), "ZCYX", "is a stack of images (2 Z x 3 C x 48 Y x 64 X)"),
        ((3, 48, 64), None, "is a stack of images (3 Q x 48 Y x 64 X)"),
    ],
)
def test_other_stacks_of_channels_are_refused(shape, axes, reason):
    data = write(
        np.zeros(shape, np.uint8), photometric="minisblack", metadata={"axes": axes} if axes else {}, ome=bool(axes)
    )
    with pytest.raises(InputError) as caught:
        decode_image(data, 3)
    assert reason in str(caught.value)


def test_of_a_stack_of_slices_the_first_is_read():
    slices = np.stack([GREY, GREY * 0])
    assert difference(write(slices, photometric="minisblack", metadata={"axes": "ZYX"}, ome=True), GREY[..., None]) == 0


@pytest.mark.parametrize(
    ("tag", "value", "reason"),
    [
        (259, 32809, "has the compression THUNDERSCAN, which is not supported. Save it with LZW or Deflate."),
        (259, 60123, "has the compression 60123, which is not supported. Save it with LZW or Deflate."),
        (262, 8, "has 1 channels of 8 bits as CIELAB with NONE, which is not supported. Save it as RGB or grey."),
    ],
)
def test_what_cannot_be_read_is_named(tag, value, reason):
    with tifffile.TiffFile(io.BytesIO(data := write(GREY, photometric="minisblack"))) as tiff:
        place = tiff.pages.first.tags[tag].valueoffset
    changed = data[:place] + value.to_bytes(2, "little") + data[place + 2 :]
    with pytest.raises(InputError) as caught:
        decode_image(changed, 3)
    assert str(caught.value) == reason


@pytest.mark.parametrize("file_format", ["TIFF", "JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_upright_in_every_format(file_format, orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(RGB)
    data = save(picture, format=file_format, exif=exif, **({"quality": 98} if file_format == "JPEG" else {}))
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"), float)
    assert upright.shape == ((64, 48, 3) if orientation > 4 else (48, 64, 3))
    assert np.abs(decode_image(data, 3) - upright).mean() <= 2


def test_damaged_exif_data_changes_nothing():
    data = save(Image.fromarray(RGB), format="PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert difference(data, RGB) == 0
