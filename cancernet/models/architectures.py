"""The networks: one table of what can be asked for, and the one function that builds it.

Every model takes raw images (0 to 255) and returns softmax probabilities. What it does to the pixels first is inside
it, in Keras' own layers only, so that a saved model file answers images without this package.

Importing this package does not import Keras; building a model does.
"""

import dataclasses
import importlib.util
import typing
from dataclasses import dataclass
from pathlib import Path

from cancernet import InputError
from cancernet.config import Experiment

if typing.TYPE_CHECKING:
    import keras

KERNELS = "_weights_tf_dim_ordering_tf_kernels_notop.h5"


@dataclass(frozen=True)
class Architecture:
    """What a model expects and, for a backbone of `keras.applications`, how it is built. Defaults: a backbone's."""

    family: str = "transfer"  # cancernet | simple_cnn | transfer
    image_size: int = 224  # pixels, square: the default
    channels: int = 3  # the default; a backbone takes no other number
    smallest_image_size: int = 32  # pixels: a smaller image leaves no maps to pool
    backbone: str = ""  # the constructor's name in keras.applications
    # Its last layers before the maps' sides are halved, from a quarter of the image's on; pooled beside the very last.
    stages: tuple[str, ...] = ()
    preprocessing: str = ""  # caffe: BGR less the mean | torch: scaled and standardised | included: by the backbone
    imagenet: str = ""  # where Keras publishes its ImageNet weights without the top: path under weights.APPLICATIONS


MODELS = {
    "cancernet": Architecture("cancernet", image_size=48, channels=3, smallest_image_size=8),
    "simple_cnn": Architecture("simple_cnn", image_size=128, channels=1, smallest_image_size=22),
    "resnet50": Architecture(
        backbone="ResNet50",
        stages=("conv2_block3_out", "conv3_block4_out", "conv4_block6_out"),
        preprocessing="caffe",
        imagenet=f"resnet/resnet50{KERNELS}",
    ),
    "densenet121": Architecture(
        backbone="DenseNet121",
        stages=("pool2_relu", "pool3_relu", "pool4_relu"),
        preprocessing="torch",
        imagenet=f"densenet/densenet121{KERNELS}",
    ),
    "densenet201": Architecture(
        backbone="DenseNet201",
        stages=("pool2_relu", "pool3_relu", "pool4_relu"),
        preprocessing="torch",
        imagenet=f"densenet/densenet201{KERNELS}",
    ),
    "efficientnetv2b0": Architecture(
        backbone="EfficientNetV2B0",
        stages=("block2b_add", "block4a_expand_activation", "block6a_expand_activation"),
        preprocessing="included",
        imagenet="efficientnet_v2/efficientnetv2-b0_notop.h5",
    ),
    "mobilenetv3small": Architecture(
        backbone="MobileNetV3Small",
        stages=("expanded_conv_project_bn", "expanded_conv_2_add", "expanded_conv_7_add"),
        preprocessing="included",
        imagenet="mobilenet_v3/weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5",
    ),
}
ENCODER = "encoder"  # the model of a run on an encoder of KerasHub; its preset stands in the place of weights
ENCODERS_NEED = 'pip install ".[encoders]"'


def find_architecture(name: str) -> Architecture:
    """One of MODELS, or that of an encoder.

    Raises:
        InputError: there is none of this name.
    """
    if name == ENCODER:
        return Architecture(smallest_image_size=1)
    if name not in MODELS:
        raise InputError(f"No model is called {name}. Choose one of {', '.join(MODELS)}.")
    return MODELS[name]


def build_model(experiment: Experiment, classes: int) -> "keras.Model":
    """Build the network that an experiment names: raw images in, probabilities out.

    All of it is trainable but a backbone's batch normalisation. Weights start at random (`keras.utils.set_random_seed`
    before makes them repeatable), those of a backbone at what `experiment.weights` says.

    Returns:
        An uncompiled model: [n, size, size, channels] of 0 to 255 -> [n, classes] float32 softmax.

    Raises:
        InputError: as `check_architecture`; fewer than two classes; backbone weights that are missing, unreadable or
            another network's.
    """
    architecture = check_architecture(experiment)
    if classes < 2:
        raise InputError(f"A model needs at least two classes; got {classes}. Add a class folder to the dataset.")
    size, channels = experiment.image_size, experiment.channels
    if architecture.family == "cancernet":
        from cancernet.models.cancernet import CancerNet

        return CancerNet.build(width=size, height=size, depth=channels, classes=classes, dropout=experiment.dropout)
    if architecture.family == "simple_cnn":
        from cancernet.models.simple_cnn import build_simple_cnn

        return build_simple_cnn(size, channels, classes, experiment.dropout)
    if experiment.model == ENCODER:
        from cancernet.models.encoder import build_encoder_model

        return build_encoder_model(experiment.weights, size, classes)
    from cancernet.models.transfer import build_transfer_model

    return build_transfer_model(architecture, size, classes, experiment.weights)


def list_kinds(experiment: Experiment) -> list[Experiment]:
    """List the experiment of each kind of network in one: of `cancernet+densenet121` two.

    Beside a backbone, a network that is trained from scratch keeps its own image size and shrinks what it is given.
    """
    names = experiment.model.split("+")
    if len(names) == 1:
        return [experiment]
    kinds = []
    for name in names:
        own = {"model": name}
        if find_architecture(name).family != "transfer":
            own |= {"strategy": "all", "weights": "none", "image_size": find_architecture(name).image_size}
        kinds.append(dataclasses.replace(experiment, **own))
    return kinds


def check_architecture(experiment: Experiment) -> Architecture:
    """Return the architecture that an experiment names, once its image size, channels and weights fit it.

    Needs no Keras, so that a script can refuse bad settings at once.

    Raises:
        InputError: an unknown model, an image smaller than the network can take, a number of channels that it cannot
            take, weights for a model that has none, or a file of weights that is not there.
    """
    name = experiment.model
    architecture = find_architecture(name)
    if experiment.image_size < architecture.smallest_image_size:
        raise InputError(
            f"{name} takes images of at least {architecture.smallest_image_size} pixels; got {experiment.image_size}. "
            f"Use --image-size {architecture.image_size}."
        )
    if architecture.family == "transfer":
        if experiment.channels != architecture.channels:
            raise InputError(
                f"{name} takes images of {architecture.channels} channels; got {experiment.channels}. "
                "Grey images are taken too, read as three equal channels."
            )
        if name == ENCODER:
            check_encoder(experiment)
        elif experiment.weights not in ("none", "imagenet") and not Path(experiment.weights).is_file():
            raise InputError(
                f"No weights file {experiment.weights}. --weights takes imagenet, none, or an HDF5 file of weights of "
                f"keras.applications.{architecture.backbone} without its top."
            )
    elif experiment.channels < 1:
        raise InputError(f"{name} takes images of at least one channel; got {experiment.channels}.")
    elif experiment.weights != "none":
        raise InputError(f"{name} has no pretrained weights; got --weights {experiment.weights}. Use --weights none.")
    return architecture


def check_encoder(experiment: Experiment) -> None:
    """See that an encoder of KerasHub can be used as an experiment says.

    Raises:
        InputError: KerasHub is not there, or the encoder is to be trained.
    """
    if importlib.util.find_spec("keras_hub") is None:
        raise InputError(f"The encoder {experiment.weights} needs KerasHub, which is not installed: {ENCODERS_NEED}")
    if experiment.strategy != "frozen":
        raise InputError(f"--strategy {experiment.strategy} is not for an encoder, which stays as it is. Leave it out.")
