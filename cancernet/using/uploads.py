"""Uploaded files to images, all in memory: bounded in size and number, and a broken one named beside the others."""

import hashlib
import io
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from cancernet import InputError
from cancernet.data.grid import PATCH_STEP
from cancernet.data.images import EXTENSIONS, decode_image, read_size
from cancernet.data.sample import cut_patches, make_slide
from cancernet.data.tiles import PLAIN_PIXELS, Tile, iterate_tiles, picture_as_slide
from cancernet.folders import is_passed_over

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "PPM")  # what lies behind EXTENSIONS, as Pillow calls it
ARCHIVE, END_OF_ARCHIVE, END_OF_ARCHIVE_64 = b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x07"  # 4.3 of PKWARE's APPNOTE.TXT
END_BYTES, LONGEST_COMMENT = 22, 65_535  # of a zip archive's last record, and of the comment that may follow it
SAMPLE_SEED, SAMPLE_PATIENT = 2026, 79001  # of no dataset that write_sample makes by itself
LARGE_SIDE = 4 * PATCH_STEP  # pixels; a picture larger both ways is cut
ENTRY_BYTES = 512  # of an archive's directory, for one file; 46 and its name are usual


@dataclass(frozen=True)
class Limits:
    """The most that is taken of one visitor at a time."""

    files: int = 5_000  # those inside archives counted, not the archives
    bytes: int = 512 * 2**20  # all files together, archives unpacked
    picture_pixels: int = PLAIN_PIXELS  # of one picture: 150 MB decoded
    pixels: int = 150_000_000  # of all pictures together: 2,900 patches of 224 pixels, 450 MB decoded


class Picture(NamedTuple):
    """An uploaded image."""

    name: str  # as it was sent; inside an archive its path there, with forward slashes
    image: np.ndarray  # uint8 [height, width, channels]
    resolution: tuple[float, ...] = ()  # dots an inch across and down, as the file says


class Problem(NamedTuple):
    """A file that was not taken."""

    name: str
    reason: str


