"""The only image decoder: bytes of a file to an array, and many files to batches of one size."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from cancernet import InputError

_PNM_HEADER = re.compile(rb"P(?P<kind>[2356])(?:(?:\s|#[^\n]*\n)+(?P<white>\d+)){3}")  # the last of three numbers
EXTENSIONS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".pgm")


def decode_image(data: bytes, channels: int) -> np.ndarray:
    """Decode one image file.

    Grey, RGB, palette and transparent images of 8 or 16 bits are supported. Transparent pixels become white, the
    background of a slide. 16 bits are divided by 257, so that 65535 becomes 255. In a PGM or PPM file the largest
    value that the header declares becomes 255. (PNG's significant bits and TIFF's MaxSampleValue are not used: both
    formats define white by the whole range.) Of a file with several pages the first is read.

    Args:
        data: the bytes of a file.
        channels: 3 for RGB, 1 for grey (ITU-R BT.601 weights).

    Returns:
        uint8 array [height, width, channels], values 0 to 255.

    Raises:
        InputError: the bytes are not a complete image, or the image holds floating point numbers.
    """
    if not data:
        raise InputError("the file is empty")
    try:
        image = cv2.imdecode(np.frombuffer(_drop_colour_profile(data), np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise InputError(f"cannot be decoded ({error.err or 'damaged'})") from error
    if image is None:
        raise InputError("cannot be decoded: not an image, damaged or cut off")
    if image.dtype not in (np.uint8, np.uint16):
        raise InputError(f"holds {image.dtype} values; only 8 or 16 bits a channel are supported")
    white = _find_white(data, image)
    if image.dtype == np.uint16 or white != 255:
        image = np.minimum((image.astype(np.uint32) * 255 + white // 2) // white, 255).astype(np.uint8)
    if image.ndim == 3 and image.shape[2] == 4:
        opacity = image[..., 3:].astype(np.float32) / 255
        image = np.rint(image[..., :3] * opacity + 255 * (1 - opacity)).astype(np.uint8)
    if image.ndim == 2:
        return image[..., None] if channels == 1 else cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    if channels == 1:
        return cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)[..., None]
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_image(path: Path | str, *, channels: int, sha256: str | None) -> np.ndarray:
    """Read and decode one image file.

    Args:
        path: the file.
        channels: as in `decode_image`.
        sha256: hash that the file must have, in hexadecimal; None where it is not known.

    Returns:
        uint8 array [height, width, channels], values 0 to 255.

    Raises:
        InputError: names the file, which is missing, damaged, or has another hash.
    """
    try:
        with open(path, "rb", buffering=0) as opened:
            data = opened.read()
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise InputError("is not the file that the manifest names. Run build_dataset.py again.")
        return decode_image(data, channels)
    except (InputError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path}: {reason}") from error


def _drop_colour_profile(data: bytes) -> bytes:
    """Remove the colour profile of a PNG: OpenCV does not use it, but libpng prints warnings about it.

    A chunk of a PNG is its length (4 bytes), its name (4), its data, and a checksum (4).
    """
    start = data.find(b"iCCP", 0, max(data.find(b"IDAT"), 0)) - 4
    if start < 0 or not data.startswith(b"\x89PNG\r\n"):
        return data
    return data[:start] + data[start + 12 + int.from_bytes(data[start : start + 4], "big") :]


def _find_white(data: bytes, image: np.ndarray) -> int:
    """Return the value of white in an image that OpenCV decoded."""
    declared = _PNM_HEADER.match(data)
    is_scaled = image.dtype == np.uint8 and declared and declared["kind"] in b"23"  # text: OpenCV scales it
    if declared and not is_scaled:
        return int(declared["white"])
    return int(np.iinfo(image.dtype).max)


def fit_image(image: np.ndarray, size: int) -> np.ndarray:
    """Scale an image [height, width, channels] to [size, size, channels]; an edge tile is stretched to a square.

    Pixels are averaged when both sides shrink and interpolated otherwise.
    """
    height, width, channels = image.shape
    if height == width == size:
        return image
    shrinks = height >= size and width >= size
    scaled = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return scaled.reshape(size, size, channels)


class ImageStore:
    """Image files as rows of one array. Each is decoded when it is first fetched.

    With `cache` a decoded image is kept in memory, one byte a value, and its file is read only once in all epochs.
    Without it little memory is used, and every fetch reads the files again. Safe to use from many threads.
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
        self.files = files
        self.image_size = image_size
        self.channels = channels
        self.sha256 = sha256
        self.problem: InputError | None = None  # the first file that could not be used
        self._images = np.empty((len(files), *self.shape), np.uint8) if cache else None
        self._ready = np.zeros(len(files), bool)

    def __len__(self) -> int:
        return len(self.files)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        return (self.image_size, self.image_size, self.channels)

    def fetch(self, indices: np.ndarray) -> np.ndarray:
        """Return the images of `indices` [n] in that order: uint8 [n, size, size, channels].

        Raises:
            InputError: a file is missing, damaged, or has another hash than `sha256`.
        """
        if self._images is None:
            images = np.empty((len(indices), *self.shape), np.uint8)
            for row, index in enumerate(indices):
                images[row] = self._read(index)
            return images
        for index in indices[~self._ready[indices]]:
            self._images[index] = self._read(index)
            self._ready[index] = True
        return self._images[indices]

    def _read(self, index: int) -> np.ndarray:
        sha256 = None if self.sha256 is None else self.sha256[index]
        try:
            image = read_image(self.files[index], channels=self.channels, sha256=sha256)
        except InputError as error:
            self.problem = error
            raise
        return fit_image(image, self.image_size)
