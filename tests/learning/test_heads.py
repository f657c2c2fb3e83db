"""Linear heads on features: their strength chosen on images left out, and the Keras head that answers as they do."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import ROOT
from keras import layers
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from cancernet.learning import heads
from cancernet.learning.heads import STRENGTHS, fit_heads, set_head
from cancernet.learning.models.structure import split_model
from cancernet.learning.models.transfer import build_head

WEIGHTS = {0: 1.0, 1: 1.0}


def make_features(n, noise, *, size=6, classes=2):
    """The first feature tells the class, the others nothing; one view."""
    rng = np.random.default_rng(1)
    labels = np.arange(n) % classes
    features = rng.normal(5, 3, (n, size)).astype(np.float32)
    features[:, 0] = labels + rng.normal(0, noise, n)
    return features[:, None], labels


def deal(n, parts=3):
    part = np.arange(n) // 4 % parts
    return [{"training": np.flatnonzero(part != k), "validation": np.flatnonzero(part == k)} for k in range(parts)]


def test_the_strength_is_the_best_on_images_left_out_not_on_those_fitted(tmp_path):
    features, labels = make_features(48, noise=2.0, size=40)  # more features than members have images to tell them
    found = fit_heads(features, labels, deal(48), WEIGHTS, scratch=tmp_path)
    assert found.strength == min(found.losses, key=found.losses.get)
    assert found.strength < 1e-1  # without a penalty 40 features are learned by heart
    sure, told = fit_heads(*make_features(600, noise=0.3), deal(600), WEIGHTS, scratch=tmp_path), STRENGTHS[-3:]
    assert sure.strength in told


def test_the_loss_of_a_strength_is_that_of_images_left_out_by_hand(tmp_path):
    features, labels = make_features(60, noise=1.0)
    members = deal(60)
    found = fit_heads(features, labels, members, {0: 1.0, 1: 3.0}, scratch=tmp_path)
    told = np.full((60, 2), np.nan)
    for fitted, rows in zip(found.fitted, members, strict=True):
        told[rows["validation"]] = fitted.predict_proba(features[rows["validation"], 0])
    by_hand = log_loss(labels, told, sample_weight=np.where(labels == 1, 3.0, 1.0))
    assert found.losses[found.strength] == pytest.approx(by_hand)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_head_of_the_model_answers_as_the_one_that_was_fitted(classes, tmp_path):
    features, labels = make_features(60, noise=0.5, classes=classes)
    features[..., 3] = 7  # does not vary
    fitted = heads._fit_head(features, labels, np.arange(60), dict.fromkeys(range(classes), 1.0), 1e-2, tmp_path)
    image = keras.Input((6,))
    extractor = keras.Model(image, layers.Identity()(image), name="extractor")
    model = keras.Model(image, build_head(6, classes)(extractor(image)))
    set_head(model, fitted)
    np.testing.assert_allclose(model(features[:, 0]), fitted.predict_proba(features[:, 0]), atol=1e-5)
    assert split_model(model)[1].layers[-1].units == classes


def test_a_fit_in_blocks_is_that_of_all_at_once(tmp_path, monkeypatch):
    features, labels = make_features(60, noise=1.0)
    views = np.concatenate([features - 1, features + 1], axis=1)  # whose mean is `features`
    rows, options = np.arange(5, 60), (WEIGHTS, 1e-2, tmp_path)
    whole = heads._fit_head(features, labels, rows, *options)
    monkeypatch.setattr(heads, "_AT_ONCE", 7)
    in_blocks = heads._fit_head(views, labels, rows, *options)
    by_hand = StandardScaler().fit(features[rows, 0])
    np.testing.assert_allclose(in_blocks[0].scale_, by_hand.scale_, rtol=1e-5)
    np.testing.assert_allclose(in_blocks[-1].coef_, whole[-1].coef_, rtol=1e-3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images(tmp_path):
    """A head is fitted to 160 MB of features where 100 MB are allowed; mapped files do not count."""
    shape = (20_000, 2, 1024)
    features = np.lib.format.open_memmap(tmp_path / "features.npy", "w+", np.float32, shape)
    features[:] = np.random.default_rng(0).normal(size=shape[1:]).astype(np.float32)
    features[:, :, 0] = (np.arange(shape[0]) % 2)[:, None]
    del features
    program = f"""
import re, resource, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
import numpy as np
from cancernet.learning import heads
heads._AT_ONCE = 1024
heads.fit_heads(np.zeros((8, 1, 2), "f4"), *(args := (np.arange(8) % 2, [
    dict(training=np.arange(8), validation=np.arange(8))], {{0: 1.0, 1: 1.0}})), scratch=Path("."))
features, rows = np.load("features.npy", mmap_mode="r"), np.arange(20_000)
used = 1024 * int(re.search(r"VmData:\\s+(\\d+)", open("/proc/self/status").read())[1])
resource.setrlimit(resource.RLIMIT_DATA, (used + 100 * 2**20,) * 2)
members = [dict(training=rows[5_000:], validation=rows[:5_000])]
found = heads.fit_heads(features, rows % 2, members, {{0: 1.0, 1: 1.0}}, scratch=Path("."))
print(found.losses[found.strength])
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) < 0.1
