"""Decode images: the bytes of a file to an array, and many files to batches of one size."""

import copy
import errno
import functools
import hashlib
import io
import os
import re
import stat
import struct
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PpmImagePlugin import PpmImageFile

from cancernet import InputError
from cancernet.data import dicom

_PNM_HEADER = re.compile(rb"P(?P<kind>[2356])(?:(?:\s|#[^\n]*\n)+(?P<white>\d+)){3}")  # the last of three numbers
EXTENSIONS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".pgm")
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MOST_MEGAPIXELS = 50  # the default limit of an image that is decoded whole: 150 MB
_MOST_BYTES_A_PIXEL = 8  # four channels of 16 bits
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
DECODING_ERRORS = (  # of Pillow, tifffile and imagecodecs; a damaged file can have any value anywhere
    *(RuntimeError, ValueError, OSError, EOFError, LookupError, ArithmeticError, TypeError, AttributeError),
    *(SyntaxError, ImportError, struct.error),
)
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")  # of a segment, or of the end
_JPEG_FRAME = re.compile(rb"\xff[\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf]\0[\x0b\x11\x14](?P<bits>.)", re.DOTALL)
_NO_IMAGE = "cannot be decoded: not an image, damaged or cut off"
# Do not wait for a writer of a pipe; Windows knows no pipes, and would change line ends.
_HOW_TO_OPEN = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_MOST_READS = 2000  # of a header; each part of it takes a few
_JPEG_SCAN = b"\xff\xda"
_EXIF_WITHIN = 2**17  # bytes; a segment of a JPEG file has at most 2**16
_EXIF_ORIENTATION = re.compile(  # tag, type, count and value, in either order of bytes
    rb"\x12\x01\x03\0\x01\0\0\0(?P<little>[\x01-\x08])\0|\x01\x12\0\x03\0\0\0\x01\0(?P<big>[\x01-\x08])"
)
_NO_FILE = (errno.ENOENT, errno.ELOOP, errno.ENXIO)  # links to nothing or to themselves; sockets
_BLOCK_ROWS = 1024  # that transparency is removed from at a time


class HeaderStream(io.BytesIO):
    """The bytes of a file from which Pillow reads a header. It would skip padding byte by byte, for minutes."""

    _reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads += 1
        if self._reads > _MOST_READS:
            raise OSError("its header is padded")
        return super().read(size)


def read_file(path: Path | str, *, megapixels: float | None = MOST_MEGAPIXELS) -> bytes:
    """Read an image file. One with more bytes than an image of `megapixels` can have is not read.

    Raises InputError if it is too large or not a regular file, OSError if it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | _HOW_TO_OPEN)
    with open(descriptor, "rb", buffering=0) as opened:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InputError("is not a regular file but a pipe or a device")
        if megapixels is not None and status.st_size > megapixels * 1e6 * _MOST_BYTES_A_PIXEL + 2**20:
            raise InputError(f"has {status.st_size:,} bytes, more than an image of {megapixels:g} megapixels can have")
        return opened.read()


def is_failed_read(error: BaseException | None) -> bool:
    """Return whether an error comes from a failure to read a file that is there: another attempt may succeed."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error is not None and error.errno is not None and error.errno not in _NO_FILE


def read_size(data: bytes) -> tuple[int, int]:
    """Read the width and height that an image file declares, without decoding; InputError if it is not supported."""
    if not data:
        raise InputError("the file is empty")
    try:
        if data[dicom.MAGIC] == b"DICM":
            tags = dicom.read_header(io.BytesIO(data))
            return int(tags["Columns"].value), int(tags["Rows"].value)
        if data.startswith(_PNG):
            return struct.unpack(">II", data[16:24])  # the chunk IHDR comes first
        if data[:4] in TIFF_MAGIC:
            import tifffile  # knows all kinds of TIFF, and is slow to load

            with tifffile.TiffFile(io.BytesIO(data)) as tiff:
                page = tiff.pages.first
                return int(page.imagewidth), int(page.imagelength)  # a damaged file may have several of each
        for beginning, header in ((_JPEG, JpegImageFile), (b"BM", BmpImageFile), (b"P", PpmImageFile)):
            if data.startswith(beginning):
                return header(HeaderStream(data)).size
    except DECODING_ERRORS as error:
        frame = _JPEG_FRAME.search(data) if data.startswith(_JPEG) else None
        if frame and ord(frame["bits"]) != 8:
            bits = ord(frame["bits"])
            raise InputError(f"is a JPEG image of {bits} bits, which is not supported. Save it as PNG.") from error
        raise InputError(_NO_IMAGE) from error
    raise InputError("cannot be decoded: not an image of a supported type (PNG, JPEG, TIFF, BMP, PGM, DICOM)")


