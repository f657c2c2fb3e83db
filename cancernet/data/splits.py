"""Put patients in splits: 80/10/20 by patient, a published split, or the split that the source already has."""

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, train_test_split

from cancernet import InputError
from cancernet.config import SPLIT_NAMES, SPLITS, TESTING_SHARE, TRAINING_PARTS, VALIDATION_SHARE
from cancernet.data.dataset import Patch, join_sets, list_copies

MOST_COPIES = 4  # groups that a file with the same bytes joins; blank images are in many


class Fold(NamedTuple):
    """Rows of a list of patches for training, and those left out for validation."""

    training: np.ndarray  # int [m]
    validation: np.ndarray  # int [n]


def read_split_file(path: Path) -> dict[str, str]:
    """Read a published split, a CSV file with the columns patient and split: patient -> split.

    Lines that begin with # are comments. Raises InputError if the file is missing, has other columns, an unknown split,
    or lists a patient twice.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read the split file {path}: {getattr(error, 'strerror', None) or error}.") from error
    if not rows or not {"patient", "split"} <= set(rows[0]):
        raise InputError(f"{path} must have the columns patient,split and at least one row.")
    splits: dict[str, str] = {}
    for row in rows:
        patient, split = (row["patient"] or "").strip(), (row["split"] or "").strip().lower()
        if split not in SPLIT_NAMES:
            raise InputError(f"{path}: patient {patient} has the split {split!r}. Use one of {', '.join(SPLITS)}.")
        if patient in splits:
            raise InputError(f"{path}: patient {patient} is listed twice. Keep one line per patient.")
        splits[patient] = SPLIT_NAMES[split]
    return splits


def plan_splits(
    images: Sequence[Patch], *, split_by: str, split_file: Mapping[str, str] | None, seed: int
) -> list[Patch]:
    """Decide the split of each image; "" for an image whose patient is not in the split file.

    A split file (patient -> split) takes precedence. Otherwise the source's own split is kept, if it has one. If that
    has training but no validation images, a tenth of training becomes validation. `split_by` is "patient", or "image"
    to split each image on its own. Raises InputError as `assign_splits`; if the split file names none of the patients;
    or if only some of the images lie in split folders.
    """
    splits = [image.split if split_file is None else split_file.get(image.patient, "") for image in images]
    labels, groups = [image.label for image in images], list_groups(images, by_patient=split_by == "patient")
    if split_file is not None:
        if not any(splits):
            raise InputError("The split file names none of the patients found. Check its names or --patient-pattern.")
    elif not any(splits):
        splits = assign_splits(labels, groups, seed=seed)
    elif "" in splits:
        raise InputError(
            f"{splits.count('')} image(s) are in no split folder, first {images[splits.index('')].file}, while others "
            "are (train, val, test). Move them out of the source or give a --split-file."
        )
    elif "validation" not in splits and "training" in splits:
        training = np.flatnonzero(np.array(splits) == "training")
        for row in _choose_share(labels, groups, training, VALIDATION_SHARE, seed):
            splits[row] = "validation"
    return [image._replace(split=split) for image, split in zip(images, splits, strict=True)]


def list_groups(images: Sequence[Patch], *, by_patient: bool) -> list[str]:
    """Return the group of each image that a split must not divide: its patient, or its file if that is unknown.

    Groups that share a file with the same bytes are one, unless more than MOST_COPIES groups do: it shows no tissue.
    """
    groups = [image.patient or image.file if by_patient else image.file for image in images]
    sharing = [{groups[row] for row in rows} for rows in list_copies(images)]
    joined = join_sets(found for found in sharing if len(found) <= MOST_COPIES)
    return [min(joined.get(group, (group,))) for group in groups]


def assign_splits(labels: Sequence[str], groups: Sequence[str], *, seed: int) -> list[str]:
    """Put each image in a split: 20% for testing and 10% of the rest for validation. A group is never divided.

    The share of each class in every split is close to its share of all images (scikit-learn's StratifiedGroupKFold).
    If each image is a group of its own, the split is stratified by class. `labels` and `groups` are the class and the
    patient of each image [n]. Raises InputError if there are fewer groups than splits, or too few images of a class.
    """
    n_groups = len(set(groups))
    if n_groups < len(SPLITS):
        raise InputError(f"{n_groups} patient(s) cannot fill {len(SPLITS)} splits. Add patients or --split-by image.")
    testing = _choose_share(labels, groups, np.arange(len(labels)), TESTING_SHARE, seed)
    return _assign_rest(labels, groups, testing, seed)


def assign_folds(labels: Sequence[str], groups: Sequence[str], *, folds: int, seed: int) -> list[list[str]]:
    """Return the split of each image [n] for each fold of a cross-validation; each image is tested in one fold.

    Of the images that a fold does not test on, a tenth is for validation, as in `assign_splits`. Raises InputError if
    there are fewer groups than folds, or too few images of a class.
    """
    made = _make_folds(labels, groups, folds=folds, seed=seed, name="folds")
    return [_assign_rest(labels, groups, fold.validation, seed) for fold in made]


def leave_out_values(
    labels: Sequence[str], groups: Sequence[str], values: Sequence[str], *, seed: int
) -> dict[str, list[str]]:
    """Return the split of each image [n] for each value of a column, such as site: its images are for testing.

    Of the other images, a tenth is for validation, as in `assign_splits`. `values` are those of each image [n]; the
    splits come in their order. Raises InputError if an image has no value, all have the same, a group has several, or
    there are too few groups or images of a class.
    """
    without = sum(not value for value in values)
    if without:
        raise InputError(
            f"{without:,} images have no value. Fill in the column in the table of labels, and build again."
        )
    if len(set(values)) < 2:
        raise InputError(f"All images have the value {values[0]}. Leaving out values needs two or more.")
    value_of: dict[str, str] = {}
    for group, value in zip(groups, values, strict=True):
        if value_of.setdefault(group, value) != value:
            raise InputError(
                f"Images of {group}, or copies of them, have several values, {value_of[group]} and {value}: training "
                "without one of them would see the same patient. Correct the table of labels, and build again."
            )
    return {
        value: _assign_rest(labels, groups, np.flatnonzero(np.array(values) == value), seed)
        for value in sorted(set(values))
    }


def split_members(patches: Sequence[Patch], members: int, *, by_patient: bool, seed: int) -> list[Fold]:
    """Choose the rows of `patches` that each ensemble member is trained and validated on.

    A single member takes the dataset's own splits. For several, the patients of training and validation are divided
    into as many folds, and each member leaves its own fold out. Raises InputError if there are fewer patients, or
    images of a class, than members.
    """
    splits = np.array([patch.split for patch in patches])
    if members == 1:
        return [Fold(np.flatnonzero(splits == "training"), np.flatnonzero(splits == "validation"))]
    rows = np.flatnonzero((splits == "training") | (splits == "validation"))
    return _divide_rows(patches, rows, members, by_patient=by_patient, seed=seed)


def split_training(patches: Sequence[Patch], *, by_patient: bool, seed: int) -> list[Fold]:
    """Divide the training images into up to five folds, to choose a setting by its loss on the fold left out.

    The rows of the folds index `patches`. There are none if there is only one patient, or only one image of a class.
    """
    rows = np.flatnonzero([patch.split == "training" for patch in patches])
    return _divide_rows(patches, rows, None, by_patient=by_patient, seed=seed)


def _divide_rows(
    patches: Sequence[Patch], rows: np.ndarray, members: int | None, *, by_patient: bool, seed: int
) -> list[Fold]:
    """Divide rows of `patches` into a fold for each member; without members, into up to TRAINING_PARTS."""
    chosen = [patches[row] for row in rows]
    labels, groups = [patch.label for patch in chosen], list_groups(chosen, by_patient=by_patient)
    folds = members or min(TRAINING_PARTS, len(set(groups)), *Counter(labels).values())
    made = _make_folds(labels, groups, folds=folds, seed=seed, name="members") if folds > 1 else []
    return [Fold(rows[fold.training], rows[fold.validation]) for fold in made]


def _make_folds(labels: Sequence[str], groups: Sequence[str], *, folds: int, seed: int, name: str) -> list[Fold]:
    """Divide images into folds of whole groups, stratified by class; `name` says in an error what they are."""
    label, count = Counter(labels).most_common()[-1]
    n_groups = len(set(groups))
    if min(count, n_groups) < folds:
        raise InputError(
            f"{n_groups} patient(s) and {count} images of class {label} cannot fill {folds} {name}. Use fewer."
        )
    if n_groups == len(groups):
        made = StratifiedKFold(folds, shuffle=True, random_state=seed).split(labels, labels)
    else:
        made = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(labels, labels, groups)
    return [Fold(*rows) for rows in made]


def _assign_rest(labels: Sequence[str], groups: Sequence[str], testing: np.ndarray, seed: int) -> list[str]:
    """Return the split of each image [n], given the rows for testing; of the others a tenth is for validation."""
    splits = np.full(len(labels), SPLITS[0], dtype=object)
    splits[testing] = "testing"
    rest = np.delete(np.arange(len(labels)), testing)
    splits[_choose_share(labels, groups, rest, VALIDATION_SHARE, seed)] = "validation"
    return splits.tolist()


def _choose_share(
    all_labels: Sequence[str], all_groups: Sequence[str], rows: np.ndarray, share: float, seed: int
) -> np.ndarray:
    """Choose about `share` of the groups among `rows` [m], stratified by class; return the rows of their images."""
    labels, groups = np.array(all_labels)[rows], np.array(all_groups)[rows]
    n_groups, n_classes = len(set(groups)), len(set(labels))
    label, count = Counter(labels.tolist()).most_common()[-1]
    if count < 2:
        raise InputError(f"Class {label} has too few images to be in every split ({count} left). Add images of it.")
    if n_groups == len(groups):
        size = max(round(share * len(groups)), n_classes)
        if len(groups) - size < n_classes:
            raise InputError(f"{len(groups)} images are too few to be split over {n_classes} classes.")
        _, chosen = train_test_split(np.arange(len(groups)), test_size=size, stratify=labels, random_state=seed)
        return rows[np.sort(chosen)]
    if n_groups < 2:
        raise InputError("One patient cannot be divided between training and validation. Add patients.")
    folds = min(round(1 / share), n_groups, count)
    groups = np.unique(groups, return_inverse=True)[1]  # numbers, in the order of the names, are sorted faster
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    candidates = [chosen for _, chosen in splitter.split(labels, labels, groups) if 0 < len(chosen) < len(labels)]

    def measure_distance(chosen: np.ndarray) -> float:
        """Measure how far the chosen images are from `share` of the groups and from the share of each class in all."""
        chosen_groups = len(np.unique(groups[chosen])) / n_groups
        classes = [abs(np.mean(labels[chosen] == label) - np.mean(labels == label)) for label in np.unique(labels)]
        return float(abs(chosen_groups - share) + max(classes))

    return rows[min(candidates, key=measure_distance)]
