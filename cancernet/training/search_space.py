"""What a search tries: a plain table of settings, each with its range, for each way of training.

`--space FILE.json` gives another table of the same form: name of a setting -> `{"low": 0.001, "high": 0.1, "log":
true}` or `{"choices": ["adam", "adagrad"]}`. A strength of augmentation is named `augmentation.zoom`.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from cancernet import InputError
from cancernet.config import Experiment
from cancernet.models.architectures import find_architecture
from cancernet.storage import read_json

Value = int | float | str | bool


@dataclasses.dataclass(frozen=True)
class Range:
    """What is tried of one setting: any number from `low` to `high`, or one of `choices`."""

    low: int | float | None = None
    high: int | float | None = None
    log: bool = False  # evenly by order of magnitude
    choices: tuple[Value, ...] = ()
    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # noqa: RUF012

    @property
    def ends(self) -> tuple[Value, ...]:
        """The values between which, or of which, the others are."""
        return self.choices or (self.low, self.high)


AUGMENTATION = {
    "augmentation.rotation_degrees": Range(0, 45),
    "augmentation.zoom": Range(0, 0.2),
    "augmentation.shift": Range(0, 0.2),
    "augmentation.stain_jitter": Range(0, 0.3),
}
EPOCHS = {
    "optimizer": Range(choices=("adagrad", "adam", "adamw")),
    "epochs": Range(12, 40),
    "batch_size": Range(choices=(16, 32, 64)),
    "class_weight": Range(choices=("ratio", "none")),
    **AUGMENTATION,
}
SPACES = {
    "scratch": {
        "learning_rate": Range(0.003, 0.3, log=True),
        "dropout": Range(0.2, 0.7),
        "image_size": Range(choices=(32, 48, 64)),
        **EPOCHS,
    },
    # Each image size and each kind of views has features of its own, computed once. Hidden layers are slow.
    "frozen": {
        "head": Range(choices=("linear", "kernel")),
        "image_size": Range(choices=(64, 96, 128)),
        "views": Range(choices=("one", "mirror")),
        "class_weight": Range(choices=("balanced", "none")),
        "members": Range(3, 10),
    },
    "finetuned": {
        "learning_rate": Range(1e-5, 1e-2, log=True),
        "image_size": Range(choices=(96, 160, 224)),
        **EPOCHS,
    },
    "joined": {"learning_rate": Range(0.003, 0.3, log=True), "members": Range(2, 5), **EPOCHS},
}
NEVER_SEARCHED = ("model", "recipe", "weights", "strategy", "channels", "mixed_precision", "seed")


def choose_space(experiment: Experiment) -> dict[str, Range]:
    """The table for an experiment's way of training; stains are left out of images of one channel."""
    names = experiment.model.split("+")
    if len(names) > 1:
        space = SPACES["joined"]
    elif find_architecture(names[0]).family == "transfer":
        space = SPACES["frozen" if experiment.strategy == "frozen" else "finetuned"]
    else:
        space = SPACES["scratch"]
    return {name: of for name, of in space.items() if experiment.channels > 1 or name != "augmentation.stain_jitter"}


def read_space(path: Path) -> dict[str, Range]:
    """Read a table from a JSON file.

    Raises:
        InputError: the file is missing or no JSON, or an entry is not of the form above.
    """
    space = read_json(path, dict[str, Range], fault="is no search space", again="docs/search.md has the form.")
    if not space:
        raise InputError(f"{path} is no search space: it names no setting. docs/search.md has the form.")
    return space


def check_space(space: Mapping[str, Range], base: Experiment) -> None:
    """See that every range makes sense and that every value at its ends can be trained with.

    Raises:
        InputError: a setting that cannot be searched, a range that is none, or a value that the setting cannot take.
    """
    for name, of in space.items():
        if name not in list_searchable(base):
            raise InputError(f"{name} cannot be searched. Choose of {', '.join(list_searchable(base))}.")
        numbers = (of.low, of.high)
        if bool(of.choices) == any(number is not None for number in numbers) or (not of.choices and None in numbers):
            raise InputError(f"The range of {name} needs low and high, or choices: one of the two.")
        if of.choices and len(set(of.choices)) < len(of.choices):
            raise InputError(f"The choices of {name} name a value twice: {', '.join(map(str, of.choices))}.")
        if not of.choices and not of.low < of.high:
            raise InputError(f"The range of {name} goes from {of.low} to {of.high}: low must be below high.")
        if of.log and not (of.low or 0) > 0:
            raise InputError(f"The range of {name} begins at {of.low}; by order of magnitude it must begin above 0.")
        if not of.choices and type(get_setting(Experiment(), name)) not in (int, float):
            raise InputError(f"{name} is no number: give choices in the place of low and high.")
        for value in of.ends:
            _check_value(name, value)


def widen_to(space: Mapping[str, Range], base: Experiment) -> dict[str, Range]:
    """The table with the values of the default in it, with which the best is compared."""
    return {name: _widen(of, get_setting(base, name)) for name, of in space.items()}


def list_searchable(base: Experiment) -> list[str]:
    """Names of all settings that can be in a table."""
    left_out = (*NEVER_SEARCHED, "augmentation", *(() if base.strategy == "frozen" else ("head",)))
    settings = [name for name in dataclasses.asdict(base) if name not in left_out]
    return settings + [f"augmentation.{name}" for name in dataclasses.asdict(base.augmentation)]


def is_whole(name: str) -> bool:
    """Whether a setting takes whole numbers only."""
    return type(get_setting(Experiment(), name)) is int


def get_setting(experiment: Experiment, name: str) -> Value:
    """The value of a setting as a table names it."""
    first, _, second = name.partition(".")
    value = getattr(experiment, first)
    return getattr(value, second) if second else value


def apply_settings(base: Experiment, settings: Mapping[str, Value]) -> Experiment:
    """The experiment with some settings changed, as a table names them."""
    changes = {name: value for name, value in settings.items() if "." not in name}
    strengths = {name.partition(".")[2]: value for name, value in settings.items() if "." in name}
    return dataclasses.replace(base, **changes, augmentation=dataclasses.replace(base.augmentation, **strengths))


def _widen(of: Range, value: Value) -> Range:
    if of.choices:
        return of if value in of.choices else dataclasses.replace(of, choices=(*of.choices, value))
    return dataclasses.replace(of, low=min(of.low, value), high=max(of.high, value))


def _check_value(name: str, value: Value) -> None:
    from pydantic import TypeAdapter, ValidationError

    first, _, second = name.partition(".")
    text = json.dumps({first: {second: value} if second else value})
    try:
        TypeAdapter(Experiment).validate_json(text, strict=True)
    except ValidationError as error:
        told = error.errors(include_url=False)[0]["msg"]
        raise InputError(f"The range of {name} has {value!r}, which it cannot be: {told}.") from None
