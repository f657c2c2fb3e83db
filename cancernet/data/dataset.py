"""The built dataset: its manifest, its summary, and what the name of an image says."""

import csv
import hashlib
import itertools
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from cancernet import InputError, StorageError, storage
from cancernet.config import SPLITS
from cancernet.data.files import walk
from cancernet.data.images import EXTENSIONS

MANIFEST = "manifest.csv"
REJECTED = "rejected.csv"
SUMMARY = "dataset.json"
IDC_PATIENT = r"^(\d+)_idx"
IDC_MPP = 4.0  # micrometres per pixel of the IDC patches
IDC_PIXELS = 50  # from one of them to the next
MOST_VALUES = 10  # of a column that results are given by
T = TypeVar("T", bound=Hashable)
_IDC_NAME = re.compile(IDC_PATIENT)
_COORDINATES = re.compile(r"_x(\d+)_y(\d+)")


class Patch(NamedTuple):
    """An image with its class, patient and position. In a built dataset it is one row of the manifest."""

    file: str  # relative to the folder of the dataset or of the source, with forward slashes
    label: str  # name of its class
    patient: str  # "" if unknown
    x: int | None  # left and top pixel in the slide
    y: int | None
    split: str  # training | validation | testing; "" before the split
    sha256: str  # of the file's bytes; "" before it is read
    more: tuple[tuple[str, str], ...] = ()  # name and value of other columns of the manifest, such as site

    @property
    def slide(self) -> str:
        """Name of the slide: the column `slide`, else the patient."""
        return (self.more and dict(self.more).get("slide")) or self.patient


_COLUMNS = Patch._fields[:7]  # of every manifest


@dataclass(frozen=True)
class BuildSettings:
    """The settings that the contents of a dataset depend on. Other settings make another dataset."""

    source: str
    split_by: Literal["patient", "image"]
    split_file: dict[str, str] | None  # patient -> split
    seed: int
    mode: Literal["copy", "hardlink", "symlink"]
    patient_pattern: str
    megapixels: float = 50  # images of more pixels are rejected
    class_level: int = 1  # the folder that is the class, counted upwards from the image
    merge_classes: bool = False  # whose names agree but for case, spaces and encoding
    labels: str = ""  # the table of labels; "" for none
    labels_sha256: str = ""  # of its bytes
    columns: tuple[str, ...] = ()  # of it under other names
    testing_only: bool = False
    mpp: float | None = None  # micrometres per pixel of the images, as given
    patch_pixels: int | None = None  # from one patch to the next, as given
    annotated_share: float | None = None  # of a patch of a slide; None where images are the source


@dataclass(frozen=True)
class Counts:
    """Number of images and patients in a split."""

    images: int
    patients: int  # known ones
    classes: dict[str, int]  # images of each class, in the order of the names


@dataclass(frozen=True)
class Summary:
    """The contents of dataset.json. Counts are of built images unless a comment says otherwise."""

    source_images: int  # in the source
    images: int
    splits: dict[str, Counts]  # training, validation, testing, and "all"
    images_without_patient: int
    rejected: int  # in the source
    left_out_images: int  # in the source: the split file does not name their patients
    left_out_patients: int
    grey_images: int
    almost_black: int
    edge_tiles: int  # smaller than the usual size
    sizes: dict[str, int]  # images of each size, such as 50x50 (width x height), the most common size first
    duplicates_across_patients: int  # groups of files with the same bytes under different patients
    duplicates_across_splits: int  # those of them that are in more than one split
    duplicates: tuple[tuple[str, ...], ...]  # the files of each group
    split: Literal["patient", "image", "file", "given"]  # by patient, by image, by the split file, or by the source
    settings: BuildSettings
    nesting: str  # a warning about folders that may not be classes; "" for none
    source_fingerprint: str
    duplicates_across_classes: int = 0  # groups of files with the same bytes in different classes
    near_duplicates_across_splits: int = 0  # groups of near-duplicates that are in more than one split
    near_duplicates: tuple[tuple[str, ...], ...] = ()  # files of different patients that show almost the same picture
    same_pixels: int = 1  # images that show the most common picture
    mpp: float | None = None  # micrometres per pixel; None if unknown
    patch_pixels: int = IDC_PIXELS  # from one patch to the next
    class_colours: dict[str, tuple[int, int, int]] | None = None  # red, green, blue, of annotations
    manifest_sha256: str = ""  # filled in when the manifest is written
    files_sha256: str = ""  # of names, sizes and modification times of the built images

    @property
    def are_grey(self) -> bool:
        """Whether most images are grey."""
        return 2 * self.grey_images > self.images

    @property
    def usual_size(self) -> str:
        """The most common image size, such as 50x50."""
        return next(iter(self.sizes))


