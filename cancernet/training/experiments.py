"""From a recipe, a recipe file and given options to the settings of one training. Needs no Keras."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cancernet import InputError, config
from cancernet.config import RECIPES, Augmentation, Experiment, TrainingOptions, describe_field
from cancernet.models import architectures
from cancernet.models.architectures import ENCODER, split_by_architecture


def choose_experiment(options: TrainingOptions) -> Experiment:
    """Return the recipe's settings, replaced by those of a recipe file and by those given.

    Raises InputError for a value out of range, or settings that do not go together.
    """
    experiment = _choose_head(options) if options.features else _choose_network(options)
    if options.tensorboard and not any(kind.way in config.EPOCHS for kind in split_by_architecture(experiment)):
        raise InputError("--tensorboard is for networks trained in epochs. Leave it out.")
    return experiment


def _choose_network(options: TrainingOptions) -> Experiment:
    given = _gather_settings(options)
    named = given.get("recipe")
    model = given.get("model") or (RECIPES[named].model if named else "cancernet")
    kinds = [architectures.find_architecture(name) for name in model.split("+")]
    has_backbone = any(kind.is_backbone for kind in kinds)
    recipe = named or config.DEFAULT_RECIPE
    if has_backbone and not named:
        recipe = "transfer" if len(kinds) == 1 else "joined"
    base = RECIPES[recipe]
    own: dict[str, Any] = {"model": model, "weights": "imagenet" if has_backbone else "none"}
    if len(kinds) == 1 and model != base.model:
        own |= {"image_size": kinds[0].image_size, "channels": kinds[0].channels}
    if "augmentation" in given:
        given["augmentation"] = dataclasses.replace(base.augmentation, **given["augmentation"])
    experiment = dataclasses.replace(base, **(own | given))
    if not has_backbone and experiment.strategy != "all":
        raise InputError(f"--strategy {experiment.strategy} needs a backbone; {model} is trained from scratch.")
    check_settings_apply(experiment, base, options.settings)
    changes: dict[str, Any] = {}
    if experiment.way == "frozen":
        changes["augmentation"] = Augmentation()  # features are computed once
    elif experiment.channels == 1:
        changes["augmentation"] = dataclasses.replace(experiment.augmentation, stain_jitter=0.0)
    if experiment.way == "finetuned" and "members" not in given:
        changes["members"] = 1  # each would be a backbone of its own
    if experiment.strategy == "finetune" and "learning_rate" not in given:
        changes["learning_rate"] = experiment.learning_rate / 10
    experiment = dataclasses.replace(experiment, **changes)
    for single in split_by_architecture(experiment):
        architectures.check_architecture(single)
    return experiment


def check_settings_apply(experiment: Experiment, base: Experiment, given: Mapping[str, object]) -> None:
    """Raise InputError if a setting of a backbone differs from its recipe's where a backbone does not use it.

    `given` is what the command line set, to name an option as it was typed.
    """
    ways = {kind.way for kind in split_by_architecture(experiment)}
    if "scratch" in ways:
        return
    for field in dataclasses.fields(Experiment):
        applies_to, value = field.metadata["option"].applies_to, getattr(experiment, field.name)
        unused = [getattr(base, field.name), Augmentation()]  # a recipe may leave augmentation out, too
        if ways & applies_to or value in unused:
            continue
        if "finetuned" in applies_to:
            why = "is for networks trained in epochs; the head of a frozen backbone is fitted until it converges"
            instead = "Leave it out, or give --strategy finetune or two-phase."
        else:
            why, instead = "is for networks trained from scratch, not for a backbone", "Leave it out."
        raise InputError(f"{_spell(field.name, given)} {why}. {instead}")


def check_values(settings: Mapping[str, object]) -> None:
    """Raise InputError for settings of unknown names, or with values that `Experiment` does not take."""
    from pydantic import TypeAdapter, ValidationError

    try:
        TypeAdapter(Experiment).validate_json(json.dumps(dict(settings)), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        raise InputError(f"{name} cannot be {first['input']!r}: {first['msg']}.") from None


def fit_to_grey(experiment: Experiment, *, views: Any) -> Experiment:
    """Adapt an experiment to grey images, such as X-rays, which have a fixed orientation and no stains.

    They are flipped left to right only, never rotated or flipped top to bottom. `views` is the test-time augmentation
    that the user asked for; None keeps it to the horizontal flip at most.
    """
    changes = dataclasses.replace(experiment.augmentation, vertical_flip=False, quarter_turns=False, stain_jitter=0.0)
    views = views or ("mirror" if experiment.views == "eight" else experiment.views)
    return dataclasses.replace(experiment, augmentation=changes, views=views)


def _gather_settings(options: TrainingOptions) -> dict[str, Any]:
    """Settings of the recipe file, replaced by those given; `recipe` names one of RECIPES, if any was named."""
    given: dict[str, Any] = dict(options.settings)
    if options.encoder:
        if "model" in given or "weights" in given:
            raise InputError("--encoder replaces --model and --weights. Leave them out.")
        given |= {"model": ENCODER, "weights": options.encoder}
    recipe = given.get("recipe")
    if recipe and recipe not in RECIPES:
        if not str(recipe).endswith(".json"):
            raise InputError(f"--recipe takes {', '.join(RECIPES)}, or a file .json of settings, not {recipe!r}.")
        del given["recipe"]
        given = config.read_recipe(Path(recipe)) | given
    check_values(given)
    names = architectures.list_model_names()
    for name in given.get("model", "cancernet").split("+"):
        if name not in (*names, ENCODER):
            raise InputError(f"--model takes {', '.join(names)}, or several joined by +, not {name!r}.")
    return given


def _choose_head(options: TrainingOptions) -> Experiment:
    given = {name: describe_field(Experiment, name) for name in options.settings}
    others = {name: getattr(options, name) for name in ("encoder", "cache_limit")}
    given |= {name: describe_field(TrainingOptions, name) for name, value in others.items() if value}
    for name, described in given.items():
        if "features" not in described.applies_to:
            raise InputError(f"{_spell(name, given)} is for networks that take images. Leave it or --features out.")
    check_values(options.settings)
    given_features = dataclasses.replace(
        RECIPES["transfer"], model=config.GIVEN_FEATURES, weights="none", views="one", augmentation=Augmentation()
    )
    return dataclasses.replace(given_features, **dict[str, Any](options.settings))


def _spell(name: str, given: Mapping[str, object]) -> str:
    """A setting as the user wrote it: an option of the command line, or a name in a recipe file."""
    return f"--{name.replace('_', '-')}" if name in given else name
