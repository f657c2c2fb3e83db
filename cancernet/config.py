"""Settings: what a training, and each command, can be told. Every field says what it means, and where it applies.

The command line, the checks of what belongs together, and the search space are generated from these fields.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval

from cancernet import InputError

ORIGINAL = Path("datasets/original")
DATASET = Path("datasets/idc")
RUNS = Path("runs")
GIVEN_FEATURES = "features"  # the model of a run trained on features that were computed elsewhere

SPLITS = ("training", "validation", "testing")
SPLIT_NAMES = {name: name for name in SPLITS}  # names that a folder or a split file may use
SPLIT_NAMES |= {"train": "training", "val": "validation", "valid": "validation", "test": "testing"}
TESTING_SHARE = 0.20  # of all patients
VALIDATION_SHARE = 0.10  # of the patients that are not for testing
TRAINING_PARTS = 5  # at most, that training is divided into to choose the penalty of a single member's head
ANNOTATED_SHARE = 0.5  # of a patch that annotations of its class cover
INSIDE_SHARE = 0.985  # of validation images, each measured without its own patient, count as in distribution

Setting = int | float | str | bool
Way = Literal["scratch", "finetuned", "joined", "frozen", "features"]  # ways of training
EPOCHS: frozenset[Way] = frozenset(("scratch", "finetuned", "joined"))  # networks trained in epochs
IMAGES: frozenset[Way] = EPOCHS | {"frozen"}  # networks that take images
ALL: frozenset[Way] = IMAGES | {"features"}
Group = Literal["data", "model", "training", "decision", "output"]
_CHECKED = {"extra": "forbid", "allow_inf_nan": False}  # pydantic refuses an unknown name and what is no number


@dataclass(frozen=True)
class Range:
    """What a search tries of one setting: any number from `low` to `high`, or one of `choices`."""

    low: int | float | None = None
    high: int | float | None = None
    log: bool = False  # sample evenly by order of magnitude
    choices: tuple[Setting, ...] = ()
    __pydantic_config__ = _CHECKED

    @property
    def ends(self) -> tuple[Setting, ...]:
        """The extreme values of a range, or all choices."""
        if self.choices or self.low is None or self.high is None:
            return self.choices
        return (self.low, self.high)


@dataclass(frozen=True)
class Option:
    """How a field appears on the command line, where it applies, and what a search tries of it."""

    help: str
    group: Group = "output"
    default: str = ""  # in words, for --help; "" stands for the field's own value
    applies_to: frozenset[Way] = ALL
    parse: Callable[[str], object] | None = None  # from text; None: by the field's type
    metavar: str | None = None
    positional: bool = False
    const: str | None = None  # what the option means without a value
    on_command_line: bool = True  # False: only in recipe files
    searchable: bool = True  # whether a search may vary it
    search: Range | Mapping[Way, Range] = field(default_factory=dict)  # what a search tries; a Range: in every way

    def choose_range(self, way: Way) -> Range | None:
        """Return what a search tries where a network is trained this way; None if it leaves the setting alone."""
        if isinstance(self.search, Range):
            return self.search if way in self.applies_to else None
        return self.search.get(way)


def option(value: Any, /, help: str, **described: Any) -> Any:
    """Declare a field of a dataclass that is an option of a command: its default, and the fields of `Option`."""
    return field(default=value, metadata={"option": Option(help, **described)})


def group_option() -> Any:
    """Declare the option that names a column of the manifest to give results by."""
    text = "Also give the results by a column of the manifest, such as site, with differences from all other images"
    return option(None, text, group="decision", metavar="COLUMN")


_network_option = partial(option, group="model", applies_to=IMAGES)
_network_setting = partial(_network_option, searchable=False)
_training_option = partial(option, group="training")
_decision_option = partial(option, group="decision")
_epochs_option = partial(_training_option, applies_to=EPOCHS, default="from the recipe")
_recipe_setting = partial(_epochs_option, on_command_line=False)  # of networks trained in epochs


def settings_of(owner: type) -> Any:
    """Declare a field that holds given settings of another dataclass, by name; each of them is an option."""
    return field(default_factory=dict, metadata={"settings_of": owner})


def describe_field(owner: type, name: str) -> Option:
    """Return the `Option` of a field; `augmentation.zoom` names a field within a field. KeyError if there is none."""
    first, _, rest = name.partition(".")
    declared = {each.name: each for each in dataclasses.fields(owner)}[first]
    return describe_field(Augmentation, rest) if rest else declared.metadata["option"]


_Share = Annotated[float, Interval(ge=0, lt=1)]
_Count = Annotated[int, Ge(1)]
Seed = Annotated[int, Interval(ge=0, lt=2**32)]  # what NumPy, scikit-learn and Keras all take
Prevalence = Annotated[float, Interval(gt=0, lt=1)]


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images. Each number is the largest change; 0 or False switches it off."""

    rotation_degrees: Annotated[float, Interval(ge=0, le=180)] = _recipe_setting(
        0.0, "Rotation, either way", search=Range(0, 45)
    )
    zoom: _Share = _recipe_setting(0.0, "Share of the side: 0.05 scales by 0.95 to 1.05", search=Range(0, 0.2))
    shift: _Share = _recipe_setting(0.0, "Share of the side, in each direction", search=Range(0, 0.2))
    shear_degrees: Annotated[float, Interval(ge=0, lt=90)] = _recipe_setting(0.0, "Shear, either way")
    horizontal_flip: bool = _recipe_setting(False, "Flip left to right with probability 1/2")
    vertical_flip: bool = _recipe_setting(False, "Flip top to bottom with probability 1/2")
    quarter_turns: bool = _recipe_setting(False, "Rotate by 0, 90, 180 or 270 degrees")
    stain_jitter: Annotated[float, Interval(ge=0, le=1)] = _recipe_setting(
        0.0, "Change of the densities of haematoxylin, eosin and the residual", search=Range(0, 0.3)
    )
    __pydantic_config__ = _CHECKED


