"""The run folder: the name of every file in it, and each written whole, read, and checked against the others."""

import csv
import dataclasses
import itertools
import json
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cancernet import InputError, __version__, storage
from cancernet.config import GIVEN_FEATURES, Experiment, update_settings
from cancernet.data.dataset import Patch
from cancernet.evaluation.decision import Decision, load_decision, save_decision
from cancernet.evaluation.smoothing import Predictions
from cancernet.models.architectures import ENCODER, ENCODERS_NEED
from cancernet.storage import Content, FolderKind, check_replaceable, read_json, replace_folder, write_files

MODEL, DECISION, CONFIG, HISTORY = "model.keras", "decision.json", "config.json", "history.csv"
REPORT, REPORT_TEXT, REPORT_PAGE, PREDICTIONS = "report.json", "report.txt", "report.html", "predictions.csv"
FEATURES = "features"  # of an unfinished run whose dataset's folder cannot be written
FAMILIAR = "familiar.npz"  # what validation images are like; not in runs of before
SAMPLES = "samples"  # some of the tested images, <class>/<file>
BEGUN = "begun.json"  # what an unfinished run was asked for
PACKAGES = ("tensorflow", "keras", "numpy", "sklearn", "scipy", "cv2", "imutils", "matplotlib")
_HASH_DIGITS = 16  # of SHA-256 that tell images apart
_AGAIN = "Train again, or copy the whole run folder again."


@dataclass(frozen=True)
class Seen:
    """What a run has seen in training and validation. One string is read ten times faster than a list of 250,000."""

    patients: tuple[str, ...]
    images: str  # the first digits of their hashes, sorted, in a row


@dataclass(frozen=True)
class Settings:
    """config.json: all that is needed to train again, and what new images must be like."""

    experiment: Experiment
    classes: tuple[str, ...]  # in the order of the model's outputs
    positive: str | None  # the class that sensitivity is of; None of more than two classes
    training_precision: str
    operating_point: str
    neighbours: bool  # whether smoothing over a slide's neighbours could be chosen
    manifest_sha256: str
    images_are_grey: bool
    usual_size: str  # of the images in their files, such as 50x50
    mpp: float | None  # micrometres a pixel of the images; None where unknown
    versions: dict[str, str]
    hardware: dict[str, str | int | None]
    class_names: dict[str, str] | None  # what a class's folder means, such as 1: IDC
    seen: Seen
    __pydantic_config__ = {"allow_inf_nan": False}  # noqa: RUF012


class Run(NamedTuple):
    """A trained network with its frozen decision."""

    model: "keras.Model"  # noqa: F821
    decision: Decision
    settings: Settings
    folder: Path
    familiar: "out_of_distribution.Familiar | None" = None  # noqa: F821  # None where it is not known


def describe_machine() -> dict[str, dict]:
    """Versions of what computed, and the hardware: the fields of Settings that the machine knows."""
    import keras

    from cancernet.training.pipeline import describe_device

    versions = {"cancernet": __version__, "python": platform.python_version()}
    packages = (*PACKAGES, "jax") if keras.backend.backend() == "jax" else PACKAGES
    return {
        "versions": versions | {name: import_module(name).__version__ for name in packages},
        "hardware": {"device": describe_device(), "cores": os.cpu_count(), "system": platform.platform()},
    }


def name_class(settings: Settings, name: str) -> str:
    """A class as people call it: `IDC` for the class 1 of the IDC set, else its own name."""
    return (settings.class_names or {}).get(name, name)


