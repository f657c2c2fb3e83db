"""Default folders, the splits of a dataset, and the settings of an experiment with the range of each."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval

from cancernet import InputError

ORIGINAL = Path("datasets/original")
DATASET = Path("datasets/idc")
RUNS = Path("runs")
GIVEN_FEATURES = "features"  # the model of a run that answers features which came from elsewhere, not images

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
TRAINING_PARTS = 5  # that training is dealt into, at most, to choose the strength of a single member's head
INSIDE_SHARE = 0.985  # of validation images that lie inside what a run was made for, each measured without its patient


_CHECKED = {"extra": "forbid", "allow_inf_nan": False}  # pydantic refuses an unknown name and what is no number
_Share = Annotated[float, Interval(ge=0, lt=1)]
_Count = Annotated[int, Ge(1)]


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images. Each number is the largest change; 0 or False switches it off."""

    rotation_degrees: Annotated[float, Interval(ge=0, le=180)] = 0.0
    zoom: _Share = 0.0  # share of the side: 0.05 scales by 0.95 to 1.05
    shift: _Share = 0.0  # share of the side
    shear_degrees: Annotated[float, Interval(ge=0, lt=90)] = 0.0
    mirror: bool = False  # left to right, with probability 1/2
    upend: bool = False  # top to bottom, with probability 1/2
    quarter_turns: bool = False
    stain_jitter: Annotated[float, Interval(ge=0, le=1)] = 0.0  # change of haematoxylin, eosin and residual densities
    __pydantic_config__ = _CHECKED


@dataclass(frozen=True)
class Experiment:
    """All settings of one training. The defaults are what the tutorial's code was meant to do."""

    model: str = "cancernet"
    recipe: str = "tutorial"
    image_size: _Count = 48  # pixels, square
    channels: _Count = 3
    weights: str = "none"  # none | imagenet | a file of backbone weights
    strategy: Literal["all", "frozen", "finetune", "two-phase"] = "all"
    head: Literal["linear", "kernel", "hidden"] = "linear"  # on a frozen backbone's features
    epochs: _Count = 40
    batch_size: _Count = 32
    optimizer: Literal["adagrad", "adam", "adamw"] = "adagrad"
    learning_rate: Annotated[float, Gt(0)] = 0.01
    schedule: Literal["inverse_time", "constant", "cosine", "plateau"] = "inverse_time"
    weight_decay: Annotated[float, Ge(0)] = 0.0
    class_weight: Literal["ratio", "balanced", "none"] = "ratio"  # max(count)/count, n/(classes*count), or 1
    augmentation: Augmentation = field(default_factory=Augmentation)
    dropout: _Share = 0.5  # before the last layer of cancernet (half of it within) and simple_cnn
    statistics_momentum: _Share = 0.99  # of batch normalisation's moving mean and variance; 0.99 is Keras' own
    views: Literal["one", "mirror", "eight"] = "one"  # of an image: predictions are the mean over them
    kept_weights: Literal["best", "mean"] = "best"  # epoch of least validation loss; mean of the last half
    early_stopping_patience: Annotated[int, Ge(0)] = 0  # epochs without a better validation loss; 0 is off
    members: _Count = 1  # networks, each trained without other patients, whose mean logits answer
    mixed_precision: bool = False  # train in bfloat16 where a measured step is faster
    seed: Annotated[int, Interval(ge=0, lt=2**32)] = 42
    __pydantic_config__ = _CHECKED


TUTORIAL_AUGMENTATION = Augmentation(
    rotation_degrees=20, zoom=0.05, shift=0.1, shear_degrees=0.05, mirror=True, upend=True
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
    augmentation=Augmentation(mirror=True, upend=True),
    members=5,  # of a frozen backbone: seconds each
    views="mirror",  # an X-ray must stay upright
    early_stopping_patience=10,
)

# A recipe holds the settings for training from scratch, or for one kind of transfer learning.
RECIPES = {
    # CancerNet as its tutorial trains it. The tutorial's Adagrad(lr, decay=lr / epochs) is the inverse_time schedule.
    "tutorial": Experiment(augmentation=TUTORIAL_AUGMENTATION),
    # CancerNet with Adagrad and class weights, and with what was measured to help: see docs/recipes.md.
    "standard": Experiment(
        recipe="standard",
        epochs=24,
        learning_rate=0.05,
        schedule="constant",
        augmentation=replace(STANDARD_AUGMENTATION, stain_jitter=0.1),
        statistics_momentum=0.9,  # at this rate weights change too fast for statistics over a hundred steps
        views="eight",
        kept_weights="mean",
    ),
    # CancerNet and a linear head on a frozen backbone, which err on different patients: their mean logits answer.
    "joined": Experiment(
        recipe="joined",
        model="cancernet+densenet121",
        image_size=96,
        weights="imagenet",
        strategy="frozen",
        epochs=24,
        learning_rate=0.05,
        schedule="constant",
        augmentation=replace(STANDARD_AUGMENTATION, stain_jitter=0.1),
        statistics_momentum=0.9,
        views="eight",
        kept_weights="mean",
    ),
    "transfer": TRANSFER,
    # For patches of 4 micrometres a pixel, with all flips and quarter turns of each, in four times the time.
    "strong": replace(TRANSFER, recipe="strong", model="densenet121", image_size=96, views="eight"),
}


def read_recipe(path: Path) -> dict[str, object]:
    """Read a recipe file, a JSON object of settings of `Experiment`; those that it leaves out keep their values.

    Returns:
        What the file gives: name to value; `augmentation` is such an object itself.

    Raises:
        InputError: the file is missing or no JSON, or has an unknown name, or a value of a wrong type or out of range.
    """
    from cancernet.storage import read_json

    read_json(path, Experiment, fault="is no recipe", again="See Experiment in cancernet/config.py.")
    given = json.loads(path.read_bytes())
    if given.get("recipe", DEFAULT_RECIPE) not in RECIPES:
        raise InputError(f"{path} is no recipe: recipe is {given['recipe']!r}; choose one of {', '.join(RECIPES)}.")
    return given
