"""Members: networks that each leave other patients out, scored on those, and one network that answers for them all."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from cancernet.config import Experiment
from cancernet.learning import phases, scoring, training
from cancernet.learning.models import build_model
from cancernet.learning.models.joining import join_members, renew_head
from cancernet.learning.models.structure import split_model


class Fitted(NamedTuple):
    """What came of training all members."""

    model: keras.Model  # raw images to probabilities, of all members together
    training: training.Training
    left_out: np.ndarray  # scores [m, classes] of each member's validation rows, one member after the other
    score: Callable[[np.ndarray], np.ndarray]  # rows [m] of the material -> scores [m, classes] of all members together


def fit_members(
    experiment: Experiment,
    material: phases.Material,
    members: Sequence[Mapping[str, np.ndarray]],
    settings: Mapping,
    work: Path,
) -> Fitted:
    """Train one network for each member and join them.

    The members' answer is the softmax of their mean logits, the (normalised) geometric mean of their probabilities.
    Linear heads on one frozen backbone are then one linear head, so that five cost no more than one when they answer.

    Args:
        members: of each, the rows of `material` that are its `training` and its `validation`. One member is the usual
            training; several deal the same rows differently.
        settings: as `phases.fit_phases`.
        work: folder for the checkpoints.

    Raises:
        InputError: as `phases.fit_phases`.
    """
    networks, trainings, left_out = [], [], []
    for number, rows in enumerate(members):
        own = dataclasses.replace(experiment, seed=experiment.seed + number)
        keras.utils.set_random_seed(own.seed)
        if networks and experiment.strategy == "frozen":
            network = renew_head(networks[0], len(material.weights))
        else:
            network = build_model(own, len(material.weights))
        if material.features is None and experiment.strategy in ("frozen", "two-phase"):
            print(f"Computing the features of {len(material.images):,} images, once ...", flush=True)
            features = scoring.extract_features(split_model(network)[0], material.images, views=experiment.views)
            material = material._replace(features=features)
        folder = work if len(members) == 1 else work / f"checkpoint_{number + 1}"
        if len(members) > 1:
            print(f"Member {number + 1} of {len(members)}:", flush=True)
        trainings.append(phases.fit_phases(network, own, material, rows, settings, folder))
        left_out.append(_score(network, experiment, material, rows["validation"]))
        networks.append(network)
    model = join_members(networks)
    return Fitted(
        model,
        training.average(trainings),
        np.concatenate(left_out),
        lambda rows: _score(model, experiment, material, rows),
    )


def _score(model: keras.Model, experiment: Experiment, material: phases.Material, rows: np.ndarray) -> np.ndarray:
    """Scores [m, classes] of some rows; a frozen backbone is not asked again."""
    if experiment.strategy == "frozen":
        return scoring.score_features(split_model(model)[1], material.features[rows])
    return scoring.predict_scores(model, material.images.select(rows), views=experiment.views)
