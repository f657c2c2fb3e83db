"""Keras as it is first imported: backend, settings, XLA, and a GPU that is not used."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from cancernet.__main__ import main
from cancernet.config import Experiment
from cancernet.models import backend
from cancernet.models.architectures import build_model
from cancernet.models.backend import explain_unused_gpu, find_nvidia_gpu, import_keras, without_xla


def run_check(**environment):
    command = [sys.executable, "-m", "cancernet", "check"]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


@pytest.mark.parametrize("name", ["torch", "openvino", "nonsense"])
def test_a_backend_that_cannot_be_used_is_one_line(name, tmp_path):
    found = run_check(KERAS_BACKEND=name)
    assert found.returncode == 2
    assert found.stderr == (
        f"error: Keras is set to the backend '{name}' (KERAS_BACKEND or keras.json). Set KERAS_BACKEND=tensorflow.\n"
    )


def test_a_backend_from_the_settings_file_is_checked(tmp_path):
    (tmp_path / "keras.json").write_text(json.dumps({"backend": "torch"}))
    assert "Keras is set to the backend 'torch'" in run_check(KERAS_HOME=str(tmp_path), KERAS_BACKEND="").stderr


@pytest.mark.parametrize("text", ["", "[]", '{"floatx": "float16"}'])
def test_a_settings_file_without_a_backend_means_tensorflow(text, tmp_path, monkeypatch):
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    (tmp_path / "keras.json").write_text(text)
    assert backend._read_backend() == "tensorflow"


def test_data_format_and_float_type_are_set():
    keras.config.set_image_data_format("channels_first")
    keras.config.set_floatx("float16")
    keras.config.set_dtype_policy("float16")
    import_keras.__wrapped__()
    assert keras.config.image_data_format() == "channels_last"
    assert keras.config.floatx() == keras.config.dtype_policy().name == "float32"
    model = build_model(Experiment(image_size=8), 2)
    assert model.input_shape == (None, 8, 8, 3)
    assert model(np.zeros((1, 8, 8, 3), np.float32)).dtype == "float32"


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="JAX always uses XLA")
def test_networks_run_without_xla_where_there_is_a_gpu(monkeypatch):
    devices = [SimpleNamespace(device_type=kind, name=kind) for kind in ("CPU", "GPU")]
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: devices)
    make = lambda: keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])  # noqa: E731
    assert make().jit_compile  # what Keras does by itself
    assert without_xla(make()).jit_compile is False


class TestUnusedGpu:
    def test_a_tool_that_lists_one(self, tmp_path, monkeypatch):
        tool = tmp_path / "nvidia-smi"
        tool.write_text("#!/bin/sh\necho NVIDIA H200\necho NVIDIA H200\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        assert find_nvidia_gpu() == "NVIDIA H200"
        assert explain_unused_gpu("CPU").startswith("This machine has a GPU (NVIDIA H200), but ")
        assert explain_unused_gpu("GPU (NVIDIA H200)") == ""
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")  # the user wants none
        assert explain_unused_gpu("CPU") == ""

    def test_a_driver_without_the_tool(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr(backend, "_NVIDIA_DRIVER", tmp_path / "version")
        assert explain_unused_gpu("CPU") == ""
        (tmp_path / "version").write_text("NVRM version: 580\n")
        assert "(NVIDIA GPU)" in explain_unused_gpu("CPU")

    def test_a_tool_that_finds_no_driver(self, tmp_path, monkeypatch):
        tool = tmp_path / "nvidia-smi"
        tool.write_text("#!/bin/sh\nexit 9\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
        monkeypatch.setattr(backend, "_NVIDIA_DRIVER", tmp_path / "version")
        assert find_nvidia_gpu() == ""


@pytest.mark.parametrize("verb", ["train", "evaluate", "predict"])
def test_the_first_line_after_loading_tensorflow_says_that_a_gpu_is_not_used(
    verb, tiny_run, slides, tmp_path, monkeypatch, capsys
):
    from cancernet.inference import predict
    from cancernet.workflow import evaluate, fit

    class Reached(Exception):
        """The line after it."""

    def stop(*given, **options):
        raise Reached

    dataset = tmp_path / "dataset"
    main(["build", "--source", str(slides), "--output", str(dataset)])
    problem = "This machine has a GPU (NVIDIA H200), but TensorFlow does not find it."
    for module in (fit, evaluate, predict):
        monkeypatch.setattr(module, "explain_unused_gpu", lambda device: problem)
    monkeypatch.setattr("cancernet.training.pipeline.enable_determinism", stop)
    monkeypatch.setattr("cancernet.run.load_run", stop)
    arguments = {
        "train": ["--dataset", str(dataset), "--output", str(tmp_path / "run")],
        "evaluate": [str(tiny_run), "--dataset", str(dataset), "--allow-seen-patients"],
        "predict": [str(tiny_run), str(slides), "--output", str(tmp_path / "predictions")],
    }[verb]
    with pytest.raises(Reached):
        main([verb, *arguments])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == problem
    assert verb != "train" or lines[-2] == "Loading TensorFlow ..."
