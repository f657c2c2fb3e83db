"""Encoders of KerasHub: small presets of random weights in a folder, loaded, asked, saved and loaded again."""

import dataclasses
import importlib.util
import json
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import write_slides

import build_dataset
import train_model
from cancernet import InputError, run
from cancernet.config import Experiment, TrainingOptions
from cancernet.inference.predict import PredictOptions, predict
from cancernet.models import architectures
from cancernet.models.architectures import build_model, check_architecture
from cancernet.models.encoder import build_encoder
from cancernet.models.structure import split_model
from cancernet.training.experiments import choose_experiment

SIDE, WIDTH = 16, 8
SCALE, OFFSET = [1 / 51, 1 / 102, 1 / 255], [-2.0, -1.0, -0.5]
IMAGES = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3)).astype(np.float32)
EXPERIMENT = Experiment(model="encoder", weights="preset", strategy="frozen", image_size=SIDE)


@pytest.fixture
def hub():
    return pytest.importorskip("keras_hub", reason="needs KerasHub")


def write_preset(hub, folder, family):
    """A vision transformer of one block, with its preprocessing, as KerasHub saves a preset."""
    keras.utils.set_random_seed(1)
    size = {"num_layers": 1, "hidden_dim": WIDTH, "num_heads": 2, "image_shape": (SIDE, SIDE, 3), "patch_size": 4}
    if family == "vit":
        backbone = hub.models.ViTBackbone(mlp_dim=16, **size)
        converter = hub.layers.ViTImageConverter
    else:
        own = {"intermediate_dim": 16, "num_register_tokens": 2, "position_embedding_shape": (SIDE, SIDE, 3)}
        backbone = hub.models.DINOV2Backbone(**own, **size)
        converter = hub.layers.DINOV2ImageConverter
    backbone.save_to_preset(str(folder))
    converter(image_size=(SIDE, SIDE), scale=SCALE, offset=OFFSET).save_to_preset(str(folder))
    return backbone


@pytest.mark.parametrize(("family", "registers"), [("vit", 0), ("dinov2", 2)])
def test_features_are_the_class_token_and_the_mean_of_the_patches(hub, tmp_path, family, registers):
    backbone = write_preset(hub, tmp_path / "preset", family)
    model = build_model(dataclasses.replace(EXPERIMENT, weights=str(tmp_path / "preset")), 2)
    found = np.asarray(split_model(model)[0](IMAGES))
    tokens = np.asarray(backbone(IMAGES * np.array(SCALE, np.float32) + np.array(OFFSET, np.float32)))
    assert tokens.shape == (3, 1 + registers + 16, WIDTH)
    expected = np.hstack([tokens[:, 0], tokens[:, 1 + registers :].mean(axis=1)])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(IMAGES), model(IMAGES))


# In a process of its own: TensorFlow and PyTorch do not get along in one.
REFERENCE = """
import json, sys
import numpy as np, torch, transformers as t
family, folder = sys.argv[1:]
size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
torch.manual_seed(0)
model, processor = {
    "vit": lambda: (t.ViTModel(t.ViTConfig(intermediate_size=16, **size)), t.ViTImageProcessor()),
    "vit in a classifier": lambda: (t.ViTForImageClassification(t.ViTConfig(intermediate_size=16, **size)),
                                    t.ViTImageProcessor(image_mean=[0.1, 0.2, 0.3])),
    "dinov2": lambda: (t.Dinov2Model(t.Dinov2Config(**size)), t.BitImageProcessor(image_std=[0.2, 0.3, 0.4])),
    "dinov2 with registers": lambda: (t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(**size)),
                                      t.BitImageProcessor(rescale_factor=1 / 127.5, do_normalize=False)),
}[family]()
with torch.no_grad():
    for weight in model.parameters():
        weight.add_(torch.randn_like(weight) * 0.3)
model.save_pretrained(folder)
processor.save_pretrained(folder)
images = np.random.default_rng(0).integers(0, 256, (3, 3, 16, 16), dtype=np.uint8)
how = {"do_resize": False, "do_center_crop": False, "input_data_format": "channels_first"}
pixels = processor(list(images), return_tensors="pt", **how)
with torch.no_grad():
    tokens = getattr(model.eval(), "vit", model)(**pixels).last_hidden_state.numpy()
np.savez(folder + "/reference.npz", images=images.transpose(0, 2, 3, 1), tokens=tokens)
"""


