"""Uploaded files are unpacked in memory, within limits of size and number; a broken file does not stop the others."""

import hashlib
import io
import itertools
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2

from cancernet import InputError
from cancernet.data.images import EXTENSIONS, MOST_MEGAPIXELS, TIFF_MAGIC, read_size
from cancernet.storage import is_passed_over

SLIDES = (".svs", ".ndpi", ".scn", ".bif", ".qptiff")  # whole slides of one file that are TIFF inside
ENDINGS = EXTENSIONS + SLIDES
ARCHIVE, END_OF_ARCHIVE, END_OF_ARCHIVE_64 = b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x07"  # 4.3 of PKWARE's APPNOTE.TXT
END_BYTES, LONGEST_COMMENT = 22, 65_535  # of a zip archive's last record, and of the comment after it
SAMPLE_SEED, SAMPLE_PATIENT = 2026, 79001  # not in the made-up dataset of build_dataset.py --sample
ENTRY_BYTES = 512  # of an archive's directory, at most, for one file; 46 and the file's name are usual


@dataclass(frozen=True)
class Limits:
    """The largest upload of one visitor."""

    files: int = 5_000  # files inside archives count, the archives do not
    bytes: int = 512 * 2**20  # of all files together, archives unpacked
    picture_pixels: int = MOST_MEGAPIXELS * 10**6  # of one picture that is not read block by block: 150 MB decoded
    pixels: int = 150_000_000  # of all such pictures together: 2,900 patches of 224 pixels


class Problem(NamedTuple):
    """A file that could not be used, and why."""

    name: str
    reason: str


def accept_uploads(
    files: Iterable[tuple[str, bytes]], *, limits: Limits = Limits()
) -> tuple[dict[str, bytes], list[Problem]]:
    """Unpack zip archives and check what each image says of its size, before anything is decoded.

    Nothing is written to disk. A broken file does not stop the others. A size is checked twice, as the archive declares
    it and as the file is unpacked. Pixels of a pyramid are not counted: it is read block by block.

    Args:
        files: name and bytes of each upload.

    Returns:
        The bytes of each image by its name, in the order they were sent, and the files that cannot be used. The name is
        that of the upload, or its path in the archive; a second one of a name gets a number.
    """
    from cancernet.data.tiles import is_pyramid

    contents, problems = unpack_uploads(files, limits=limits)
    accepted, pixels_left = {}, limits.pixels
    for name, data in contents:
        try:
            width, height = read_size(data)
            pixels = 0 if data[:4] in TIFF_MAGIC and is_pyramid(Path(name), data) else width * height
            if pixels > limits.picture_pixels:
                raise InputError(f"has {pixels:,} pixels, more than {limits.picture_pixels:,}. Use predict_images.py.")
            if pixels > pixels_left:
                raise InputError(f"is too much: all pictures together may have {limits.pixels:,} pixels")
            accepted[_number(name, accepted)] = data
            pixels_left -= pixels
        except InputError as error:
            problems.append(Problem(name, str(error).removeprefix(f"{name}: ")))
    return accepted, problems


def unpack_uploads(
    files: Iterable[tuple[str, bytes]], *, limits: Limits = Limits()
) -> tuple[list[tuple[str, bytes]], list[Problem]]:
    """Unpack zip archives and list all files, within the limits.

    An archive is refused as a whole if it is damaged, or declares or holds more than the limits. A file in it is
    refused if it is encrypted, is an archive, has a path that leads out of the archive, or has not the ending of an
    image. A file that was sent before is refused. Hidden files, and those that an operating system adds (`__MACOSX`),
    are skipped.

    Returns:
        Name and bytes of each file, and the files that were refused.
    """
    accepted, problems, seen = [], [], set()
    bytes_left = limits.bytes
    for name, data in files:
        try:
            if data[:4] == ARCHIVE or name.lower().endswith(".zip"):
                members, refused = _unpack_zip(data, limits.files - len(accepted), bytes_left, limits)
                problems += [Problem(f"{name}: {member}", reason) for member, reason in refused]
            else:
                members = [(name, data)]
            for member, content in members:
                key = (member, hashlib.sha256(content).digest())
                if key in seen:
                    problems.append(Problem(member, "was sent twice; it is used once"))
                    continue
                _check_limits(1, limits.files - len(accepted), len(content), bytes_left, limits)
                seen.add(key)
                accepted.append((member, content))
                bytes_left -= len(content)
        except InputError as error:
            problems.append(Problem(name, str(error)))
    return accepted, problems


