"""Labels from a table in place of folders: one row an image, with its class and whatever else is known of it."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cancernet import InputError
from cancernet.config import SPLIT_NAMES, SPLITS
from cancernet.data.dataset import Patch

COLUMNS = ("path", "label", "patient", "split")  # that mean something; the others go into the manifest


class Label(NamedTuple):
    """A row of the table."""

    path: str  # the end of the image's path, with or without the ending of its name
    label: str
    patient: str | None  # None: as its name says
    split: str
    more: tuple[tuple[str, str], ...]  # name and value of the other columns


def read_labels(path: Path, columns: Sequence[str] = ()) -> list[Label]:
    """Read a table of labels: separated by commas, semicolons, tabs or spaces, with the names of its columns first.

    `columns` say what columns of other names are, such as `label=pathology`. Raises InputError if the table cannot be
    read, has no column for the path or the label, or has an unknown split.
    """
    rows = read_table(path)
    found = list(rows[0]) if rows else []
    names = {"path": "id" if "id" in found and "path" not in found else "path"} | {name: name for name in COLUMNS[1:]}
    for given in columns:
        meaning, _, name = given.partition("=")
        if meaning not in COLUMNS or name not in found:
            form = ", ".join(f"{each}=NAME" for each in COLUMNS)
            raise InputError(f"--columns {given}: give {form}, with a column of {path}: {', '.join(found)}.")
        names[meaning] = name
    for meaning in COLUMNS[:2]:
        if names[meaning] not in found:
            only = ", ".join(found) or "an empty first line"
            raise InputError(f"{path} has no column {meaning}, only {only}. Give --columns {meaning}=NAME.")
    others = [name for name in found if name not in names.values()]
    return [_read_row(path, row, names, others) for row in rows if row[names["path"]]]


def read_table(path: Path) -> list[dict[str, str]]:
    """Read the rows of a table as `read_labels` takes it, values stripped; InputError if it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        delimiter = next((each for each in ",;\t" if lines and each in lines[0]), None)
        text = lines if delimiter else [",".join(line.split()) for line in lines]
        rows = csv.DictReader(text, delimiter=delimiter or ",", restval="")
        return [{name: value.strip() for name, value in row.items() if name} for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"Cannot read the table {path}: {getattr(error, 'strerror', None) or error}.") from error


def _read_row(path: Path, row: dict[str, str], names: dict[str, str], others: Sequence[str]) -> Label:
    file, label, patient, split = (row.get(names[name]) for name in COLUMNS)
    if split and split.lower() not in SPLIT_NAMES:
        raise InputError(f"{path}: {file} has the split {split!r}. Use one of {', '.join(SPLITS)}.")
    if label and (label.startswith(".") or set(label) & set("/\\\0")):
        raise InputError(f"{path}: the label {label!r} cannot be the name of a folder. Rename it.")
    more = tuple((f"table_{name}" if name in Patch._fields else name, row[name]) for name in others)
    return Label(
        (file or "").replace("\\", "/"), label or "", patient, SPLIT_NAMES.get((split or "").lower(), ""), more
    )


def apply_labels(images: Sequence[Patch], labels: Sequence[Label]) -> tuple[list[Patch], list[tuple[str, str]]]:
    """Give images the labels of a table; folders say nothing.

    An image may have several rows, for example one for each of its boxes. Returns the images in the table, and file and
    reason of those that it does not name, or whose rows disagree in label, patient or split.
    Raises InputError if a row names several images, or no row names any.
    """
    by_name: dict[str, list[tuple[int, str]]] = {}
    for number, image in enumerate(images):
        for path in (image.file, image.file.rpartition(".")[0]):  # with and without its ending
            by_name.setdefault(path.rpartition("/")[2], []).append((number, f"/{path}"))
    rows_of: dict[int, list[Label]] = {}
    for row in labels:
        candidates = by_name.get(row.path.rpartition("/")[2], ())
        found = [number for number, path in candidates if path.endswith(f"/{row.path}")]
        if len(found) > 1:
            files = " and ".join(images[number].file for number in found[:2])
            raise InputError(f"{row.path} of the table of labels names {files}. Give the folder, too.")
        for number in found:
            rows_of.setdefault(number, []).append(row)
    if not rows_of:
        first = f"Its first row is {labels[0].path if labels else 'missing'}, the first image is {images[0].file}."
        raise InputError(f"The table of labels names none of {len(images):,} images. {first}")
    labelled, left_out = [], []
    for number, image in enumerate(images):
        rows = [row for row in rows_of.get(number, []) if row.label]
        reason = _find_disagreement(rows) if rows else "has no label in the table"
        if reason:
            left_out.append((image.file, reason))
            continue
        row = rows[0]
        columns = zip(*(each.more for each in rows), strict=True)  # each value once, such as those of all boxes
        more = tuple((cells[0][0], "; ".join(dict.fromkeys(value for _, value in cells))) for cells in columns)
        patient = image.patient if row.patient is None else row.patient
        labelled.append(image._replace(label=row.label, patient=patient, split=row.split, more=more))
    return labelled, left_out


def _find_disagreement(rows: Sequence[Label]) -> str:
    """Say in what the rows of an image disagree; return "" if they agree."""
    for noun in ("label", "patient", "split"):
        values = sorted({getattr(row, noun) or "none" for row in rows})
        if len(values) > 1:
            return f"has several {noun}s in the table: {', '.join(values)}"
    return ""
