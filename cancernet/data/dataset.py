"""The built dataset: its manifest, its summary, and what the name of an image says."""

import csv
import hashlib
import itertools
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from cancernet import InputError, storage
from cancernet.config import SPLITS
from cancernet.data.images import EXTENSIONS
from cancernet.storage import read_json, walk

MANIFEST = "manifest.csv"
REJECTED = "rejected.csv"
SUMMARY = "dataset.json"
IDC_PATIENT = r"^(\d+)_idx"
_COORDINATES = re.compile(r"_x(\d+)_y(\d+)")


class Patch(NamedTuple):
    """An image with its class, its patient and its place. In a built dataset it is one row of the manifest."""

    file: str  # relative to the folder of the dataset or of the source, with forward slashes
    label: str  # name of its class
    patient: str  # "" where unknown
    x: int | None  # pixel offset in the slide
    y: int | None
    split: str  # training | validation | testing; "" as long as there is none
    sha256: str  # of the file's bytes; "" as long as it is not read


@dataclass(frozen=True)
class BuildSettings:
    """What the user chose for a build. Other settings make another dataset."""

    source: str
    split_by: Literal["patient", "image"]
    split_file: dict[str, str] | None  # patient -> split
    seed: int
    mode: Literal["copy", "hardlink", "symlink"]
    patient_pattern: str
    megapixels: float = 50  # images of more pixels are rejected


@dataclass(frozen=True)
class Counts:
    """How much is in a split."""

    images: int
    patients: int  # known ones
    classes: dict[str, int]  # images of each class, in the order of the names


@dataclass(frozen=True)
class Summary:
    """dataset.json: what a build did."""

    source_images: int
    images: int  # built; the counts below are of these unless they say otherwise
    splits: dict[str, Counts]  # with one more, "all"
    source_patients: int
    images_without_patient: int
    rejected: int  # of the source
    left_out_images: int  # of the source: the split file does not name their patients
    left_out_patients: int
    grey_images: int
    almost_black: int
    edge_tiles: int  # smaller than the usual size
    sizes: dict[str, int]  # images of each size, such as 50x50 (width x height), the usual size first
    duplicates_across_patients: int  # groups of files with the same bytes under different patients
    duplicates_across_splits: int  # those of them that are in more than one split
    duplicates: tuple[tuple[str, ...], ...]  # the files of each group
    split: Literal["patient", "image", "file", "given"]  # by patient, by image, by the split file, or by the source
    settings: BuildSettings
    nesting: str  # a warning about folders that may not be classes; "" for none
    source_fingerprint: str
    manifest_sha256: str = ""  # filled in when the manifest is written
    files_sha256: str = ""

    @property
    def are_grey(self) -> bool:
        """Whether most images are grey."""
        return 2 * self.grey_images > self.images

    @property
    def usual_size(self) -> str:
        """The size that most images have, such as 50x50."""
        return next(iter(self.sizes))


def find_place(name: str) -> tuple[str, int | None, int | None]:
    """Read patient, x and y from a name like 10253_idx5_x1351_y1101_class0.png; "" and None where it has none."""
    return read_place(Path(name).stem, re.compile(IDC_PATIENT))


def read_place(stem: str, find_patient: re.Pattern) -> tuple[str, int | None, int | None]:
    """As `find_place`, from a name without its ending; the first group of `find_patient` is the patient."""
    patient, place = find_patient.search(stem), _COORDINATES.search(stem)
    x, y = (int(place[1]), int(place[2])) if place else (None, None)
    return (patient[1] or "") if patient else "", x, y


def write_manifest(
    folder: Path, patches: Sequence[Patch], rejected: Sequence[tuple[str, str]], summary: Summary
) -> None:
    """Write manifest.csv, rejected.csv and dataset.json into a folder.

    dataset.json also gets the hashes by which `is_whole` finds that the dataset has not changed since.
    """
    _write_csv(folder / MANIFEST, Patch._fields, patches)
    _write_csv(folder / REJECTED, ("file", "reason"), rejected)
    names = _hash_names(patch.file for patch in patches)
    summary = replace(summary, manifest_sha256=hash_manifest(folder), files_sha256=names)
    (folder / SUMMARY).write_text(json.dumps(asdict(summary), indent=1) + "\n", encoding="utf-8")


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        storage.write_rows(file, itertools.chain([header], rows))


