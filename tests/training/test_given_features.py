"""Features from elsewhere: read from both forms in the manifest's order, and refused where they are of other images."""

import h5py
import numpy as np
import pytest

from cancernet import InputError
from cancernet.data.dataset import Patch
from cancernet.training import given_features
from cancernet.training.given_features import import_features

FILES = [f"training/0/{letter}.png" for letter in "abcde"]
PATCHES = [Patch(file, "0", "", None, None, "training", "") for file in FILES]
VALUES = np.arange(10, dtype=np.float64).reshape(5, 2)
ORDER = [3, 0, 4, 1, 2]  # of the rows in the files that are given


def write(path, values=VALUES[ORDER], names=tuple(FILES[row] for row in ORDER)):
    if path.suffix == ".npy":
        np.save(path, values)
        path.with_suffix(".csv").write_text("file\n" + "".join(f"{name}\n" for name in names))
        return path
    with h5py.File(path, "w") as file:
        file["features"], file["file"] = values, list(names)
    return path


@pytest.mark.parametrize("name", ["a.npy", "a.h5", "a.hdf5"])
@pytest.mark.parametrize("at_once", [2, 4096])
def test_rows_come_in_the_manifests_order(tmp_path, name, at_once, monkeypatch):
    monkeypatch.setattr(given_features, "_ROWS_IN_MEMORY", at_once)
    found = import_features(write(tmp_path / name), PATCHES, tmp_path / "run")
    np.testing.assert_array_equal(found, VALUES[:, None])
    assert (found.dtype, isinstance(found, np.memmap), found.flags.writeable) == (np.float32, True, False)


def test_views_are_kept_apart(tmp_path):
    views = np.stack([VALUES, -VALUES], axis=1)
    found = import_features(write(tmp_path / "a.h5", views[ORDER]), PATCHES, tmp_path / "run")
    np.testing.assert_array_equal(found, views)


def test_a_files_own_name_is_enough_where_no_two_have_the_same(tmp_path):
    names = [f"original\\1\\{FILES[row][-5:]}" for row in ORDER]
    np.testing.assert_array_equal(
        import_features(write(tmp_path / "a.npy", names=names), PATCHES, tmp_path / "run"), VALUES[:, None]
    )
    twice = [patch._replace(file=f"training/{number}/a.png") for number, patch in enumerate(PATCHES)]
    with pytest.raises(InputError, match="5 of 5 images are missing, and 5 are not in the dataset"):
        import_features(write(tmp_path / "b.npy", names=names), twice, tmp_path / "run")


BROKEN = VALUES.copy()
BROKEN[2, 1] = np.nan
LARGE = np.where(np.isnan(BROKEN), 1e300, BROKEN)  # infinite in float32


@pytest.mark.parametrize(
    ("values", "names", "message"),
    [
        (VALUES[:4], FILES[:4], "does not fit the dataset: 1 of 5 .* missing, and 0 .*: missing training/0/e.png"),
        (VALUES, [*FILES[:4], "x.png"], "1 of 5 images are missing, and 1 are .* .first: missing training/0/e"),
        (np.ones((6, 2)), [*FILES, "x.png"], "0 of 5 images are missing, and 1 are .* .first: unknown x.png"),
        (np.ones((6, 2)), [*FILES, FILES[0]], "names 1 images twice"),
        (VALUES, FILES[:4], r"contains float64 \[5, 2\] and 4 names"),
        (np.ones(5), FILES, r"contains float64 \[5\] and 5 names"),
        (np.ones((5, 0)), FILES, r"contains float64 \[5, 0\]"),
        (np.ones((5, 2), complex), FILES, "contains complex128"),
        (BROKEN, FILES, "has a value that is not a finite number for training/0/c.png"),
        (LARGE, FILES, "has a value that is not a finite number for training/0/c.png"),
    ],
)
@pytest.mark.parametrize("name", ["a.npy", "a.h5"])
def test_what_does_not_fit_is_refused(tmp_path, name, values, names, message):
    with pytest.raises(InputError, match=message):
        import_features(write(tmp_path / name, values, names), PATCHES, tmp_path / "run")


def link(file, other):
    file["features"] = h5py.ExternalLink(other.name, "features")


def store_outside(file, other):
    file.create_dataset("features", (5, 2), "f8", external=[(str(other), 0, 80)])


def map_outside(file, other):
    layout = h5py.VirtualLayout((5, 2), "f8")
    layout[:] = h5py.VirtualSource(str(other), "features", (5, 2))
    file.create_virtual_dataset("features", layout)


@pytest.mark.parametrize("refer", [link, store_outside, map_outside])
def test_values_in_another_file_are_not_read(tmp_path, refer):
    other = write(tmp_path / "other.h5")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        refer(file, other)
        file["file"] = FILES
    with pytest.raises(InputError, match="a.h5: the dataset features is in another file. Write all values into one"):
        import_features(tmp_path / "a.h5", PATCHES, tmp_path / "run")


def test_what_cannot_be_read_is_named(tmp_path):
    for name, message in (
        ("none.npy", "none.npy cannot be read as NumPy's .npy"),
        ("none.h5", "none.h5 must be HDF5 with the datasets features and file"),
        ("features.pt", "--features takes a file .npy, .h5 or .hdf5, not"),
    ):
        with pytest.raises(InputError, match=message):
            import_features(tmp_path / name, PATCHES, tmp_path)
    (tmp_path / "text.npy").write_text("text")
    with pytest.raises(InputError, match="text.npy cannot be read"):
        import_features(tmp_path / "text.npy", PATCHES, tmp_path)
    np.save(tmp_path / "alone.npy", VALUES)
    with pytest.raises(InputError, match="alone.csv must name the image of each row"):
        import_features(tmp_path / "alone.npy", PATCHES, tmp_path)
    with h5py.File(tmp_path / "half.h5", "w") as file:
        file["features"] = VALUES
    with pytest.raises(InputError, match="half.h5 must be HDF5 with the datasets features and file"):
        import_features(tmp_path / "half.h5", PATCHES, tmp_path)
