"""Members: networks that each leave other patients out, scored on those, and one network that answers for them all."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from cancernet.config import Experiment
from cancernet.data.images import ImageStore
from cancernet.data.splits import Fold
from cancernet.models import image_features
from cancernet.models.architectures import build_model, list_kinds
from cancernet.models.joining import join_members, shrink_first
from cancernet.models.structure import attach_head, split_model
from cancernet.models.test_time_augmentation import average_over_views
from cancernet.training import epochs, fitting, heads, scoring
from cancernet.training.feature_cache import Place, find_features


class Material(NamedTuple):
    """What networks are trained on and scored on: n images, of all splits."""

    images: ImageStore
    labels: np.ndarray  # class index [n]
    weights: dict[int, float]  # class index -> weight in the loss
    place: Place  # where the features of these images are kept
    given: np.ndarray | None = None  # features [n, views, f] that came from elsewhere, in the place of a backbone's
    parts: Sequence[Fold] | None = None  # of training, that choose the strength of heads; None is by the members


class Fitted(NamedTuple):
    """What came of training all members."""

    model: keras.Model  # raw images, or features that were given, to probabilities, of all members together
    training: epochs.Training
    left_out: np.ndarray  # scores [m, classes] of each member's validation rows, one member after the other
    score: Callable[[np.ndarray], np.ndarray]  # rows [m] of the material -> scores [m, classes] of all members together
    # of each network rows it was not trained on, and what `familiarity` tells of them; none of given features
    seen_apart: list[tuple[np.ndarray, np.ndarray]]


def fit_members(
    experiment: Experiment, material: Material, members: Sequence[Fold], settings: Mapping, work: Path
) -> Fitted:
    """Train the networks of an experiment, one of each kind for each member, and join them.

    The members' answer is the softmax of their mean logits, the (normalised) geometric mean of their probabilities.
    Linear heads on one frozen backbone are then one linear head, so that five cost no more than one when they answer.
    The logits of networks of different kinds are first brought to one scale, or those of the largest logits would
    dominate the mean.

    Args:
        members: of each, the rows of `material` that are its `training` and its `validation`. One member is the usual
            training; several deal the same rows differently.
        settings: of the training, as JSON takes them; a checkpoint that was begun with others is refused.
        work: folder for the checkpoints.

    Raises:
        InputError: a file cannot be used, or as `epochs.fit_model`.
    """
    kinds = [_fit_kind(own, material, members, settings, work) for own in list_kinds(experiment)]
    if len(kinds) == 1:
        return kinds[0]
    labels = material.labels[np.concatenate([rows.validation for rows in members])]
    temperatures = [find_temperature(kind.left_out, labels, material.weights) for kind in kinds]
    model = join_members([kind.model for kind in kinds], temperatures)
    left_out = [kind.left_out / temperature for kind, temperature in zip(kinds, temperatures, strict=True)]
    return Fitted(
        model,
        kinds[0].training._replace(
            strength=next((kind.training.strength for kind in kinds if kind.training.strength), None),
            seconds=sum(kind.training.seconds for kind in kinds),
        ),
        log_softmax(np.mean(left_out, axis=0), axis=1),
        lambda rows: scoring.predict_scores(model, material.images.select(rows), views=experiment.views),
        [each for kind in kinds for each in kind.seen_apart],
    )


def find_temperature(scores: np.ndarray, labels: np.ndarray, weights: Mapping[int, float]) -> float:
    """The temperature of the least log-loss of softmax(scores / temperature): Guo et al. 2017, section 4.2.

    Args:
        scores: log-probabilities [n, classes] of images that were not trained on.
        labels: class index [n].
        weights: class index -> weight in the loss.

    Returns:
        0.1 to 10.
    """
    own, of_images = (np.arange(len(labels)), labels), [weights[label] for label in labels]

    def loss(log_temperature: float) -> float:
        return -np.average(log_softmax(scores / np.exp(log_temperature), axis=1)[own], weights=of_images)

    return float(np.exp(minimize_scalar(loss, bounds=np.log([0.1, 10]), method="bounded").x))


def _fit_kind(
    experiment: Experiment, material: Material, members: Sequence[Fold], settings: Mapping, work: Path
) -> Fitted:
    if experiment.strategy == "frozen":
        return _fit_frozen(experiment, material, members, work)
    networks, trainings, fitted_heads = [], [], None
    if experiment.strategy == "two-phase":
        _, _, fitted_heads = _fit_heads(experiment, material, members, work)
    for number, rows in enumerate(members):
        rate = experiment.learning_rate / (10 if fitted_heads else 1)  # a fitted head must not be lost again
        own = dataclasses.replace(experiment, seed=experiment.seed + number, learning_rate=rate)
        keras.utils.set_random_seed(own.seed)
        network, images = build_model(own, len(material.weights)), material.images.scale(own.image_size)
        if fitted_heads:
            fitted_head = heads.build_head([fitted_heads.fitted[number]])
            split_model(network)[1].set_weights(fitted_head.get_weights())
        if len(members) > 1:
            print(f"{experiment.model}, member {number + 1} of {len(members)}:", flush=True)
        folder = work / f"checkpoint_{experiment.model}_{number + 1}"
        data = {split: (images.select(of), material.labels[of]) for split, of in rows._asdict().items()}
        trainings.append(fitting.fit_network(network, own, data, material.weights, settings, folder))
        networks.append(shrink_first(network, material.images.image_size))
    trained = epochs.average(trainings)
    if fitted_heads:
        trained = trained._replace(strength=fitted_heads.strength, seconds=trained.seconds + fitted_heads.seconds)
    model = join_members(networks)

    left_out, seen_apart = [], []
    for network, rows in zip(networks, members, strict=True):
        described = average_over_views(image_features.describe_images(network), experiment.views)
        probabilities, values = scoring.predict(described, material.images.select(rows.validation))
        left_out.append(scoring.log_scores(probabilities))
        seen_apart.append((image_features.take_some(rows.validation), image_features.take_some(values)))

    def score(rows: np.ndarray) -> np.ndarray:
        return scoring.predict_scores(model, material.images.select(rows), views=experiment.views)

    return Fitted(model, trained, np.concatenate(left_out), score, seen_apart)


def _fit_frozen(experiment: Experiment, material: Material, members: Sequence[Fold], work: Path) -> Fitted:
    """Heads alone, which are fitted, and answer, from features: the backbone sees no image again."""
    extractor, features, fitted = _fit_heads(experiment, material, members, work)
    left_out = [
        scoring.score_features(heads.build_head([each]), features, rows.validation)
        for each, rows in zip(fitted.fitted, members, strict=True)
    ]
    head, seen_apart = heads.build_head(fitted.fitted), []
    if extractor:
        rows = image_features.take_some(np.concatenate([rows.validation for rows in members]))
        images = material.images.select(rows)
        colours = scoring.predict(image_features.describe_colours(images.shape), images)
        seen_apart = [(rows, np.hstack([colours, features[rows].mean(axis=1)]))]
    return Fitted(
        attach_head(extractor, head, experiment.model) if extractor else head,
        epochs.Training({}, None, fitted.seconds, None, strength=fitted.strength),
        np.concatenate(left_out),
        lambda rows: scoring.score_features(head, features, rows),
        seen_apart,
    )


def _fit_heads(
    experiment: Experiment, material: Material, members: Sequence[Fold], work: Path
) -> tuple[keras.Model | None, np.ndarray, heads.Heads]:
    """The extractor of a backbone, the features [n, views, f] of all images, and a head for each member."""
    extractor, features = None, material.given
    if features is None:
        keras.utils.set_random_seed(experiment.seed)
        extractor, _ = split_model(build_model(experiment, len(material.weights)))
        features = find_features(extractor, experiment, material.images, material.place)
    print("Fitting linear heads to the features ...", flush=True)
    examples = heads.Examples(features, material.labels, material.weights, work)
    chosen = {"parts": material.parts, "seed": experiment.seed}
    return extractor, features, heads.fit_heads(examples, members, **chosen)
