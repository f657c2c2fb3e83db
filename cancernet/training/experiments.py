"""The settings of a training from what was asked for: a recipe, a recipe file and options. Needs no Keras."""

import dataclasses
from pathlib import Path

from cancernet import InputError
from cancernet.config import DEFAULT_RECIPE, GIVEN_FEATURES, RECIPES, Augmentation, Experiment, read_recipe
from cancernet.models.architectures import ENCODER, MODELS, check_architecture, find_architecture, list_kinds

NAMES = f"{', '.join(MODELS)}, or several joined by +"  # what --model takes
OF_EPOCHS = (  # settings of networks that are trained in epochs; the head of a frozen backbone has none of them
    *("epochs", "batch_size", "optimizer", "learning_rate", "schedule", "weight_decay", "augmentation"),
    *("statistics_momentum", "kept_weights", "early_stopping_patience"),
)


def choose_experiment(arguments) -> Experiment:
    """The recipe with what its file and the command line change of it."""
    if arguments.features:
        return choose_head(arguments)
    if arguments.encoder:
        if arguments.model or arguments.weights:
            raise InputError("--encoder takes the place of --model and --weights. Leave them out.")
        arguments.model, arguments.weights = ENCODER, arguments.encoder
    given = gather_settings(arguments)
    named = given.get("recipe")
    model = given.get("model") or (RECIPES[named].model if named else "cancernet")
    architectures = [find_architecture(name) for name in model.split("+")]
    families = {architecture.family for architecture in architectures}
    recipe = named or DEFAULT_RECIPE
    if "transfer" in families and not named:
        recipe = "transfer" if len(architectures) == 1 else "joined"
    base = RECIPES[recipe]
    own = {"model": model, "weights": "imagenet" if "transfer" in families else "none"}
    if len(architectures) == 1 and model != base.model:
        own |= {"image_size": architectures[0].image_size, "channels": architectures[0].channels}
    if "augmentation" in given:
        given["augmentation"] = dataclasses.replace(base.augmentation, **given["augmentation"])
    experiment = dataclasses.replace(base, **(own | given))
    if "transfer" not in families and experiment.strategy != "all":
        raise InputError(f"--strategy {experiment.strategy} needs a backbone; {model} is trained from scratch.")
    if experiment.head != "linear" and experiment.strategy != "frozen":
        raise InputError(
            f"--head {experiment.head} is for a frozen backbone. Give --model densenet121, or leave it out."
        )
    if families == {"transfer"}:
        check_backbone(arguments, experiment, base)
    if len(architectures) == 1 and experiment.strategy == "frozen":
        experiment = dataclasses.replace(experiment, augmentation=Augmentation())  # features are computed once
    elif "transfer" in families and "members" not in given and len(architectures) == 1:
        experiment = dataclasses.replace(experiment, members=1)  # each would be a backbone of its own
    if experiment.channels == 1:
        without_stains = dataclasses.replace(experiment.augmentation, stain_jitter=0.0)
        experiment = dataclasses.replace(experiment, augmentation=without_stains)
    if experiment.strategy == "finetune" and "learning_rate" not in given:
        experiment = dataclasses.replace(experiment, learning_rate=experiment.learning_rate / 10)
    for kind in list_kinds(experiment):
        check_architecture(kind)
    return experiment


def gather_settings(arguments) -> dict:
    """The settings that are given: those of the recipe file, and over them those of the command line."""
    settings = {field.name for field in dataclasses.fields(Experiment)}
    asked = {name: value for name, value in vars(arguments).items() if name in settings}
    given = {name: value for name, value in asked.items() if value is not None and value is not False}
    if arguments.recipe in (None, *RECIPES):
        return given
    del given["recipe"]
    read = read_recipe(Path(arguments.recipe))
    unknown = [name for name in read.get("model", "cancernet").split("+") if name not in MODELS]
    if unknown:
        raise InputError(f"{arguments.recipe} is no recipe: model takes {NAMES}, not {unknown[0]!r}.")
    return read | given


def check_backbone(arguments, experiment: Experiment, base: Experiment) -> None:
    """See that nothing is asked of a backbone that it does not do.

    Raises:
        InputError: a setting that it does not use, or if frozen one of networks that are trained in epochs, differs
            from its recipe's.
    """
    if experiment.dropout != base.dropout:
        raise InputError("dropout is for cancernet and simple_cnn. Leave it out for a backbone.")
    for name in OF_EPOCHS if experiment.strategy == "frozen" else ():
        usual = [getattr(base, name), Augmentation()] if name == "augmentation" else [getattr(base, name)]
        if getattr(experiment, name) not in usual:
            said = f"--{name.replace('_', '-')}" if vars(arguments).get(name) else name
            raise InputError(
                f"{said} is for networks that are trained in epochs; the head of a frozen backbone is fitted until it "
                "converges. Leave it out, or give --strategy finetune or two-phase."
            )


def choose_head(arguments) -> Experiment:
    """The experiment of a head on features that came from elsewhere."""
    of_images = ("model", "encoder", "recipe", "image_size", "weights", "strategy", "views", "epochs", "batch_size")
    for name in (*of_images, "learning_rate", "mixed_precision", "cache_limit"):
        if vars(arguments)[name]:
            raise InputError(f"--{name.replace('_', '-')} is for networks that see images. Leave it or --features out.")
    given = ("head", "class_weight", "members", "seed")
    asked = {name: vars(arguments)[name] for name in given if vars(arguments)[name] is not None}
    own = {"model": GIVEN_FEATURES, "weights": "none", "views": "one", "augmentation": Augmentation()}
    return dataclasses.replace(RECIPES["transfer"], **(own | asked))


def fit_to_grey(experiment: Experiment, *, views: str | None) -> Experiment:
    """The same experiment for grey images, such as X-rays: with an upright, so never turned or upside down; no stains.

    Args:
        views: what the command line asks for.
    """
    changes = dataclasses.replace(experiment.augmentation, upend=False, quarter_turns=False, stain_jitter=0.0)
    kept = "mirror" if experiment.views == "eight" else experiment.views
    return dataclasses.replace(experiment, augmentation=changes, views=views or kept)
