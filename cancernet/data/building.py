"""Writing a built dataset: images checked and copied into class folders, and nothing half-built left behind."""

import functools
import gc
import hashlib
import itertools
import os
import signal
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cancernet import InputError
from cancernet.config import SPLITS
from cancernet.data.dataset import MANIFEST, SUMMARY, Patch, count_patches, is_whole, read_summary
from cancernet.data.images import decode_image
from cancernet.data.source import SourceFile, SourceImage

ALMOST_BLACK = 16  # of 255: 4095 of 65535, the most that 12 bits hold
_CHUNK = 128  # files a worker takes at a time


class Check(NamedTuple):
    """What decoding one image told."""

    sha256: str
    height: int
    width: int
    is_grey: bool
    brightest: int  # of all values, 0 to 255
    reason: str  # why it cannot be used; "" if it can


def place_images(
    source: Path,
    output: Path,
    images: Sequence[SourceImage],
    *,
    mode: str = "copy",
    progress: Callable[[int], object] = lambda files: None,
) -> tuple[list[Patch], list[Check], list[tuple[str, str]]]:
    """Decode, hash and copy each image into `output/<split>/<class>/`, using every processor.

    Args:
        source, output: folders; `output` is new.
        images: what `plan_splits` returned; images without a split are passed over.
        mode: copy, hardlink or symlink.
        progress: called with the number of files done since the last call.

    Returns:
        The manifest's rows by split and file; a check of each; and file and reason of what was rejected.

    Raises:
        OSError: a file cannot be written (a full disk, say).
    """
    images = [image for image in images if image.split]
    targets = _name_targets(images)
    for folder in {os.path.dirname(target) for target in targets}:
        (output / folder).mkdir(parents=True, exist_ok=True)
    tasks = zip((image.file for image in images), targets, strict=True)
    checks = _check_and_copy_all(str(source.resolve()), str(output.resolve()), tasks, mode, progress)

    kept, rejected = [], []
    repeated = _repeated(check.sha256 for check in checks)
    first_of: dict[tuple, str] = {}
    for image, target, check in zip(images, targets, checks, strict=True):
        reason = check.reason
        if not reason and image.patient and check.sha256 in repeated:
            key = (image.patient, image.label, _name(image), check.sha256)
            original = first_of.setdefault(key, image.file)
            if original != image.file:
                reason = f"a second copy of {original}"
                (output / target).unlink()
        if reason:
            rejected.append((image.file, reason))
        else:
            row = Patch(target, image.label, image.patient, image.x, image.y, image.split, check.sha256)
            kept.append((row, check))
    kept.sort(key=lambda pair: (SPLITS.index(pair[0].split), pair[0].file))
    return [patch for patch, _ in kept], [check for _, check in kept], rejected


def _name(image: SourceImage) -> str:
    return image.file.rpartition("/")[2]


def _repeated(hashes: Iterable[str]) -> set[str]:
    """Those that are there more than once."""
    return {sha256 for sha256, n in Counter(hashes).items() if n > 1}


def _name_targets(images: Sequence[SourceImage]) -> list[str]:
    names: set[str] = set()
    return [_free_name(f"{image.split}/{image.label}/{_name(image)}", names) for image in images]


def _free_name(target: str, taken: set[str]) -> str:
    """`target`, or the same with -2, -3... before its ending where a file of that name is already there."""
    stem, ending = os.path.splitext(target)
    number, name = 1, target
    while name.lower() in taken:
        number += 1
        name = f"{stem}-{number}{ending}"
    taken.add(name.lower())
    return name


def _check_and_copy_all(source: str, output: str, tasks: Iterable, mode: str, progress: Callable) -> list[Check]:
    chunks = iter(lambda: list(itertools.islice(tasks, _CHUNK)), [])
    work = functools.partial(_check_and_copy, source, output, mode)
    checks: list[Check] = []
    pool = ProcessPoolExecutor(max_workers=os.cpu_count(), initializer=_start_worker)
    try:
        for chunk in pool.map(work, chunks):
            checks.extend(map(Check._make, chunk))
            progress(len(chunk))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return checks


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers Ctrl-C
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders write about damaged files there; we name them ourselves
    gc.freeze()  # what the parent holds is shared with it as long as nobody touches it


def _check_and_copy(source: str, output: str, mode: str, tasks: list) -> list[tuple]:
    """The fields of a Check for each task; as plain tuples, which travel between processes in less time."""
    checks: list[tuple] = []
    for file, target in tasks:
        origin = f"{source}/{file}"
        try:
            with open(origin, "rb", buffering=0) as opened:
                data = opened.read()
            image = decode_image(data, channels=3)
        except InputError as error:
            checks.append(("", 0, 0, False, 0, str(error)))
            continue
        except OSError as error:
            checks.append(("", 0, 0, False, 0, f"cannot be read: {error.strerror}"))
            continue
        _put(data, origin, f"{output}/{target}", mode)
        checks.append((hashlib.sha256(data).hexdigest(), *image.shape[:2], _is_grey(image), int(image.max()), ""))
    return checks


