"""The images of a source: list its files, and read class, patient and split from names and folders."""

import contextlib
import os
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from cancernet import InputError
from cancernet.config import SPLIT_NAMES
from cancernet.data import dicom
from cancernet.data.dataset import IDC_PATIENT, Patch, find_place
from cancernet.data.files import describe_unsupported, walk
from cancernet.data.images import EXTENSIONS

MOST_CLASSES = 10  # names of folders that look like classes
_CLASS_IN_NAME = re.compile(r"_class(\d+)$")
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # how Python represents bytes of a name that are not text


class SourceFile(NamedTuple):
    """An image file of the source, with its size and modification time to detect changes."""

    file: str  # relative to the source, with forward slashes
    size: int  # bytes
    modified: int  # nanoseconds


def list_files(source: Path) -> tuple[list[SourceFile], Counter[str]]:
    """List a folder's image files, in order of their names, and count files of unsupported types; none is opened."""
    if not source.exists():
        raise InputError(f"There is no folder {source}. Give --source, or use --sample for synthetic slides.")
    if not source.is_dir():
        raise InputError(f"{source} is a file, but --source takes a folder of images.")
    files: list[SourceFile] = []
    unsupported: Counter[str] = Counter()
    for file, entry in walk(source, (*EXTENSIONS, dicom.ENDING), others=unsupported):
        is_broken = entry.is_symlink() and not os.path.exists(entry.path)  # rejected when it is read
        status = entry.stat(follow_symlinks=not is_broken)
        files.append(SourceFile(file, status.st_size, status.st_mtime_ns))
    if not files:
        expected = 'Expected names like 10253_idx5_x1351_y1101_class0.png; see README, "Data".'
        raise InputError(f"No images under {source}. {expected} {describe_unsupported(unsupported)}")
    return files, unsupported


def compile_pattern(patient_pattern: str) -> re.Pattern[str]:
    """Compile the regular expression whose first group, searched in a file's name, is the patient, or InputError."""
    try:
        find_patient = re.compile(patient_pattern)
    except re.error as error:
        raise InputError(f"--patient-pattern {patient_pattern!r} is not a regular expression: {error}.") from error
    if find_patient.groups < 1:
        raise InputError(
            rf"--patient-pattern {patient_pattern!r} has no group. Put the patient in parentheses, as in ^(\d+)_"
        )
    return find_patient


def find_images(
    files: Sequence[SourceFile], patient_pattern: str = IDC_PATIENT, *, class_level: int = 1
) -> list[Patch]:
    """Read class, patient, position and split of each image from its name and its folders.

    The class of an image is the folder it is in, or one above: `class_level` counts upwards. Folders above class
    folders that are named train, val or test (or the longer names) are the split. The label is "" for a file that is in
    no class folder, the split is "" if the source is not split, and sha256 is "". Raises InputError if a pattern other
    than that of the IDC set finds no patient.
    """
    find_patient = compile_pattern(patient_pattern)
    folders = _read_folders({each.file.rpartition("/")[0] for each in files}, class_level)
    patches = []
    for file, _, _ in files:
        patient, x, y = find_place(file, find_patient)
        label, split = folders[file.rpartition("/")[0]]
        patches.append(Patch(file, label, sys.intern(patient), x, y, split, ""))  # few patients, very many images
    if patient_pattern != IDC_PATIENT and not any(patch.patient for patch in patches):
        names = ", ".join(os.path.basename(patch.file) for patch in patches[:3])
        raise InputError(f"--patient-pattern {patient_pattern!r} finds no patient in any name, such as {names}.")
    return patches


def read_patients(source: Path, images: Sequence[Patch]) -> list[Patch]:
    """Take the patient of each DICOM file from its PatientID; a file that cannot be read is rejected later."""
    known = []
    for image in images:
        if image.file.lower().endswith(dicom.ENDING):
            with contextlib.suppress(InputError), (source / image.file).open("rb") as file:
                image = image._replace(patient=str(dicom.read_header(file).get("PatientID") or "").strip())
        known.append(image)
    return known