def prepare_folder(folder: Path, asked: Mapping, *, force: bool) -> Path:
    """Make the folder where a training works until it is finished; what was asked for the same goes on from there.

    Args:
        folder: of the run; the caller has its lock.
        asked: for what, as JSON takes it but for paths.

    Raises:
        InputError: `folder` is something that must not or cannot be replaced, or the unfinished one was asked for
            something else.
    """
    check_replaceable(folder, FolderKind.RUN, force=force)
    work = name_unfinished(folder)
    if work.exists() and not _was_asked(work, asked):
        if {path.name for path in work.iterdir()} - {BEGUN, f".{BEGUN}.partial"} and not force:
            raise InputError(f"{work} was begun with other settings. Start again with --force, or finish it first.")
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    write_files(work, {BEGUN: _spell(asked).encode()})
    return work


def choose_folder(folder: Path, asked: Mapping) -> Path:
    """The folder of a run that was given none: `folder`, or with a number, `cancernet-2`, where a run has that name.

    An unfinished training of the same goes on where it is.

    Args:
        asked: as of `prepare_folder`.
    """
    free = None
    for number in itertools.count(1):
        numbered = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        if _was_asked(name_unfinished(numbered), asked):
            return numbered
        if not is_finished(numbered):
            free = free or numbered
            if not name_unfinished(numbered).exists():
                return free


def _spell(asked: Mapping) -> str:
    return json.dumps(asked, indent=1, default=str)


def _was_asked(work: Path, asked: Mapping) -> bool:
    """Whether an unfinished training was asked for the same."""
    return (work / BEGUN).is_file() and (work / BEGUN).read_bytes() == _spell(asked).encode()