def _one_of(*choices: Setting) -> Range:
    return Range(choices=choices)


@dataclass(frozen=True)
class Experiment:
    """What to train: all settings that the weights follow from. The defaults are those of the CancerNet tutorial."""

    model: str = _network_setting("cancernet", "Architecture, one of those below, or several joined by +")
    recipe: str = _network_setting(
        "tutorial",
        "All settings at once: tutorial, standard, joined, transfer, strong, or a JSON file of settings",
        default="standard; transfer for a backbone",
    )
    image_size: _Count = _network_option(
        48,
        "Side of the network's input in pixels",
        default="the architecture's own",
        search={"scratch": _one_of(32, 48, 64), "frozen": _one_of(64, 96, 128), "finetuned": _one_of(96, 160, 224)},
    )
    channels: _Count = option(3, "Colour channels of the input", group="model", on_command_line=False, searchable=False)
    weights: str = _network_setting(
        "none", "Pretrained weights of a backbone: imagenet, none, or a file", default="imagenet"
    )
    strategy: Literal["all", "frozen", "finetune", "two-phase"] = _network_setting(
        "all",
        "How to train a backbone: a head on frozen features, all layers, or first the one and then the other",
        default="frozen",
    )
    epochs: _Count = _epochs_option(40, "Passes over the training images", search=Range(12, 40))
    batch_size: _Count = _epochs_option(32, "Images a step", search=_one_of(16, 32, 64))
    optimizer: Literal["adagrad", "adam", "adamw"] = _recipe_setting(
        "adagrad", "Keras optimizer", search=_one_of("adagrad", "adam", "adamw")
    )
    learning_rate: Annotated[float, Gt(0)] = _epochs_option(
        0.01,
        "Optimizer learning rate",
        search=dict.fromkeys(("scratch", "joined"), Range(0.003, 0.3, log=True))
        | {"finetuned": Range(1e-5, 1e-2, log=True)},
    )
    schedule: Literal["inverse_time", "constant", "cosine", "plateau"] = _recipe_setting(
        "inverse_time", "Learning rate schedule"
    )
    weight_decay: Annotated[float, Ge(0)] = _recipe_setting(0.0, "Weight decay of the optimizer")
    class_weight: Literal["ratio", "balanced", "none"] = _training_option(
        "ratio",
        "Class weights in the loss: ratio (largest / own count), balanced (images / (classes x count)), none",
        default="from the recipe",
        search=dict.fromkeys(EPOCHS, _one_of("ratio", "none")) | {"frozen": _one_of("balanced", "none")},
    )
    augmentation: Augmentation = _recipe_setting(Augmentation(), "Random changes of training images")
    dropout: _Share = _recipe_setting(
        0.5,
        "Dropout before the last layer of cancernet (half of it within) and simple_cnn",
        applies_to=frozenset(("scratch", "joined")),
        search={"scratch": Range(0.2, 0.7)},
    )
    statistics_momentum: _Share = _recipe_setting(0.99, "Momentum of batch normalisation's moving statistics")
    views: Literal["one", "mirror", "eight"] = _network_option(
        "one",
        "Test-time augmentation: none (one), horizontal flip (mirror), or all eight flips and rotations",
        default="from the recipe",
        search={"frozen": _one_of("one", "mirror")},
    )
    kept_weights: Literal["best", "mean"] = _recipe_setting(
        "best",
        "Final weights: of the epoch with the lowest validation loss, or the mean of the last half of the epochs",
    )
    early_stopping_patience: Annotated[int, Ge(0)] = _recipe_setting(
        0, "Epochs without a lower validation loss after which training stops; 0 never stops early"
    )
    members: _Count = _training_option(
        1,
        "Ensemble members, each trained without other patients; their mean logits are the output",
        default="5 for a frozen backbone, otherwise 1",
        search={"frozen": Range(3, 10), "joined": Range(2, 5)},
    )
    mixed_precision: bool = _training_option(
        False, "Train in bfloat16 if a measured step is faster that way", applies_to=IMAGES, searchable=False
    )
    seed: Seed = _training_option(
        42, "Random seed; same command, same machine and versions: same numbers", searchable=False
    )
    __pydantic_config__ = _CHECKED

    @property
    def way(self) -> Way:
        """How this experiment is trained, which settings may depend on."""
        if self.model == GIVEN_FEATURES:
            return "features"
        if "+" in self.model:
            return "joined"
        if self.strategy == "frozen":
            return "frozen"
        return "scratch" if self.strategy == "all" else "finetuned"


