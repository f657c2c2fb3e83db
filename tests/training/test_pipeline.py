"""Files to batches: their order, what they hold, and which file cannot be used."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import write_image

from cancernet import InputError
from cancernet.config import Augmentation, Experiment
from cancernet.data.dataset import Patch
from cancernet.data.images import ImageStore
from cancernet.training import pipeline


def make_store(folder, n=10, size=8, cache=True):
    """Image number i is grey level i all over."""
    import cv2

    files = []
    for index in range(n):
        folder.mkdir(exist_ok=True)
        files.append(folder / f"{index}.png")
        cv2.imwrite(str(files[-1]), np.full((size, size, 3), index, np.uint8))
    return ImageStore(files, image_size=size, channels=3, cache=cache)


def run_epochs(store, first_epoch=0, **changes):
    """Images and targets of each batch, epoch after epoch; the target of image number i is i."""
    experiment = Experiment(**({"epochs": 2, "batch_size": 4, "seed": 1} | changes))
    targets = np.arange(len(store), dtype=np.float32)[:, None]
    batches = pipeline.training_batches(store, targets, experiment, first_epoch=first_epoch)
    return [(images.numpy(), answers.numpy()[:, 0]) for images, answers, _ in batches]


def test_an_epoch_has_every_image_once_in_a_new_order(tmp_path):
    batches = run_epochs(make_store(tmp_path))
    assert [len(images) for images, _ in batches] == [4, 4, 2] * 2
    assert pipeline.count_steps(10, 4) == 3
    first, second = (np.concatenate([answers for _, answers in part]) for part in (batches[:3], batches[3:]))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first.tolist() != second.tolist()


def test_images_and_targets_stay_together(tmp_path):
    for images, answers in run_epochs(make_store(tmp_path)):
        assert images.dtype == np.float32
        assert np.array_equal(images[:, 3, 3, 0], answers)


def test_starting_at_a_later_epoch_gives_what_it_would_have_been(tmp_path):
    store = make_store(tmp_path)
    shifted = Augmentation(shift=0.5, horizontal_flip=True, vertical_flip=True)
    whole, late = run_epochs(store, augmentation=shifted)[3:], run_epochs(store, first_epoch=1, augmentation=shifted)
    for (images, answers), (late_images, late_answers) in zip(whole, late, strict=True):
        assert np.array_equal(images, late_images)
        assert np.array_equal(answers, late_answers)


def test_the_seed_decides_the_order(tmp_path):
    store = make_store(tmp_path)
    orders = [np.concatenate([answers for _, answers in run_epochs(store, seed=seed)]).tolist() for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("cache", [True, False])
def test_evaluation_keeps_the_order_and_drops_nothing(tmp_path, cache):
    store = make_store(tmp_path, cache=cache)
    for _ in range(2):
        batches = list(pipeline.evaluation_batches(store, batch_size=4).as_numpy_iterator())
        assert [len(batch) for batch in batches] == [4, 4, 2]
        assert np.concatenate(batches)[:, 0, 0, 0].tolist() == list(range(10))


def test_evaluation_with_targets_pairs_them(tmp_path):
    targets = np.eye(10, dtype=np.float32)
    for images, answers in pipeline.evaluation_batches(make_store(tmp_path), batch_size=3, targets=targets):
        assert np.array_equal(answers.numpy().argmax(1), images.numpy()[:, 0, 0, 0])


def test_a_store_keeps_images_only_within_the_limit(tmp_path):
    patches = [Patch(f"{n}.png", "0", "", None, None, "training", "") for n in range(10)]
    for limit, kept in ((10 * 8 * 8 * 3, True), (10 * 8 * 8 * 3 - 1, False), (None, True)):
        store = pipeline.open_store(tmp_path, patches, Experiment(image_size=8), cache_limit=limit)
        assert len(store) == 10
        assert (store._images is not None) == kept


def test_a_bad_file_is_named_not_tensorflows_graph(tmp_path):
    store = make_store(tmp_path)
    write_image(tmp_path / "3.png").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"3\.png: cannot be decoded"), pipeline.reraise_file_errors(store):
        run_epochs(store)


def test_the_device_is_named():
    assert pipeline.describe_device().startswith(("CPU", "GPU ("))


def test_the_tuner_of_tf_data_is_off(tmp_path):
    store = make_store(tmp_path)
    training = pipeline.training_batches(store, np.eye(10, dtype=np.float32), Experiment(epochs=1))
    for batches in (training, pipeline.evaluation_batches(store, batch_size=4)):
        assert batches.options().autotune.enabled is False


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's determinism")
@pytest.mark.parametrize(
    ("gpus", "changes", "deterministic"),
    [
        (1, {}, True),
        (1, {"model": "cancernet+densenet121", "strategy": "frozen", "image_size": 96}, True),
        (1, {"model": "densenet121", "strategy": "finetune"}, False),
        (1, {"model": "densenet121", "strategy": "frozen"}, None),  # nothing is trained by TensorFlow
        (0, {}, None),
        (0, {"model": "densenet121", "strategy": "finetune"}, None),
    ],
)
def test_determinism_is_switched_on_where_a_gpu_has_it(gpus, changes, deterministic, monkeypatch):
    switched = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: ["GPU:0"] * gpus)
    monkeypatch.setattr(pipeline.framework, "enable_op_determinism", lambda: switched.append(True))
    monkeypatch.setattr(pipeline.framework, "disable_op_determinism", lambda: switched.append(False))
    experiment = Experiment(**changes)
    pipeline.enable_determinism(experiment)
    assert switched == ([] if deterministic is None else [deterministic])
    warning = pipeline.explain_variation(experiment)
    assert warning.startswith("Training this backbone on a GPU gives slightly different") == (deterministic is False)
