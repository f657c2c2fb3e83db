"""Write a built dataset: check the images and copy them into class folders."""

import functools
import gc
import hashlib
import itertools
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from cancernet import CancerNetError, InputError
from cancernet.cli import ENDING
from cancernet.config import SPLITS
from cancernet.data import dicom
from cancernet.data.dataset import (
    IDC_MPP,
    IDC_PIXELS,
    SUMMARY,
    BuildSettings,
    Patch,
    Summary,
    count_patches,
    is_idc,
    is_unchanged,
    list_copies,
    read_summary,
)
from cancernet.data.images import MOST_MEGAPIXELS, decode_image, encode_png, is_failed_read, read_file
from cancernet.data.near_duplicates import hash_pictures, make_thumbnail
from cancernet.data.source import SourceFile

if TYPE_CHECKING:
    from cancernet.data.annotations import AnnotatedSlide, SlidePlan

ALMOST_BLACK = 16  # of 255; in 16 bits 4095, the largest value of a 12-bit image
_MOST_WORKERS = 61 if sys.platform == "win32" else 1024  # more end in ValueError on Windows
_CHUNK = 128  # files that a worker takes at a time
_LONGEST_NAME = 255  # bytes of a file name, on nearly all file systems
_MORE_MEMORY = "Start the build again with more memory, or with a smaller --megapixels."
_BLOCK, _BYTES_PER_ROW = 4096, 300  # of a file system; of a manifest


class Plan(NamedTuple):
    """The class and split of each image of a source."""

    patches: list[Patch]  # files of the source; split is "" if the split file does not name the patient
    misplaced: list[tuple[str, str]]  # file and reason of images without a clear class
    nesting: str  # a warning about folders that may not be classes; "" for none
    split: Literal["patient", "image", "file", "given"]  # what decided the split, as in Summary
    slides: "SlidePlan | None" = None  # that the patches are cut from; None where they are files


class Check(NamedTuple):
    """The result of decoding an image."""

    sha256: str
    height: int
    width: int
    is_grey: bool
    brightest: int  # the largest value, 0 to 255
    reason: str  # why the image cannot be used; "" if it can
    picture: int = 0  # `near_duplicates.hash_pictures`
    thumbnail: np.ndarray | None = None  # that it is made of, until then


class Built(NamedTuple):
    """The images that were written, and those that were rejected."""

    patches: list[Patch]  # the rows of the manifest, by split and file
    checks: list[Check]  # of each row
    rejected: list[tuple[str, str]]  # file and reason


def check_apart(source: Path, output: Path) -> None:
    """Raise InputError if one folder is inside the other: the source is never changed."""
    one, other = (Path(os.path.realpath(folder)) for folder in (source, output))
    if one.is_relative_to(other) or other.is_relative_to(one):
        raise InputError(f"--source {source} and --output {output} must be two folders, neither inside the other.")


def find_current(output: Path, settings: BuildSettings, source_fingerprint: str) -> Summary | None:
    """Return the summary of a dataset if it is what a build with these settings would make, else None.

    `output` is a built dataset, or an empty or absent folder, `source_fingerprint` that of the source as it is now.
    Raises InputError if the dataset was built with other settings, CancerNetError if its summary is damaged.
    """
    if not (output / SUMMARY).is_file():
        return None
    summary = read_summary(output)
    old, new = asdict(summary.settings), asdict(settings)
    changed = sorted(name for name in new if old[name] != new[name])
    if changed:
        raise InputError(f"{output} was built with other settings ({', '.join(changed)}). Use --force to replace it.")
    return summary if summary.source_fingerprint == source_fingerprint and is_unchanged(output, summary) else None


