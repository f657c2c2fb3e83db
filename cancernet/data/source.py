"""The images of a source: which files there are, and what their names and folders tell."""

import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from cancernet import InputError
from cancernet.config import SPLIT_NAMES
from cancernet.data.dataset import IDC_PATIENT, read_place
from cancernet.data.images import EXTENSIONS
from cancernet.folders import describe_passed_over, walk

_CLASS_IN_NAME = re.compile(r"_class(\d+)$")
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # what Python makes of a name's bytes that are no text


class SourceImage(NamedTuple):
    """An image as it was found under the source."""

    file: str  # relative to the source
    label: str
    patient: str
    x: int | None
    y: int | None
    split: str  # "" where the source is not split


class SourceFile(NamedTuple):
    """An image file under the source, and by what a change of it is noticed."""

    file: str  # relative to the source, with forward slashes
    size: int  # bytes
    modified: int  # nanoseconds


def list_files(source: Path) -> tuple[list[SourceFile], Counter]:
    """List the image files under a folder, in the order of their names; none is opened.

    Returns:
        The image files, and the number of other files by their ending.

    Raises:
        InputError: no such folder, or no images in it.
    """
    if not source.exists():
        raise InputError(f"There is no folder {source}. Give --source, or --sample for made-up slides.")
    if not source.is_dir():
        raise InputError(f"{source} is a file; --source takes a folder of images.")
    files, others = [], Counter()
    for file, entry in walk(source, EXTENSIONS, others=others):
        leads_nowhere = entry.is_symlink() and not os.path.exists(entry.path)  # is rejected when it is to be read
        status = entry.stat(follow_symlinks=not leads_nowhere)
        files.append(SourceFile(file, status.st_size, status.st_mtime_ns))
    if not files:
        raise InputError(
            f'No images under {source}. Expected names like 10253_idx5_x1351_y1101_class0.png; see README, "Data". '
            + describe_passed_over(others)
        )
    return files, others


def compile_pattern(patient_pattern: str) -> re.Pattern:
    """The regular expression whose first group, searched in a file's name, is the patient.

    Raises:
        InputError: it is no regular expression or has no group.
    """
    try:
        find_patient = re.compile(patient_pattern)
    except re.error as error:
        raise InputError(f"--patient-pattern {patient_pattern!r} is no regular expression: {error}.") from error
    if find_patient.groups < 1:
        raise InputError(rf"--patient-pattern {patient_pattern!r} has no group; put the patient in brackets: ^(\d+)_")
    return find_patient


def find_images(files: Sequence[SourceFile], patient_pattern: str = IDC_PATIENT) -> list[SourceImage]:
    """What the names of a source's files tell of its images, in their order.

    The class of an image is the folder it lies in. Where folders above class folders are called train, val or test (or
    the longer names), they are the split.

    Args:
        files: of `list_files`, such as `<patient>/<class>/x.png`, `<class>/x.jpg` or `<split>/<class>/x.png`.
        patient_pattern: as `compile_pattern` takes it.

    Raises:
        InputError: a pattern that is no regular expression with a group.
    """
    find_patient = compile_pattern(patient_pattern)
    told = _read_folders({each.file.rpartition("/")[0] for each in files})
    images = []
    for file, _, _ in files:
        folder, _, name = file.rpartition("/")
        patient, x, y = read_place(name.rpartition(".")[0], find_patient)
        label, split = told[folder]
        images.append(SourceImage(file, label, sys.intern(patient), x, y, split))  # few names, of very many images
    return images


def _read_folders(folders: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Class and split that each folder tells; in a source that is split, a split's folder is no class."""
    splits = {}
    for folder in folders:
        above = folder.lower().split("/")[:-1]
        splits[folder] = next((SPLIT_NAMES[name] for name in above if name in SPLIT_NAMES), "")
    no_class = set(SPLIT_NAMES) if any(splits.values()) else set()
    labels = {folder: folder.rpartition("/")[2] for folder in splits}
    return {
        folder: (labels[folder] if split or labels[folder].lower() not in no_class else "", split)
        for folder, split in splits.items()
    }


def describe_nesting(images: Iterable[SourceImage]) -> str:
    """In words, that class folders may be something else, a class's patients or parts; "" where they look like classes.

    They may where one lies inside another, or where they lie inside several folders and are called differently in each,
    so that there are fewer than two folders a name. Folders of a split count as one.
    """
    folders = set()
    for path in {image.file.rpartition("/")[0] for image in images}:
        *above, label = path.split("/")
        folders.add("/".join([*(name for name in above if name.lower() not in SPLIT_NAMES), label]))
    labels = {folder.rpartition("/")[2] for folder in folders}
    parents = {folder.rpartition("/")[0] for folder in folders}
    if not parents & folders and (len(parents) == 1 or len(folders) >= 2 * len(labels)):
        return ""
    return (
        f"{len(labels)} classes come of folders inside others, such as {', '.join(sorted(folders)[:3])}. "
        "The class of an image is the folder it lies in: see that these are classes, not patients or parts."
    )


def check_pattern(images: Sequence[SourceImage], patient_pattern: str) -> None:
    """See that a pattern that was asked for finds a patient.

    Raises:
        InputError: it finds none.
    """
    if not any(image.patient for image in images):
        names = ", ".join(image.file.rpartition("/")[2] for image in images[:3])
        raise InputError(f"--patient-pattern {patient_pattern!r} finds no patient in any name, such as {names}.")


def separate_misplaced(images: Sequence[SourceImage]) -> tuple[list[SourceImage], list[tuple[str, str]]]:
    """The images whose class is clear, and file and reason of the others."""
    placed, misplaced = [], []
    for image in images:
        named = _CLASS_IN_NAME.search(image.file.rpartition(".")[0])
        if _NOT_UTF8.search(image.file):
            misplaced.append((image.file, "its name is not UTF-8 text; rename it"))
        elif not image.label:
            misplaced.append((image.file, "lies in no class folder"))
        elif named and image.label.isdigit() and named.group(1) != image.label:
            misplaced.append((image.file, f"its name says class {named.group(1)}, its folder {image.label}"))
        else:
            placed.append(image)
    if not placed:
        raise InputError(
            f"No image lies in a class folder, first {images[0].file}: {misplaced[0][1]}. "
            "Expected <patient>/<class>/x.png or <class>/x.png."
        )
    return placed, misplaced
