"""Features that came from elsewhere, of an encoder that Keras cannot load, say: read, checked, put in order."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np

from cancernet import InputError
from cancernet.data.dataset import Patch
from cancernet.storage import check_space

NAME = "given.npy"  # in an unfinished run: the features in the manifest's order
_AT_ONCE = 4096  # rows in memory at a time


def open_given(path: Path, patches: Sequence[Patch], folder: Path) -> np.ndarray:
    """Open features that are given for all images of a dataset.

    A `.npy` file holds them as [n, f], or [n, views, f] with several views of each image; a CSV of the same name beside
    it has a column `file` with a name for each row. An HDF5 file holds them as `features`, and the names as `file`. A
    name is that of the manifest or, where no two images have the same, its last part.

    Args:
        patches: of the dataset, in the manifest's order.
        folder: where they are written in that order; memory stays small.

    Returns:
        float32 [n, views, f], mapped from the file and read-only.

    Raises:
        InputError: the file is missing, unreadable, has other rows than the dataset, or a value that is no number.
    """
    if path.suffix == ".npy":
        try:
            array, names = np.load(path, mmap_mode="r"), _read_names(path.with_suffix(".csv"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read as NumPy's .npy ({error}).") from error
        return _put_in_order(array, names, path, patches, folder)
    if path.suffix not in (".h5", ".hdf5"):
        raise InputError(f"--features takes a file .npy, .h5 or .hdf5, not {path}.")
    try:
        with h5py.File(path, "r") as content:
            array, names = content["features"], content["file"].asstr()[:].tolist()
            return _put_in_order(array, names, path, patches, folder)
    except (OSError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} must be HDF5 with the datasets features and file ({error}).") from error


def _read_names(path: Path) -> list[str]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [row["file"] for row in csv.DictReader(file)]
    except (OSError, KeyError, csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} must name the file of each row of features, in a column file ({error}).") from error


def _put_in_order(
    array: np.ndarray | h5py.Dataset, names: Sequence[str], path: Path, patches: Sequence[Patch], folder: Path
) -> np.ndarray:
    if array.ndim not in (2, 3) or len(array) != len(names) or array.dtype.kind not in "fiu" or 0 in array.shape:
        raise InputError(
            f"{path} holds {array.dtype} {list(array.shape)} and {len(names):,} names; features are numbers "
            "[images, features] or [images, views, features], with a name for each image."
        )
    order = _match(names, path, patches)
    shape = (len(order), array.shape[1] if array.ndim == 3 else 1, array.shape[-1])
    check_space(folder, 4 * int(np.prod(shape)), advice="Make room there.")
    folder.mkdir(parents=True, exist_ok=True)
    ordered = np.lib.format.open_memmap(folder / NAME, "w+", np.float32, shape)
    for start, rows in _read_blocks(array, order):
        ordered[start : start + len(rows)] = rows.reshape(len(rows), *shape[1:])
        broken = np.flatnonzero(~np.isfinite(rows.reshape(len(rows), -1)).all(axis=1))
        if len(broken):
            raise InputError(f"{path} has no number in the row of {patches[start + broken[0]].file}.")
    ordered.flush()
    return np.load(folder / NAME, mmap_mode="r")


def _read_blocks(array: np.ndarray | h5py.Dataset, order: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Rows of an array in an order, some thousand at a time; HDF5 reads rows in rising order only."""
    for start in range(0, len(order), _AT_ONCE):
        rising, places = np.unique(order[start : start + _AT_ONCE], return_inverse=True)
        yield start, np.asarray(array[rising])[places]


def _match(names: Sequence[str], path: Path, patches: Sequence[Patch]) -> np.ndarray:
    """The row of each patch."""
    files = [patch.file for patch in patches]
    if not set(names) & set(files):
        short = [file.rpartition("/")[2] for file in files]
        if len(set(short)) == len(short):
            names, files = [name.replace("\\", "/").rpartition("/")[2] for name in names], short
    row_of = {name: row for row, name in enumerate(names)}
    missing, others = set(files) - row_of.keys(), row_of.keys() - set(files)
    if len(row_of) < len(names):
        raise InputError(f"{path} names {len(names) - len(row_of):,} images twice. Give a row for each image.")
    if missing or others:
        first = f", first {min(missing)}" if missing else f"; of others it has {min(others)}, say"
        raise InputError(
            f"{path} is of other images: {len(missing):,} of {len(files):,} of the dataset are missing and "
            f"{len(others):,} are not in it{first}. Compute features of exactly the dataset's images."
        )
    return np.array([row_of[file] for file in files])