@dataclass(frozen=True)
class Dataset:
    """A built dataset that was opened and checked."""

    folder: Path
    patches: list[Patch]  # the rows of the manifest
    summary: Summary
    manifest_sha256: str  # identifies all images, for the manifest has the hash of each


def open_dataset(folder: Path) -> Dataset:
    """Open a built dataset and check that its manifest is as it was built, and that exactly its files are there.

    Raises InputError if the folder is not a built dataset, StorageError if its manifest or its summary is damaged, or
    the files do not match the manifest.
    """
    patches, summary, sha256 = read_manifest(folder), read_summary(folder), hash_manifest(folder)
    if summary.manifest_sha256 not in ("", sha256):
        raise StorageError(
            f"{folder / MANIFEST} was changed after the build: {SUMMARY} has another hash. Run build_dataset.py again."
        )
    if summary.mpp is None and is_idc(patches):  # earlier versions did not write it
        summary = replace(summary, mpp=IDC_MPP)
    return Dataset(folder, patches, summary, sha256)


def write_manifest(
    folder: Path, patches: Sequence[Patch], rejected: Sequence[tuple[str, str]], summary: Summary
) -> Summary:
    """Write manifest.csv, rejected.csv and dataset.json into a folder.

    Returns the summary as written, with the hashes by which `is_unchanged` detects later changes.
    """
    names = list(dict.fromkeys(name for patch in patches for name, _ in patch.more))
    rows = ((*patch[: len(_COLUMNS)], *map(dict(patch.more).get, names)) for patch in patches)
    for name, header, lines in ((MANIFEST, (*_COLUMNS, *names), rows), (REJECTED, ("file", "reason"), rejected)):
        with (folder / name).open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            storage.write_rows(file, itertools.chain([header], lines))
    summary = replace(summary, manifest_sha256=hash_manifest(folder), files_sha256=_hash_images(folder))
    (folder / SUMMARY).write_text(json.dumps(asdict(summary), indent=1) + "\n", encoding="utf-8")
    return summary


def read_manifest(folder: Path) -> list[Patch]:
    """Read the manifest of a built dataset and check that exactly its files are there; errors as `open_dataset`."""
    path = folder / MANIFEST
    again = "Run build_dataset.py again."
    if not path.is_file():
        raise InputError(f"{folder} has no {MANIFEST}, so it is not a built dataset. Run build_dataset.py first.")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = storage.read_rows(file)
            header = tuple(next(rows, ()))
            if header[: len(_COLUMNS)] != _COLUMNS:
                raise StorageError(f"{path} must have the columns {','.join(_COLUMNS)}. {again}")
            patches = _parse_rows(rows, header[len(_COLUMNS) :])
    except (OSError, ValueError, csv.Error) as error:
        raise StorageError(f"{path} is damaged: {error}. {again}") from error
    if not patches:
        raise StorageError(f"{path} lists no image. {again}")
    listed = {patch.file for patch in patches}
    if len(listed) != len(patches):
        raise StorageError(f"{path} lists a file twice. {again}")
    found = _find_images(folder).keys()
    for difference, problem in (
        (listed - found, f"listed in {MANIFEST} but missing from"),
        (found - listed, f"not listed in {MANIFEST} but in"),
    ):
        if difference:
            raise StorageError(f"{len(difference)} file(s) are {problem} {folder}, first {min(difference)}. {again}")
    return patches


