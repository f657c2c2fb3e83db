"""Put patients in splits: 80/10/20 by patient, a published split, or the split that the source already has."""

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, train_test_split

from cancernet import InputError
from cancernet.config import SPLIT_NAMES, SPLITS, TESTING_SHARE, TRAINING_PARTS, VALIDATION_SHARE
from cancernet.data.dataset import Patch


def read_split_file(path: Path) -> dict[str, str]:
    """Read a published split, a CSV file with the columns patient and split.

    Raises:
        InputError: the file is missing, has other columns, an unknown split or a patient twice.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read the split file {path}: {getattr(error, 'strerror', None) or error}.") from error
    if not rows or not {"patient", "split"} <= set(rows[0]):
        raise InputError(f"{path} must have the columns patient,split and at least one row.")
    splits = {}
    for row in rows:
        patient, split = (row["patient"] or "").strip(), (row["split"] or "").strip().lower()
        if split not in SPLIT_NAMES:
            raise InputError(f"{path}: patient {patient} has the split {split!r}; known are {', '.join(SPLITS)}.")
        if patient in splits:
            raise InputError(f"{path}: patient {patient} is listed twice. Keep one line a patient.")
        splits[patient] = SPLIT_NAMES[split]
    return splits


def assign_splits(labels: Sequence[str], groups: Sequence[str], *, seed: int) -> list[str]:
    """Put each image in a split: 20% for testing and 10% of the rest for validation. A group is never divided.

    The share of each class in every split is close to its share of all images (scikit-learn's StratifiedGroupKFold).
    Where each image is a group of its own, the split is stratified by class.

    Args:
        labels: class of each image [n].
        groups: patient of each image [n]; images of one group stay together.
        seed: of the shuffling.

    Returns:
        Split of each image [n].

    Raises:
        InputError: fewer groups than splits, or too few images of a class.
    """
    n_groups = len(set(groups))
    if n_groups < len(SPLITS):
        raise InputError(f"{n_groups} patient(s) cannot fill {len(SPLITS)} splits. Add patients or --split-by image.")
    labels, groups = np.asarray(labels), np.asarray(groups)
    splits = np.full(len(labels), SPLITS[0], dtype=object)
    rest = np.arange(len(labels))
    for split, share in (("testing", TESTING_SHARE), ("validation", VALIDATION_SHARE)):
        chosen = _choose_share(labels[rest], groups[rest], share, seed)
        splits[rest[chosen]] = split
        rest = np.delete(rest, chosen)
    return splits.tolist()


def assign_folds(labels: Sequence[str], groups: Sequence[str], *, folds: int, seed: int) -> list[list[str]]:
    """Put each image in a split for each fold of a cross-validation. Every image is for testing in one fold.

    Of the images that a fold does not test on, a tenth is for validation, as in `assign_splits`.

    Args:
        labels, groups, seed: as in `assign_splits`.
        folds: how many.

    Returns:
        For each fold, the split of each image [n].

    Raises:
        InputError: fewer groups than folds, or too few images of a class.
    """
    labels, groups = np.asarray(labels), np.asarray(groups)
    assigned = []
    for rest, testing in deal_parts(labels, groups, parts=folds, seed=seed, called="folds"):
        splits = np.full(len(labels), SPLITS[0], dtype=object)
        splits[testing] = "testing"
        splits[rest[_choose_share(labels[rest], groups[rest], VALIDATION_SHARE, seed)]] = "validation"
        assigned.append(splits.tolist())
    return assigned


def deal_members(patches: Sequence[Patch], members: int, *, by_patient: bool, seed: int) -> list[dict[str, np.ndarray]]:
    """Choose what each member is trained on and validated on.

    One member takes the dataset's own splits. Several deal the patients of training and validation into as many parts,
    and each leaves its own part out.

    Returns:
        Of each member, the rows of `patches` that are its `training` and its `validation`.

    Raises:
        InputError: as `deal_parts`.
    """
    rows = {split: np.flatnonzero([patch.split == split for patch in patches]) for split in SPLITS}
    if members == 1:
        return [{split: rows[split] for split in ("training", "validation")}]
    known = np.sort(np.concatenate([rows["training"], rows["validation"]]))
    return _deal_rows(patches, known, parts=members, by_patient=by_patient, seed=seed)


def deal_training(patches: Sequence[Patch], *, by_patient: bool, seed: int) -> list[dict[str, np.ndarray]]:
    """Deal the training images into up to five parts, to choose a setting by what each part says when left out.

    Returns:
        Of each part, the rows of `patches` without it, as `training`, and its own, as `validation`; none where one
        patient, or one image of a class, is all there is.
    """
    rows = np.flatnonzero([patch.split == "training" for patch in patches])
    labels = Counter(patches[row].label for row in rows)
    groups = set(list_groups([patches[row] for row in rows], by_patient=by_patient))
    parts = min(TRAINING_PARTS, len(groups), *labels.values())
    return _deal_rows(patches, rows, parts=parts, by_patient=by_patient, seed=seed) if parts > 1 else []


def _deal_rows(
    patches: Sequence[Patch], rows: np.ndarray, *, parts: int, by_patient: bool, seed: int
) -> list[dict[str, np.ndarray]]:
    labels = [patches[row].label for row in rows]
    groups = list_groups([patches[row] for row in rows], by_patient=by_patient)
    dealt = deal_parts(labels, groups, parts=parts, seed=seed, called="members")
    return [{"training": rows[rest], "validation": rows[own]} for rest, own in dealt]


def deal_parts(
    labels: Sequence[str], groups: Sequence[str], *, parts: int, seed: int, called: str
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Deal images into parts, whole groups at a time, with the classes in proportion.

    Args:
        labels, groups: class and patient of each image [n].
        called: what the parts are, for the error.

    Returns:
        Of each part, the positions of all other images and those of its own.

    Raises:
        InputError: fewer groups, or images of a class, than parts.
    """
    labels, groups = np.asarray(labels), np.asarray(groups)
    label, count = Counter(labels.tolist()).most_common()[-1]
    n_groups = len(set(groups))
    if min(count, n_groups) < parts:
        raise InputError(
            f"{n_groups} patient(s) and {count} images of class {label} cannot fill {parts} {called}. Use fewer."
        )
    if n_groups == len(groups):
        return list(StratifiedKFold(parts, shuffle=True, random_state=seed).split(labels, labels))
    return list(StratifiedGroupKFold(parts, shuffle=True, random_state=seed).split(labels, labels, groups))


def _choose_share(labels: np.ndarray, groups: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Choose about `share` of the images, in whole groups and with the classes in proportion; return their indices."""
    n_groups = len(set(groups))
    label, count = Counter(labels.tolist()).most_common()[-1]
    if count < 2:
        raise InputError(f"Class {label} has too few images to be in every split ({count} left). Add images of it.")
    if n_groups == len(groups):
        size = max(round(share * len(groups)), len(set(labels)))
        if len(groups) - size < len(set(labels)):
            raise InputError(f"{len(groups)} images are too few to be split over {len(set(labels))} classes.")
        _, chosen = train_test_split(np.arange(len(groups)), test_size=size, stratify=labels, random_state=seed)
        return np.sort(chosen)
    if n_groups < 2:
        raise InputError("One patient cannot be divided between training and validation. Add patients.")
    folds = min(round(1 / share), n_groups, count)
    groups = np.unique(groups, return_inverse=True)[1]  # numbers, in the order of the names, are sorted faster
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    candidates = [chosen for _, chosen in splitter.split(labels, labels, groups) if 0 < len(chosen) < len(labels)]
    return min(candidates, key=lambda chosen: _distance(labels, groups, chosen, share))


def _distance(labels: np.ndarray, groups: np.ndarray, chosen: np.ndarray, share: float) -> float:
    """How far the chosen images are from `share` of the patients and from the share of each class in all images."""
    patients = len(np.unique(groups[chosen])) / len(np.unique(groups))
    classes = [abs(np.mean(labels[chosen] == label) - np.mean(labels == label)) for label in np.unique(labels)]
    return abs(patients - share) + max(classes)


def plan_splits(images: Sequence[Patch], *, split_by: str, split_file: dict[str, str] | None, seed: int) -> list[Patch]:
    """Decide the split of each image.

    A split file decides where there is one. Otherwise a split that the source already has is kept; where it has
    training but no validation, a tenth of training becomes validation.

    Args:
        images: as `find_images` returns them.
        split_by: patient, or image where every image is a group of its own.
        split_file: patient -> split, or None.
        seed: of the shuffling.

    Returns:
        The images with their splits; "" for an image whose patient is not in the split file.

    Raises:
        InputError: as `assign_splits`; the split file names none of the patients; or the source is split in part.
    """
    if split_file is not None:
        splits = [split_file.get(image.patient, "") for image in images]
        if not any(splits):
            raise InputError("The split file names none of the patients found. Check its names or --patient-pattern.")
        return _with_splits(images, splits)
    labels = np.array([image.label for image in images])
    groups = np.array(list_groups(images, by_patient=split_by == "patient"))
    unsplit = [image.file for image in images if not image.split]
    if unsplit and len(unsplit) < len(images):
        raise InputError(
            f"{len(unsplit)} image(s) lie in no split folder, first {unsplit[0]}, while others do (train, val, test). "
            "Move them out of the source or give a --split-file."
        )
    if unsplit:
        return _with_splits(images, assign_splits(labels, groups, seed=seed))
    splits = np.array([image.split for image in images], dtype=object)
    if "validation" not in splits and "training" in splits:
        training = np.flatnonzero(splits == "training")
        chosen = _choose_share(labels[training], groups[training], VALIDATION_SHARE, seed)
        splits[training[chosen]] = "validation"
    return _with_splits(images, splits)


def list_groups(images: Sequence[Patch], *, by_patient: bool) -> list[str]:
    """The group of each image that a split must not divide: its patient if `by_patient` and known, else its file."""
    return [image.patient or image.file if by_patient else image.file for image in images]


def _with_splits(images: Sequence[Patch], splits: Sequence[str]) -> list[Patch]:
    return [image._replace(split=split) for image, split in zip(images, splits, strict=True)]