def decode_image(data: bytes, channels: int, *, megapixels: float | None = MOST_MEGAPIXELS) -> np.ndarray:
    """Decode one image file: uint8 array [height, width, channels], values 0 to 255.

    Grey, RGB, palette and transparent images of 8 or 16 bits are supported. Transparent pixels become white, the
    background of a slide. 16-bit values are divided by 257, so that 65535 becomes 255. In a PGM or PPM file the largest
    value that the header declares becomes 255. (PNG's significant bits and TIFF's MaxSampleValue are not used: both
    formats define white by the whole range.) Only the first page of a file is read. An image is rotated and flipped as
    its EXIF orientation says, in every format. One channel is grey (ITU-R BT.601 weights), three are RGB.

    Raises InputError if the bytes are not a complete image, it has floating point values, or its header declares more
    than `megapixels` (None for a file that was checked before); MemoryError if there is too little memory.
    """
    width, height = read_size(data)
    if megapixels is not None and width * height > megapixels * 1e6:
        raise InputError(f"declares {width:,} x {height:,} pixels, more than the limit of {megapixels:g} megapixels")
    if data[:4] in TIFF_MAGIC:
        from cancernet.data.tiff import decode_tiff

        image, white, orientation = decode_tiff(data)
    elif data[dicom.MAGIC] == b"DICM":
        image, white, orientation = dicom.decode_dicom(data), 255, 1
    else:
        image, white, orientation = _decode_with_opencv(data, width * height)
    if image.dtype == np.uint16 or white != 255:
        image = _eight_bits(white)[image]
    if image.ndim == 3 and image.shape[2] == 4:
        image = _remove_transparency(image)
    if orientation != 1:
        image = _turn(image, orientation)
    if image.ndim == 2 or image.shape[2] == 1:
        return image.reshape(*image.shape[:2], 1) if channels == 1 else cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    if channels == 1:
        return cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)[..., None]
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _decode_with_opencv(data: bytes, pixels: int) -> tuple[np.ndarray, int, int]:
    """Decode a PNG, JPEG, BMP or PGM file as it is: grey, BGR or BGRA; with its white and EXIF orientation."""
    if data.startswith(_JPEG):
        _check_segments(data)
    data, exif = _check_chunks(data) if data.startswith(_PNG) else (data, data)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError from error
        raise InputError(f"cannot be decoded ({error.err or 'damaged'})") from error
    if image is None:
        np.empty(pixels * _MOST_BYTES_A_PIXEL, np.uint8)  # OpenCV does not say whether it had enough memory
        raise InputError(_NO_IMAGE)
    if image.dtype not in (np.uint8, np.uint16):
        raise InputError(f"holds {image.dtype} values; only 8 or 16 bits a channel are supported")
    white, declared = 255 if image.dtype == np.uint8 else 65535, _PNM_HEADER.match(data)
    if declared and not (image.dtype == np.uint8 and declared["kind"] in b"23"):  # OpenCV scales text of 8 bits
        white = max(int(declared["white"]), 1)  # 0 is not allowed
    return image, white, _read_orientation(exif)


def _read_orientation(data: bytes) -> int:
    """Return the EXIF orientation, 1 to 8, of a JPEG file or of EXIF data; 1 if there is none."""
    scan = data.find(_JPEG_SCAN, 0, _EXIF_WITHIN)  # EXIF data comes before; its thumbnail may have scans of its own
    start = data.find(b"Exif\0\0", 0, scan if scan > 0 else _EXIF_WITHIN)
    found = _EXIF_ORIENTATION.search(data, start, start + _EXIF_WITHIN) if start >= 0 else None
    return ord(found["little"] or found["big"]) if found else 1


def _turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """Rotate and flip an image [height, width, ...] as its EXIF orientation says."""
    image = image.swapaxes(0, 1) if orientation >= 5 else image
    down, across = (-1 if orientation in flipped else 1 for flipped in ((3, 4, 7, 8), (2, 3, 6, 7)))
    return np.ascontiguousarray(image[::down, ::across])


def read_image(path: Path | str, *, channels: int, sha256: str | None, data: bytes | None = None) -> np.ndarray:
    """Read and decode one image file, as `decode_image`; `sha256` is the hash that it must have, None if unknown.

    `data` are the bytes of the file if they are in memory; `path` is then only its name. The InputError about a file
    that is missing, damaged, or has another hash names it.
    """
    most = MOST_MEGAPIXELS if sha256 is None else None  # the build checked the size
    try:
        data = read_file(path, megapixels=most) if data is None else data
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise InputError("differs from the file that the manifest lists. Run build_dataset.py --force.")
        return decode_image(data, channels, megapixels=most)
    except (InputError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path}: {reason}") from error


