"""The networks: their size, what is inside them, what training changes, and which weights they take."""

import dataclasses
import functools
import re
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from conftest import SHARED

from cancernet import InputError
from cancernet.config import Experiment
from cancernet.models import transfer
from cancernet.models.architectures import (
    ARCHITECTURES,
    Architecture,
    build_model,
    check_architecture,
    list_architectures,
    list_model_names,
    split_by_architecture,
)
from cancernet.models.cancernet import CancerNet
from cancernet.models.simple_cnn import build_simple_cnn
from cancernet.models.structure import has_backbone, split_model

DENSENET121 = SHARED / "weights" / "densenet121_imagenet_notop.weights.h5"
SLOW = set(list_model_names()) - {"cancernet", "simple_cnn", "mobilenetv3small"}
SIZES = {"cancernet": 16, "simple_cnn": 24}  # pixels; the backbones at 32
EVERY_MODEL = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in list_model_names()]
BACKBONES = [name for name in list_model_names() if ARCHITECTURES[name].is_backbone]
EVERY_BACKBONE = [pytest.param(name, marks=pytest.mark.slow if "densenet" in name else ()) for name in BACKBONES]
NORMALISATION = {"gamma", "beta", "moving_mean", "moving_variance"}
PREPROCESS_INPUT = {
    "resnet50": keras.applications.resnet50.preprocess_input,
    "densenet121": keras.applications.densenet.preprocess_input,
    "densenet201": keras.applications.densenet.preprocess_input,
    "efficientnetv2b0": keras.applications.efficientnet_v2.preprocess_input,
    "mobilenetv3small": keras.applications.mobilenet_v3.preprocess_input,
}


def experiment(name, **settings):
    defaults = {"image_size": SIZES.get(name, 32), "channels": ARCHITECTURES[name].channels}
    return Experiment(model=name, **(defaults | settings))


def random_images(model, count=4, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, (count, *model.input_shape[1:])).astype("float32")


def train_a_step(model):
    images = random_images(model)
    answers = np.eye(model.output_shape[-1], dtype="float32")[np.arange(len(images)) % model.output_shape[-1]]
    model.compile(keras.optimizers.Adam(1e-4), "categorical_crossentropy", run_eagerly=True)
    model.fit(images, answers, batch_size=len(images), verbose=0)


def answer(model, images):
    return keras.ops.convert_to_numpy(model(images, training=False))


def values(weights):
    return [keras.ops.convert_to_numpy(weight).copy() for weight in weights]


def list_packages(file):
    """The packages that the classes of a saved model come from; test_train.py loads one in a process without ours."""
    with zipfile.ZipFile(file) as archive:
        config = archive.read("config.json").decode()
    assert "Lambda" not in config
    return set(re.findall(r'"module": "(\w+)', config)) - {"builtins"}


def which_changed(before, after):
    return [not np.array_equal(old, new) for old, new in zip(before, values(after), strict=True)]


def build_lively(name, classes):
    """A model whose features differ from image to image: at random, MobileNet's fade to 1e-10 on the way."""
    model = build_model(experiment(name), classes)
    if name == "mobilenetv3small":
        for layer in split_model(model)[0].layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.moving_variance.assign(np.full(layer.moving_variance.shape, 0.1))
    return model


def backbone_of(model):
    """The backbone alone, as keras.applications builds it, at random."""
    architecture = ARCHITECTURES[model]
    return getattr(keras.applications, architecture.constructor)(
        include_top=False, weights=None, input_shape=(32, 32, 3)
    )


@functools.cache
def published_small():
    """The smallest backbone, of which tests only save the weights."""
    return backbone_of("mobilenetv3small")


@pytest.fixture
def channels_first():
    keras.config.set_image_data_format("channels_first")
    yield
    keras.config.set_image_data_format("channels_last")


