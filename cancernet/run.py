"""The run folder: the files in it, how they are written and loaded, and whether they and new images fit together."""

import contextlib
import csv
import io
import itertools
import json
import math
import os
import platform
import shutil
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cancernet import InputError, StorageError, __version__, storage
from cancernet.config import Experiment, update_settings
from cancernet.data.dataset import IDC_PIXELS, Patch, list_columns
from cancernet.evaluation.decision import Decision, load_decision, save_decision
from cancernet.evaluation.label_check import SuspiciousLabel
from cancernet.evaluation.predictions import Predictions
from cancernet.models.architectures import describe_missing_package, list_architectures
from cancernet.storage import Content, FolderKind

if TYPE_CHECKING:
    import keras

    from cancernet.explain.out_of_distribution import OutOfDistributionDetector

MODEL, DECISION, CONFIG, HISTORY = "model.keras", "decision.json", "config.json", "history.csv"
REPORT, REPORT_TEXT, REPORT_PAGE, PREDICTIONS = "report.json", "report.txt", "report.html", "predictions.csv"
LABELS_TO_CHECK = "labels_to_check.csv"  # of runs with out-of-fold predictions
OUT_OF_DISTRIBUTION = "out_of_distribution.npz"  # the detector; older runs do not have it
_OLD_NAME = "familiar.npz"  # of it, in version 0.1
SAMPLES = "samples"  # some of the test images, <class>/<file>
REQUEST = "begun.json"  # what an unfinished run was started with
FEATURES = "features"  # in an unfinished run: features of the backbone, where the dataset's folder cannot be written
PACKAGES = ("tensorflow", "keras", "numpy", "sklearn", "scipy", "cv2", "imutils", "matplotlib")
_HASH_DIGITS = 16  # of the SHA-256 of an image, which identify it
_ADVICE = "Train again, or copy the whole run folder again."


@dataclass(frozen=True)
class Seen:
    """The patients and images of training and validation."""

    patients: tuple[str, ...]
    images: str  # the first digits of their hashes, sorted and joined: read ten times faster than a list of 250,000


@dataclass(frozen=True)
class Settings:
    """config.json: all that is needed to train again, and what new images must be like."""

    experiment: Experiment
    classes: tuple[str, ...]  # in the order of the model's outputs
    positive: str | None  # the class that sensitivity refers to; None for more than two classes
    training_precision: str
    operating_point: str
    neighbours: bool  # whether smoothing over neighbouring patches could be chosen
    manifest_sha256: str
    images_are_grey: bool
    usual_size: str  # of the image files, such as 50x50
    mpp: float | None  # micrometres per pixel of the images; None if unknown
    versions: dict[str, str]
    hardware: dict[str, str | int | None]
    class_names: dict[str, str] | None  # what the folder of a class means, such as 1: IDC
    seen: Seen
    model_sha256: str = ""  # of model.keras; empty in runs of earlier versions
    patch_pixels: int = IDC_PIXELS  # from one patch to the next
    class_colours: dict[str, tuple[int, int, int]] | None = None  # red, green, blue, of annotations
    __pydantic_config__ = {"allow_inf_nan": False}  # noqa: RUF012