def sample_uploads(patient: int = SAMPLE_PATIENT) -> list[tuple[str, bytes]]:
    """Make PNG files of the patches of one synthetic slide, with names that tell their places."""
    from cancernet.data.sample import cut_patches, make_slide

    return [
        (f"{patient}_idx5_x{x}_y{y}.png", cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes())
        for image, _, x, y in cut_patches(make_slide(SAMPLE_SEED, patient))
    ]


def _number(name: str, taken: dict[str, bytes]) -> str:
    """The name, or `name (2).png` and so on where it is taken."""
    path = Path(name)
    others = (path.with_name(f"{path.stem} ({number}){path.suffix}").as_posix() for number in itertools.count(2))
    return next(each for each in itertools.chain([name], others) if each not in taken)


def _unpack_zip(
    data: bytes, files_left: int, bytes_left: int, limits: Limits
) -> tuple[list[tuple[str, bytes]], list[Problem]]:
    _check_directory(data, limits)
    members, problems = [], []
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = [entry for entry in archive.infolist() if not _is_hidden(entry)]
            _check_limits(len(entries), files_left, sum(entry.file_size for entry in entries), bytes_left, limits)
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
                _check_limits(1, files_left - len(members), len(content), bytes_left, limits)
                bytes_left -= len(content)
                members.append((entry.filename, content))
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, ValueError, struct.error) as error:
        raise InputError(f"cannot be unpacked ({error}). Make the archive again.") from error
    return members, problems


def _check_directory(data: bytes, limits: Limits) -> None:
    """Refuse an archive whose directory alone would fill the memory, before it is read."""
    place = data.rfind(END_OF_ARCHIVE, max(0, len(data) - END_BYTES - LONGEST_COMMENT))
    if place < 0 or len(data) < place + END_BYTES:
        raise InputError("is no zip archive, or is cut off. Make the archive again.")
    count, size = struct.unpack("<HL", data[place + 10 : place + 16])
    if END_OF_ARCHIVE_64 in data[max(0, place - 20) : place] or size == 0xFFFFFFFF:
        raise InputError("is a zip64 archive, which is for more data than can be sent here. Use predict_images.py.")
    if count > 2 * limits.files or size > 2 * limits.files * ENTRY_BYTES:  # folders count too
        raise InputError(f"lists {count:,} files; {limits.files:,} can be sent at a time. Use predict_images.py.")


def _is_hidden(entry: zipfile.ZipInfo) -> bool:
    return entry.is_dir() or any(map(is_passed_over, entry.filename.replace("\\", "/").split("/")))


def _reason_to_refuse(entry: zipfile.ZipInfo) -> str:
    """Why a file in an archive is refused; "" if it is not."""
    name = entry.filename.replace("\\", "/")
    if name.startswith("/") or re.match("[A-Za-z]:", name) or ".." in name.split("/"):
        return "its path leads out of the archive"
    if entry.flag_bits & 1:
        return "is encrypted. Send it without a password."
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is packed with an unsupported method. Make a plain zip."
    if name.lower().endswith(".zip"):
        return "is an archive inside an archive. Send it on its own."
    supported = name.lower().endswith(ENDINGS)
    return "" if supported else f"is of an unsupported file type. Supported: {', '.join(ENDINGS)}."


def _check_limits(files: int, files_left: int, size: int, bytes_left: int, limits: Limits) -> None:
    if files > files_left:
        raise InputError(f"is too much: {limits.files:,} files can be sent at a time. For more, use predict_images.py.")
    if size > bytes_left:
        most = f"{limits.bytes / 2**20:,.0f} MB can be sent at a time, unpacked"
        raise InputError(f"is too much: {most}. For more, use predict_images.py.")