TUTORIAL_AUGMENTATION = Augmentation(
    rotation_degrees=20, zoom=0.05, shift=0.1, shear_degrees=0.05, horizontal_flip=True, vertical_flip=True
)
DEFAULT_RECIPE = "standard"

# Transfer learning from a keras.applications backbone. The learning rate is for the head on fixed features: at 1e-4 it
# has not converged after 40 epochs. Where the backbone is trained too, a tenth of it is used.
TRANSFER = Experiment(
    recipe="transfer",
    strategy="frozen",
    weights="imagenet",
    optimizer="adam",
    learning_rate=1e-3,
    schedule="plateau",
    class_weight="balanced",
    statistics_momentum=0.9,  # an epoch of a few hundred images has five steps: 0.99 is too slow
    augmentation=Augmentation(horizontal_flip=True, vertical_flip=True),
    members=5,  # of a frozen backbone: seconds each
    views="mirror",  # an X-ray has a fixed orientation
    early_stopping_patience=10,
)

# CancerNet with Adagrad and class weights, and with what was measured to help: see docs/recipes.md.
STANDARD = Experiment(
    recipe="standard",
    epochs=24,
    learning_rate=0.05,
    schedule="constant",
    augmentation=replace(TUTORIAL_AUGMENTATION, shear_degrees=0.0, quarter_turns=True, stain_jitter=0.1),
    statistics_momentum=0.9,  # at this rate weights change too fast for statistics over a hundred steps
    views="eight",
    kept_weights="mean",
)