class TestSize:
    def test_cancernet(self):
        model = CancerNet.build(width=48, height=48, depth=3, classes=2)
        assert isinstance(model, keras.Sequential)
        assert model.count_params() == 1_235_133
        assert (model.input_shape, model.output_shape) == ((None, 48, 48, 3), (None, 2))

    def test_cancernet_other_sizes(self):
        model = CancerNet.build(width=24, height=40, depth=1, classes=4)
        assert (model.input_shape, model.output_shape) == ((None, 40, 24, 1), (None, 4))

    def test_cancernet_channels_first(self, channels_first):
        model = CancerNet.build(width=24, height=40, depth=3, classes=2)
        assert model.input_shape == (None, 3, 40, 24)
        normalisations = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
        assert [layer.axis for layer in normalisations] == [1, 1, 1, 1, 1, 1, -1]
        assert [layer.gamma.shape[0] for layer in normalisations] == [32, 64, 64, 128, 128, 128, 256]

    def test_simple_cnn(self):
        model = build_simple_cnn(128, channels=1, classes=3)
        assert model.count_params() == 1_629_443

    def test_a_backbone_less_its_top_and_a_head(self):
        # 7,037,504 as published for DenseNet121 without its top; features of four sizes of maps;
        # a feature has 4 parameters of normalisation and 3 of the dense layer, which has 3 biases.
        features = 256 + 512 + 1024 + 1024
        assert build_model(experiment("densenet121"), 3).count_params() == 7_037_504 + (4 + 3) * features + 3

    @pytest.mark.parametrize("name", ["cancernet", "simple_cnn", "mobilenetv3small"])
    def test_the_smallest_image_is_taken(self, name):
        model = build_model(experiment(name, image_size=ARCHITECTURES[name].smallest_image_size), 2)
        assert answer(model, random_images(model)).shape == (4, 2)


@pytest.mark.parametrize("name", EVERY_MODEL)
def test_builds_trains_saves_loads_and_predicts_the_same(name, tmp_path):
    model = build_lively(name, 3)
    before = values(model.trainable_weights)
    train_a_step(model)
    assert sum(which_changed(before, model.trainable_weights)) > 0.9 * len(before)
    images = random_images(model, seed=1)
    probabilities = answer(model, images)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert np.ptp(probabilities, axis=0).max() > 0  # not the same answer to every image

    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(answer(loaded, images), probabilities)
    assert list_packages(tmp_path / "model.keras") == {"keras"}  # the file needs no code of ours
    if has_backbone(model):
        extractor, head = split_model(loaded)
        np.testing.assert_array_equal(answer(head, answer(extractor, images)), probabilities)