def _parse_rows(rows: Iterable[list[str]], names: Sequence[str]) -> list[Patch]:
    intern = sys.intern  # few labels, patients and splits, very many rows
    patches = [
        Patch(
            *(file, intern(label), intern(patient), int(x) if x else None, int(y) if y else None, intern(split)),
            sha256=sha256,
            more=tuple(zip(names, more, strict=True)) if names or more else (),
        )
        for file, label, patient, x, y, split, sha256, *more in rows
    ]
    unknown = {patch.split for patch in patches} - set(SPLITS)
    if unknown:
        raise ValueError(f"unknown split {min(unknown)!r}")
    return patches


def is_unchanged(folder: Path, summary: Summary) -> bool:
    """Whether manifest and images of a built dataset are as they were written.

    Images are compared by name, size and modification time, so that none is read. Training compares their hashes.
    """
    return summary.manifest_sha256 == hash_manifest(folder) and summary.files_sha256 == _hash_images(folder)


def hash_files(files: Iterable[tuple[str, int, int]]) -> str:
    """Hash the names, sizes and modification times (in nanoseconds) of files.

    The hash changes when a file is added, removed, renamed or written to. No file is opened; make and rsync detect
    changes in the same way. A file whose contents change while size and time stay the same is not noticed here; in a
    dataset of links, training notices it by its hash.
    """
    listing = "".join([f"{file}\0{size}\0{modified}\n" for file, size, modified in files])
    return hashlib.sha256(os.fsencode(listing)).hexdigest()


def _hash_images(folder: Path) -> str:
    found = ((file, entry.stat()) for file, entry in _find_images(folder).items())
    return hash_files((file, status.st_size, status.st_mtime_ns) for file, status in found)


def _find_images(folder: Path) -> dict[str, os.DirEntry[str]]:
    """Return each image in the splits' folders by its name in the manifest; broken links are left out."""
    splits = [split for split in SPLITS if (folder / split).is_dir()]
    found = (each for split in splits for each in walk(folder / split, EXTENSIONS, prefix=f"{split}/"))
    return {file: entry for file, entry in found if not entry.is_symlink() or os.path.exists(entry.path)}


def read_summary(folder: Path) -> Summary:
    """Read dataset.json; errors as `storage.read_json`."""
    advice = f"Remove {folder} and build it again, or run build_dataset.py --force."
    return storage.read_json(folder / SUMMARY, Summary, advice=advice)


def hash_manifest(folder: Path) -> str:
    """Return the SHA-256 of the manifest, in hexadecimal."""
    return storage.hash_file(folder / MANIFEST)


def check_patients(patches: Iterable[Patch]) -> None:
    """Raise InputError if a known patient is in two splits."""
    split_of: dict[str, str] = {}
    for patch in patches:
        first = split_of.setdefault(patch.patient, patch.split) if patch.patient else patch.split
        if first != patch.split:
            raise InputError(
                f"Patient {patch.patient} is in both {first} and {patch.split}. Run build_dataset.py again, "
                "or with --split-by image if you want that."
            )


def check_trainable(patches: Sequence[Patch]) -> None:
    """Raise InputError unless training and validation have at least two classes, and training has every class."""
    labels = {split: {patch.label for patch in patches if patch.split == split} for split in SPLITS}
    for split in ("training", "validation"):
        if not labels[split]:
            raise InputError(f"The dataset has no {split} images. Build one with patients in every split.")
        if len(labels[split]) < 2:
            raise InputError(f"{split.capitalize()} has only the class {min(labels[split])}; a classifier needs two.")
    for split in ("validation", "testing"):
        unknown = labels[split] - labels["training"]
        if unknown:
            raise InputError(f"Class {min(unknown)} is in {split} but not in training. Check the folders' names.")


