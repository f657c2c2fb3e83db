"""What a search tries: the range of each setting, by default those that `Experiment` declares.

A JSON file can give another table: name of a setting -> `{"low": 0.001, "high": 0.1, "log": true}` or
`{"choices": ["adam", "adagrad"]}`. A strength of augmentation is named `augmentation.zoom`.
"""

import dataclasses
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

from cancernet import InputError
from cancernet.config import Augmentation, Experiment, Range, Setting, describe_field
from cancernet.models.architectures import check_architecture, split_by_architecture
from cancernet.storage import read_json
from cancernet.training.experiments import check_settings_apply, check_values


def choose_space(base: Experiment, table: Path | None, given: Mapping[str, object]) -> dict[str, Range]:
    """Return what is searched: the ranges of a table, by default those of the way of training, widened to the default.

    `given` are the settings that the user gave. Raises InputError as `read_space` and `check_space`.
    """
    space = read_space(table) if table else default_space(base)
    check_space(space, base, given)
    return widen_to(space, base)


def default_space(experiment: Experiment) -> dict[str, Range]:
    """Return the default ranges for an experiment's way of training; stains are left out of images of one channel."""
    ranges = {name: describe_field(Experiment, name).choose_range(experiment.way) for name in list_searchable()}
    if experiment.channels == 1:
        ranges.pop("augmentation.stain_jitter")
    return {name: tried for name, tried in ranges.items() if tried}


def read_space(path: Path) -> dict[str, Range]:
    """Read a table from a JSON file; raise InputError if it is missing or not of the form above."""
    space = read_json(path, dict[str, Range], expected="a search space", advice="docs/search.md describes the form.")
    if not space:
        raise InputError(f"{path} is not a search space: it names no setting. docs/search.md describes the form.")
    return space


def check_space(space: Mapping[str, Range], base: Experiment, given: Mapping[str, object]) -> None:
    """Raise InputError unless every range is well formed, and `base` can be trained with every value at its ends."""
    for name, tried in space.items():
        if name not in list_searchable():
            raise InputError(f"{name} cannot be searched. Choose from {', '.join(list_searchable())}.")
        numbers = [number for number in (tried.low, tried.high) if number is not None]
        if len(numbers) != (0 if tried.choices else 2):
            raise InputError(f"The range of {name} needs either low and high, or choices.")
        if len(set(tried.choices)) < len(tried.choices):
            raise InputError(f"The choices of {name} name a value twice: {', '.join(map(str, tried.choices))}.")
        if numbers and not numbers[0] < numbers[1]:
            raise InputError(f"The range of {name} goes from {tried.low} to {tried.high}: low must be below high.")
        if tried.log and not (tried.low or 0) > 0:
            raise InputError(f"The range of {name} begins at {tried.low}; a logarithmic range must begin above 0.")
        if numbers and type(attrgetter(name)(Experiment())) not in (int, float):
            raise InputError(f"{name} is not a number: give choices in place of low and high.")
        for value in tried.ends:
            check_values(_nest({name: value}))
            changed = apply_settings(base, {name: value})
            for single in split_by_architecture(changed):
                check_architecture(single)
            check_settings_apply(changed, base, given)


def widen_to(space: Mapping[str, Range], base: Experiment) -> dict[str, Range]:
    """Return the table with the default's values within every range: the search begins with them."""
    widened = {}
    for name, tried in space.items():
        value = attrgetter(name)(base)
        if tried.low is not None and tried.high is not None:
            tried = dataclasses.replace(tried, low=min(tried.low, value), high=max(tried.high, value))
        elif value not in tried.choices:
            tried = dataclasses.replace(tried, choices=(*tried.choices, value))
        widened[name] = tried
    return widened


def list_searchable() -> list[str]:
    """Names of all settings that a table may hold."""
    settings = [each.name for each in dataclasses.fields(Experiment) if each.name != "augmentation"]
    settings += [f"augmentation.{each.name}" for each in dataclasses.fields(Augmentation)]
    return [name for name in settings if describe_field(Experiment, name).searchable]


def apply_settings(base: Experiment, settings: Mapping[str, Setting]) -> Experiment:
    """Return the experiment with some settings replaced, as a table names them."""
    changes = _nest(settings)
    strengths = changes.pop("augmentation", {})
    return dataclasses.replace(base, **changes, augmentation=dataclasses.replace(base.augmentation, **strengths))


def _nest(settings: Mapping[str, Setting]) -> dict[str, Any]:
    """Turn `augmentation.zoom` into an entry of `augmentation`."""
    nested: dict[str, Any] = {name: value for name, value in settings.items() if "." not in name}
    strengths = {name.partition(".")[2]: value for name, value in settings.items() if "." in name}
    return nested | ({"augmentation": strengths} if strengths else {})