def read_manifest(dataset: Path) -> list[Patch]:
    """Read the manifest of a built dataset and check that exactly its files are there.

    Raises:
        InputError: there is no folder or no manifest, it is damaged, or the files do not match it.
    """
    path = dataset / MANIFEST
    again = "Run build_dataset.py again."
    if not path.is_file():
        raise InputError(f"{dataset} has no {MANIFEST}, so it is not a built dataset. Run build_dataset.py first.")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = storage.read_rows(file)
            if tuple(next(rows, ())) != Patch._fields:
                raise InputError(f"{path} must have the columns {','.join(Patch._fields)}. {again}")
            patches = _read_rows(rows)
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path} is damaged: {error}. {again}") from error
    if not patches:
        raise InputError(f"{path} names no image. {again}")
    named = {patch.file for patch in patches}
    if len(named) != len(patches):
        raise InputError(f"{path} names a file twice. {again}")
    found = _find_built(dataset)
    for difference, what in ((named - found, "missing from"), (found - named, "not in the manifest but lie under")):
        if difference:
            raise InputError(f"{len(difference)} file(s) are {what} {dataset}, first {min(difference)}. {again}")
    return patches


def _read_rows(rows: Iterable[list[str]]) -> list[Patch]:
    patches = [
        Patch(
            file,
            sys.intern(label),
            sys.intern(patient),
            int(x) if x else None,
            int(y) if y else None,
            sys.intern(split),
            sha256,
        )
        for file, label, patient, x, y, split, sha256 in rows
    ]
    unknown = {patch.split for patch in patches} - set(SPLITS)
    if unknown:
        raise ValueError(f"unknown split {min(unknown)!r}")
    return patches


def is_whole(dataset: Path, summary: Summary) -> bool:
    """Whether the manifest of a built dataset is unchanged, and exactly the files that it names are there.

    That is all that `read_manifest` checks, and that no row was edited; no row is read for it.
    """
    return summary.manifest_sha256 == hash_manifest(dataset) and summary.files_sha256 == _hash_names(
        _find_built(dataset)
    )


def _hash_names(files: Iterable[str]) -> str:
    return hashlib.sha256(os.fsencode("\n".join(sorted(files)))).hexdigest()


def _find_built(dataset: Path) -> set[str]:
    """Paths of the images in the splits' folders, relative to the dataset; broken links are left out."""
    folders = [split for split in SPLITS if (dataset / split).is_dir()]
    built = (found for split in folders for found in walk(dataset / split, EXTENSIONS, prefix=f"{split}/"))
    return {file for file, entry in built if not entry.is_symlink() or os.path.exists(entry.path)}


def read_summary(dataset: Path) -> Summary:
    """Read dataset.json.

    Raises:
        InputError: it is missing or damaged.
    """
    again = f"Remove {dataset} and build it again, or run build_dataset.py --force."
    return read_json(dataset / SUMMARY, Summary, again=again)


def hash_manifest(dataset: Path) -> str:
    """SHA-256 of the manifest, in hexadecimal. It identifies all images, for the manifest has the hash of each."""
    return hashlib.sha256((dataset / MANIFEST).read_bytes()).hexdigest()


def check_patients(patches: Iterable[Patch]) -> None:
    """Check that each known patient is in one split only.

    Raises:
        InputError: a patient is in two splits.
    """
    split_of: dict[str, str] = {}
    for patch in patches:
        first = split_of.setdefault(patch.patient, patch.split) if patch.patient else patch.split
        if first != patch.split:
            raise InputError(
                f"Patient {patch.patient} is in both {first} and {patch.split}. Run build_dataset.py again, "
                "or with --split-by image if you want that."
            )


def check_trainable(patches: Sequence[Patch]) -> None:
    """Check that training and validation have at least two classes, and that training has every class.

    Raises:
        InputError: images or a class are missing.
    """
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


def is_idc(patches: Iterable[Patch]) -> bool:
    """Whether the names of all patches are those of the IDC set, where class 0 is benign and class 1 is IDC."""
    is_named = re.compile(IDC_PATIENT).search
    return all(patch.label in ("0", "1") and is_named(patch.file.rpartition("/")[2]) for patch in patches)


def name_classes(patches: Sequence[Patch]) -> dict[str, str] | None:
    """What the classes' folders mean, where that is known."""
    return {"0": "benign", "1": "IDC"} if is_idc(patches) else None


def list_classes(patches: Iterable[Patch]) -> list[str]:
    """Names of the classes, sorted: the order of the model's outputs."""
    return sorted({patch.label for patch in patches})