@dataclass(frozen=True, eq=False)
class Run:
    """A trained network with its decision and settings."""

    model: "keras.Model"  # raw images [n, size, size, channels], 0 to 255, to uncalibrated probabilities [n, classes]
    decision: Decision  # calibration, threshold and smoothing, fitted on validation patients
    settings: Settings  # config.json
    folder: Path
    detector: "OutOfDistributionDetector | None" = None  # None in older runs

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of all probabilities."""
        return self.settings.classes

    @property
    def positive(self) -> str | None:
        """The class that sensitivity refers to; None for more than two classes."""
        return self.settings.positive

    @property
    def threshold(self) -> float | None:
        """Calibrated probability from which an image is classified as positive; None for more than two classes."""
        return self.decision.threshold


def load_run(folder: Path) -> Run:
    """Load a run that takes images.

    Raises InputError if there is no such run, its package is not installed, or it takes features instead of images;
    StorageError if one of its files is missing or damaged, or they are not of the same run.
    """
    settings = read_settings(folder)
    for architecture in list_architectures(settings.experiment.model):
        if not architecture.takes_images:
            advice = f"Give features of new images to {folder / MODEL} in Keras, or train a run with --model."
            raise InputError(f"{folder} takes features, not images: it was trained with --features. {advice}")
        try:
            if architecture.package:
                import_module(architecture.package)  # registers the layers of the model's file
        except ImportError as error:
            raise InputError(describe_missing_package(str(folder / MODEL), architecture)) from error
    decision = load_decision(folder / DECISION)
    if settings.experiment.members > 1:
        decision = _mark_out_of_fold(decision)
    model = _load_model(folder / MODEL, settings)
    difference = _find_difference(model, decision, settings)
    if difference:
        raise StorageError(f"The files in {folder} are of different runs: {difference}. Copy the whole run folder.")
    return Run(model, decision, settings, folder, _load_detector(folder, model))


def _mark_out_of_fold(decision: Decision) -> Decision:
    """Say of a decision, which versions up to 1.0 did not, that it was fitted on out-of-fold predictions."""
    fitted_on, alone = replace(decision.fitted_on, out_of_fold=True), decision.without_neighbours
    return replace(decision, fitted_on=fitted_on, without_neighbours=alone and _mark_out_of_fold(alone))


def _load_model(path: Path, settings: Settings) -> "keras.Model":
    import keras

    made = settings.versions.get("keras", keras.__version__)
    try:
        if settings.model_sha256 not in ("", storage.hash_file(path)):
            raise StorageError(f"{path} is missing or damaged: it is not the file that {CONFIG} describes. {_ADVICE}")
        with _limit_weights(_count_bytes(path)):
            model = keras.models.load_model(path, compile=False)
    except StorageError:
        raise
    except Exception as error:  # a damaged file can make Keras raise anything, and so can one of another version
        if path.is_file() and made != keras.__version__:
            raise StorageError(
                f"{path} was made with Keras {made}, and Keras {keras.__version__} cannot load it. Install "
                f"that version (pip install keras=={made}), train again, or copy the whole run folder again."
            ) from error
        raise StorageError(f"{path} is missing or damaged. {_ADVICE}") from error
    if not isinstance(model, keras.Model):
        raise StorageError(f"{path} is missing or damaged: it does not contain a network. {_ADVICE}")
    if not all(np.isfinite(weight).all() for weight in model.get_weights()):
        raise StorageError(f"{path} is missing or damaged: it has weights that are not finite numbers. {_ADVICE}")
    _unwrap_outputs(model)
    return model


def _unwrap_outputs(network: "keras.layers.Layer") -> None:
    """Let a network and those in it return their only output: Keras 3.8 saves it as a list, and 3.15 returns that."""
    for each in getattr(network, "layers", []):
        _unwrap_outputs(each)
    outputs = getattr(network, "_outputs_struct", None)
    if isinstance(outputs, list) and len(outputs) == 1:
        network._outputs_struct = outputs[0]


def _count_bytes(path: Path) -> int:
    """Return the size of the weights in a model file; ValueError if it declares more than it contains, uncompressed."""
    import h5py

    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > 2 * path.stat().st_size:
            raise ValueError("its parts are larger than the file")
        weights = archive.read("model.weights.h5")
    sizes: list[int] = []
    with h5py.File(io.BytesIO(weights), "r") as content:
        content.visititems(lambda _, item: sizes.append(item.nbytes) if isinstance(item, h5py.Dataset) else None)
    if sum(sizes) > len(weights):
        raise ValueError("its arrays are larger than the file")
    return len(weights)


_limiting = threading.Lock()


@contextlib.contextmanager
def _limit_weights(most: int) -> Iterator[None]:
    """Refuse layers that this thread makes with more weights than there are bytes to fill them, before allocation."""
    import keras

    total, thread = 0, threading.get_ident()

    def add(layer: object, shape: Sequence[int] | None = None, *rest: object, **options: object) -> object:
        nonlocal total
        if threading.get_ident() == thread:
            total += math.prod(shape or ())
            if total > most:
                raise ValueError("its layers need more weights than it contains")
        return add_weight(layer, shape, *rest, **options)

    with _limiting:  # two at a time would restore each other's
        add_weight = keras.layers.Layer.add_weight
        keras.layers.Layer.add_weight = add
        try:
            yield
        finally:
            keras.layers.Layer.add_weight = add_weight


def _load_detector(folder: Path, model: "keras.Model") -> "OutOfDistributionDetector | None":
    from cancernet.explain.out_of_distribution import OutOfDistributionDetector, ReferenceDistribution, check_detector

    fields = ReferenceDistribution._fields
    path = next((folder / name for name in (OUT_OF_DISTRIBUTION, _OLD_NAME) if (folder / name).is_file()), None)
    if path is None:
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            networks = range(len(file.files) // len(fields))
            parts = [[file[f"{network}_{name}"] for name in fields] for network in networks]
        references = (ReferenceDistribution._make([*arrays, float(limit)]) for *arrays, limit in parts)
        detector = OutOfDistributionDetector(tuple(references))
        check_detector(model, detector)
    except Exception as error:  # a damaged file can make NumPy raise anything
        raise StorageError(f"{path} is damaged or of another run. {_ADVICE}") from error
    return detector


def _find_difference(model: "keras.Model", decision: Decision, settings: Settings) -> str:
    experiment, classes = settings.experiment, settings.classes
    shape = [experiment.image_size, experiment.image_size, experiment.channels]
    if list(model.input_shape[1:]) != shape:
        return f"{MODEL} takes images of shape {list(model.input_shape[1:])}, {CONFIG} says {shape}"
    if model.output_shape[-1] != len(classes):
        return f"{MODEL} has {model.output_shape[-1]} classes, {CONFIG} has {len(classes)}"
    if list(classes) != sorted(classes):
        return f"{CONFIG} has the classes {', '.join(classes)}, {MODEL} their names in order"
    if decision.classes != classes:
        return f"{DECISION} has the classes {', '.join(decision.classes)}, {CONFIG} {', '.join(classes)}"
    if decision.positive != settings.positive:
        return f"the positive class is {decision.positive} in {DECISION}, {settings.positive} in {CONFIG}"
    return ""


def read_settings(folder: Path) -> Settings:
    """Read config.json, also of an earlier version; InputError if there is no run, StorageError if it is damaged."""
    if not folder.is_dir():
        raise InputError(f"There is no run {folder}. Train one with train_model.py --output {folder}.")
    folds = sorted(folder.glob(f"fold_*/{MODEL}"))
    if folds and not (folder / CONFIG).is_file():
        raise InputError(f"{folder} is a cross-validation, without a model of its own. Give a fold: {folds[0].parent}.")
    return storage.read_json(folder / CONFIG, Settings, advice=_ADVICE, update=_update_config)


def _update_config(config: dict[str, object]) -> dict[str, object]:
    experiment = config.get("experiment")
    return config | {"experiment": update_settings(experiment)} if isinstance(experiment, dict) else config


def read_report(folder: Path, content: type[Content]) -> Content | None:
    """Read report.json as `content`, `reporting.schema.Report`; None if there is none, StorageError if damaged."""
    return storage.read_json(folder / REPORT, content, advice=_ADVICE) if is_finished(folder) else None


def find_runs(folder: Path) -> list[Path]:
    """Find the finished runs directly in a folder, the newest first."""
    runs = [path.parent for path in folder.glob(f"*/{MODEL}")]
    runs = [run for run in runs if (run / CONFIG).is_file() and (run / DECISION).is_file()]
    return sorted(runs, key=lambda run: ((run / DECISION).stat().st_mtime, run.name), reverse=True)


def save_run(run: Run, history: Mapping[str, Sequence[float]], predictions: Predictions) -> None:
    """Write the files of a run except its report: network, decision, settings, history of the epochs, predictions."""
    run.model.save(run.folder / MODEL)
    save_decision(run.decision, run.folder / DECISION)
    write_settings(run.folder, replace(run.settings, model_sha256=storage.hash_file(run.folder / MODEL)))
    if run.detector:
        parts = [each._asdict() for each in run.detector.references]
        arrays = {f"{network}_{name}": part for network, each in enumerate(parts) for name, part in each.items()}
        np.savez(run.folder / OUT_OF_DISTRIBUTION, **arrays)
    with (run.folder / HISTORY).open("w", newline="", encoding="utf-8") as file:
        epochs = enumerate(zip(*history.values()), start=1)
        storage.write_rows(file, [["epoch", *history], *([epoch, *values] for epoch, values in epochs)])
    write_predictions(run.folder, predictions, run.classes)
    storage.flush_folder(run.folder)  # before the report, by which a fold of a cross-validation is known to be finished


def write_settings(folder: Path, settings: Settings) -> None:
    """Write config.json."""
    storage.write_json(folder / CONFIG, asdict(settings))


def name_class(settings: Settings, name: str) -> str:
    """Return what people call a class: `IDC` for class 1 of the IDC dataset, otherwise its own name."""
    return (settings.class_names or {}).get(name, name)


def describe_machine() -> tuple[dict[str, str], dict[str, str | int | None]]:
    """Return `versions` and `hardware` of `Settings` for this machine."""
    import keras

    from cancernet.training.pipeline import describe_device

    packages = (*PACKAGES, "jax") if keras.backend.backend() == "jax" else PACKAGES
    versions = {"cancernet": __version__, "python": platform.python_version()}
    versions |= {name: import_module(name).__version__ for name in packages}
    return versions, {"device": describe_device(), "cores": os.cpu_count(), "system": platform.platform()}


def prepare_folder(folder: Path, request: Mapping[str, object], *, force: bool) -> Path:
    """Make the folder in which a training works until it is finished; one with the same request is resumed.

    The caller holds the lock of `folder`, the run's. The request is all that the figures follow from, in JSON types and
    paths. A finished run, or an unfinished one with another request, raises InputError; with `force` it is replaced.
    """
    storage.check_replaceable(folder, FolderKind.RUN, force=force)
    work = name_unfinished(folder)
    if work.exists() and not _has_request(work, request):
        has_started = any(path.name != REQUEST and not path.name.startswith(".") for path in work.iterdir())
        if has_started and not (work / REQUEST).is_file():
            raise InputError(f"{work} contains other files, not an unfinished run. Choose another output folder.")
        if has_started and not force:
            advice = "Finish it with them, or add --force to start again."
            raise InputError(f"{work} was started with other settings. {advice}")
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    storage.write_files(work, {REQUEST: _encode_request(request)})
    return work


def choose_folder(folder: Path, request: Mapping[str, object]) -> Path:
    """Choose the folder of a run for which the user named none: `folder`, or `folder-2` and so on if it exists.

    An unfinished run with the same request keeps its folder.
    """
    numbered = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
    free = None
    for candidate in itertools.chain([folder], numbered):
        if _has_request(name_unfinished(candidate), request):
            return candidate
        if not is_finished(candidate):
            free = free or candidate
            if not name_unfinished(candidate).exists():
                break
    return free or folder


def _encode_request(request: Mapping[str, object]) -> bytes:
    return json.dumps(request, indent=1, default=str).encode()


def _has_request(work: Path, request: Mapping[str, object]) -> bool:
    return (work / REQUEST).is_file() and (work / REQUEST).read_bytes() == _encode_request(request)


def name_unfinished(folder: Path) -> Path:
    """Return the folder in which a training works until its run is finished."""
    return folder.with_name(folder.name + ".unfinished")


def is_finished(folder: Path) -> bool:
    """Return whether a folder contains a whole run: its report is written last."""
    return (folder / REPORT).is_file()


def finish_folder(work: Path, folder: Path) -> None:
    """Delete what only an unfinished run needs, and name the finished run; StorageError if it cannot be renamed."""
    try:
        storage.flush_folder(work)
        for name in ("checkpoint*", ".checkpoint*", FEATURES):
            for leftover in itertools.chain(work.glob(name), work.glob(f"fold_*/{name}")):
                shutil.rmtree(leftover)
        storage.replace_folder(work, folder)
    except OSError as error:
        advice = f"The finished run is in {work}; repeat the command to rename it."
        raise StorageError(f"{error.strerror}: {folder} cannot be replaced. {advice}") from error
    with contextlib.suppress(OSError):  # the run is whole with it, too
        (folder / REQUEST).unlink()


def describe_seen(patches: Sequence[Patch]) -> Seen:
    """Return the patients and images that a run trained on these splits has seen."""
    seen = [patch for patch in patches if patch.split != "testing"]
    return Seen(
        tuple(sorted({patch.patient for patch in seen if patch.patient})),
        "".join(sorted({patch.sha256[:_HASH_DIGITS] for patch in seen})),
    )


def find_seen(seen: Seen, patches: Sequence[Patch]) -> list[str]:
    """Find what a run was trained or validated on: patients, and image files of other patients.

    An image is identified by its bytes, whatever its patient is called in the dataset that it now comes from.
    """
    patients = set(seen.patients)
    images = {seen.images[start : start + _HASH_DIGITS] for start in range(0, len(seen.images), _HASH_DIGITS)}
    return sorted(
        {patch.patient for patch in patches if patch.patient in patients}
        | {patch.file for patch in patches if patch.patient not in patients and patch.sha256[:_HASH_DIGITS] in images}
    )


def check_same_kind(settings: Settings, patches: Sequence[Patch], *, are_grey: bool) -> None:
    """Raise InputError if a run lacks a class of the patches, or only either of them is grey."""
    unknown = {patch.label for patch in patches} - set(settings.classes)
    if unknown:
        raise InputError(f"The run has the classes {', '.join(settings.classes)}, not {', '.join(sorted(unknown))}.")
    if settings.images_are_grey != are_grey:
        trained, found = ("colour", "grey") if are_grey else ("grey", "colour")
        raise InputError(f"The run was trained on {trained} images; these are {found}. Train another run.")


def compare_scales(settings: Settings, usual_size: str, mpp: float | None) -> list[str]:
    """Warn of images of another scale than in training; where one is unknown, of another usual size."""
    if mpp and settings.mpp:
        is_same = abs(mpp / settings.mpp - 1) < 0.05
        warning = f"The images have {mpp:g} micrometres per pixel, those in training had {settings.mpp:g}."
    else:
        is_same, sizes = usual_size == settings.usual_size, f"{usual_size} pixels, those in training were"
        warning = f"The images are {sizes} {settings.usual_size}: is the scale the same?"
    return [] if is_same else [warning]


def write_predictions(folder: Path, predictions: Predictions, classes: Sequence[str]) -> None:
    """Write predictions.csv: file, label, patient, x, y, probability of each class at full precision, predicted.

    Columns of the manifest follow by which results can be given (`dataset.list_columns`).
    """
    names = list_columns(predictions.patches)
    with (folder / PREDICTIONS).open("w", newline="", encoding="utf-8") as file:
        rows = zip(predictions.patches, predictions.probabilities.tolist(), predictions.predicted, strict=True)
        lines = (
            [*patch[:5], *probabilities, classes[index], *map(dict(patch.more).get, names)]
            for patch, probabilities, index in rows
        )
        storage.write_rows(file, itertools.chain([[*_name_columns(classes), *names]], lines))


def _name_columns(classes: Sequence[str]) -> list[str]:
    return [*Patch._fields[:5], *(f"probability_{name}" for name in classes), "predicted"]


def write_labels_to_check(folder: Path, suspicious: Sequence[SuspiciousLabel]) -> None:
    """Write labels_to_check.csv, whose columns are the fields of `SuspiciousLabel`."""
    with (folder / LABELS_TO_CHECK).open("w", newline="", encoding="utf-8") as file:
        header = [field.name for field in fields(SuspiciousLabel)]
        storage.write_rows(file, [header, *(list(vars(each).values()) for each in suspicious)])


def read_predictions(folder: Path, classes: Sequence[str]) -> Predictions:
    """Read predictions.csv, which lacks split and hash of a patch: they are empty. StorageError if it is damaged."""
    path, columns = folder / PREDICTIONS, _name_columns(classes)
    patches, labels, probabilities, predicted = list[Patch](), list[int](), list[list[float]](), list[int]()
    try:
        with path.open(newline="", encoding="utf-8") as opened:
            header, *rows = storage.read_rows(opened)
        if header[: len(columns)] != columns:
            raise ValueError("it has other columns")
        for row in rows:
            file, label, patient, x, y, *shares, answer = row[: len(columns)]
            more = tuple(zip(header[len(columns) :], row[len(columns) :], strict=True))
            patches.append(Patch(file, label, patient, int(x) if x else None, int(y) if y else None, "", "", more))
            labels.append(classes.index(label))
            probabilities.append([float(share) for share in shares])
            predicted.append(classes.index(answer))
        return Predictions(patches, np.array(labels), np.array(probabilities), np.array(predicted))
    except (OSError, ValueError, csv.Error) as error:
        raise StorageError(f"{path} is missing or damaged. {_ADVICE}") from error
