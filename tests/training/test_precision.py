"""Mixed precision: what computes in bfloat16, when it is chosen, and how near the trained weights are."""

import keras
import numpy as np
import pytest

from cancernet.training import batch_normalization, precision

IMAGES = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3)).astype(np.float32)
TARGETS = np.eye(2, dtype=np.float32)[np.arange(16) % 2]


def make_model():
    keras.utils.set_random_seed(1)
    layers = keras.layers
    inner = keras.Sequential([keras.Input((8, 8, 3)), layers.Rescaling(1 / 255), layers.Conv2D(4, 3)], name="inner")
    head = [layers.BatchNormalization(), layers.Flatten(), layers.Dense(8), layers.Dense(2, activation="softmax")]
    return keras.Sequential([keras.Input((8, 8, 3)), inner, *head])


def prepare(model):
    model.compile(keras.optimizers.SGD(0.1), "binary_crossentropy", jit_compile=False)


def precisions(model):
    return [layer.compute_dtype for layer in (*model.layers[0].layers, *model.layers[1:])]


def test_everything_but_the_softmax_is_set_and_weights_stay_float32():
    model = make_model()
    precision.set_precision(model, precision.MIXED)
    assert precisions(model) == ["bfloat16"] * 5 + ["float32"]
    assert {weight.dtype for weight in model.weights} == {"float32"}
    assert model.predict(IMAGES, verbose=0).dtype == np.float32
    precision.set_precision(model, precision.SINGLE)
    assert set(precisions(model)) == {"float32"}


@pytest.mark.parametrize(("mixed", "chosen"), [(0.8, "mixed_bfloat16"), (0.95, "float32"), (3.0, "float32")])
def test_mixed_precision_is_for_steps_that_are_a_tenth_faster(monkeypatch, mixed, chosen):
    model, seen = make_model(), []

    def pretend(model, images, targets):
        seen.append(set(precisions(model)))
        model.train_on_batch(images, targets)
        return 1.0 if len(seen) == 1 else mixed

    monkeypatch.setattr(precision, "_time_step", pretend)
    before, said = model.get_weights(), []
    assert precision.choose_precision(model, lambda: prepare(model), (IMAGES, TARGETS, None), said.append) == chosen
    times = f"1e+03 ms in float32 and {1000 * mixed:.3g} ms in mixed_bfloat16"
    assert said == [f"A training step takes {times}: training in {chosen}."]
    assert seen == [{"float32"}, {"bfloat16", "float32"}]
    for one, two in zip(before, model.get_weights(), strict=True):
        assert np.array_equal(one, two)


def test_the_time_of_a_step_is_the_median_without_the_first_two(monkeypatch):
    class Network:
        steps = 0

        def train_on_batch(self, images, targets):
            clock.append(clock[-1] + (50, 60, 1, 9, 2, 3, 7)[self.steps])  # seconds of each step
            self.steps += 1

    clock = [0]
    monkeypatch.setattr(precision.time, "perf_counter", lambda: clock[-1])
    assert precision._time_step(Network(), IMAGES, TARGETS) == 3  # of 1, 2, 3, 7 and 9


def test_training_is_alike_and_the_saved_model_is_single(tmp_path):
    def join(weights):
        return np.concatenate([weight.ravel() for weight in weights])

    trained = []
    for policy in (precision.SINGLE, precision.MIXED):
        model = make_model()
        assert batch_normalization.fuse_batch_normalization(model) == 1
        precision.set_precision(model, policy)
        prepare(model)
        model.fit(IMAGES, TARGETS, batch_size=8, epochs=3, shuffle=False, verbose=0)
        precision.set_precision(model, precision.SINGLE)
        trained.append(model)
    first, single, mixed = (join(model.get_weights()) for model in (make_model(), *trained))
    difference = np.linalg.norm(mixed - single) / np.linalg.norm(single - first)  # as a share of what training changed
    assert 1e-4 < difference < 0.02
    trained[1].save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    assert set(precisions(loaded)) == {"float32"}
    np.testing.assert_array_equal(loaded.predict(IMAGES, verbose=0), trained[1].predict(IMAGES, verbose=0))
