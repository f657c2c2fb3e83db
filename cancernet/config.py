"""Settings: what a training, and each command, can be told. Every field says what it means, and where it applies.

The command line, the checks of what belongs together, and the search space are generated from these fields.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval

from cancernet import InputError

ORIGINAL = Path("datasets/original")
DATASET = Path("datasets/idc")
RUNS = Path("runs")
GIVEN_FEATURES = "features"  # the model of a run trained on features that were computed elsewhere

SPLITS = ("training", "validation", "testing")
SPLIT_NAMES = {  # names that a folder or a split file may use
    "train": "training",
    "training": "training",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "testing",
    "testing": "testing",
}
TESTING_SHARE = 0.20  # of all patients
VALIDATION_SHARE = 0.10  # of the patients that are not for testing
TRAINING_PARTS = 5  # at most, that training is divided into to choose the penalty of a single member's head
INSIDE_SHARE = 0.985  # of validation images, each measured without its own patient, count as in distribution

Setting = int | float | str | bool
Way = Literal["scratch", "finetuned", "joined", "frozen", "features"]  # ways of training
EPOCHS: frozenset[Way] = frozenset(("scratch", "finetuned", "joined"))  # networks trained in epochs
IMAGES: frozenset[Way] = EPOCHS | {"frozen"}  # networks that take images
ALL: frozenset[Way] = IMAGES | {"features"}
Group = Literal["data", "model", "training", "decision", "output"]


@dataclass(frozen=True)
class Range:
    """What a search tries of one setting: any number from `low` to `high`, or one of `choices`."""

    low: int | float | None = None
    high: int | float | None = None
    log: bool = False  # sample evenly by order of magnitude
    choices: tuple[Setting, ...] = ()
    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # noqa: RUF012

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
    search: Mapping[Way, Range] = field(default_factory=dict)  # what a search tries, by way of training


def option(value: Any, /, **described: Any) -> Any:
    """Declare a field of a dataclass that is an option of a command.

    Args:
        value: its default; a class is called to make it.
        described: the fields of `Option`.
    """
    metadata = {"option": Option(**described)}
    if isinstance(value, type):
        return field(default_factory=value, metadata=metadata)
    return field(default=value, metadata=metadata)


def settings_of(owner: type) -> Any:
    """Declare a field that holds given settings of another dataclass, by name; each of them is an option."""
    return field(default_factory=dict, metadata={"settings_of": owner})


def describe_field(owner: type, name: str) -> Option:
    """Return the `Option` of a field; `augmentation.zoom` names a field within a field.

    Raises:
        KeyError: there is no such field.
    """
    first, _, rest = name.partition(".")
    declared = {each.name: each for each in dataclasses.fields(owner)}[first]
    return describe_field(Augmentation, rest) if rest else declared.metadata["option"]


_CHECKED = {"extra": "forbid", "allow_inf_nan": False}  # pydantic refuses an unknown name and what is no number
_Share = Annotated[float, Interval(ge=0, lt=1)]
_Count = Annotated[int, Ge(1)]
Seed = Annotated[int, Interval(ge=0, lt=2**32)]  # what NumPy, scikit-learn and Keras all take
Prevalence = Annotated[float, Interval(gt=0, lt=1)]


def _change(default: Setting, help: str, high: float = 0) -> Any:
    """A random change of training images; a search tries strengths up to `high`."""
    tried = dict.fromkeys(("scratch", "finetuned", "joined"), Range(0, high)) if high else {}
    return option(default, help=help, group="training", applies_to=EPOCHS, on_command_line=False, search=tried)


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images. Each number is the largest change; 0 or False switches it off."""

    rotation_degrees: Annotated[float, Interval(ge=0, le=180)] = _change(0.0, "Rotation, either way", 45)
    zoom: _Share = _change(0.0, "Share of the side: 0.05 scales by 0.95 to 1.05", 0.2)
    shift: _Share = _change(0.0, "Share of the side, in each direction", 0.2)
    shear_degrees: Annotated[float, Interval(ge=0, lt=90)] = _change(0.0, "Shear, either way")
    horizontal_flip: bool = _change(False, "Flip left to right with probability 1/2")
    vertical_flip: bool = _change(False, "Flip top to bottom with probability 1/2")
    quarter_turns: bool = _change(False, "Rotate by 0, 90, 180 or 270 degrees")
    stain_jitter: Annotated[float, Interval(ge=0, le=1)] = _change(
        0.0, "Change of the densities of haematoxylin, eosin and the residual", 0.3
    )
    __pydantic_config__ = _CHECKED


