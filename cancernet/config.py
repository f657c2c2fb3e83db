"""Default folders, the splits of a dataset, and the settings of an experiment. Standard library only."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

ORIGINAL = Path("datasets/original")
DATASET = Path("datasets/idc")
RUNS = Path("runs")

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


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images. Each number is the largest change; 0 or False switches it off."""

    rotation_degrees: float = 0.0
    zoom: float = 0.0  # share of the side: 0.05 scales by 0.95 to 1.05
    shift: float = 0.0  # share of the side
    shear_degrees: float = 0.0
    mirror: bool = False  # left to right, with probability 1/2
    upend: bool = False  # top to bottom, with probability 1/2
    quarter_turns: bool = False
    stain_jitter: float = 0.0  # relative change of the haematoxylin, eosin and residual densities


@dataclass(frozen=True)
class Experiment:
    """All settings of one training. The defaults are what the tutorial's code was meant to do."""

    model: str = "cancernet"
    recipe: str = "tutorial"
    image_size: int = 48  # pixels, square
    channels: int = 3
    weights: str = "none"  # none | imagenet | a file of backbone weights
    strategy: Literal["all", "frozen", "finetune", "two-phase"] = "all"
    epochs: int = 40
    batch_size: int = 32
    optimizer: Literal["adagrad", "adam", "adamw"] = "adagrad"
    learning_rate: float = 0.01
    schedule: Literal["inverse_time", "constant", "cosine", "plateau"] = "inverse_time"
    weight_decay: float = 0.0
    class_weight: Literal["ratio", "balanced", "none"] = "ratio"  # max(count)/count, n/(classes*count), or 1
    augmentation: Augmentation = field(default_factory=Augmentation)
    statistics_momentum: float = 0.99  # of batch normalisation's moving mean and variance; 0.99 is Keras' own
    views: Literal["one", "mirror", "eight"] = "one"  # of an image: predictions are the mean over them
    kept_weights: Literal["best", "mean"] = "best"  # epoch of least validation loss; mean of the last half
    early_stopping_patience: int = 0  # epochs without a better validation loss; 0 is off
    members: int = 1  # networks, each trained without other patients, whose mean logits answer
    mixed_precision: bool = False  # train in bfloat16 where a measured step is faster
    seed: int = 42


TUTORIAL_AUGMENTATION = Augmentation(
    rotation_degrees=20, zoom=0.05, shift=0.1, shear_degrees=0.05, mirror=True, upend=True
)
STANDARD_AUGMENTATION = replace(TUTORIAL_AUGMENTATION, shear_degrees=0.0, quarter_turns=True)

DEFAULT_RECIPE = "standard"

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
    "strong": Experiment(
        recipe="strong",
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
        members=3,
    ),
    # Transfer learning from a keras.applications backbone. The learning rate is for the head on fixed features: at
    # 1e-4 it has not converged after 40 epochs. Where the backbone is trained too, a tenth of it is used.
    "transfer": Experiment(
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
    ),
}
