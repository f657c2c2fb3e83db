"""Linear heads on features: their strength chosen on images left out, and the Keras head that answers as they do."""

import keras
import numpy as np
import pytest
from keras import layers
from sklearn.metrics import log_loss

from cancernet.learning import heads
from cancernet.learning.heads import STRENGTHS, fit_heads, set_head
from cancernet.learning.models.structure import split_model
from cancernet.learning.models.transfer import build_head

WEIGHTS = {0: 1.0, 1: 1.0}


def make_features(n, noise, *, size=6, classes=2):
    """The first feature tells the class, the others nothing."""
    rng = np.random.default_rng(1)
    labels = np.arange(n) % classes
    features = rng.normal(5, 3, (n, size)).astype(np.float32)
    features[:, 0] = labels + rng.normal(0, noise, n)
    return features, labels


def deal(n, parts=3):
    part = np.arange(n) // 4 % parts
    return [{"training": np.flatnonzero(part != k), "validation": np.flatnonzero(part == k)} for k in range(parts)]


def test_the_strength_is_the_best_on_images_left_out_not_on_those_fitted():
    features, labels = make_features(48, noise=2.0, size=40)  # more features than members have images to tell them
    found = fit_heads(features, labels, deal(48), WEIGHTS)
    assert found.strength == min(found.losses, key=found.losses.get)
    assert found.strength < 1e-1  # without a penalty 40 features are learned by heart
    sure, told = fit_heads(*make_features(600, noise=0.3), deal(600), WEIGHTS), STRENGTHS[-3:]
    assert sure.strength in told


def test_the_loss_of_a_strength_is_that_of_images_left_out_by_hand():
    features, labels = make_features(60, noise=1.0)
    members = deal(60)
    found = fit_heads(features, labels, members, {0: 1.0, 1: 3.0})
    told = np.full((60, 2), np.nan)
    for fitted, rows in zip(found.fitted, members, strict=True):
        told[rows["validation"]] = fitted.predict_proba(features[rows["validation"]])
    by_hand = log_loss(labels, told, sample_weight=np.where(labels == 1, 3.0, 1.0))
    assert found.losses[found.strength] == pytest.approx(by_hand)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_head_of_the_model_answers_as_the_one_that_was_fitted(classes):
    features, labels = make_features(60, noise=0.5, classes=classes)
    features[:, 3] = 7  # does not vary
    fitted = heads._fit_head(features, labels, np.arange(60), dict.fromkeys(range(classes), 1.0), 1e-2)
    image = keras.Input((6,))
    extractor = keras.Model(image, layers.Identity()(image), name="extractor")
    model = keras.Model(image, build_head(6, classes)(extractor(image)))
    set_head(model, fitted)
    np.testing.assert_allclose(model(features), fitted.predict_proba(features), atol=1e-5)
    assert split_model(model)[1].layers[-1].units == classes
