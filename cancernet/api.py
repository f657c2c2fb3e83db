"""The package from Python: each function takes the options of its verb as keywords and returns a typed result."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cancernet import InputError, run
from cancernet.config import DATASET, ORIGINAL, Experiment, TrainingOptions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cancernet.data.dataset import Dataset
    from cancernet.inference.arrays import Image, ImagePredictions
    from cancernet.inference.predict import SlidePredictions
    from cancernet.reporting.comparison import Comparison
    from cancernet.reporting.schema import Report
    from cancernet.workflow.train import Trained

Options = TypeVar("Options")


class Run(run.Run):
    """A trained run, loaded: `cancernet.load` returns one."""

    def predict(
        self, images: "NDArray[Any] | Sequence[Image]", *, threshold: float | None = None
    ) -> "ImagePredictions":
        """Predict single images; neighbours on a slide are not used.

        Args:
            images: uint8 array [n, height, width, 3] (RGB) or [n, height, width, 1] (grey); or a list of arrays
                [height, width], [height, width, 1] or [height, width, 3] of any sizes, or of image files.
            threshold: on the probability of the positive class, 0 to 1, in place of the run's own.

        Returns:
            Calibrated probabilities [n, classes], decisions, and which images are out of distribution.

        Raises:
            InputError: an image cannot be used, or a threshold for more than two classes.
        """
        from cancernet.inference.arrays import predict_images

        return predict_images(self, images, threshold=threshold)


def load(folder: str | Path) -> Run:
    """Load a run from its folder, such as runs/cancernet.

    Raises InputError or StorageError if a file is missing or damaged, or the files are not of one run.
    """
    from cancernet.models.backend import import_keras

    import_keras()
    loaded = run.load_run(Path(folder))
    return Run(**{field.name: getattr(loaded, field.name) for field in dataclasses.fields(loaded)})


def build(source: str | Path = ORIGINAL, output: str | Path = DATASET, **options: Any) -> "Dataset":
    """Copy images into training, validation and testing class folders, whole patients at a time.

    Options are those of `cancernet build --help`, with underscores, such as `patient_pattern="^(person\\d+)_"`. Raises
    InputError if an option, the source or the output cannot be used.
    """
    from cancernet.workflow.build import BuildOptions, build

    return build(make_options(BuildOptions, {"source": source, "output": output, **options}))


def train(dataset: str | Path = DATASET, output: str | Path | None = None, **options: Any) -> "Trained":
    """Train a network on a dataset, then report on patients it has never seen; return the run's folder and the report.

    `output` is the folder of the run; runs/MODEL by default. Options are those of `cancernet train --help`, with
    underscores, such as `model="densenet121", folds=5`; and all settings of `config.Experiment`. Raises InputError if
    an option or the dataset cannot be used, TrainingDiverged if the loss is not finite.
    """
    from cancernet.workflow.train import train

    given = {name: options.pop(name) for name in Experiment.__dataclass_fields__ if name in options}
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
    trained = train(
        make_options(TrainingOptions, {"dataset": dataset, "output": output, "settings": settings, **options})
    )
    if trained is None:
        raise InputError("Train with several processes from the shell: only the first of them has a result.")
    return trained


def evaluate(folder: str | Path, dataset: str | Path = DATASET, **options: Any) -> "Report":
    """Evaluate a finished run, with its decision unchanged, on the images of a built dataset.

    Options are those of `cancernet evaluate --help`, with underscores. Raises InputError if the run or the dataset
    cannot be used, or the run has seen these patients.
    """
    from cancernet.workflow.evaluate import EvaluationOptions, evaluate

    return evaluate(make_options(EvaluationOptions, {"run": folder, "dataset": dataset, **options}))


def predict_slides(
    loaded: Run, paths: Sequence[str | Path], output: str | Path | None = None, **options: Any
) -> "SlidePredictions":
    """Predict slides, large images and patches; a slide is smoothed over neighbouring patches.

    `paths` are images, folders of images, whole slides, or CSV tables with a column `path`. `output` is the folder for
    tables, maps and outlines; None writes none. Options are mpp, tile, neighbours, threshold and force, as of
    `cancernet predict --help`. Raises InputError if the paths or an option cannot be used.
    """
    from cancernet.inference.predict import PredictOptions, predict_slides

    checked = make_options(PredictOptions, {"run": loaded.folder, "paths": (), **options})
    return predict_slides(loaded, paths, Path(output) if output else None, checked)


def compare(*runs: str | Path, **options: Any) -> "Comparison":
    """Compare runs evaluated on the same images, or evaluations or cross-validations, with the first of them.

    Options are those of `cancernet compare --help`, with underscores. Raises InputError for fewer than two folders, or
    if they were not evaluated on the same images.
    """
    from cancernet.workflow.compare import ComparisonOptions, compare

    return compare(make_options(ComparisonOptions, {"runs": runs, **options}))


def make_options(kind: type[Options], given: Mapping[str, object]) -> Options:
    """Make the options of a verb from keywords; text becomes a path where a path is expected.

    Raises InputError for an unknown option, or a value of a wrong type or out of its range.
    """
    from pydantic import TypeAdapter, ValidationError

    names = sorted(kind.__dataclass_fields__)  # type: ignore[attr-defined]
    for name in given:
        if name not in names:
            raise InputError(f"Unknown option {name}. Choose from {', '.join(names)}.")
    try:
        return TypeAdapter(kind).validate_python(dict(given))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InputError(f"{'.'.join(map(str, first['loc']))} cannot be {first['input']!r}: {first['msg']}.") from None