def count_patches(patches: Sequence[Patch]) -> Counts:
    """Count images, known patients, and the images of each class."""
    return Counts(
        images=len(patches),
        patients=len({patch.patient for patch in patches} - {""}),
        classes=dict(sorted(Counter(patch.label for patch in patches).items())),
    )


def list_copies(patches: Sequence[Patch]) -> list[list[int]]:
    """List the rows of the images with the same bytes, for each that there is more than once."""
    number = Counter(patch.sha256 for patch in patches)
    rows_of: dict[str, list[int]] = {}
    for row, patch in enumerate(patches):
        if patch.sha256 and number[patch.sha256] > 1:
            rows_of.setdefault(patch.sha256, []).append(row)
    return list(rows_of.values())


def join_sets(sets: Iterable[Collection[T]]) -> dict[T, set[T]]:
    """Join sets that share a value; return the joined set of each value."""
    joined: dict[T, set[T]] = {}
    for found in sets:
        whole = set[T]().union(*(joined.get(value, {value}) for value in found))
        joined |= dict.fromkeys(whole, whole)
    return joined


def read_column(patches: Sequence[Patch], name: str, *, most: int | None = MOST_VALUES) -> list[str]:
    """Read the value of each image in a column of the user's own, such as site; "" where it has none.

    Raises InputError if there is no such column, or it has more than `most` values; None for any number.
    """
    names = list(dict(patches[0].more))
    if name not in names:
        others = f", only {', '.join(names)}" if names else ""
        raise InputError(
            f"The images have no column {name}{others}. Columns come from the table of build_dataset.py --labels."
        )
    values = [dict(patch.more)[name] for patch in patches]
    distinct = sorted(set(values) - {""})
    if most is not None and len(distinct) > most:
        raise InputError(
            f"The column {name} has {len(distinct):,} values, such as {distinct[0]} and {distinct[1]}; results are "
            f"given by at most {most}. Put ranges or groups of values into a column of the table, and build again."
        )
    return values


def list_columns(patches: Sequence[Patch]) -> list[str]:
    """List the columns of the user's own that `read_column` takes: those with few values."""
    names = [name for name, _ in patches[0].more] if patches else []
    return [name for name in names if len({dict(patch.more)[name] for patch in patches} - {""}) <= MOST_VALUES]


def list_classes(patches: Iterable[Patch]) -> list[str]:
    """List the names of the classes, sorted: the order of the model's outputs."""
    return sorted({patch.label for patch in patches})


def is_idc(patches: Iterable[Patch]) -> bool:
    """Whether the file names are those of the IDC set, in which class 0 is benign and class 1 is IDC."""
    return all(patch.label in ("0", "1") and _IDC_NAME.search(patch.file.rpartition("/")[2]) for patch in patches)


def name_classes(patches: Sequence[Patch]) -> dict[str, str] | None:
    """Map the classes' folders to their meaning, where it is known: of the IDC set only."""
    return {"0": "benign", "1": "IDC"} if is_idc(patches) else None


def label_class(class_names: Mapping[str, str] | None, name: str) -> str:
    """Return a class's label for tables and pictures: its folder, and its meaning if known, as `1 (IDC)`."""
    meaning = (class_names or {}).get(name, name)
    return name if meaning == name else f"{name} ({meaning})"


def find_place(name: str, find_patient: re.Pattern[str] = _IDC_NAME) -> tuple[str, int | None, int | None]:
    """Read patient, x and y from a name like 10253_idx5_x1351_y1101_class0.png; "" and None if it has none.

    The first group of `find_patient`, searched in the name without folder and ending, is the patient.
    """
    stem = os.path.splitext(os.path.basename(name))[0]
    patient, place = find_patient.search(stem), _COORDINATES.search(stem)
    x, y = (int(place[1]), int(place[2])) if place else (None, None)
    return (patient[1] or "") if patient else "", x, y