class TestPreprocessing:
    @pytest.mark.parametrize("name", EVERY_BACKBONE)
    def test_features_and_weights_are_those_of_the_published_way(self, name, monkeypatch, tmp_path):
        reference, requested = backbone_of(name), []

        def fetch(fname, origin, **options):
            requested.append(fname)
            assert origin.startswith("https://storage.googleapis.com/tensorflow/keras-applications/")
            assert len(options["file_hash"]) in (32, 64)  # md5 or SHA-256: a partial download is refused
            reference.save(tmp_path / "published.h5")
            return str(tmp_path / "published.h5")

        monkeypatch.setattr("keras.src.utils.file_utils.get_file", fetch)
        extractor, _ = split_model(build_model(experiment(name, weights="imagenet"), 2))
        assert len(requested) == 1
        assert "top" in requested[0]
        for found, wanted in zip(extractor.get_weights(), reference.get_weights(), strict=True):
            np.testing.assert_array_equal(found, wanted)
        stages = [*(reference.get_layer(stage).output for stage in ARCHITECTURES[name].stages), reference.output]
        images = random_images(extractor)
        assert [len(images[0]) // stage.shape[1] for stage in stages] == [4, 8, 16, 32]

        def pool(images):
            maps = keras.Model(reference.input, stages)(images, training=False)
            return np.concatenate([np.mean(stage, axis=(1, 2)) for stage in maps], axis=1)

        pooled = pool(PREPROCESS_INPUT[name](images.copy()))
        np.testing.assert_allclose(answer(extractor, images), pooled, rtol=2e-4, atol=2e-5 * np.abs(pooled).max())
        assert np.abs(pool(images / 255) - pooled).max() > 0.01 * np.abs(pooled).max()

    @pytest.mark.parametrize(("name", "mode"), [("resnet50", "caffe"), ("densenet121", "torch")])
    def test_pixels_are_those_of_the_published_way(self, name, mode, tmp_path):
        image = keras.Input((5, 6, 3))
        model = keras.Model(image, transfer.preprocess(image, mode))
        images = random_images(model)
        expected = PREPROCESS_INPUT[name](images.copy())
        np.testing.assert_allclose(answer(model, images), expected, rtol=1e-5, atol=1e-5)
        assert model.weights == []
        model.save(tmp_path / "model.keras")
        assert list_packages(tmp_path / "model.keras") == {"keras"}


class TestTrainable:
    @pytest.mark.parametrize("from_file", [False, True])
    def test_all_but_the_backbones_normalisation_moves(self, from_file, tmp_path):
        model = build_lively("mobilenetv3small", 2)
        if from_file:
            model.save(tmp_path / "model.keras")
            model = keras.saving.load_model(tmp_path / "model.keras")
        extractor, head = split_model(model)
        frozen = [weight for weight in extractor.weights if weight.path.rpartition("/")[2] in NORMALISATION]
        kernels = [weight for weight in extractor.weights if "kernel" in weight.path]
        assert len(frozen) == 4 * 34  # 34 normalisations
        before = values(frozen), values(kernels), values(head.weights)
        train_a_step(model)
        assert not any(which_changed(before[0], frozen))
        assert sum(which_changed(before[1], kernels)) > 0.9 * len(kernels)
        assert which_changed(before[2], head.weights).count(True) >= 5  # all but the state of the dropout
        assert [weight.path.rpartition("/")[2] for weight in head.trainable_weights] == [
            "gamma", "beta", "kernel", "bias",
        ]  # fmt: skip

    def test_training_the_head_on_features_trains_the_model(self):
        model = build_lively("mobilenetv3small", 2)
        images = random_images(model)
        first = answer(model, images)
        extractor, head = split_model(model)
        features = answer(extractor, images)
        head.compile(keras.optimizers.SGD(0.5), "categorical_crossentropy")
        head.fit(features, np.eye(2)[[0, 1, 0, 1]], verbose=0)
        assert np.abs(answer(model, images) - first).max() > 1e-3
        np.testing.assert_array_equal(answer(model, images), answer(head, features))

    def test_training_leaves_the_features_as_they_are_predicted(self):
        # Batch normalisation of the backbone is in inference mode even when the whole model is called for training.
        model = build_lively("mobilenetv3small", 2)
        images = random_images(model)
        spy = keras.Model(model.inputs[0], model.get_layer("head").input)
        seen = keras.ops.convert_to_numpy(spy(images, training=True))
        np.testing.assert_array_equal(seen, answer(split_model(model)[0], images))

    def test_only_transfer_models_have_two_parts(self):
        model = build_model(experiment("cancernet"), 2)
        with pytest.raises(ValueError, match="No such layer: extractor"):
            split_model(model)


class TestBadSettings:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"model": "resnet5"}, "Unknown model resnet5. Choose one of cancernet, simple_cnn, resnet50, "),
            ({"model": "cancernet", "image_size": 7}, "cancernet takes images of at least 8 pixels; got 7"),
            ({"model": "simple_cnn", "image_size": 21}, "at least 22 pixels; got 21. Use --image-size 128"),
            ({"model": "resnet50", "image_size": 31}, "resnet50 takes images of at least 32 pixels; got 31"),
            ({"model": "resnet50", "image_size": 224, "channels": 1}, "takes images of 3 channels; got 1"),
            ({"model": "cancernet", "weights": "imagenet"}, "cancernet has no pretrained weights; got --weights im"),
            ({"model": "resnet50", "image_size": 224, "weights": "a.h5"}, "No weights file a.h5. --weights takes"),
        ],
    )  # fmt: skip
    def test_settings(self, settings, message):
        with pytest.raises(InputError, match=message):
            check_architecture(Experiment(**settings))

    def test_one_class(self):
        with pytest.raises(InputError, match="A model needs at least two classes; got 1"):
            build_model(experiment("cancernet"), 1)


