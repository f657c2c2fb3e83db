"""Decode a TIFF file with tifffile and imagecodecs.

OpenCV's libtiff decodes many kinds of TIFF to black, inverted or garbled pixels without an error: planar and 16-bit
WhiteIsZero images, associated alpha, and JPEG 2000, JPEG XL, JPEG XR and PNG compression, among others.
"""

import io
import re

import cv2
import numpy as np
import tifffile
from tifffile import COMPRESSION, EXTRASAMPLE, PHOTOMETRIC, PLANARCONFIG

from cancernet import InputError
from cancernet.data.images import DECODING_ERRORS

_PIXELS = re.compile(r"<(?:\w+:)?Pixels\s[^>]*>")
_PHYSICAL_SIZE = re.compile(r"""PhysicalSize([XY](?:Unit)?)\s*=\s*["']([^"']*)["']""")
_MICROMETRES = {"nm": 0.001, "µm": 1.0, "μm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6}  # U+00B5 and U+03BC
_GREY = (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE)
_JPEG = (COMPRESSION.OJPEG, COMPRESSION.JPEG)  # decoded to RGB or grey
_SAMPLES = {
    PHOTOMETRIC.RGB: range(3, 9),
    PHOTOMETRIC.YCBCR: (3,),
    PHOTOMETRIC.SEPARATED: (4,),
    PHOTOMETRIC.PALETTE: (1,),
}
_MOST_BYTES_A_PIXEL = 16  # of the samples in the file


def decode_tiff(data: bytes) -> tuple[np.ndarray, int, int]:
    """Decode the first image of a TIFF file; three channels of OME or ImageJ are red, green and blue.

    Returns the stored pixels, uint8 or uint16 [height, width, 1, 3 or 4] (grey, BGR, or BGR with unassociated alpha),
    the value of white, and the orientation as EXIF defines it, 1 to 8. Raises InputError if the file is damaged or of a
    kind that is not supported, MemoryError if there is too little memory.
    """
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as tiff:
            page, series = tiff.pages.first.aspage(), tiff.series[0]
            is_stored_by_channel = _find_channels(series) > 1
            _check_kind(page)
            ends = [start + size if size else 0 for start, size in zip(page.dataoffsets, page.databytecounts)]
            if not ends or not min(ends) or max(ends) > len(data):
                raise InputError("cannot be decoded: damaged or cut off")
            stored = (series if is_stored_by_channel else page).asarray(maxworkers=1)
            if is_stored_by_channel or (page.planarconfig == PLANARCONFIG.SEPARATE and page.samplesperpixel > 1):
                stored = np.moveaxis(stored, 0, -1)
            stored = stored.reshape(page.imagelength, page.imagewidth, -1)
            white = 2**page.bitspersample - 1
            if page.photometric == PHOTOMETRIC.PALETTE:
                stored, white = np.asarray(page.colormap).T[stored[..., 0]], 2**16 - 1
            pixels = _arrange(stored.astype(np.uint8 if white < 256 else np.uint16), page, white)
            return pixels, white, page.tags.valueof("Orientation", 1)
    except InputError:
        raise
    except DECODING_ERRORS as error:
        raise InputError(f"cannot be decoded: damaged, or a kind of TIFF that is not supported ({error})") from error


def read_scales(tiff: tifffile.TiffFile) -> list[float | str | None]:
    """Read the micrometres per pixel, x and y, of the first image of an OME-TIFF; an empty list if it has none."""
    image = _PIXELS.search(tiff.ome_metadata or "") if tiff.is_ome else None
    stated = dict(_PHYSICAL_SIZE.findall(image[0])) if image else {}
    try:
        return [float(stated[axis]) * _MICROMETRES[stated.get(f"{axis}Unit", "µm")] for axis in "XY"]
    except (LookupError, ValueError):
        return []


def _find_channels(series: tifffile.TiffPageSeries) -> int:
    """Return the number of channels that are images of their own; of other stacks, the first image is decoded."""
    sizes = dict(zip(series.axes, series.shape, strict=True))
    channels = sizes.get("C", 1) * sizes.get("Q", 1)  # Q has no name
    if channels > 1 and (series.axes != "CYX" or channels != 3):
        axes = " x ".join(f"{size} {axis}" for axis, size in sizes.items())
        raise InputError(f"is a stack of images ({axes}), not one of red, green and blue. Save it as one RGB image.")
    return channels


def _check_kind(page: tifffile.TiffPage) -> None:
    """Raise InputError, which names the kind, if an image is one that is not decoded correctly."""
    kind, bits = PHOTOMETRIC(page.photometric), page.bitspersample
    packed = next((each.name for each in COMPRESSION if each == page.compression), page.compression)
    alpha = sum(extra != EXTRASAMPLE.UNSPECIFIED for extra in page.extrasamples)
    if page.dtype is None or page.dtype.kind not in "bu" or bits > 16:
        raise InputError(f"holds {page.dtype or f'{bits}-bit'} values; only 8 or 16 bits a channel are supported")
    if page.compression != COMPRESSION.NONE and page.compression not in tifffile.TIFF.DECOMPRESSORS:
        raise InputError(f"has the compression {packed}, which is not supported. Save it with LZW or Deflate.")
    if kind in _GREY and page.samplesperpixel - alpha not in (1, 3):
        raise InputError(f"has {page.samplesperpixel - alpha} channels; only grey and RGB images are supported")
    if (
        kind not in (*_GREY, *_SAMPLES)
        or (kind in _SAMPLES and page.samplesperpixel not in _SAMPLES[kind])
        or (kind == PHOTOMETRIC.SEPARATED and (page.compression in _JPEG or bits != 8))
        or (kind == PHOTOMETRIC.YCBCR and page.compression not in _JPEG and (page.is_subsampled or bits != 8))
    ):
        stored = f"{page.samplesperpixel} channels of {bits} bits as {kind.name} with {packed}"
        raise InputError(f"has {stored}, which is not supported. Save it as RGB or grey.")
    pixels = page.imagewidth * page.imagelength
    if page.nbytes > _MOST_BYTES_A_PIXEL * pixels or np.prod(page.chunks) > _MOST_BYTES_A_PIXEL * max(pixels, 2**20):
        raise InputError("cannot be decoded: damaged, for it declares more values than its pixels have")


def _arrange(stored: np.ndarray, page: tifffile.TiffPage, white: int) -> np.ndarray:
    """Convert stored samples [height, width, n] to grey, BGR, or BGR with unassociated alpha."""
    kind, extras = page.photometric, page.extrasamples
    if kind == PHOTOMETRIC.RGB and page.samplesperpixel == 4 and not extras:
        extras = (EXTRASAMPLE.UNASSALPHA,)  # OpenCV writes no tag
    if kind == PHOTOMETRIC.SEPARATED:  # cyan, magenta, yellow and black
        light = 255 - stored.astype(np.uint16)
        stored = np.rint(light[..., :3] * (light[..., 3:] / 255)).astype(np.uint8)
    elif kind == PHOTOMETRIC.YCBCR and page.compression not in _JPEG:
        stored = cv2.cvtColor(stored[..., [0, 2, 1]], cv2.COLOR_YCrCb2RGB)
    image = stored[..., : 1 if stored.shape[2] < 3 else 3][..., ::-1]
    if kind == PHOTOMETRIC.MINISWHITE:
        image = white - image
    for place, extra in enumerate(extras, start=stored.shape[2] - len(extras)):
        alpha = stored[..., place : place + 1]
        if extra == EXTRASAMPLE.UNASSALPHA:
            return np.concatenate([np.broadcast_to(image, (*image.shape[:2], 3)), alpha], axis=2)
        if extra == EXTRASAMPLE.ASSOCALPHA:  # the colours were multiplied with it
            return np.minimum(image, alpha) + (white - alpha)
    return image