@pytest.mark.parametrize("family", ["vit", "vit in a classifier", "dinov2", "dinov2 with registers"])
def test_a_model_in_the_format_of_hugging_face_has_the_features_that_transformers_computes(hub, tmp_path, family):
    if not (importlib.util.find_spec("transformers") and importlib.util.find_spec("torch")):
        pytest.skip("needs transformers and PyTorch as the reference")
    folder = tmp_path / "model"
    subprocess.run([sys.executable, "-c", REFERENCE, family, str(folder)], check=True, capture_output=True)
    with np.load(folder / "reference.npz") as reference:
        images, tokens = reference["images"], reference["tokens"]
    found = np.asarray(build_encoder(str(folder), SIDE)(images))
    expected = np.hstack([tokens[:, 0], tokens[:, -16:].mean(axis=1)])
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_images_of_another_size_are_scaled_to_the_encoders_own(hub, tmp_path):
    write_preset(hub, tmp_path / "preset", "vit")
    own, double = (
        build_model(dataclasses.replace(EXPERIMENT, weights=str(tmp_path / "preset"), image_size=side), 2)
        for side in (SIDE, 2 * SIDE)
    )
    large = IMAGES.repeat(2, axis=1).repeat(2, axis=2)
    features = [np.asarray(split_model(model)[0](of)) for model, of in ((own, IMAGES), (double, large))]
    np.testing.assert_allclose(features[1], features[0], rtol=1e-3, atol=1e-4)


def test_a_preset_that_is_none_is_named(hub, tmp_path):
    (tmp_path / "empty").mkdir()
    for preset in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(InputError, match=f"KerasHub cannot load the encoder {preset}: .*reset") as raised:
            build_model(dataclasses.replace(EXPERIMENT, weights=str(preset)), 2)
        assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_a_run_on_an_encoder_answers_images(hub, tmp_path, monkeypatch, capsys):
    write_preset(hub, tmp_path / "preset", "dinov2")
    write_slides(tmp_path / "source", patients=20)
    build_dataset.main(["--source", str(tmp_path / "source"), "--output", str(tmp_path / "dataset")])
    options = ["--encoder", str(tmp_path / "preset"), "--image-size", "20", "--members", "2"]
    train_model.main(["--dataset", str(tmp_path / "dataset"), *options, "--output", str(tmp_path / "run")])
    assert "gradcam" not in json.loads((tmp_path / "run/report.json").read_text())
    shutil.rmtree(tmp_path / "preset")  # the run does without it
    loaded = run.load_run(tmp_path / "run")
    assert loaded.model.input_shape == (None, 20, 20, 3)
    predict(PredictOptions(tmp_path / "run", (str(tmp_path / "source/100"),), output=tmp_path / "predictions"))
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(InputError, match="needs the package keras_hub, which is not installed"):
        run.load_run(tmp_path / "run")


def test_without_kerashub_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(architectures.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="^encoder preset needs the package keras_hub, .* Run pip install"):
        check_architecture(EXPERIMENT)


def test_a_run_that_needs_kerashub_says_so_without_it(tiny_run, tmp_path, monkeypatch):
    shutil.copytree(tiny_run, tmp_path / "run")
    config = json.loads((tmp_path / "run/config.json").read_text())
    config["experiment"]["model"] = "encoder"
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(InputError, match="model.keras needs the package keras_hub, which is not installed"):
        run.load_run(tmp_path / "run")


def test_an_encoder_is_not_trained(monkeypatch):
    monkeypatch.setattr(architectures.importlib.util, "find_spec", lambda name: True)
    with pytest.raises(InputError, match="encoder does not support --strategy finetune"):
        check_architecture(dataclasses.replace(EXPERIMENT, strategy="finetune"))
    for options in ({"model": "resnet50"}, {"weights": "imagenet"}):
        with pytest.raises(InputError, match="--encoder replaces --model and --weights"):
            choose_experiment(TrainingOptions(encoder="hf://owner/name", settings=options))