def _is_grey(image: np.ndarray) -> bool:
    """Whether red, green and blue are the same in every pixel of an image [height, width, 3]."""
    red, green, blue = image[0, 0].tolist()
    if not red == green == blue:  # most coloured images are told by their first pixel
        return False
    return bool((image[..., 0] == image[..., 1]).all() and (image[..., 1] == image[..., 2]).all())


def _put(data: bytes, origin: str, target: str, mode: str) -> None:
    if mode == "hardlink":
        os.link(os.path.realpath(origin) if os.path.islink(origin) else origin, target)
    elif mode == "symlink":
        os.symlink(origin, target)
    else:
        with open(target, "wb") as file:
            file.write(data)


def summarise(
    planned: Sequence[SourceImage],
    misplaced: Sequence[tuple[str, str]],
    patches: Sequence[Patch],
    checks: Sequence[Check],
    rejected: Sequence[tuple[str, str]],
) -> dict:
    """Count what a build did: what came in, what was rejected or left out, image sizes, and duplicates.

    The source had the `planned` and the `misplaced`; of the planned, `patches` were built and some `rejected`.

    Duplicates are files with the same bytes under different patients, a leak between splits.
    """
    counts = Counter((check.width, check.height) for check in checks)
    usual = counts.most_common(1)[0][0]
    repeated, same_bytes = _repeated(patch.sha256 for patch in patches), defaultdict(list)
    for patch in patches:
        if patch.sha256 in repeated:
            same_bytes[patch.sha256].append(patch)
    duplicates = [group for group in same_bytes.values() if len({patch.patient or patch.file for patch in group}) > 1]
    left_out = {image.patient for image in planned} - {patch.patient for patch in patches}
    return {
        "source_images": len(planned) + len(misplaced),
        "images": len(patches),
        "splits": {
            split: count_patches([patch for patch in patches if split in (patch.split, "all")])
            for split in (*SPLITS, "all")
        },
        "source_patients": len({image.patient for image in planned if image.patient}),
        "images_without_patient": sum(not patch.patient for patch in patches),
        "rejected": len(misplaced) + len(rejected),
        "left_out_images": len(planned) - len(patches) - len(rejected),
        "left_out_patients": len(left_out - {""}),
        "grey_images": sum(check.is_grey for check in checks),
        "almost_black": sum(check.brightest <= ALMOST_BLACK for check in checks),
        "edge_tiles": sum(n for (width, height), n in counts.items() if width < usual[0] or height < usual[1]),
        "sizes": {f"{width}x{height}": n for (width, height), n in counts.most_common()},
        "duplicates_across_patients": len(duplicates),
        "duplicates_across_splits": sum(len({patch.split for patch in group}) > 1 for group in duplicates),
        "duplicates": [[patch.file for patch in group] for group in duplicates],
    }


def fingerprint(files: Sequence[SourceFile]) -> str:
    """Hash of the names, sizes and times of modification, in nanoseconds, of the source's files.

    It changes when a file is added, removed, renamed, or written to: the evidence that make and rsync go by. No file
    is opened for it. A file whose contents change while its size and time are set back is not noticed here; training
    notices it by its hash where the dataset holds links.
    """
    listing = "".join([f"{file}\0{size}\0{modified}\n" for file, size, modified in files])
    return hashlib.sha256(os.fsencode(listing)).hexdigest()


def read_current(output: Path, settings: dict, source_fingerprint: str, *, force: bool) -> dict | None:
    """The summary of `output` where it already is what a build with these settings would make, else None.

    It is where the source's fingerprint and the settings are those it was made with, the manifest is the one that was
    written, and the files under it are those of the manifest, by name.

    Raises:
        InputError: it holds something else that must not be overwritten.
    """
    if output.is_file() or output.is_symlink():
        raise InputError(f"{output} is a file; --output takes the folder to be made.")
    if not output.exists() or not any(output.iterdir()):
        return None
    if not (output / MANIFEST).is_file() or not (output / SUMMARY).is_file():
        raise InputError(f"{output} is not empty and no dataset made by build_dataset.py. Choose another --output.")
    try:
        summary = read_summary(output)
    except InputError:
        if force:
            return None
        raise
    if summary["settings"] != settings:
        if force:
            return None
        changed = ", ".join(sorted(key for key in settings if summary["settings"].get(key) != settings[key]))
        raise InputError(f"{output} was made with other settings ({changed}). Use --force to make it anew.")
    is_current = summary["source_fingerprint"] == source_fingerprint and is_whole(output, summary)
    return summary if is_current else None


def check_apart(source: Path, output: Path) -> None:
    """See that neither folder lies in the other, so that the source is never changed.

    Raises:
        InputError: one does.
    """
    inner, outer = source.resolve(), output.resolve()
    if inner == outer or inner in outer.parents or outer in inner.parents:
        raise InputError(f"--source {source} and --output {output} must be two folders, neither inside the other.")