class TestWeightsFile:
    def test_forms_of_keras_3_and_2(self, tmp_path):
        backbone = published_small()
        backbone.save_weights(tmp_path / "new.weights.h5")
        backbone.save(tmp_path / "old.h5")
        for file in ("new.weights.h5", "old.h5"):
            model = build_model(experiment("mobilenetv3small", weights=str(tmp_path / file)), 2)
            extractor, _ = split_model(model)
            for found, wanted in zip(extractor.get_weights(), backbone.get_weights(), strict=True):
                np.testing.assert_array_equal(found, wanted)

    def test_of_a_network_of_other_depth(self, tmp_path):
        published_small().save_weights(tmp_path / "small.weights.h5")
        with pytest.raises(
            InputError,
            match=r"small\.weights\.h5 belongs to another network: its 206 arrays do not have the shapes of"
            r" the network.s 318\. Give a file of the weights of keras\.applications\.ResNet50 without its top",
        ):
            build_model(experiment("resnet50", weights=str(tmp_path / "small.weights.h5")), 2)

    def test_of_a_network_of_other_width(self, tmp_path):
        narrow = keras.applications.MobileNetV3Small(
            include_top=False, weights=None, input_shape=(32, 32, 3), alpha=0.75
        )
        narrow.save_weights(tmp_path / "narrow.weights.h5")
        with pytest.raises(InputError, match=r"its (\d+) arrays do not have the shapes of the network.s \1\."):
            build_model(experiment("mobilenetv3small", weights=str(tmp_path / "narrow.weights.h5")), 2)

    def test_with_a_layer_under_another_name(self, tmp_path):
        file = tmp_path / "renamed.weights.h5"
        published_small().save_weights(file)
        with h5py.File(file, "a") as content:
            content.move("layers/conv2d", "layers/other")
        with pytest.raises(InputError, match=r"renamed\.weights\.h5 does not fit the network: A total of 1 objects"):
            build_model(experiment("mobilenetv3small", weights=str(file)), 2)

    def test_name_that_keras_reads_in_another_way(self, tmp_path):
        backbone = published_small()
        backbone.save_weights(tmp_path / "a.weights.h5")
        (tmp_path / "a.weights.h5").rename(tmp_path / "a.h5")
        backbone.save(tmp_path / "b.h5")
        (tmp_path / "b.h5").rename(tmp_path / "b.weights.h5")
        for file, ending in (("a.h5", r"\.weights\.h5\."), ("b.weights.h5", r"\.h5 \(and not \.weights\.h5\)")):
            with pytest.raises(InputError, match=f"Rename it to end in {ending}"):
                build_model(experiment("mobilenetv3small", weights=str(tmp_path / file)), 2)

    @pytest.mark.parametrize("content", [b"not HDF5", None])
    def test_not_hdf5_or_cut_short(self, content, tmp_path):
        file = tmp_path / "broken.weights.h5"
        if content is None:
            published_small().save_weights(file)
            content = file.read_bytes()[:100_000]
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"broken\.weights\.h5 cannot be read as HDF5 \(.*\)\. Give a file of the"):
            build_model(experiment("mobilenetv3small", weights=str(file)), 2)

    @pytest.mark.realdata
    @pytest.mark.skipif(not DENSENET121.exists(), reason="no ../shared/weights")
    def test_real(self):
        extractor, _ = split_model(build_model(experiment("densenet121", weights=str(DENSENET121)), 2))
        with h5py.File(DENSENET121, "r") as content:
            kernel = content["layers/conv2d/vars/0"][()]
        np.testing.assert_array_equal(extractor.get_layer("conv1_conv").get_weights()[0], kernel)
        with pytest.raises(InputError, match="its 604 arrays do not have the shapes of the network.s 318"):
            build_model(experiment("resnet50", weights=str(DENSENET121)), 2)


