"""Features on disk: computed once, in the manifest's order, gone on with after a kill, refused if they do not fit."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from conftest import ROOT
from keras import layers

from cancernet import CancerNetError, InputError
from cancernet.config import Experiment
from cancernet.data.images import ImageStore
from cancernet.storage import lock_folder
from cancernet.training import feature_cache
from cancernet.training.feature_cache import FeatureCache, hash_extractor, name_cache_folder

SIDE, ROWS = 4, 150  # two whole batches and one in part
EXPERIMENT = Experiment(model="densenet121", strategy="frozen", image_size=SIDE, views="mirror")


class CountedStore(ImageStore):
    """Images in memory that count how often they are asked for."""

    def __init__(self, n=ROWS, seed=0):
        super().__init__(["-"] * n, image_size=SIDE, channels=3)
        self._images[:] = np.random.default_rng(seed).integers(0, 256, self._images.shape)
        self._ready[:], self.fetched = True, []

    def fetch(self, indices):
        self.fetched.append(len(indices))
        return super().fetch(indices)


def make_extractor(seed=1, scale=1 / 255):
    keras.utils.set_random_seed(seed)
    image = keras.Input((SIDE, SIDE, 3))
    maps = layers.Conv2D(5, 3)(layers.Rescaling(scale)(image))
    return keras.Model(image, layers.GlobalAveragePooling2D()(maps), name="extractor")


def find_features(extractor, experiment, images, cache, say=lambda text: None):
    return feature_cache.find_features(extractor, experiment, images, cache, say)


@pytest.fixture
def place(tmp_path):
    return FeatureCache(name_cache_folder(tmp_path / "idc"), tmp_path / "run.unfinished/features", "ab" * 32)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Features that are there already."""
    place = FeatureCache(tmp_path_factory.mktemp("data") / "idc.features", None, "ab" * 32)
    find_features(make_extractor(), EXPERIMENT, CountedStore(), place)
    return place.folder


def only_folder(place):
    (folder,) = place.folder.iterdir()
    return folder


def test_rows_are_the_images_in_order_in_every_view(place):
    store, extractor = CountedStore(), make_extractor()
    found = find_features(extractor, EXPERIMENT, store, place)
    assert found.shape == (ROWS, 2, 5)
    assert found.dtype == np.float32
    images = store._images
    for view, seen in enumerate((images, images[:, :, ::-1])):
        np.testing.assert_allclose(found[:, view], extractor(seen), rtol=1e-5, atol=1e-6)


def test_they_lie_beside_the_dataset_with_what_made_them(finished, tmp_path):
    assert name_cache_folder(tmp_path / "idc") == tmp_path / "idc.features"
    (folder,) = finished.iterdir()
    weights, found = hash_extractor(make_extractor()), np.load(folder / "features.npy")
    assert folder.name == f"densenet121-4-mirror-{weights[:8]}"
    assert json.loads((folder / "features.json").read_text()) == {
        **{"form": 1, "encoder": "densenet121", "sha256": weights},
        **{"image_size": SIDE, "views": "mirror", "manifest_sha256": "ab" * 32},
        "blocks": [hashlib.sha256(rows.tobytes()).hexdigest() for rows in np.split(found, [64, 128])],
    }


def test_what_lies_there_is_mapped_and_no_image_is_read(finished, place):
    shutil.copytree(finished, place.folder)
    store = CountedStore()
    again = find_features(make_extractor(), EXPERIMENT, store, place)
    assert store.fetched == []
    assert isinstance(again, np.memmap)
    assert not again.flags.writeable
    np.testing.assert_array_equal(again, np.load(only_folder(place) / "features.npy"))


def test_other_weights_and_views_have_folders_of_their_own(finished, place):
    shutil.copytree(finished, place.folder)
    find_features(make_extractor(seed=2), EXPERIMENT, CountedStore(), place)
    find_features(make_extractor(), Experiment(model="densenet121", views="one"), CountedStore(), place)
    assert len(list(place.folder.iterdir())) == 3


def test_an_extractor_is_known_by_its_weights_and_by_what_it_does_to_pixels():
    assert hash_extractor(make_extractor()) == hash_extractor(make_extractor())  # whose layers have other names
    assert hash_extractor(make_extractor()) != hash_extractor(make_extractor(seed=2))
    assert hash_extractor(make_extractor()) != hash_extractor(make_extractor(scale=1 / 127))


class Cut(Exception):
    """In the place of a kill."""