def _choices(*ways: Way, of: tuple[Setting, ...]) -> dict[Way, Range]:
    return dict.fromkeys(ways, Range(choices=of))


_RECIPE = "from the recipe"


@dataclass(frozen=True)
class Experiment:
    """What to train: all settings that the weights follow from. The defaults are those of the CancerNet tutorial."""

    model: str = option(
        "cancernet",
        help="Architecture, one of those below, or several joined by +",
        group="model",
        default="cancernet",
        applies_to=IMAGES,
        searchable=False,
    )
    recipe: str = option(
        "tutorial",
        help="All settings at once: tutorial, standard, joined, transfer, strong, or a JSON file of settings",
        group="model",
        default="standard; transfer for a backbone",
        applies_to=IMAGES,
        searchable=False,
    )
    image_size: _Count = option(
        48,
        help="Side of the network's input in pixels",
        group="model",
        default="the architecture's own",
        applies_to=IMAGES,
        search=_choices("scratch", of=(32, 48, 64))
        | _choices("frozen", of=(64, 96, 128))
        | _choices("finetuned", of=(96, 160, 224)),
    )
    channels: _Count = option(
        3, help="Colour channels of the input", group="model", on_command_line=False, searchable=False
    )
    weights: str = option(
        "none",
        help="Pretrained weights of a backbone: imagenet, none, or a file",
        group="model",
        default="imagenet",
        applies_to=IMAGES,
        searchable=False,
    )
    strategy: Literal["all", "frozen", "finetune", "two-phase"] = option(
        "all",
        help="How to train a backbone: a head on frozen features, all layers, or first the one and then the other",
        group="model",
        default="frozen",
        applies_to=IMAGES,
        searchable=False,
    )
    epochs: _Count = option(
        40,
        help="Passes over the training images",
        group="training",
        default=_RECIPE,
        applies_to=EPOCHS,
        search=dict.fromkeys(("scratch", "finetuned", "joined"), Range(12, 40)),
    )
    batch_size: _Count = option(
        32,
        help="Images a step",
        group="training",
        default=_RECIPE,
        applies_to=EPOCHS,
        search=_choices("scratch", "finetuned", "joined", of=(16, 32, 64)),
    )
    optimizer: Literal["adagrad", "adam", "adamw"] = option(
        "adagrad",
        help="Keras optimizer",
        group="training",
        applies_to=EPOCHS,
        on_command_line=False,
        search=_choices("scratch", "finetuned", "joined", of=("adagrad", "adam", "adamw")),
    )
    learning_rate: Annotated[float, Gt(0)] = option(
        0.01,
        help="Optimizer learning rate",
        group="training",
        default=_RECIPE,
        applies_to=EPOCHS,
        search={
            "scratch": Range(0.003, 0.3, log=True),
            "finetuned": Range(1e-5, 1e-2, log=True),
            "joined": Range(0.003, 0.3, log=True),
        },
    )
    schedule: Literal["inverse_time", "constant", "cosine", "plateau"] = option(
        "inverse_time", help="Learning rate schedule", group="training", applies_to=EPOCHS, on_command_line=False
    )
    weight_decay: Annotated[float, Ge(0)] = option(
        0.0, help="Weight decay of the optimizer", group="training", applies_to=EPOCHS, on_command_line=False
    )
    class_weight: Literal["ratio", "balanced", "none"] = option(
        "ratio",
        help="Class weights in the loss: ratio (largest / own count), balanced (images / (classes x count)), none",
        group="training",
        default=_RECIPE,
        search=_choices("scratch", "finetuned", "joined", of=("ratio", "none"))
        | _choices("frozen", of=("balanced", "none")),
    )
    augmentation: Augmentation = option(
        Augmentation,
        help="Random changes of training images",
        group="training",
        applies_to=EPOCHS,
        on_command_line=False,
    )
    dropout: _Share = option(
        0.5,
        help="Dropout before the last layer of cancernet (half of it within) and simple_cnn",
        group="training",
        applies_to=frozenset(("scratch", "joined")),
        on_command_line=False,
        search={"scratch": Range(0.2, 0.7)},
    )
    statistics_momentum: _Share = option(
        0.99,
        help="Momentum of batch normalisation's moving statistics",
        group="training",
        applies_to=EPOCHS,
        on_command_line=False,
    )
    views: Literal["one", "mirror", "eight"] = option(
        "one",
        help="Test-time augmentation: none (one), horizontal flip (mirror), or all eight flips and rotations",
        group="model",
        default=_RECIPE,
        applies_to=IMAGES,
        search=_choices("frozen", of=("one", "mirror")),
    )
    kept_weights: Literal["best", "mean"] = option(
        "best",
        help="Final weights: of the epoch with the lowest validation loss, or the mean of the last half of the epochs",
        group="training",
        applies_to=EPOCHS,
        on_command_line=False,
    )
    early_stopping_patience: Annotated[int, Ge(0)] = option(
        0,
        help="Epochs without a lower validation loss after which training stops; 0 never stops early",
        group="training",
        applies_to=EPOCHS,
        on_command_line=False,
    )
    members: _Count = option(
        1,
        help="Ensemble members, each trained without other patients; their mean logits are the output",
        group="training",
        default="5 for a frozen backbone, otherwise 1",
        search={"frozen": Range(3, 10), "joined": Range(2, 5)},
    )
    mixed_precision: bool = option(
        False,
        help="Train in bfloat16 if a measured step is faster that way",
        group="training",
        applies_to=IMAGES,
        searchable=False,
    )
    seed: Seed = option(
        42,
        help="Random seed; same command, same machine and versions: same numbers",
        group="training",
        searchable=False,
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
STANDARD_AUGMENTATION = replace(TUTORIAL_AUGMENTATION, shear_degrees=0.0, quarter_turns=True)

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
    augmentation=replace(STANDARD_AUGMENTATION, stain_jitter=0.1),
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
        STANDARD,
        recipe="joined",
        model="cancernet+densenet121",
        image_size=96,
        weights="imagenet",
        strategy="frozen",
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

    Returns:
        What the file gives: name to value; `augmentation` is such an object itself.

    Raises:
        InputError: the file is missing or no JSON, or has an unknown name, or a value of a wrong type or out of range.
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

    dataset: Path = option(DATASET, help="Folder made by build_dataset.py", group="data")
    settings: Mapping[str, Setting] = settings_of(Experiment)  # in place of the recipe's
    encoder: str | None = option(
        None,
        help="KerasHub encoder in place of a backbone: hf://..., kaggle://... or a folder (see docs/encoders.md)",
        group="model",
        metavar="PRESET",
        applies_to=IMAGES,
    )
    features: Path | None = option(
        None,
        help="Features of all images in place of a network, .npy or HDF5 (see docs/encoders.md)",
        group="model",
    )
    operating_point: str = option(
        "balanced",
        help="How the threshold is chosen: balanced, sensitivity=0.95, specificity=0.95 or a number",
        group="decision",
    )
    neighbours: bool = option(True, help="Do not smooth over neighbouring patches of a slide", group="decision")
    positive: str | None = option(
        None,
        help="Positive class of two, which sensitivity refers to",
        group="decision",
        default="the last by name",
        metavar="CLASS",
    )
    prevalence: Prevalence | None = option(None, help="Also give PPV and NPV at this prevalence", group="decision")
    cache_limit: Annotated[float, Gt(0)] | None = option(
        None,
        help="GB of decoded images to keep in memory",
        group="training",
        default="half of what is free",
        applies_to=IMAGES,
    )
    folds: Annotated[int, Ge(2)] | None = option(
        None, help="Cross-validate by patient in so many folds, with one pooled report", group="training"
    )
    only_folds: tuple[_Count, ...] | None = option(
        None, help="Train only these folds, such as 1 2", group="training", default="all", metavar="N"
    )
    distributed: bool = option(
        False,
        help="Train on all GPUs, and in all processes that a launcher such as srun started (see docs/scale.md)",
        group="training",
    )
    output: Path | None = option(None, help="Folder of the run", default="runs/MODEL, then runs/MODEL-2 and so on")
    force: bool = option(False, help="Replace a run that exists")
    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012
