"""The package from Python: each function takes the options of its verb as keywords and returns a typed result.

`import cancernet` offers all of them without importing Keras.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cancernet import InputError
from cancernet.config import DATASET, ORIGINAL, Experiment, TrainingOptions

if TYPE_CHECKING:
    from cancernet.data.dataset import Dataset
    from cancernet.reporting.comparison import Comparison
    from cancernet.reporting.content import Report
    from cancernet.workflow.train import Trained

Options = TypeVar("Options")


def build(source: str | Path = ORIGINAL, output: str | Path = DATASET, **options: Any) -> "Dataset":
    """Copy images into training, validation and testing class folders, whole patients at a time.

    Args:
        source: folder of images, one folder a class.
        output: folder to make.
        options: those of `cancernet build --help`, with underscores, such as `patient_pattern="^(person\\d+)_"`.

    Raises:
        InputError: an option, the source or the output cannot be used.
    """
    from cancernet.workflow.build import BuildOptions, build

    return build(make_options(BuildOptions, {"source": source, "output": output, **options}))


def train(dataset: str | Path = DATASET, output: str | Path | None = None, **options: Any) -> "Trained":
    """Train a network on a built dataset, then report on patients it has never seen.

    Args:
        dataset: folder made by `build`.
        output: folder of the run; runs/MODEL by default.
        options: those of `cancernet train --help`, with underscores, such as `model="densenet121", folds=5`; and all
            settings of `config.Experiment`.

    Returns:
        The folder of the run, and its report.

    Raises:
        InputError: an option or the dataset cannot be used.
        TrainingDiverged: the loss is not finite.
    """
    from cancernet.workflow.train import train

    names = set(Experiment.__dataclass_fields__)
    settings = {name: value for name, value in options.items() if name in names}
    others = {name: value for name, value in options.items() if name not in names}
    return train(make_options(TrainingOptions, {"dataset": dataset, "output": output, "settings": settings, **others}))


def evaluate(run: str | Path, dataset: str | Path = DATASET, **options: Any) -> "Report":
    """Evaluate a finished run, with its decision unchanged, on the images of a built dataset.

    Args:
        run: its folder.
        dataset: folder made by `build`.
        options: those of `cancernet evaluate --help`, with underscores.

    Raises:
        InputError: the run or the dataset cannot be used, or the run has seen these patients.
    """
    from cancernet.workflow.evaluate import EvaluationOptions, evaluate

    return evaluate(make_options(EvaluationOptions, {"run": run, "dataset": dataset, **options}))


def compare(*runs: str | Path, **options: Any) -> "Comparison":
    """Compare runs evaluated on the same images with the first of them.

    Args:
        runs: two or more folders of evaluations, runs or cross-validations.
        options: those of `cancernet compare --help`, with underscores.

    Raises:
        InputError: fewer than two runs, or they were not evaluated on the same images.
    """
    from cancernet.workflow.compare import ComparisonOptions, compare

    return compare(make_options(ComparisonOptions, {"runs": runs, **options}))


def make_options(kind: type[Options], given: Mapping[str, object]) -> Options:
    """Make the options of a verb from keywords; text becomes a path where a path is expected.

    Raises:
        InputError: an unknown option, or a value of a wrong type or out of its range.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_python(dict(given))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "unexpected_keyword_argument":
            fields = sorted(kind.__dataclass_fields__)  # type: ignore[attr-defined]
            raise InputError(f"Unknown option {name}. Choose from {', '.join(fields)}.") from None
        raise InputError(f"{name} cannot be {first['input']!r}: {first['msg']}.") from None