def estimate_size(files: Sequence[SourceFile], planned: Sequence[Patch], *, mode: str) -> int:
    """Estimate the bytes of a dataset with its manifest, if the planned images with a split are built.

    Files that are too large for images do not count. Links (the modes hardlink and symlink) take no space.
    """
    sizes = [file.size for file in files if mode == "copy" and file.size < MOST_MEGAPIXELS * 1e6]
    whole = sum(-(-size // _BLOCK) * _BLOCK for size in sizes) + len(files) * _BYTES_PER_ROW
    return whole * sum(bool(patch.split) for patch in planned) // len(files)


def place_images(
    source: Path, output: Path, plan: Plan, settings: BuildSettings, progress: Callable[[int], object]
) -> Built:
    """Decode, hash and copy images into `output/<split>/<class>/`, or cut them from slides, on all processor cores.

    The files of the plan are relative to `source`; images without a split are not built. `progress` is called with the
    number of files done since the last call. Raises OSError if a file cannot be read, or not written, because the disk
    is full, for example; CancerNetError if a worker process was killed, or memory ran out.
    """
    planned = [patch for patch in plan.patches if patch.split]
    targets = _name_targets(planned)
    _make_folders(output, targets)
    folder = str(output.resolve())
    if slides := plan.slides:
        blocks = itertools.groupby(zip(planned, targets, strict=True), lambda task: slides.find_block(task[0]))
        cut = functools.partial(_cut_patches, slides.slides, folder, settings)
        checks = _run_workers(cut, (list(block) for _, block in blocks), progress)
    else:
        tasks = zip((patch.file for patch in planned), targets, strict=True)
        copy = functools.partial(_check_and_copy, str(source.resolve()), folder, settings.mode, settings.megapixels)
        checks = _run_workers(copy, iter(lambda: list(itertools.islice(tasks, _CHUNK)), []), progress)

    kept, rejected = [], []
    number = Counter(check.sha256 for check in checks)
    first_of: dict[tuple[str, ...], str] = {}
    for patch, target, check in zip(planned, targets, checks, strict=True):
        reason = check.reason
        if not reason and number[check.sha256] > 1:  # without a patient, also under another name
            key = (patch.patient, patch.label, os.path.basename(patch.file) if patch.patient else "", check.sha256)
            original = first_of.setdefault(key, patch.file)
            if original != patch.file:
                reason = f"a second copy of {original}"
                (output / target).unlink()
        if reason:
            rejected.append((patch.file, reason))
        else:
            kept.append((patch._replace(file=target, sha256=check.sha256), check))
    return _sort(kept, rejected)


def _sort(kept: list[tuple[Patch, Check]], rejected: list[tuple[str, str]]) -> Built:
    kept.sort(key=lambda pair: (SPLITS.index(pair[0].split), pair[0].file))
    return Built([patch for patch, _ in kept], [check for _, check in kept], rejected)


def separate_copies(output: Path, built: Built, plan: Plan, settings: BuildSettings) -> Built:
    """Put images with the same bytes on one side of the split, see `splits.list_groups`.

    A split that was not given is made again. In one that was given, the copies outside testing, then outside
    validation, are rejected. Raises InputError as `splits.assign_splits`.
    """
    from cancernet.data.splits import assign_splits, list_groups  # scikit-learn is slow to load

    patches, checks, rejected = built
    groups = list_groups(patches, by_patient=settings.split_by == "patient")
    if len(set(zip(groups, (patch.split for patch in patches), strict=True))) == len(set(groups)):
        return built
    kept, new = [], output / "new"
    if plan.split in ("file", "given"):
        last = {patch.sha256: patch for patch in patches}  # sorted by split
        for patch, check in zip(patches, checks, strict=True):
            if patch.split == last[patch.sha256].split:
                kept.append((patch, check))
            else:
                rejected.append((patch.file, f"a copy of {last[patch.sha256].file}"))
                (output / patch.file).unlink()
        return _sort(kept, rejected)
    splits = assign_splits([patch.label for patch in patches], groups, seed=settings.seed)
    targets = _name_targets([patch._replace(split=split) for patch, split in zip(patches, splits, strict=True)])
    _make_folders(new, targets)
    for patch, check, split, target in zip(patches, checks, splits, targets, strict=True):
        os.rename(output / patch.file, new / target)
        kept.append((patch._replace(file=target, split=split), check))
    for split in SPLITS:
        shutil.rmtree(output / split, ignore_errors=True)
        (new / split).rename(output / split)
    new.rmdir()
    return _sort(kept, rejected)


def _make_folders(output: Path, targets: Iterable[str]) -> None:
    for folder in {os.path.dirname(target) for target in targets}:
        (output / folder).mkdir(parents=True, exist_ok=True)


def _name_targets(planned: Sequence[Patch]) -> list[str]:
    """Return `<split>/<class>/<name>` for each file of a source.

    A name that its folder already has, in any case, gets -2, -3... before its ending; one that is too long is cut.
    """
    targets = []
    taken: dict[str, int] = {}  # path in lower case -> the last number that was tried for it
    for patch in planned:
        stem, ending = os.path.splitext(os.path.basename(patch.file))
        ending = ".png" if ending.lower() == dicom.ENDING else ending
        folder = f"{patch.split}/{patch.label}/"
        wanted = f"{folder}{stem}{ending}".lower()
        number, target = taken.get(wanted, 0), ""
        while not target or target.lower() in taken:
            number += 1
            addition = f"-{number}{ending}" if number > 1 else ending
            cut = os.fsencode(stem)[: _LONGEST_NAME - len(os.fsencode(addition))].decode(errors="ignore")
            target = f"{folder}{cut}{addition}"
        taken[target.lower()] = 1
        taken[wanted] = number
        targets.append(target)
    return targets


def _run_workers(
    work: Callable[[list], list[Check]], chunks: Iterable[list], progress: Callable[[int], object]
) -> list[Check]:
    checks: list[Check] = []
    pool = ProcessPoolExecutor(max_workers=min(os.cpu_count() or 1, _MOST_WORKERS), initializer=_start_worker)
    try:
        for chunk in pool.map(functools.partial(_work_and_hash, work), chunks):
            checks += chunk
            progress(len(chunk))
    except BrokenProcessPool as error:
        raise CancerNetError(
            f"A worker process was killed, most likely because memory ran out. {_MORE_MEMORY}"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return checks


def _work_and_hash(work: Callable[[list], list[Check]], chunk: list) -> list[Check]:
    """Check the images of a chunk, then hash their pictures together, which is faster."""
    checks = work(chunk)
    hashes = iter(hash_pictures([check.thumbnail for check in checks if check.thumbnail is not None]))
    return [c if c.thumbnail is None else c._replace(picture=next(hashes), thumbnail=None) for c in checks]


def _start_worker() -> None:
    for number in (signal.SIGINT, *ENDING):  # a batch system sends them to all processes
        signal.signal(number, signal.SIG_IGN)  # the parent handles them
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders print about damaged files; rejected.csv lists them
    gc.freeze()  # the garbage collector would touch, and so copy, the memory that is shared with the parent


def _exit_with_parent() -> None:
    """Exit when the parent is killed; otherwise workers would wait forever and keep its files open."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)


def _check_and_copy(
    source: str, output: str, mode: str, megapixels: float, tasks: list[tuple[str, str]]
) -> list[Check]:
    """Decode and copy files; each task is the name of one in the source, and in the dataset."""
    checks = []
    for file, target in tasks:
        origin = f"{source}/{file}"
        try:
            data = read_file(origin, megapixels=megapixels)
            image = decode_image(data, channels=3, megapixels=megapixels)
        except (InputError, OSError) as error:
            if is_failed_read(error) or not os.path.lexists(origin):
                raise  # another attempt may succeed
            reason = f"cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)
            checks.append(Check("", 0, 0, False, 0, reason))
            continue
        except MemoryError as error:
            raise CancerNetError(f"Memory ran out at {origin}. {_MORE_MEMORY}") from error
        is_dicom = data[dicom.MAGIC] == b"DICM"
        data = encode_png(image) if is_dicom else data  # only the pixels: the tags of a DICOM file name the patient
        checks.append(_write_image(image, data, origin, f"{output}/{target}", "copy" if is_dicom else mode))
    return checks


def _cut_patches(
    slides: "Mapping[str, AnnotatedSlide]", output: str, settings: BuildSettings, tasks: list[tuple[Patch, str]]
) -> list[Check]:
    """Cut the patches of one block of a slide, and write those that show tissue."""
    from cancernet.data.tiles import iterate_tiles, open_slide_image  # other builds do not need tiffslide

    slide, pixels, mpp = slides[tasks[0][0].slide], settings.patch_pixels or IDC_PIXELS, settings.mpp or IDC_MPP
    targets = {(patch.x or 0, patch.y or 0): target for patch, target in tasks}
    checks: dict[str, Check] = {}
    reason = "shows background only"
    try:
        with open_slide_image(slide.path, slide.mpp) as opened:
            for tile in iterate_tiles(opened, file="", patch_pixels=pixels, target_mpp=mpp, places=targets):
                target = targets[tile.x or 0, tile.y or 0]
                path = f"{output}/{target}"
                checks[target] = _write_image(tile.image, encode_png(tile.image), str(slide.path), path, "copy")
    except InputError as error:
        if is_failed_read(error):
            raise CancerNetError(str(error)) from error  # another attempt may succeed
        reason = str(error)
    return [checks.get(target, Check("", 0, 0, False, 0, reason)) for _, target in tasks]


def _write_image(image: np.ndarray, data: bytes, origin: str, target: str, mode: str) -> Check:
    """Write the bytes of an image, or a link to them, and describe it."""
    try:
        if mode == "hardlink":
            os.link(os.path.realpath(origin) if os.path.islink(origin) else origin, target)
        elif mode == "symlink":
            os.symlink(origin, target)
        else:
            with open(target, "wb") as file:
                file.write(data)
    except OSError as error:  # a failed write does not name the file
        raise OSError(error.errno, f"{error.strerror} (for {len(data):,} bytes)", target) from error
    red, green, blue = image.transpose(2, 0, 1)
    # Most colour images differ in their first pixel.
    is_grey = red[0, 0] == green[0, 0] == blue[0, 0] and (red == green).all() and (green == blue).all()
    (height, width), sha256 = red.shape, hashlib.sha256(data).hexdigest()
    return Check(sha256, height, width, bool(is_grey), int(image.max()), "", thumbnail=make_thumbnail(image))


def summarise(
    plan: Plan,
    built: Built,
    settings: BuildSettings,
    source_fingerprint: str,
    near_duplicates: Sequence[Sequence[Patch]] = (),
) -> Summary:
    """Count the images that were built, rejected and left out, their sizes, and duplicates.

    Duplicates are files with the same bytes under different patients or in different classes.
    """
    planned, (patches, checks, rejected) = plan.patches, built
    sizes = Counter((check.width, check.height) for check in checks)
    usual = sizes.most_common(1)[0][0]
    copies = [[patches[row] for row in rows] for rows in list_copies(patches)]
    duplicates = [group for group in copies if len({(patch.patient or patch.file, patch.label) for patch in group}) > 1]
    idc = is_idc(patches)
    left_out = {patch.patient for patch in planned} - {patch.patient for patch in patches}
    return Summary(
        source_images=len(planned) + len(plan.misplaced),
        images=len(patches),
        splits={
            split: count_patches([patch for patch in patches if split in (patch.split, "all")])
            for split in (*SPLITS, "all")
        },
        images_without_patient=sum(not patch.patient for patch in patches),
        rejected=len(plan.misplaced) + len(rejected),
        left_out_images=len(planned) - len(patches) - len(rejected),
        left_out_patients=len(left_out - {""}),
        grey_images=sum(check.is_grey for check in checks),
        almost_black=sum(check.brightest <= ALMOST_BLACK for check in checks),
        same_pixels=Counter(check.picture for check in checks).most_common(1)[0][1],
        edge_tiles=sum(n for (width, height), n in sizes.items() if width < usual[0] or height < usual[1]),
        sizes={f"{width}x{height}": n for (width, height), n in sizes.most_common()},
        duplicates_across_patients=sum(len({patch.patient for patch in group} - {""}) > 1 for group in duplicates),
        duplicates_across_classes=sum(len({patch.label for patch in group}) > 1 for group in duplicates),
        duplicates_across_splits=sum(len({patch.split for patch in group}) > 1 for group in duplicates),
        duplicates=tuple(tuple(patch.file for patch in group) for group in duplicates),
        near_duplicates_across_splits=sum(len({patch.split for patch in group}) > 1 for group in near_duplicates),
        near_duplicates=tuple(tuple(patch.file for patch in group) for group in near_duplicates),
        split=plan.split,
        settings=settings,
        nesting=plan.nesting,
        source_fingerprint=source_fingerprint,
        mpp=settings.mpp or (IDC_MPP if idc else None),
        patch_pixels=settings.patch_pixels or (IDC_PIXELS if idc else min(usual)),
        class_colours=plan.slides and plan.slides.colours,
    )
