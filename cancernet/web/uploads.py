"""Unpack uploaded files in memory, within limits of number and size; a damaged file does not stop the others."""

import hashlib
import io
import itertools
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2

from cancernet import InputError
from cancernet.data.files import is_ignored
from cancernet.data.images import EXTENSIONS, MOST_MEGAPIXELS, TIFF_MAGIC, read_size

SLIDES = (".svs", ".ndpi", ".scn", ".bif", ".qptiff")  # whole slides in one TIFF file
ENDINGS = EXTENSIONS + SLIDES
ANNOTATIONS, ANNOTATION_BYTES = ".geojson", 32 * 2**20  # their ending, and the most that a file may have
ZIP_FILE, ZIP_ENTRY = b"PK\x03\x04", b"PK\x01\x02"  # signatures of a zip file, and of an entry of its directory
SAMPLE_SEED, SAMPLE_PATIENT = 2026, 79001  # not in the synthetic dataset of `cancernet build --sample`
FOR_MORE = "For more, use cancernet predict."

Upload = tuple[str, bytes]  # name and content


@dataclass(frozen=True)
class Limits:
    """Limits for the images of one visitor."""

    files: int = 5_000  # including the files in archives
    bytes: int = 512 * 2**20  # of all files, unpacked
    picture_pixels: int = MOST_MEGAPIXELS * 10**6  # of one image that is not read block by block: 150 MB decoded
    pixels: int = 150_000_000  # of all such images: 2,900 patches of 224x224 pixels


class Problem(NamedTuple):
    """A file that cannot be used, and why."""

    name: str
    reason: str


def accept_uploads(files: Iterable[Upload], *, limits: Limits = Limits()) -> tuple[dict[str, bytes], list[Problem]]:
    """Unpack zip archives and check the dimensions in each image header, before anything is decoded.

    Returns the content of each image by its name, in upload order, and the files that cannot be used. A second image of
    the same name gets a number. The pixels of pyramids do not count, because they are read block by block.
    """
    from cancernet.data.tiles import is_pyramid

    contents, problems = unpack_uploads(files, limits=limits)
    accepted: dict[str, bytes] = {}
    pixels_left = limits.pixels
    for name, data in contents:
        try:
            width, height = read_size(data)
            pixels = 0 if data[:4] in TIFF_MAGIC and is_pyramid(Path(name), data) else width * height
            if pixels > limits.picture_pixels:
                raise InputError(f"has {pixels:,} pixels; the limit is {limits.picture_pixels:,}. {FOR_MORE}")
            if pixels > pixels_left:
                raise InputError(f"exceeds the limit of {limits.pixels:,} pixels for all images. {FOR_MORE}")
            accepted[_number(name, accepted)] = data
            pixels_left -= pixels
        except InputError as error:
            problems.append(Problem(name, str(error).removeprefix(f"{name}: ")))
    return accepted, problems


def unpack_uploads(files: Iterable[Upload], *, limits: Limits = Limits()) -> tuple[list[Upload], list[Problem]]:
    """List all files, including those in zip archives, within the limits.

    An archive is rejected as a whole if it is damaged or exceeds the limits. In an archive, encrypted files, archives,
    paths outside the archive, and files without the ending of an image are rejected; so are files uploaded before.
    Hidden files, and those added by operating systems (`__MACOSX`), are skipped.
    """
    accepted: list[Upload] = []
    problems: list[Problem] = []
    seen, bytes_left = set(), limits.bytes

    def check_limits(number: int, size: int) -> None:
        if len(accepted) + number > limits.files:
            raise InputError(f"exceeds the limit of {limits.files:,} files at a time. {FOR_MORE}")
        if size > bytes_left:
            most = f"{limits.bytes / 2**20:,.0f} MB"
            raise InputError(f"exceeds the limit of {most} at a time, after unpacking. {FOR_MORE}")

    for name, data in files:
        try:
            members = [(name, data)]
            if data[:4] == ZIP_FILE or name.lower().endswith(".zip"):
                members, refused = _unpack_zip(data, limits.files, check_limits)
                problems += [Problem(f"{name}: {member}", reason) for member, reason in refused]
            for member, content in members:
                key = (member, hashlib.sha256(content).digest())
                if key in seen:
                    problems.append(Problem(member, "was uploaded twice and is used once"))
                    continue
                check_limits(1, len(content))
                seen.add(key)
                accepted.append((member, content))
                bytes_left -= len(content)
        except InputError as error:
            problems.append(Problem(name, str(error)))
    return accepted, problems


def sample_uploads() -> list[Upload]:
    """Return the patches of one synthetic slide as PNG files whose names give their positions."""
    from cancernet.data.sample import cut_patches, make_slide

    return [
        (f"{SAMPLE_PATIENT}_idx5_x{x}_y{y}.png", cv2.imencode(".png", image[..., ::-1])[1].tobytes())
        for image, _, x, y in cut_patches(make_slide(SAMPLE_SEED, SAMPLE_PATIENT))
    ]


def _number(name: str, taken: dict[str, bytes]) -> str:
    """Return the name or, if it is taken, `name (2).png` and so on."""
    path = Path(name)
    others = (path.with_name(f"{path.stem} ({number}){path.suffix}").as_posix() for number in itertools.count(2))
    return next(each for each in itertools.chain([name], others) if each not in taken)


def _unpack_zip(data: bytes, most: int, check_limits: Callable[[int, int], None]) -> tuple[list[Upload], list[Problem]]:
    members: list[Upload] = []
    problems: list[Problem] = []
    if data.count(ZIP_ENTRY) > 2 * most:  # folders are entries, too; reading millions would fill the memory
        raise InputError(f"contains more than {most:,} files. {FOR_MORE}")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = [entry for entry in archive.infolist() if not _is_hidden(entry)]
            check_limits(len(entries), sum(entry.file_size for entry in entries))
            for entry in entries:
                if reason := _reason_to_reject(entry):
                    problems.append(Problem(entry.filename, reason))
                    continue
                try:
                    with archive.open(entry) as file:  # unlike read(), this unpacks no more than was declared
                        content = file.read(entry.file_size + 1)
                except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
                    problems.append(Problem(entry.filename, f"is damaged in the archive ({error})"))
                    continue
                members.append((entry.filename, content))
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError) as error:
        raise InputError(f"cannot be unpacked ({error}). Create the archive again.") from error
    return members, problems


def _is_hidden(entry: zipfile.ZipInfo) -> bool:
    return entry.is_dir() or any(map(is_ignored, entry.filename.replace("\\", "/").split("/")))


def _reason_to_reject(entry: zipfile.ZipInfo) -> str:
    name = entry.filename.replace("\\", "/")
    if name.startswith("/") or re.match("[A-Za-z]:", name) or ".." in name.split("/"):
        return "has a path that leads out of the archive"
    if entry.flag_bits & 1:
        return "is encrypted. Upload it without a password."
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "uses an unsupported compression method. Create the archive with deflate."
    if name.lower().endswith(".zip"):
        return "is an archive in an archive. Upload it separately."
    supported = name.lower().endswith(ENDINGS)
    return "" if supported else f"has an unsupported file type. Supported: {', '.join(ENDINGS)}."