def _read_folders(folders: Iterable[str], level: int) -> dict[str, tuple[str, str]]:
    """Return class and split of each folder. In a source that is split, the folder of a split is not a class."""
    found = {}
    for folder in folders:
        names = folder.split("/")
        split = next((SPLIT_NAMES[name.lower()] for name in names[:-level] if name.lower() in SPLIT_NAMES), "")
        found[folder] = names[-level] if level <= len(names) else "", split
    no_class = SPLIT_NAMES if any(split for _, split in found.values()) else ()
    return {
        folder: ("" if not split and label.lower() in no_class else label, split)
        for folder, (label, split) in found.items()
    }


def describe_nesting(images: Iterable[Patch]) -> str:
    """Describe folders that may be patients or parts of a class rather than classes; "" if they look like classes.

    They may not be classes if one is inside another, or if they are inside several folders and have other names in
    each, so that there are fewer than two folders per name. Folders of a split count as one. Folders above that have
    few names without digits may be the classes: the option that chooses them is named.
    """
    folders = set()
    for path in {image.file.rpartition("/")[0] for image in images}:
        *above, label = path.split("/")
        folders.add((*(name for name in above if name.lower() not in SPLIT_NAMES), label))
    labels, parents = {folder[-1] for folder in folders}, {folder[:-1] for folder in folders}
    depths, other = {len(folder) for folder in folders}, []
    for level in range(min(depths), 1, -1) if len(depths) == 1 else ():
        names = sorted({folder[-level] for folder in folders})
        if 2 <= len(names) <= MOST_CLASSES and not re.search(r"\d", "".join(names)):
            other.append(f"--class-level {level} ({', '.join(names[:4])})")
    advice = f"Folders above look like classes, too. If they are, give {' or '.join(other)}." if other else ""
    if not parents & folders and (len(parents) == 1 or len(folders) >= 2 * len(labels)):
        return advice and f"The class of an image is the folder it is in ({', '.join(sorted(labels)[:4])}). {advice}"
    found = ", ".join(sorted(map("/".join, folders))[:3])
    return (
        f"{len(labels)} classes were read from nested folders, such as {found}. The class of an image is the folder it "
        f"is in: check that these are classes, not patients or parts of a class. {advice}"
    ).rstrip()


def unify_classes(images: Sequence[Patch], *, merge: bool) -> list[Patch]:
    """Merge classes whose names differ only in case, outer spaces or Unicode form; InputError unless `merge`."""
    alike: dict[str, Counter[str]] = {}
    for label, number in Counter(image.label for image in images).items():
        alike.setdefault(unicodedata.normalize("NFC", label.strip()).casefold(), Counter())[label] = number
    names: dict[str, str] = {}
    for labels in alike.values():
        if len(labels) > 1 and not merge:
            advice = "Rename them, or give --merge-classes to make them one."
            raise InputError(f"The classes {', '.join(map(ascii, sorted(labels)))} have nearly the same name. {advice}")
        chosen = unicodedata.normalize("NFC", labels.most_common(1)[0][0].strip())
        names |= {label: chosen if len(labels) > 1 else label for label in labels}
    return [image._replace(label=names[image.label]) for image in images]


def separate_misplaced(images: Sequence[Patch]) -> tuple[list[Patch], list[tuple[str, str]]]:
    """Separate images whose class is clear from the others (file and reason); InputError if there is no clear one."""
    placed: list[Patch] = []
    misplaced: list[tuple[str, str]] = []
    for image in images:
        named = _CLASS_IN_NAME.search(image.file.rpartition(".")[0])
        if _NOT_UTF8.search(image.file):
            misplaced.append((image.file, "its name is not UTF-8 text; rename it"))
        elif not image.label:
            misplaced.append((image.file, "is in no class folder"))
        elif named and image.label.isdigit() and named[1] != image.label:
            misplaced.append((image.file, f"its name says class {named[1]}, its folder says {image.label}"))
        else:
            placed.append(image)
    if not placed:
        expected = "Expected <patient>/<class>/x.png or <class>/x.png."
        raise InputError(f"No image is in a class folder. The first, {images[0].file}: {misplaced[0][1]}. {expected}")
    return placed, misplaced