class TestImagenetWeights:
    @pytest.mark.parametrize("failure", [Exception("URL fetch failure on https://x: no route\n"), TimeoutError()])
    def test_without_a_network_one_line_says_what_to_do(self, failure, monkeypatch):
        def fail(*_, **__):
            raise failure

        monkeypatch.setattr("keras.src.utils.file_utils.get_file", fail)
        reason = str(failure).strip() or "TimeoutError"
        with pytest.raises(
            InputError,
            match=rf"Cannot download the ImageNet weights of ResNet50 \({reason}\)\. .* give the file with --weights F",
        ) as caught:
            build_model(experiment("resnet50", weights="imagenet"), 2)
        assert "\n" not in str(caught.value)

    def test_a_partial_download_is_refused(self, monkeypatch, tmp_path):
        monkeypatch.setenv("KERAS_HOME", str(tmp_path))

        def write_half(_, target, *__):
            Path(target).write_bytes(b"half")

        monkeypatch.setattr("keras.src.utils.file_utils.urlretrieve", write_half)
        for _ in range(2):  # a file that is there already is no better
            with pytest.raises(InputError, match=r"Cannot download .* \(Incomplete or corrupted file detected"):
                build_model(experiment("mobilenetv3small", weights="imagenet"), 2)


class TestCapabilities:
    def test_a_new_backbone_is_one_entry(self, monkeypatch):
        def make_tiny(include_top, weights, input_tensor):
            assert not include_top
            assert weights is None
            maps = keras.layers.Conv2D(3, 3, strides=2, name="first", activation="relu")(input_tensor)
            maps = keras.layers.Conv2D(5, 3, strides=2, activation="relu")(maps)
            return keras.Model(keras.utils.get_source_inputs(input_tensor), maps)

        monkeypatch.setattr(keras.applications, "Tiny", make_tiny, raising=False)
        entry = Architecture(
            constructor="Tiny", image_size=16, smallest_image_size=8, stages=("first",), preprocessing="torch"
        )
        monkeypatch.setitem(ARCHITECTURES, "tiny", entry)
        assert "tiny" in list_model_names()
        model = build_model(experiment("tiny", image_size=16, strategy="frozen"), 2)
        assert answer(model, random_images(model)).shape == (4, 2)
        assert split_model(model)[0].output_shape == (None, 3 + 5)
        with pytest.raises(InputError, match="tiny takes images of at least 8 pixels; got 7. Use --image-size 16"):
            check_architecture(experiment("tiny", image_size=7))

    def test_models_that_other_options_choose_are_not_models_to_name(self):
        assert set(ARCHITECTURES) - set(list_model_names()) == {"encoder", "features"}

    @pytest.mark.parametrize("name", ["cancernet", "simple_cnn"])
    def test_a_network_without_a_backbone_is_trained_from_scratch(self, name):
        for strategy in ("frozen", "finetune", "two-phase"):
            with pytest.raises(InputError, match=f"{name} does not support --strategy {strategy}. Leave"):
                check_architecture(experiment(name, strategy=strategy))

    def test_features_are_no_images(self):
        with pytest.raises(InputError, match="features takes no images; --features gives what it is trained on"):
            build_model(Experiment(model="features", strategy="frozen"), 2)

    def test_joined_models_are_split_and_one_from_scratch_keeps_its_own_size(self):
        joined = Experiment(model="cancernet+resnet50", image_size=96, strategy="frozen", weights="imagenet")
        scratch, backbone = split_by_architecture(joined)
        assert backbone == dataclasses.replace(joined, model="resnet50")
        assert scratch == dataclasses.replace(joined, model="cancernet", image_size=48, strategy="all", weights="none")
        assert split_by_architecture(backbone) == [backbone]

    def test_the_capabilities_of_a_run_are_those_of_its_known_architectures(self):
        assert [each.has_maps for each in list_architectures("cancernet+encoder")] == [True, False]
        assert list_architectures("a_later_version's") == []
