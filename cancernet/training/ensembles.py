"""Ensembles: networks that each leave out other patients, evaluated on those, and joined into one network."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from cancernet import progress
from cancernet.config import Experiment
from cancernet.data.splits import Fold
from cancernet.models import image_features
from cancernet.models.architectures import build_model, split_by_architecture
from cancernet.models.joining import downsample_input, join_members
from cancernet.models.structure import attach_head, split_model
from cancernet.models.test_time_augmentation import average_over_views
from cancernet.training import heads, scoring
from cancernet.training.checkpoints import Workspace
from cancernet.training.feature_cache import find_features
from cancernet.training.fitting import TrainingData, TrainingResult, fit_network


class FittedEnsemble(NamedTuple):
    """A trained ensemble as one network."""

    model: keras.Model  # raw images, or features that were computed elsewhere, to probabilities
    training: TrainingResult
    left_out: np.ndarray  # log-probabilities [m, classes] of each member's validation rows, member after member
    score: Callable[[np.ndarray], np.ndarray]  # rows [m] of the training data -> log-probabilities [m, classes]
    # For out-of-distribution detection, of each member network; empty without images: rows [m] of the training data on
    # which it was not trained, and their features [m, c + f], see `image_features.add_image_features`.
    held_out: list[tuple[np.ndarray, np.ndarray]]
    head_data: heads.HeadData | None = None  # what the heads on one frozen backbone were fitted to


def fit_ensemble(
    experiment: Experiment, data: TrainingData, members: Sequence[Fold], workspace: Workspace
) -> FittedEnsemble:
    """Train one network of each architecture for each ensemble member, and join them; `members` are the rows of each.

    The output is the softmax of the members' mean logits, the normalised geometric mean of their probabilities. Logits
    of different architectures are first scaled by a temperature, or those with the largest logits would dominate.
    """
    fitted = []
    architectures = split_by_architecture(experiment)
    for number, single in enumerate(architectures, 1):
        fit = _fit_heads_only if single.strategy == "frozen" else _fit_networks
        with progress.part(number, len(architectures), "architecture"):
            fitted.append(fit(single, data, members, workspace))
    if len(fitted) == 1:
        return fitted[0]
    labels = data.labels[np.concatenate([fold.validation for fold in members])]
    temperatures = [fit_temperature(each.left_out, labels, data.class_weights) for each in fitted]
    model = join_members([each.model for each in fitted], temperatures)
    left_out = [each.left_out / temperature for each, temperature in zip(fitted, temperatures, strict=True)]
    strength = next((each.training.strength for each in fitted if each.training.strength), None)
    seconds = sum(each.training.seconds for each in fitted)
    return FittedEnsemble(
        model,
        fitted[0].training._replace(strength=strength, seconds=seconds),
        log_softmax(np.mean(left_out, axis=0), axis=1),
        _make_scorer(model, data, experiment),
        [features for each in fitted for features in each.held_out],
    )


def fit_temperature(scores: np.ndarray, labels: np.ndarray, class_weights: np.ndarray) -> float:
    """Fit the temperature (0.1 to 10) with the lowest weighted log-loss of softmax(scores / temperature).

    `scores` [n, classes] of images not trained on (Guo et al., "On calibration of modern neural networks", 2017, 4.2).
    """
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        scaled = log_softmax(scores / np.exp(log_temperature), axis=1)
        return -np.average(scaled[rows, labels], weights=class_weights[labels])

    return float(np.exp(minimize_scalar(loss, bounds=np.log([0.1, 10]), method="bounded").x))


def average_results(results: Sequence[TrainingResult]) -> TrainingResult:
    """Combine members trained in epochs: mean history, range of kept epochs, total seconds, mean images per second."""
    history = {}
    for key in results[0].history:
        epochs = itertools.zip_longest(*(each.history[key] for each in results), fillvalue=np.nan)
        history[key] = [float(np.nanmean(values)) for values in epochs]
    first, last = zip(*(each.kept_epochs for each in results if each.kept_epochs), strict=True)
    return results[0]._replace(
        history=history,
        kept_epochs=(min(first), max(last)),
        seconds=sum(each.seconds for each in results),
        images_per_second=float(np.mean([each.images_per_second for each in results])),
    )


def _fit_networks(
    experiment: Experiment, data: TrainingData, members: Sequence[Fold], workspace: Workspace
) -> FittedEnsemble:
    """Train whole networks in epochs; with the two-phase strategy they begin with fitted heads."""
    networks, results, first_phase, rate = [], [], None, experiment.learning_rate
    if experiment.strategy == "two-phase":
        _, _, first_phase = _fit_heads(experiment, data, members, workspace)
        rate /= 10  # the fitted head must not be lost again
    scaled = data._replace(images=data.images.scale(experiment.image_size))
    for number, fold in enumerate(members):
        single = dataclasses.replace(experiment, seed=experiment.seed + number, learning_rate=rate)
        keras.utils.set_random_seed(single.seed)
        network = build_model(single, len(data.class_weights))
        if first_phase:
            split_model(network)[1].set_weights(heads.join_heads([first_phase.heads[number]]).get_weights())
        if len(members) > 1:
            workspace.say(f"{experiment.model}, member {number + 1} of {len(members)}:")
        name = f"{experiment.model}_{number + 1}"
        events = workspace.events / name if workspace.events else None
        own = workspace._replace(folder=workspace.folder / f"checkpoint_{name}", events=events)
        with progress.part(number + 1, len(members), "member"):
            results.append(fit_network(network, single, scaled, fold, own))
        networks.append(downsample_input(network, data.images.image_size))
    result = average_results(results)
    if first_phase:
        result = result._replace(strength=first_phase.strength, seconds=result.seconds + first_phase.seconds)
    left_out, held_out = [], []
    for network, fold in zip(networks, members, strict=True):
        with_features = average_over_views(image_features.add_image_features(network), experiment.views)
        probabilities, features = scoring.predict(with_features, data.images.select(fold.validation))
        left_out.append(scoring.log_scores(probabilities))
        held_out.append((image_features.thin_out(fold.validation), image_features.thin_out(features)))
    model = join_members(networks)
    return FittedEnsemble(model, result, np.concatenate(left_out), _make_scorer(model, data, experiment), held_out)


def _make_scorer(model: keras.Model, data: TrainingData, experiment: Experiment) -> Callable[[np.ndarray], np.ndarray]:
    return lambda rows: scoring.predict_scores(model, data.images.select(rows), views=experiment.views)


def _fit_heads_only(
    experiment: Experiment, data: TrainingData, members: Sequence[Fold], workspace: Workspace
) -> FittedEnsemble:
    """Fit heads on features and evaluate them from features: the backbone processes each image once."""
    extractor, head_data, fitted = _fit_heads(experiment, data, members, workspace)
    features = head_data.features
    left_out = [
        scoring.score_features(heads.join_heads([head]), features, fold.validation)
        for head, fold in zip(fitted.heads, members, strict=True)
    ]
    head = heads.join_heads(fitted.heads)
    network, held_out = head, []
    if extractor:
        network = attach_head(extractor, head, experiment.model)
        rows = image_features.thin_out(np.concatenate([fold.validation for fold in members]))
        images = data.images.select(rows)
        colours = scoring.predict(image_features.build_colour_statistics(images.shape), images)
        held_out = [(rows, np.hstack([colours, features[rows].mean(axis=1)]))]
    result = TrainingResult({}, None, fitted.seconds, None, strength=fitted.strength)
    score = functools.partial(scoring.score_features, head, features)
    return FittedEnsemble(network, result, np.concatenate(left_out), score, held_out, head_data)


def _fit_heads(
    experiment: Experiment, data: TrainingData, members: Sequence[Fold], workspace: Workspace
) -> tuple[keras.Model | None, heads.HeadData, heads.FittedHeads]:
    """Return the extractor of a backbone, the features of all images with their labels, and a head for each member."""
    extractor, features = None, data.features
    if features is None:
        keras.utils.set_random_seed(experiment.seed)
        extractor, _ = split_model(build_model(experiment, len(data.class_weights)))
        features = find_features(extractor, experiment, data.images, data.cache, workspace.say)
    workspace.say("Fitting linear heads to the features ...")
    head_data = heads.HeadData(features, data.labels, data.class_weights, workspace.folder)
    return extractor, head_data, heads.fit_heads(head_data, members, folds=data.head_folds)
