"""Members: networks that each leave other patients out, scored on those, and one network that answers for them all."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
from scipy.special import log_softmax

from cancernet.config import Experiment
from cancernet.data.images import ImageStore
from cancernet.learning import familiarity, fitting, heads, scoring, training
from cancernet.learning.features import Place, find_features
from cancernet.learning.models import build_model, list_kinds
from cancernet.learning.models.joining import join_members, renew_head, shrink_first
from cancernet.learning.models.structure import split_model

Rows = Mapping[str, np.ndarray]  # split -> rows of the material


class Material(NamedTuple):
    """What networks are trained on and scored on: n images, of all splits."""

    images: ImageStore
    labels: np.ndarray  # class index [n]
    weights: dict[int, float]  # class index -> weight in the loss
    place: Place  # where the features of these images are kept


class Fitted(NamedTuple):
    """What came of training all members."""

    model: keras.Model  # raw images to probabilities, of all members together
    training: training.Training
    left_out: np.ndarray  # scores [m, classes] of each member's validation rows, one member after the other
    score: Callable[[np.ndarray], np.ndarray]  # rows [m] of the material -> scores [m, classes] of all members together
    seen_apart: list[tuple[np.ndarray, np.ndarray]]  # of each network rows it was not trained on, and their values


def fit_members(
    experiment: Experiment, material: Material, members: Sequence[Rows], settings: Mapping, work: Path
) -> Fitted:
    """Train the networks of an experiment, one of each kind for each member, and join them.

    The members' answer is the softmax of their mean logits, the (normalised) geometric mean of their probabilities.
    Linear heads on one frozen backbone are then one linear head, so that five cost no more than one when they answer.

    Args:
        members: of each, the rows of `material` that are its `training` and its `validation`. One member is the usual
            training; several deal the same rows differently.
        settings: of the training, as JSON takes them; a checkpoint that was begun with others is refused.
        work: folder for the checkpoints.

    Raises:
        InputError: a file cannot be used, or as `training.fit_model`.
    """
    kinds = [_fit_kind(own, material, members, settings, work) for own in list_kinds(experiment)]
    if len(kinds) == 1:
        return kinds[0]
    model = join_members([kind.model for kind in kinds])
    return Fitted(
        model,
        kinds[0].training._replace(
            strength=next((kind.training.strength for kind in kinds if kind.training.strength), None),
            seconds=sum(kind.training.seconds for kind in kinds),
        ),
        log_softmax(np.mean([kind.left_out for kind in kinds], axis=0), axis=1),
        lambda rows: scoring.predict_scores(model, material.images.select(rows), views=experiment.views),
        [each for kind in kinds for each in kind.seen_apart],
    )


def _fit_kind(
    experiment: Experiment, material: Material, members: Sequence[Rows], settings: Mapping, work: Path
) -> Fitted:
    classes, fitted_heads = len(material.weights), None
    if experiment.strategy in ("frozen", "two-phase"):
        keras.utils.set_random_seed(experiment.seed)
        backbone = build_model(experiment, classes)
        features = find_features(split_model(backbone)[0], experiment, material.images, material.place)
        print("Fitting linear heads on the features ...", flush=True)
        fitted_heads = heads.fit_heads(features, material.labels, members, material.weights, scratch=work)
    networks, trainings = [], []
    for number, rows in enumerate(members):
        if experiment.strategy == "frozen":
            network = renew_head(backbone, classes)
            heads.set_head(network, fitted_heads.fitted[number])
            networks.append(network)
            continue
        rate = experiment.learning_rate / (10 if fitted_heads else 1)  # a fitted head must not be lost again
        own = dataclasses.replace(experiment, seed=experiment.seed + number, learning_rate=rate)
        keras.utils.set_random_seed(own.seed)
        network, images = build_model(own, classes), material.images.scale(own.image_size)
        if fitted_heads:
            heads.set_head(network, fitted_heads.fitted[number])
        if len(members) > 1:
            print(f"{experiment.model}, member {number + 1} of {len(members)}:", flush=True)
        folder = work / f"checkpoint_{experiment.model}_{number + 1}"
        data = {split: (images.select(of), material.labels[of]) for split, of in rows.items()}
        trainings.append(fitting.fit_network(network, own, data, material.weights, settings, folder))
        networks.append(shrink_first(network, material.images.image_size))
    trained = training.average(trainings) if trainings else training.Training({}, None, 0.0, None)
    if fitted_heads:
        trained = trained._replace(strength=fitted_heads.strength, seconds=trained.seconds + fitted_heads.seconds)
    model = join_members(networks)

    def score(network: keras.Model, rows: np.ndarray) -> np.ndarray:
        if experiment.strategy == "frozen":
            return scoring.score_features(split_model(network)[1], features, rows)
        return scoring.predict_scores(network, material.images.select(rows), views=experiment.views)

    apart = [rows["validation"] for rows in members]
    if experiment.strategy == "frozen":
        left_out = [score(network, rows) for network, rows in zip(networks, apart, strict=True)]
        rows = familiarity.take_some(np.concatenate(apart))  # the extractor was trained on none of them
        images = material.images.select(rows)
        colours = scoring.predict(familiarity.describe_colours(images.shape), images)
        seen_apart = [(rows, np.hstack([colours, features[rows].mean(axis=1)]))]
    else:
        left_out, seen_apart = [], []
        for network, rows in zip(networks, apart, strict=True):
            described = scoring.average_over_views(familiarity.describe_images(network), experiment.views)
            probabilities, values = scoring.predict(described, material.images.select(rows))
            left_out.append(scoring.log_scores(probabilities))
            seen_apart.append((familiarity.take_some(rows), familiarity.take_some(values)))
    return Fitted(model, trained, np.concatenate(left_out), lambda rows: score(model, rows), seen_apart)