# A recipe holds the settings for training from scratch, or for one kind of transfer learning.
RECIPES = {
    # CancerNet as its tutorial trains it. The tutorial's Adagrad(lr, decay=lr / epochs) is the inverse_time schedule.
    "tutorial": Experiment(augmentation=TUTORIAL_AUGMENTATION),
    "standard": STANDARD,
    # CancerNet and a linear head on a frozen backbone, which err on different patients.
    "joined": replace(
        STANDARD, recipe="joined", model="cancernet+densenet121", image_size=96, weights="imagenet", strategy="frozen"
    ),
    "transfer": TRANSFER,
    # For patches of 4 micrometres a pixel: all eight flips and rotations of each, in four times the time.
    "strong": replace(TRANSFER, recipe="strong", model="densenet121", image_size=96, views="eight"),
}


def update_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Translate settings as earlier versions wrote them: other names of flips, and kinds of heads that are gone."""
    settings = {name: value for name, value in settings.items() if name != "head"}
    if isinstance(settings.get("augmentation"), dict):
        names = {"mirror": "horizontal_flip", "upend": "vertical_flip"}
        settings["augmentation"] = {names.get(name, name): value for name, value in settings["augmentation"].items()}
    return settings


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a recipe file, a JSON object of settings of `Experiment`; those that it leaves out keep their values.

    Returns the value of each given setting; `augmentation` is such an object itself. Raises InputError for a missing
    file, an unknown name, or a value of a wrong type or out of range.
    """
    from cancernet.storage import read_json

    read_json(
        path, Experiment, expected="a recipe", advice="docs/recipes.md lists the settings.", update=update_settings
    )
    given = update_settings(json.loads(path.read_bytes()))
    if given.get("recipe", DEFAULT_RECIPE) not in RECIPES:
        raise InputError(f"{path} is not a recipe: recipe is {given['recipe']!r}; choose one of {', '.join(RECIPES)}.")
    return given


@dataclass(frozen=True)
class TrainingOptions:
    """What a training is told: on which dataset, with which settings, and how the run decides and reports."""

    dataset: Path = option(DATASET, "Folder made by build_dataset.py", group="data")
    settings: Mapping[str, Setting] = settings_of(Experiment)  # in place of the recipe's
    encoder: str | None = _network_option(
        None,
        "KerasHub encoder in place of a backbone: hf://..., kaggle://... or a folder (see docs/encoders.md)",
        metavar="PRESET",
    )
    features: Path | None = option(
        None, "Features of all images in place of a network, .npy or HDF5 (see docs/encoders.md)", group="model"
    )
    operating_point: str = _decision_option(
        "balanced", "How the threshold is chosen: balanced, sensitivity=0.95, specificity=0.95 or a number"
    )
    refer: Annotated[float, Interval(gt=0, le=0.5)] | None = _decision_option(
        None,
        'Answer "uncertain: refer to a person" for this share of the images, the least certain, such as 0.1',
        default="none",
    )
    neighbours: bool = _decision_option(True, "Do not smooth over neighbouring patches of a slide")
    positive: str | None = _decision_option(
        None, "Positive class of two, which sensitivity refers to", default="the last by name", metavar="CLASS"
    )
    prevalence: Prevalence | None = _decision_option(None, "Also give PPV and NPV at this prevalence")
    group: str | None = group_option()
    cache_limit: Annotated[float, Gt(0)] | None = _training_option(
        None, "GB of decoded images to keep in memory", default="half of what is free", applies_to=IMAGES
    )
    folds: Annotated[int, Ge(2)] | None = _training_option(
        None, "Cross-validate by patient in so many folds, with one pooled report"
    )
    only_folds: tuple[_Count, ...] | None = _training_option(
        None, "Train only these folds, such as 1 2", default="all", metavar="N"
    )
    leave_out: str | None = _training_option(
        None,
        "Cross-validate by a column of the manifest, such as site: test on each value after training without it",
        metavar="COLUMN",
    )
    distributed: bool = _training_option(
        False, "Train on all GPUs, and in all processes that a launcher such as srun started (see docs/scale.md)"
    )
    tensorboard: bool = _training_option(False, "Write event files for TensorBoard into the run", applies_to=EPOCHS)
    output: Path | None = option(None, "Folder of the run", default="runs/MODEL, then runs/MODEL-2 and so on")
    force: bool = option(False, "Replace a run that exists")
    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012
