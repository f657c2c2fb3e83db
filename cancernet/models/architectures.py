"""The table of architectures, with what each can do, and the function that builds a network from it.

Every network takes raw images (0 to 255) and returns softmax probabilities. Its preprocessing consists of Keras' own
layers, so that a saved model file needs nothing of ours. Only building a network imports Keras.
"""

import dataclasses
import importlib.util
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cancernet import InputError
from cancernet.config import GIVEN_FEATURES, Experiment

if typing.TYPE_CHECKING:
    import keras

ENCODER = "encoder"  # a pathology encoder: --encoder gives a KerasHub preset, which takes the place of weights


def _build_cancernet(experiment: Experiment, classes: int) -> "keras.Model":
    from cancernet.models.cancernet import CancerNet

    size, channels = experiment.image_size, experiment.channels
    return CancerNet.build(width=size, height=size, depth=channels, classes=classes, dropout=experiment.dropout)


def _build_simple_cnn(experiment: Experiment, classes: int) -> "keras.Model":
    from cancernet.models.simple_cnn import build_simple_cnn

    return build_simple_cnn(experiment.image_size, experiment.channels, classes, experiment.dropout)


def _build_backbone(experiment: Experiment, classes: int) -> "keras.Model":
    from cancernet.models.structure import add_head
    from cancernet.models.transfer import build_extractor

    architecture = find_architecture(experiment.model)
    extractor = build_extractor(architecture, experiment.image_size, experiment.weights)
    return add_head(extractor, classes, architecture.constructor.lower())


def _build_encoder(experiment: Experiment, classes: int) -> "keras.Model":
    from cancernet.models.encoder import build_encoder
    from cancernet.models.structure import add_head

    return add_head(build_encoder(experiment.weights, experiment.image_size), classes, "encoder")


@dataclass(frozen=True)
class Architecture:
    """What an architecture takes, can do, and how it is built. The defaults suit a backbone of keras.applications."""

    # Of a backbone in keras.applications:
    constructor: str = ""
    preprocessing: str = ""  # caffe: BGR minus the mean | torch: scaled and standardised | included in the backbone
    stages: tuple[str, ...] = ()  # last layers at 1/4, 1/8 and 1/16 of the side; pooled together with the very last
    # Of every architecture:
    build: Callable[[Experiment, int], "keras.Model"] | None = _build_backbone  # experiment, number of classes
    image_size: int = 224  # default, in pixels; images are square
    smallest_image_size: int = 32  # pixels; smaller images leave no feature maps to pool
    channels: int = 3  # default; a backbone takes no other number
    strategies: tuple[str, ...] = ("frozen", "finetune", "two-phase", "all")  # the default first; all means finetune
    is_backbone: bool = True  # a feature extractor with weights of its own, below a new head
    takes_images: bool = True  # False: features that were computed elsewhere
    has_maps: bool = True  # Grad-CAM needs feature maps; a transformer has tokens
    chosen_by: str = "--model"  # the option that selects it
    package: str = ""  # optional Python package that its layers come from


_from_scratch = partial(Architecture, strategies=("all",), is_backbone=False)
_always_frozen = partial(Architecture, smallest_image_size=1, strategies=("frozen",), has_maps=False)
ARCHITECTURES = {
    "cancernet": _from_scratch(build=_build_cancernet, image_size=48, smallest_image_size=8),
    "simple_cnn": _from_scratch(build=_build_simple_cnn, image_size=128, smallest_image_size=22, channels=1),
    "resnet50": Architecture("ResNet50", "caffe", ("conv2_block3_out", "conv3_block4_out", "conv4_block6_out")),
    "densenet121": Architecture("DenseNet121", "torch", ("pool2_relu", "pool3_relu", "pool4_relu")),
    "densenet201": Architecture("DenseNet201", "torch", ("pool2_relu", "pool3_relu", "pool4_relu")),
    "efficientnetv2b0": Architecture(
        "EfficientNetV2B0", "included", ("block2b_add", "block4a_expand_activation", "block6a_expand_activation")
    ),
    "mobilenetv3small": Architecture(
        "MobileNetV3Small", "included", ("expanded_conv_project_bn", "expanded_conv_2_add", "expanded_conv_7_add")
    ),
    ENCODER: _always_frozen(build=_build_encoder, chosen_by="--encoder", package="keras_hub"),
    GIVEN_FEATURES: _always_frozen(build=None, takes_images=False, chosen_by="--features"),
}


