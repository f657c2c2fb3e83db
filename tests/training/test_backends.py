"""A network that was saved on one of Keras' backends answers on the other."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import ROOT

from cancernet import run
from cancernet.config import Experiment
from cancernet.models.architectures import build_model

PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from cancernet import run
import keras

images = np.load("images.npy")
answers = [run.load_run(Path(sys.argv[1])).model.predict(images, verbose=0)]
answers.append(keras.models.load_model("cancernet.keras").predict(images, verbose=0))
np.save("answers.npy", answers)
assert ("tensorflow" if keras.backend.backend() == "jax" else "jax") not in sys.modules
"""


@pytest.mark.slow
def test_a_run_answers_the_same_on_the_other_backend(tiny_run, tmp_path):
    pytest.importorskip("jax")
    keras.utils.set_random_seed(1)
    network = build_model(Experiment(), 2)
    rng = np.random.default_rng(0)
    network.set_weights([rng.uniform(0.5, 1, each.shape) * np.sign(each + 1e-9) for each in network.get_weights()])
    network.save(tmp_path / "cancernet.keras")
    images = rng.integers(0, 256, (8, 48, 48, 3)).astype(np.uint8)
    np.save(tmp_path / "images.npy", images)
    expected = [model.predict(images, verbose=0) for model in (run.load_run(tiny_run).model, network)]
    other = "tensorflow" if keras.backend.backend() == "jax" else "jax"
    environment = os.environ | {"KERAS_BACKEND": other, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    subprocess.run([sys.executable, "-c", PROGRAM, str(tiny_run)], cwd=tmp_path, env=environment, check=True)
    answers = np.load(tmp_path / "answers.npy")
    assert np.ptp(answers[:, :, 0], axis=1).max() > 0.01
    np.testing.assert_allclose(answers, expected, atol=1e-4)
