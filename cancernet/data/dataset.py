"""What a file's name tells, and the built dataset: its manifest and its summary."""

import csv
import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from cancernet import InputError
from cancernet.config import SPLITS
from cancernet.data.images import EXTENSIONS
from cancernet.folders import walk

MANIFEST = "manifest.csv"
REJECTED = "rejected.csv"
SUMMARY = "dataset.json"
SUMMARY_KEYS = {  # of dataset.json: what the scripts go by
    *("source_images", "images", "rejected", "left_out_images", "grey_images", "sizes"),
    *("duplicates_across_patients", "duplicates_across_splits", "split", "settings", "source_fingerprint"),
}
IDC_PATIENT = r"^(\d+)_idx"
_COORDINATES = re.compile(r"_x(\d+)_y(\d+)")


class Patch(NamedTuple):
    """One row of the manifest: an image, what it shows, whose it is and where it lies."""

    file: str  # relative to the dataset's folder, with forward slashes
    label: str  # name of its class
    patient: str  # "" where unknown
    x: int | None  # pixel offset in the slide
    y: int | None
    split: str  # training | validation | testing
    sha256: str


def find_place(name: str, patient_pattern: str = IDC_PATIENT) -> tuple[str, int | None, int | None]:
    """Patient, x and y that a name like 10253_idx5_x1351_y1101_class0.png tells; "" and None where it does not."""
    return read_place(Path(name).stem, re.compile(patient_pattern))


def read_place(stem: str, find_patient: re.Pattern) -> tuple[str, int | None, int | None]:
    """As `find_place`, of a name without its ending."""
    patient, place = find_patient.search(stem), _COORDINATES.search(stem)
    x, y = (int(place[1]), int(place[2])) if place else (None, None)
    return (patient[1] or "") if patient else "", x, y


def write_manifest(folder: Path, patches: Sequence[Patch], rejected: Sequence[tuple[str, str]], summary: dict) -> None:
    """Write manifest.csv, rejected.csv and dataset.json, which also tells how to know them again, into a folder."""
    _write_csv(folder / MANIFEST, Patch._fields, patches)
    _write_csv(folder / REJECTED, ("file", "reason"), rejected)
    summary = summary | {
        "manifest_sha256": hash_manifest(folder),
        "files_sha256": _hash_names(patch.file for patch in patches),
    }
    (folder / SUMMARY).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def read_manifest(dataset: Path) -> list[Patch]:
    """Read the manifest of a built dataset and see that its files are there, no more and no fewer.

    Raises:
        InputError: no such folder, no manifest, a broken one, or files that do not match it.
    """
    path = dataset / MANIFEST
    again = "Run build_dataset.py again."
    if not path.is_file():
        raise InputError(f"{dataset} has no {MANIFEST}, so it is no built dataset. Run build_dataset.py first.")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.reader(file)
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


def is_whole(dataset: Path, summary: dict) -> bool:
    """Whether a built dataset's manifest is the one that was written and the files of those names are there, no others.

    It tells what `read_manifest` checks, and that no row was edited, without reading a row.
    """
    return summary.get("manifest_sha256") == hash_manifest(dataset) and summary.get("files_sha256") == _hash_names(
        _find_built(dataset)
    )


def _hash_names(files: Iterable[str]) -> str:
    return hashlib.sha256(os.fsencode("\n".join(sorted(files)))).hexdigest()


def _find_built(dataset: Path) -> set[str]:
    """Images in the splits' folders, by their paths relative to the dataset's; a link to nothing is none."""
    folders = [split for split in SPLITS if (dataset / split).is_dir()]
    built = (found for split in folders for found in walk(dataset / split, EXTENSIONS, prefix=f"{split}/"))
    return {file for file, entry in built if not entry.is_symlink() or os.path.exists(entry.path)}


def read_summary(dataset: Path) -> dict:
    """Read dataset.json, what the build did.

    Raises:
        InputError: it is missing or damaged, or lacks one of SUMMARY_KEYS.
    """
    path = dataset / SUMMARY
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        summary = None
    if not isinstance(summary, dict) or not summary.keys() >= SUMMARY_KEYS:
        raise InputError(
            f"{path} is missing or damaged. Remove {dataset} and build it again, or build_dataset.py --force."
        )
    return summary


def hash_manifest(dataset: Path) -> str:
    """SHA-256 of the manifest, in hexadecimal: it stands for every image of the dataset."""
    return hashlib.sha256((dataset / MANIFEST).read_bytes()).hexdigest()


def check_patients(patches: Iterable[Patch]) -> None:
    """See that each known patient is in one split only.

    Raises:
        InputError: one is in two.
    """
    split_of: dict[str, str] = {}
    for patch in patches:
        first = split_of.setdefault(patch.patient, patch.split) if patch.patient else patch.split
        if first != patch.split:
            raise InputError(
                f"Patient {patch.patient} is in both {first} and {patch.split}. Run build_dataset.py again, "
                "or with --split-by image if that is meant."
            )


def check_trainable(patches: Sequence[Patch]) -> None:
    """See that training and validation have two classes at least, and no split a class that training lacks.

    Raises:
        InputError: says what is missing.
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


def count_patches(patches: Sequence[Patch]) -> dict:
    """Images, known patients, and images of each class by its name."""
    return {
        "images": len(patches),
        "patients": len({patch.patient for patch in patches} - {""}),
        "classes": dict(sorted(Counter(patch.label for patch in patches).items())),
    }


def is_idc(patches: Iterable[Patch]) -> bool:
    """Whether the patches are of the IDC set, by their names; its class 0 is benign and 1 is IDC."""
    is_named = re.compile(IDC_PATIENT).search
    return all(patch.label in ("0", "1") and is_named(patch.file.rpartition("/")[2]) for patch in patches)


def class_names(patches: Iterable[Patch]) -> list[str]:
    """Names of the classes in the order of the model's outputs."""
    return sorted({patch.label for patch in patches})