def name_unfinished(folder: Path) -> Path:
    """Where a training works until its run is finished."""
    return folder.with_name(folder.name + ".unfinished")


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a whole run: its report is the last file that is written."""
    return (folder / REPORT).is_file()


def finish_folder(work: Path, folder: Path) -> None:
    """Give a finished run its name; what only an unfinished one needs is deleted afterwards.

    Raises:
        InputError: the system refused; nothing is lost.
    """
    try:
        replace_folder(work, folder)
    except OSError as error:
        raise InputError(
            f"{error.strerror}: {folder} cannot be replaced. The run is finished and lies in {work}; the same command "
            "gives it its name."
        ) from error
    for left in [*folder.glob("checkpoint*"), *folder.glob("fold_*/checkpoint*"), *folder.glob(FEATURES)]:
        shutil.rmtree(left)
    (folder / BEGUN).unlink(missing_ok=True)


def save_run(run: Run, history: Mapping[str, Sequence[float]], predictions: Predictions) -> None:
    """Write what a run leaves beside its report: the model, its decision and settings, the history, predictions.csv."""
    run.model.save(run.folder / MODEL)
    save_decision(run.decision, run.folder / DECISION)
    write_settings(run.folder, run.settings)
    if run.familiar:
        spreads = [each._asdict() for each in run.familiar.spreads]
        np.savez(
            run.folder / FAMILIAR, **{f"{n}_{name}": part for n, of in enumerate(spreads) for name, part in of.items()}
        )
    with (run.folder / HISTORY).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["epoch", *history])
        writer.writerows([number, *values] for number, values in enumerate(zip(*history.values()), start=1))
    write_predictions(run.folder, predictions, run.decision.classes)


def write_settings(folder: Path, settings: Settings) -> None:
    """Write config.json."""
    (folder / CONFIG).write_text(json.dumps(dataclasses.asdict(settings), indent=1) + "\n", encoding="utf-8")


def read_settings(folder: Path) -> Settings:
    """The settings of a run, its config.json.

    Raises:
        InputError: no such run, or a damaged file.
    """
    if not folder.is_dir():
        raise InputError(f"There is no run {folder}. Train one with train_model.py --output {folder}.")
    folds = sorted(folder.glob(f"fold_*/{MODEL}"))
    if folds and not (folder / CONFIG).is_file():
        raise InputError(
            f"{folder} is a cross-validation, without a model of its own. Give a run of it: {folds[0].parent}."
        )
    return read_json(folder / CONFIG, Settings, advice=_AGAIN, update=_update)


def _update(settings: dict) -> dict:
    """Translate a config.json that an earlier version wrote."""
    experiment = settings.get("experiment")
    return settings | {"experiment": update_settings(experiment)} if isinstance(experiment, dict) else settings


def read_report(folder: Path, kind: type[Content]) -> Content | None:
    """The run's report.json; None where it has none.

    Args:
        kind: what it must hold, `reporting.content.Report`.

    Raises:
        InputError: a damaged file.
    """
    return read_json(folder / REPORT, kind, advice=_AGAIN) if (folder / REPORT).is_file() else None


def find_runs(folder: Path) -> list[Path]:
    """The finished runs right under a folder, the newest first: what train_model.py wrote last."""
    runs = [path.parent for path in folder.glob(f"*/{MODEL}")]
    runs = [run for run in runs if (run / CONFIG).is_file() and (run / DECISION).is_file()]
    return sorted(runs, key=lambda run: ((run / DECISION).stat().st_mtime, run.name), reverse=True)


def load_run(folder: Path) -> Run:
    """Load a run that answers images.

    Raises:
        InputError: one of its files is missing or damaged, or they do not belong together; or it answers features.
    """
    import keras

    settings = read_settings(folder)
    if settings.experiment.model == GIVEN_FEATURES:
        raise InputError(
            f"{folder} answers features, not images: it was trained with --features. Give features of new images to "
            f"{folder / MODEL} in Keras, or train a run with --model."
        )
    if settings.experiment.model == ENCODER:
        try:
            import keras_hub  # noqa: F401, the layers of the model's file
        except ImportError as error:
            raise InputError(f"{folder / MODEL} needs KerasHub, which is not installed: {ENCODERS_NEED}") from error
    decision = load_decision(folder / DECISION)
    path = folder / MODEL
    try:
        model = keras.models.load_model(path, compile=False)
    except Exception as error:  # what others put into the file decides what Keras raises
        raise InputError(f"{path} is missing or damaged. {_AGAIN}") from error
    if not isinstance(model, keras.Model):
        raise InputError(f"{path} is missing or damaged: it holds no network. {_AGAIN}")
    difference = _find_difference(model, decision, settings)
    if difference:
        raise InputError(f"The files of {folder} are not of one run: {difference}. Copy the whole run folder.")
    return Run(model, decision, settings, folder, _load_familiar(folder, model))


def _load_familiar(folder: Path, model) -> "out_of_distribution.Familiar | None":  # noqa: F821
    """What validation images are like; None where the run does not have it.

    Raises:
        InputError: the file is damaged, or of another network.
    """
    from cancernet.explain import out_of_distribution

    path = folder / FAMILIAR
    if not path.is_file():
        return None
    fields = out_of_distribution.Spread._fields
    try:
        with np.load(path, allow_pickle=False) as file:
            parts = [[file[f"{number}_{name}"] for name in fields] for number in range(len(file.files) // len(fields))]
        familiar = out_of_distribution.Familiar(
            tuple(out_of_distribution.Spread(*part[:-1], float(part[-1])) for part in parts)
        )
        out_of_distribution.check_familiar(model, familiar)
    except Exception as error:  # as of the model
        raise InputError(f"{path} is damaged or of another run. {_AGAIN}") from error
    return familiar


def _find_difference(model, decision: Decision, settings: Settings) -> str:
    """What the files of a run folder do not agree on; "" for nothing."""
    experiment, classes = settings.experiment, settings.classes
    shape = [experiment.image_size, experiment.image_size, experiment.channels]
    if list(model.input_shape[1:]) != shape:
        return f"{MODEL} takes images of the shape {list(model.input_shape[1:])}, {CONFIG} says {shape}"
    if model.output_shape[-1] != len(classes):
        return f"{MODEL} tells {model.output_shape[-1]} classes apart, {CONFIG} names {len(classes)}"
    if decision.classes != classes:
        return f"{DECISION} has the classes {', '.join(decision.classes)}, {CONFIG} {', '.join(classes)}"
    if decision.positive != settings.positive:
        return f"the positive class is {decision.positive} in {DECISION}, {settings.positive} in {CONFIG}"
    return ""


def describe_seen(patches: Sequence[Patch]) -> Seen:
    """What a run that was trained on these splits has seen."""
    seen = [patch for patch in patches if patch.split != "testing"]
    return Seen(
        tuple(sorted({patch.patient for patch in seen if patch.patient})),
        "".join(sorted({patch.sha256[:_HASH_DIGITS] for patch in seen})),
    )


def find_seen(seen: Seen, patches: Sequence[Patch]) -> list[str]:
    """Patients that a run was trained or validated on, and files of such images of others.

    An image is known by its bytes, whatever its patient is called in the dataset that it now comes from.
    """
    patients = set(seen.patients)
    images = {seen.images[start : start + _HASH_DIGITS] for start in range(0, len(seen.images), _HASH_DIGITS)}
    found = {patch.patient for patch in patches if patch.patient in patients}
    found |= {
        patch.file for patch in patches if patch.patient not in patients and patch.sha256[:_HASH_DIGITS] in images
    }
    return sorted(found)


def check_same_kind(settings: Settings, patches: Sequence[Patch], *, are_grey: bool) -> None:
    """See that a run can judge these patches.

    Raises:
        InputError: classes that the run does not know, or grey images for colour ones or the reverse.
    """
    unknown = {patch.label for patch in patches} - set(settings.classes)
    if unknown:
        raise InputError(f"The run knows the classes {', '.join(settings.classes)}, not {', '.join(sorted(unknown))}.")
    kinds = {True: "grey", False: "colour"}
    if settings.images_are_grey != are_grey:
        raise InputError(
            f"The run was trained on {kinds[settings.images_are_grey]} images; these are {kinds[are_grey]}. "
            "Train another run."
        )


def compare_sizes(settings: Settings, usual_size: str) -> list[str]:
    """A warning where images are of another usual size than those the run was trained on: probably another scale."""
    if usual_size == settings.usual_size:
        return []
    return [f"The images are {usual_size} pixels, those in training were {settings.usual_size}: is the scale the same?"]


def write_predictions(folder: Path, predictions: Predictions, classes: Sequence[str]) -> None:
    """Write predictions.csv: file, label, patient, x, y, probability of each class at full precision, predicted."""
    with (folder / PREDICTIONS).open("w", newline="", encoding="utf-8") as file:
        header = [*Patch._fields[:5], *(f"probability_{name}" for name in classes), "predicted"]
        rows = zip(predictions.patches, predictions.probabilities.tolist(), predictions.predicted, strict=True)
        lines = ([*patch[:5], *shares, classes[index]] for patch, shares, index in rows)
        storage.write_rows(file, itertools.chain([header], lines))


def read_predictions(folder: Path, classes: Sequence[str]) -> Predictions:
    """What `write_predictions` wrote; the split and the hash of a patch are not in the file and left empty.

    Raises:
        InputError: the file is missing or damaged, or of other classes.
    """
    path = folder / PREDICTIONS
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *lines = storage.read_rows(file)
        return _read_rows([dict(zip(header, line, strict=True)) for line in lines], classes)
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise InputError(f"{path} is missing or damaged. {_AGAIN}") from error


def _read_rows(rows: list[dict[str, str]], classes: Sequence[str]) -> Predictions:
    places = [{axis: int(row[axis]) if row[axis] else None for axis in ("x", "y")} for row in rows]
    return Predictions(
        [
            Patch(row["file"], row["label"], row["patient"], **place, split="", sha256="")
            for row, place in zip(rows, places, strict=True)
        ],
        np.array([classes.index(row["label"]) for row in rows]),
        np.array([[float(row[f"probability_{name}"]) for name in classes] for row in rows]),
        np.array([classes.index(row["predicted"]) for row in rows]),
    )