def read_uploads(
    files: Iterable[tuple[str, bytes]],
    *,
    channels: int = 3,
    limits: Limits = Limits(),
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[list[Picture], list[Problem]]:
    """Decode uploaded images and zip archives of them, in the order they came.

    Nothing is written to disk and nothing is lost to a broken neighbour. Sizes are checked twice, as a file declares
    them and as it is unpacked, and a picture's sides before it is decoded.

    Args:
        files: name and bytes of each upload.
        channels: 3 for RGB, 1 for grey.
        progress: called with the number of images done and their number.

    Returns:
        What was read, and what was not, with the reason.
    """
    contents, problems = unpack_uploads(files, limits=limits)
    pictures, pixels_left = [], limits.pixels
    for done, (name, data) in enumerate(contents, start=1):
        try:
            width, height, resolution = read_header(data)
            pixels = width * height
            if pixels > limits.picture_pixels:
                raise InputError(f"has {pixels:,} pixels, more than {limits.picture_pixels:,}. Use predict_images.py.")
            if pixels > pixels_left:
                raise InputError(f"does not fit: all pictures together may have {limits.pixels:,} pixels")
            pictures.append(Picture(name, decode_image(data, channels), resolution))
            pixels_left -= pixels
        except InputError as error:
            problems.append(Problem(name, str(error)))
        progress(done, len(contents))
    return pictures, problems


def unpack_uploads(
    files: Iterable[tuple[str, bytes]], *, limits: Limits = Limits()
) -> tuple[list[tuple[str, bytes]], list[Problem]]:
    """Name and bytes of every single file, those inside zip archives included, within the limits; and what was refused.

    Refused whole: an archive that is damaged, or that declares or holds more than the limits. Refused one by one: what
    is encrypted, an archive inside an archive, a path that is absolute or climbs, what is called like no image, and
    the same file a second time. What is hidden, or left there by a system (`__MACOSX`), is passed over.
    """
    taken, problems, seen = [], [], set()
    bytes_left = limits.bytes
    for name, data in files:
        try:
            if data[:4] == ARCHIVE or name.lower().endswith(".zip"):
                members, refused = _unpack_zip(data, limits.files - len(taken), bytes_left, limits)
                problems += [Problem(f"{name}: {member}", reason) for member, reason in refused]
            else:
                members = [(name, data)]
            for member, content in members:
                key = (member, hashlib.sha256(content).digest())
                if key in seen:
                    problems.append(Problem(member, "was sent twice; it counts once"))
                    continue
                _check_room(1, limits.files - len(taken), len(content), bytes_left, limits)
                seen.add(key)
                taken.append((member, content))
                bytes_left -= len(content)
        except InputError as error:
            problems.append(Problem(name, str(error)))
    return taken, problems


def read_header(data: bytes) -> tuple[int, int, tuple[float, ...]]:
    """Width, height and dots an inch (empty where unknown), as an image says before it is decoded.

    Raises:
        InputError: it is no image of a kind that is taken.
    """
    width, height = read_size(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limits are ours
            with Image.open(io.BytesIO(data), formats=FORMATS) as header:
                return width, height, tuple(map(float, header.info.get("dpi", ())))
    except (Image.DecompressionBombError, OSError, ValueError, SyntaxError, TypeError, ArithmeticError):
        return width, height, ()  # the decoder knows kinds of TIFF that Pillow does not


def sample_uploads(patient: int = SAMPLE_PATIENT) -> list[tuple[str, bytes]]:
    """The patches of one made-up slide as if they had been uploaded: names that give their place, and PNG files."""
    return [
        (f"{patient}_idx5_x{x}_y{y}.png", cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes())
        for image, _, x, y in cut_patches(make_slide(SAMPLE_SEED, patient))
    ]


def is_large(picture: Picture) -> bool:
    """Whether a picture is to be cut into patches; predict_images.py draws the same line."""
    return min(picture.image.shape[:2]) > LARGE_SIDE


def cut_picture(picture: Picture, *, target_mpp: float, mpp: float | None) -> tuple[list[Tile], float]:
    """Patches of a large picture that hold tissue, of PATCH_STEP pixels at the scale of a run.

    Args:
        picture: RGB.
        target_mpp: micrometres a pixel of the run's patches.
        mpp: micrometres a pixel of the picture, where its file does not say so.

    Returns:
        The tiles, and how many pixels of the picture one of their x and y is.

    Raises:
        InputError: no scale, a picture coarser than the run, or no tissue.
    """
    slide = picture_as_slide(Path(picture.name), picture.image, picture.resolution, mpp)
    tiles = list(iterate_tiles(slide, patch_pixels=PATCH_STEP, target_mpp=target_mpp))
    if not tiles:
        raise InputError(f"{picture.name}: shows no stained tissue, only background. Check that it is the right image.")
    return tiles, target_mpp / slide.mpp


def _unpack_zip(
    data: bytes, files_left: int, bytes_left: int, limits: Limits
) -> tuple[list[tuple[str, bytes]], list[Problem]]:
    _check_directory(data, limits)
    members, problems = [], []
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = [entry for entry in archive.infolist() if not _is_passed_over(entry)]
            _check_room(len(entries), files_left, sum(entry.file_size for entry in entries), bytes_left, limits)
            for entry in entries:
                reason = _reason_to_refuse(entry)
                if reason:
                    problems.append(Problem(entry.filename, reason))
                    continue
                try:
                    with archive.open(entry) as file:
                        content = file.read(entry.file_size + 1)
                except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
                    problems.append(Problem(entry.filename, f"is damaged in the archive ({error})"))
                    continue
                _check_room(1, files_left - len(members), len(content), bytes_left, limits)
                bytes_left -= len(content)
                members.append((entry.filename, content))
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, ValueError, struct.error) as error:
        raise InputError(f"cannot be unpacked ({error}). Make the archive again.") from error
    return members, problems


def _check_directory(data: bytes, limits: Limits) -> None:
    """Refuses an archive whose directory alone would fill the memory, before it is read."""
    place = data.rfind(END_OF_ARCHIVE, max(0, len(data) - END_BYTES - LONGEST_COMMENT))
    if place < 0 or len(data) < place + END_BYTES:
        raise InputError("is no zip archive, or is cut off. Make the archive again.")
    count, size = struct.unpack("<HL", data[place + 10 : place + 16])
    if END_OF_ARCHIVE_64 in data[max(0, place - 20) : place] or size == 0xFFFFFFFF:
        raise InputError("is a zip64 archive, made for more than is taken here. Use predict_images.py.")
    if count > 2 * limits.files or size > 2 * limits.files * ENTRY_BYTES:  # folders count too
        raise InputError(f"lists {count:,} files; {limits.files:,} are taken at a time. Use predict_images.py.")


def _is_passed_over(entry: zipfile.ZipInfo) -> bool:
    return entry.is_dir() or any(map(is_passed_over, entry.filename.replace("\\", "/").split("/")))


def _reason_to_refuse(entry: zipfile.ZipInfo) -> str:
    """Why a member of an archive is not read; "" if it is."""
    name = entry.filename.replace("\\", "/")
    if name.startswith("/") or re.match("[A-Za-z]:", name) or ".." in name.split("/"):
        return "its path leads out of the archive"
    if entry.flag_bits & 1:
        return "is encrypted. Send it without a password."
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is packed in an unusual way. Make a plain zip."
    if name.lower().endswith(".zip"):
        return "is an archive inside an archive. Send it on its own."
    return "" if name.lower().endswith(EXTENSIONS) else f"is no image: {', '.join(EXTENSIONS)} are taken"


def _check_room(files: int, files_left: int, size: int, bytes_left: int, limits: Limits) -> None:
    if files > files_left:
        raise InputError(f"does not fit: {limits.files:,} files are taken at a time. For more: predict_images.py.")
    if size > bytes_left:
        raise InputError(
            f"does not fit: {limits.bytes / 2**20:,.0f} MB are taken at a time, unpacked. For more: predict_images.py."
        )