def test_what_was_computed_before_a_kill_is_kept(finished, place):
    (whole,) = finished.iterdir()

    class CutStore(CountedStore):
        def fetch(self, indices):
            if indices[0] == 128:
                raise Cut
            return super().fetch(indices)

    with pytest.raises(Exception, match="Cut"):
        find_features(make_extractor(), EXPERIMENT, CutStore(), place)
    unfinished = only_folder(place)
    assert unfinished.name.endswith(".unfinished")
    with (unfinished / "features.npy").open("ab") as file:
        file.write(b"half of a batch")
    store = CountedStore()
    np.testing.assert_array_equal(
        find_features(make_extractor(), EXPERIMENT, store, place), np.load(whole / "features.npy")
    )
    assert sum(store.fetched) < ROWS  # of 150 images, 22 to 86 were left
    assert not unfinished.exists()


def test_an_unfinished_one_of_another_dataset_is_begun_anew(place):
    work = place.folder / f"densenet121-4-mirror-{hash_extractor(make_extractor())[:8]}.unfinished"
    work.mkdir(parents=True)
    (work / "features.json").write_text("{}")
    (work / "features.npy").write_bytes(b"\0" * 10**5)
    store = CountedStore()
    find_features(make_extractor(), EXPERIMENT, store, place)
    assert sum(store.fetched) == ROWS


@pytest.mark.parametrize(
    ("breakage", "message"),
    [
        (lambda folder: change(folder, manifest_sha256="cd"), "sha256 is cd, that of this training is abab"),
        (lambda folder: change(folder, views="one"), "does not fit: its views is one"),
        (lambda folder: change(folder, image_size="4"), "features.json is damaged: image_size"),
        (lambda folder: (folder / "features.json").unlink(), "There is no .*features.json"),
        (lambda folder: (folder / "features.npy").unlink(), "features.npy is missing or damaged"),
        (lambda folder: os.truncate(folder / "features.npy", 1000), "features.npy is missing or damaged"),
        (lambda folder: edit(folder, lambda rows: rows[::-1]), "features.npy was changed after it was computed"),
        (lambda folder: edit(folder, np.zeros_like), "features.npy was changed after it was computed"),
        (
            lambda folder: edit(folder, lambda rows: rows * np.nan),
            "has a value that is not a finite number, in rows",
        ),
        (lambda folder: np.save(folder / "features.npy", np.zeros((9, 2, 5), "f4")), r"\[9, 2, 5\]; .* has 150 images"),
    ],
)
def test_what_does_not_fit_is_refused(finished, place, breakage, message):
    shutil.copytree(finished, place.folder)
    breakage(only_folder(place))
    with pytest.raises(CancerNetError, match=f"{message}.*Remove this folder; the next training computes the features"):
        find_features(make_extractor(), EXPERIMENT, CountedStore(), place)


def edit(folder, function):
    np.save(folder / "features.npy", function(np.load(folder / "features.npy")))


def test_features_of_an_earlier_version_have_no_hashes_and_are_used(finished, place):
    shutil.copytree(finished, place.folder)
    change(only_folder(place), blocks=[])
    store = CountedStore()
    find_features(make_extractor(), EXPERIMENT, store, place)
    assert store.fetched == []


def change(folder, **values):
    made = json.loads((folder / "features.json").read_text())
    (folder / "features.json").write_text(json.dumps(made | values))


def test_a_folder_that_cannot_be_written_is_said_and_another_used(place, monkeypatch):
    monkeypatch.setattr(feature_cache.os, "access", lambda path, mode: False)
    said = []
    found = find_features(make_extractor(), EXPERIMENT, CountedStore(), place, said.append)
    assert found.filename.is_relative_to(place.fallback)
    assert "idc.features cannot be written: features are kept in" in said[0]
    place.folder.rmdir()
    place.folder.write_text("a file in the way")
    store = CountedStore()
    find_features(make_extractor(), EXPERIMENT, store, place)
    assert store.fetched == []  # those of the other place


def test_no_room_is_said_before_the_work(place, monkeypatch):
    monkeypatch.setattr(feature_cache, "check_space", lambda *_, **__: (_ for _ in ()).throw(InputError("no room")))
    store = CountedStore()
    with pytest.raises(InputError, match="no room"):
        find_features(make_extractor(), EXPERIMENT, store, place)
    assert store.fetched == []


def test_a_second_process_waits_for_the_first(place):
    waits = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from cancernet.storage import lock_folder
with lock_folder(Path(sys.argv[1]), announce=lambda text: print(text, flush=True)):
    print("entered", flush=True)
"""
    with lock_folder(place.folder / "key"):
        second = subprocess.Popen(
            [sys.executable, "-c", waits, str(place.folder / "key")], stdout=subprocess.PIPE, text=True
        )
        said = second.stdout.readline()
        assert said.startswith("Another process is writing")
        assert f"(process {os.getpid()}). Waiting for it" in said
        time.sleep(0.2)
        assert second.poll() is None
    assert second.communicate(timeout=20)[0] == "entered\n"