def list_model_names() -> list[str]:
    """List the names that `--model` takes."""
    return [name for name, architecture in ARCHITECTURES.items() if architecture.chosen_by == "--model"]


def find_architecture(name: str) -> Architecture:
    """Return the entry of a name in `ARCHITECTURES`; InputError if there is none."""
    if name not in ARCHITECTURES:
        raise InputError(f"Unknown model {name}. Choose one of {', '.join(list_model_names())}.")
    return ARCHITECTURES[name]


def list_architectures(model: str) -> list[Architecture]:
    """List the architectures in a model's name, such as `cancernet+densenet121`, that this version knows."""
    return [ARCHITECTURES[name] for name in model.split("+") if name in ARCHITECTURES]


def split_by_architecture(experiment: Experiment) -> list[Experiment]:
    """Split an experiment with joined models, such as `cancernet+densenet121`, into one for each architecture.

    A network trained from scratch keeps its own image size; it downsamples the images that the backbone takes.
    """
    if "+" not in experiment.model:
        return [experiment]
    split = []
    for name in experiment.model.split("+"):
        architecture, single = find_architecture(name), dataclasses.replace(experiment, model=name)
        if not architecture.is_backbone:
            size = architecture.image_size
            single = dataclasses.replace(single, strategy="all", weights="none", image_size=size)
        split.append(single)
    return split


def build_model(experiment: Experiment, classes: int) -> "keras.Model":
    """Build the network that an experiment names: raw images [n, size, size, channels] -> [n, classes] float32 softmax.

    It is not compiled. All layers are trainable except the batch normalisation of a backbone. New weights are random:
    `keras.utils.set_random_seed` makes them repeatable. `experiment.weights` says where those of a backbone come from.
    Raises InputError as `check_architecture`, and for fewer than two classes or weights that do not fit the backbone.
    """
    architecture = check_architecture(experiment)
    if classes < 2:
        raise InputError(f"A model needs at least two classes; got {classes}. Add a class folder to the dataset.")
    if architecture.build is None:
        raise InputError(f"{experiment.model} takes no images; {architecture.chosen_by} gives what it is trained on.")
    return architecture.build(experiment, classes)


def check_architecture(experiment: Experiment) -> Architecture:
    """Return the architecture of an experiment after checking that the other settings fit it. Needs no Keras.

    Raises InputError for an unknown model, too small an image, a number of channels, a strategy or weights that the
    architecture does not support, a missing file of weights, or a missing Python package.
    """
    name = experiment.model
    architecture = find_architecture(name)
    if experiment.image_size < architecture.smallest_image_size:
        sizes = f"at least {architecture.smallest_image_size} pixels; got {experiment.image_size}"
        raise InputError(f"{name} takes images of {sizes}. Use --image-size {architecture.image_size}.")
    if experiment.strategy not in architecture.strategies:
        raise InputError(f"{name} does not support --strategy {experiment.strategy}. Leave --strategy out.")
    if architecture.package and importlib.util.find_spec(architecture.package) is None:
        raise InputError(describe_missing_package(f"{name} {experiment.weights}", architecture))
    if not architecture.is_backbone:
        if experiment.weights != "none":
            found = f"--weights {experiment.weights}"
            raise InputError(f"{name} has no pretrained weights; got {found}. Use --weights none.")
    elif experiment.channels != architecture.channels:
        wanted = f"{architecture.channels} channels"
        advice = f"Grey images work with {wanted} too; they are read as equal channels."
        raise InputError(f"{name} takes images of {wanted}; got {experiment.channels}. {advice}")
    needs_file = architecture.constructor and experiment.weights not in ("none", "imagenet")
    if needs_file and not Path(experiment.weights).is_file():
        file = f"an HDF5 file of weights of keras.applications.{architecture.constructor} without its top"
        raise InputError(f"No weights file {experiment.weights}. --weights takes imagenet, none, or {file}.")
    return architecture


def describe_missing_package(what: str, architecture: Architecture) -> str:
    """Return the error message for something that needs the package of an architecture, which is not installed."""
    return f'{what} needs the package {architecture.package}, which is not installed. Run pip install ".[encoders]".'
