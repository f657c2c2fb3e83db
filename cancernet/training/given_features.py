"""Features that were computed elsewhere, such as those of an encoder that Keras cannot load: read and checked."""

import csv
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from cancernet import InputError
from cancernet.data.dataset import Patch
from cancernet.storage import check_space

NAME = "given.npy"  # file in an unfinished run: the features in the manifest's order
_ROWS_IN_MEMORY = 4096


def import_features(path: Path, patches: Sequence[Patch], folder: Path) -> np.ndarray:
    """Import features of all images of a dataset: float32 [n, views, f], memory-mapped and read-only.

    A `.npy` file contains [n, f], or [n, views, f] with several views of each image; a CSV of the same name next to it
    has a column `file` with the name of each row. An HDF5 file contains the datasets `features` and `file`. Names are
    those of the manifest or, if unique, their last parts. The features are written to `folder` block by block, in the
    order of `patches`, the manifest's. Raises InputError if the file cannot be read, has other rows than the dataset,
    or a value that is not finite.
    """
    if path.suffix == ".npy":
        try:
            array, names = np.load(path, mmap_mode="r"), _read_names(path.with_suffix(".csv"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read as NumPy's .npy ({error}).") from error
        return _write_in_order(array, names, path, patches, folder)
    if path.suffix not in (".h5", ".hdf5"):
        raise InputError(f"--features takes a file .npy, .h5 or .hdf5, not {path}.")
    try:
        with h5py.File(path, "r") as content:
            for name in ("features", "file"):
                link = content.get(name, getlink=True)
                is_here = isinstance(link, h5py.HardLink)
                if (link and not is_here) or (is_here and (content[name].external or content[name].is_virtual)):
                    raise InputError(f"{path}: the dataset {name} is in another file. Write all values into one file.")
            array, names = content["features"], content["file"].asstr()[:].tolist()
            return _write_in_order(array, names, path, patches, folder)
    except (OSError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} must be HDF5 with the datasets features and file ({error}).") from error


def _read_names(path: Path) -> list[str]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [row["file"] for row in csv.DictReader(file)]
    except (OSError, KeyError, csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} must name the image of each row in a column file ({error}).") from error


def _write_in_order(
    array: np.ndarray | h5py.Dataset, names: Sequence[str], path: Path, patches: Sequence[Patch], folder: Path
) -> np.ndarray:
    if array.ndim not in (2, 3) or len(array) != len(names) or array.dtype.kind not in "fiu" or 0 in array.shape:
        raise InputError(
            f"{path} contains {array.dtype} {list(array.shape)} and {len(names):,} names. Features must be numbers "
            "[images, features] or [images, views, features], with a name for each image."
        )
    order = _find_rows(names, path, [patch.file for patch in patches])
    shape = (len(order), array.shape[1] if array.ndim == 3 else 1, array.shape[-1])
    check_space(folder, 4 * int(np.prod(shape)), advice="Make room there.")
    folder.mkdir(parents=True, exist_ok=True)
    ordered = np.lib.format.open_memmap(folder / NAME, "w+", np.float32, shape)
    for start in range(0, len(order), _ROWS_IN_MEMORY):
        ascending, inverse = np.unique(order[start : start + _ROWS_IN_MEMORY], return_inverse=True)
        rows = np.asarray(array[ascending])[inverse]  # HDF5 reads rows in ascending order only
        with np.errstate(over="ignore"):  # infinity is refused below
            ordered[start : start + len(rows)] = rows.reshape(len(rows), *shape[1:])
        broken = np.flatnonzero(~np.isfinite(ordered[start : start + len(rows)]).all(axis=(1, 2)))
        if len(broken):
            raise InputError(f"{path} has a value that is not a finite number for {patches[start + broken[0]].file}.")
    ordered.flush()
    return np.load(folder / NAME, mmap_mode="r")


def _find_rows(names: Sequence[str], path: Path, files: Sequence[str]) -> np.ndarray:
    if not set(names) & set(files):
        short = [file.rpartition("/")[2] for file in files]
        if len(set(short)) == len(short):
            names, files = [name.replace("\\", "/").rpartition("/")[2] for name in names], short
    row_of = {name: row for row, name in enumerate(names)}
    missing, others = set(files) - row_of.keys(), row_of.keys() - set(files)
    if len(row_of) < len(names):
        raise InputError(f"{path} names {len(names) - len(row_of):,} images twice. Give one row for each image.")
    if missing or others:
        first = f"missing {min(missing)}" if missing else f"unknown {min(others)}"
        raise InputError(
            f"{path} does not fit the dataset: {len(missing):,} of {len(files):,} images are missing, and "
            f"{len(others):,} are not in the dataset (first: {first}). Compute features of these images only."
        )
    return np.array([row_of[file] for file in files])
