"""Heads on features: their strength chosen on images left out, and the Keras head that answers as they do."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import ROOT
from scipy.special import softmax
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_info, threadpool_limits

from cancernet.data.splits import Fold
from cancernet.training import heads
from cancernet.training.heads import STRENGTHS, HeadData, fit_head, fit_heads, fit_scaler, join_heads

WEIGHTS = np.ones(2)


def make_features(n, noise, *, size=6, classes=2):
    """The first feature tells the class, the others nothing; one view."""
    rng = np.random.default_rng(1)
    labels = np.arange(n) % classes
    features = rng.normal(5, 3, (n, size)).astype(np.float32)
    features[:, 0] = labels + rng.normal(0, noise, n)
    return features[:, None], labels


def deal(n, parts=3):
    part = np.arange(n) // 4 % parts
    return [Fold(np.flatnonzero(part != k), np.flatnonzero(part == k)) for k in range(parts)]


def fit_one(data, rows, strength):
    return fit_head(data, rows, fit_scaler(data.features, rows), strength)


@pytest.fixture
def fit(tmp_path):
    """Fits heads to made-up features."""

    def run(features, labels, members, *, weights=None, **options):
        weights = np.ones(max(labels) + 1) if weights is None else np.array(weights)
        return fit_heads(HeadData(features, labels, weights, tmp_path), members, **options)

    return run


def test_the_strength_is_the_best_on_images_left_out_not_on_those_fitted(fit):
    # more features than members have images to tell them
    found = fit(*make_features(48, noise=2.0, size=40), deal(48))
    assert found.strength == min(found.losses, key=found.losses.get)
    assert found.strength < 1e-1  # without a penalty 40 features are learned by heart
    sure, strongest = fit(*make_features(600, noise=0.3), deal(600)), STRENGTHS[-3:]
    assert sure.strength in strongest


def test_heads_are_fitted_in_one_thread_and_others_are_left_as_they_were(fit, monkeypatch):
    def count_threads():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    seen, fit_usually = [], heads.LogisticRegression.fit
    monkeypatch.setattr(
        heads.LogisticRegression, "fit", lambda *given: seen.append(count_threads()) or fit_usually(*given)
    )
    with threadpool_limits(2):
        before = count_threads()
        fit(*make_features(48, noise=2.0), deal(48))
        assert count_threads() == before
    assert before
    assert {tuple(threads) for threads in seen} == {(1,) * len(before)}


def test_the_loss_of_a_strength_is_that_of_images_left_out_by_hand(fit):
    features, labels = make_features(60, noise=1.0)
    members = deal(60)
    found = fit(features, labels, members, weights=[1.0, 3.0])
    told = np.full((60, 2), np.nan)
    for fitted, rows in zip(found.heads, members, strict=True):
        told[rows.validation] = fitted.predict(features, rows.validation)
    by_hand = log_loss(labels, told, sample_weight=np.where(labels == 1, 3.0, 1.0))
    assert found.losses[found.strength] == pytest.approx(by_hand)


def test_folds_choose_the_strength_of_a_head_that_is_fitted_to_all_of_training(fit, tmp_path):
    features, labels = make_features(48, noise=2.0, size=40)
    member = Fold(np.arange(40), np.arange(40, 48))
    folds = deal(40)
    found = fit(features, labels, [member], folds=folds)
    assert found.losses == fit(features, labels, folds).losses != fit(features, labels, [member]).losses
    (head,) = found.heads
    by_hand = fit_one(HeadData(features, labels, WEIGHTS, tmp_path), np.arange(40), found.strength)
    np.testing.assert_array_equal(head.classifier.coef_, by_hand.classifier.coef_)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_network_answers_the_mean_of_the_logits_of_the_heads_that_were_fitted(classes, fit, tmp_path):
    features, labels = make_features(60, noise=0.5, classes=classes)
    features[..., 3] = 7  # does not vary
    fitted = fit(features, labels, deal(60, 2)).heads
    for some in (fitted, fitted[1:]):
        head = join_heads(some)
        logits = np.mean([np.log(each.predict(features, np.arange(60))) for each in some], axis=0)
        np.testing.assert_allclose(head(features[:, 0]), softmax(logits, axis=1), atol=2e-5)
        head.save(tmp_path / "head.keras")
        loaded = keras.models.load_model(tmp_path / "head.keras")
        np.testing.assert_array_equal(loaded(features[:, 0]), head(features[:, 0]))
        assert loaded.layers[-1].units == classes


def test_a_class_counts_as_much_as_its_weight(fit):
    features, labels = make_features(60, noise=1.0)
    plain, weighed = (fit(features, labels, deal(60), weights=[1.0, weight]).heads[0] for weight in (1.0, 9.0))
    first, second = (head.predict(features, np.arange(60))[:, 1] for head in (plain, weighed))
    assert (second > first).all()


def test_a_fit_in_blocks_is_that_of_all_at_once(tmp_path, monkeypatch):
    features, labels = make_features(60, noise=1.0)
    views = np.concatenate([features - 1, features + 1], axis=1)  # whose mean is `features`
    rows = np.arange(5, 60)
    whole = fit_one(HeadData(features, labels, WEIGHTS, tmp_path), rows, 1e-2)
    monkeypatch.setattr(heads, "_ROWS_IN_MEMORY", 7)
    in_blocks = fit_one(HeadData(views, labels, WEIGHTS, tmp_path), rows, 1e-2)
    by_hand = StandardScaler().fit(features[rows, 0])
    np.testing.assert_allclose(in_blocks.scaler.scale_, by_hand.scale_, rtol=1e-5)
    np.testing.assert_allclose(in_blocks.classifier.coef_, whole.classifier.coef_, rtol=1e-3)
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
from cancernet.data.splits import Fold
from cancernet.training import heads
heads._ROWS_IN_MEMORY = 1024
def fit(features, first):
    rows = np.arange(len(features))
    data = heads.HeadData(features, rows % 2, np.ones(2), Path("."))
    return heads.fit_heads(data, [Fold(rows[first:], rows[:first])])
fit(np.zeros((8, 1, 2), "f4"), 4)
features = np.load("features.npy", mmap_mode="r")
used = 1024 * int(re.search(r"VmData:\\s+(\\d+)", open("/proc/self/status").read())[1])
resource.setrlimit(resource.RLIMIT_DATA, (used + 100 * 2**20,) * 2)
found = fit(features, 5_000)
print(found.losses[found.strength])
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) < 0.1