@functools.lru_cache(maxsize=4)
def _eight_bits(white: int) -> np.ndarray:
    """Return a table of 8-bit values for 16-bit ones; `white` becomes 255. It takes no memory for large images."""
    return np.minimum((np.arange(2**16) * 255 + white // 2) // white, 255).astype(np.uint8)


def _remove_transparency(image: np.ndarray) -> np.ndarray:
    """Blend an image [height, width, 4] with white, block by block: fractions take four times the memory."""
    opaque = np.empty((*image.shape[:2], 3), np.uint8)
    for top in range(0, len(image), _BLOCK_ROWS):
        block = image[top : top + _BLOCK_ROWS]
        opacity = block[..., 3:].astype(np.float32) / 255
        opaque[top : top + _BLOCK_ROWS] = np.rint(block[..., :3] * opacity + 255 * (1 - opacity))
    return opaque


def _check_chunks(data: bytes) -> tuple[bytes, bytes]:
    """Return a PNG without its colour profile, which OpenCV ignores but libpng warns about, and its EXIF data.

    A PNG chunk is its length, its name, its data and a checksum of four bytes. OpenCV allocates as much as a length
    says, 4 GB for a damaged file of 2 KB, so lengths are checked here.
    """
    start, name, profile, exif, chunks = len(_PNG), b"", slice(0, 0), b"", 0
    while name != b"IEND":
        chunks += 1
        if start + 12 > len(data) or chunks > 1000 + len(data) // 1024:  # of padding, millions
            raise InputError(_NO_IMAGE)
        end, name = start + 12 + int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8]
        if name == b"iCCP":
            profile = slice(start, end)
        elif name == b"eXIf":
            exif = b"Exif\0\0" + data[start + 8 : end - 4]
        start = end
    if start > len(data):
        raise InputError(_NO_IMAGE)
    return (data[: profile.start] + data[profile.stop :] if profile.stop else data), exif


def _check_segments(data: bytes) -> None:
    """Check that a JPEG has its end marker: OpenCV 4 decodes a file without it and makes up the missing rows.

    A segment is a marker, its length and its content, which may be a thumbnail with an end marker of its own; pixels
    follow some of them.
    """
    start = len(_JPEG)
    while marker := _JPEG_MARKER.search(data, start):
        if marker[0] == b"\xff\xd9":
            return
        start = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    raise InputError(_NO_IMAGE)


def encode_png(image: np.ndarray) -> bytes:
    """Encode an image, uint8 [height, width, 3] RGB, as a PNG file."""
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def fit_image(image: np.ndarray, size: int) -> np.ndarray:
    """Scale an image [height, width, channels] to [size, size, channels]; an edge tile is stretched to a square."""
    return image if image.shape[:2] == (size, size) else resize_image(image, size, size)


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale an image [h, w, channels] to that height and width: averaged if both shrink, else interpolated."""
    shrinks = image.shape[0] >= height and image.shape[1] >= width
    scaled = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return scaled.reshape(height, width, image.shape[2])


class ImageStore:
    """Image files as rows of one array. Each is decoded when it is first fetched. Safe to use from many threads.

    With `cache`, decoded images are kept in memory, one byte per value, and each file is read only once in all epochs.
    Without it, little memory is used and every fetch reads the files again.
    """

    def __init__(
        self,
        files: Sequence[Path | str],
        *,
        image_size: int,
        channels: int,
        sha256: Sequence[str] | None = None,
        cache: bool = True,
    ):
        self.image_size, self.channels = image_size, channels
        self._files, self._sha256 = files, sha256
        self._rows = np.arange(len(files))
        self._images = np.empty((len(files), *self.shape), np.uint8) if cache else None
        self._ready = np.zeros(len(files), bool)
        self._problems: list[InputError] = []
        self._original: ImageStore | None = None  # read images from this store, and scale them

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        return (self.image_size, self.image_size, self.channels)

    @property
    def problem(self) -> InputError | None:
        """The error of the first file that could not be used, here or in a selection."""
        return self._problems[0] if self._problems else None

    def select(self, rows: np.ndarray) -> "ImageStore":
        """Return a store of some of the images, in the order of `rows` [m]. Decoded images are kept once for both."""
        selected = copy.copy(self)
        selected._rows = self._rows[rows]
        return selected

    def scale(self, image_size: int) -> "ImageStore":
        """Return a store of this store's images, scaled to [image_size, image_size]."""
        if image_size == self.image_size:
            return self
        scaled = copy.copy(self)
        scaled._original, scaled.image_size, scaled._rows = self, image_size, np.arange(len(self))
        scaled._images = None if self._images is None else np.empty((len(self), *scaled.shape), np.uint8)
        scaled._ready = np.zeros(len(self), bool)
        return scaled

    def fetch(self, indices: np.ndarray) -> np.ndarray:
        """Return the images of `indices` [n] in that order, uint8 [n, size, size, channels]."""
        rows = self._rows[indices]
        if self._images is None:
            return np.array([self._read(row) for row in rows], np.uint8).reshape(-1, *self.shape)
        for row in rows[~self._ready[rows]]:
            self._images[row] = self._read(row)
            self._ready[row] = True
        return self._images[rows]

    def _read(self, row: int) -> np.ndarray:
        if self._original is not None:
            return fit_image(self._original.fetch(np.array([row]))[0], self.image_size)
        sha256 = None if self._sha256 is None else self._sha256[row]
        try:
            image = read_image(self._files[row], channels=self.channels, sha256=sha256)
        except InputError as error:
            self._problems.append(error)
            raise
        return fit_image(image, self.image_size)
