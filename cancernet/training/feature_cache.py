"""The features of a frozen backbone on disk: computed once for a dataset, never in memory as a whole.

`<dataset>.features/<key>/` contains `features.npy`, float32 [n, views, f] with its rows in the manifest's order, and
`features.json`, which describes what produced them.
"""

import dataclasses
import functools
import hashlib
import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from cancernet import InputError, StorageError, progress
from cancernet.config import Experiment
from cancernet.data.images import ImageStore
from cancernet.models.backend import without_xla
from cancernet.models.test_time_augmentation import extract_views
from cancernet.storage import check_space, lock_folder, read_json, replace_folder, write_json
from cancernet.training.pipeline import evaluation_batches, reraise_file_errors
from cancernet.training.scoring import BATCH

FEATURES, MANIFEST = "features.npy", "features.json"
_FORM = 1  # to be raised when the same encoder produces other features, or the format of the files changes
_DTYPE = "<f4"
_ADVICE = "Remove this folder; the next training computes the features again."


class FeatureCache(NamedTuple):
    """Where the features of a dataset are kept."""

    folder: Path  # see `name_cache_folder`
    fallback: Path  # used if `folder` cannot be written
    manifest_sha256: str  # of the dataset


@dataclasses.dataclass(frozen=True)
class FeatureManifest:
    """The content of features.json: what produced the features. Only a training with the same values uses them."""

    form: int
    encoder: str
    sha256: str  # of the encoder, see `hash_extractor`
    image_size: int
    views: str
    manifest_sha256: str
    blocks: tuple[str, ...] = ()  # SHA-256 of each BATCH rows of features.npy; empty in files of earlier versions


def name_cache_folder(dataset: Path) -> Path:
    """Return the folder next to a dataset that holds its features."""
    return Path(f"{os.path.abspath(dataset)}.features")


def find_features(
    extractor: keras.Model, experiment: Experiment, images: ImageStore, cache: FeatureCache, say: Callable[[str], None]
) -> np.ndarray:
    """Open the features of a dataset's images, after computing them if they are not in the cache.

    A killed computation resumes where it stopped. If another process computes the same features, this one waits. The
    images are all n of the dataset in the manifest's order, the features float32 [n, views, f], memory-mapped and
    read-only. Raises InputError if an image cannot be read, or the features in the cache belong to something else,
    StorageError if they are damaged, or the disk is full.
    """
    encoder = experiment.model, hash_extractor(extractor), images.image_size, experiment.views
    manifest = FeatureManifest(_FORM, *encoder, cache.manifest_sha256)
    key = re.sub(r"[^\w.-]+", "_", f"{manifest.encoder}-{manifest.image_size}-{manifest.views}-{manifest.sha256[:8]}")
    folder = cache.folder / key
    if not folder.is_dir():
        folder = _choose_parent(cache, say) / key
        with lock_folder(folder, announce=say):
            if not folder.is_dir():
                _compute(extract_views(extractor, experiment.views), images, manifest, folder, say)
    return _open(folder, manifest, len(images))


def hash_extractor(extractor: keras.Model) -> str:
    """Return the SHA-256 of an extractor's weights and of the settings of its layers without any: the preprocessing."""
    digest = hashlib.sha256()
    for weight in extractor.get_weights():
        digest.update(f"{weight.dtype} {weight.shape} ".encode())
        digest.update(np.ascontiguousarray(weight).data)
    for layer in extractor.layers:
        if not layer.weights:
            config = layer.get_config()
            plain = {key: value for key, value in config.items() if key != "name" and not isinstance(value, dict)}
            text = json.dumps(plain, sort_keys=True, default=lambda array: np.asarray(array).tolist())
            digest.update(f"{type(layer).__name__} {text} ".encode())
    return digest.hexdigest()


def _choose_parent(cache: FeatureCache, say: Callable[[str], None]) -> Path:
    """Return the folder next to the dataset or, if it cannot be written, the fallback, so that memory stays small."""
    try:
        cache.folder.mkdir(exist_ok=True)
        if os.access(cache.folder, os.W_OK):
            return cache.folder
    except OSError:
        pass
    say(f"{cache.folder} cannot be written: features are kept in {cache.fallback} until the run is finished.")
    return cache.fallback


def _compute(
    network: keras.Model, images: ImageStore, manifest: FeatureManifest, folder: Path, say: Callable[[str], None]
) -> None:
    """Compute features [n, views, f] batch by batch and append them to a file; its length tells how many are done."""
    work = folder.with_name(f"{folder.name}.unfinished")
    text = json.dumps(dataclasses.asdict(manifest), indent=1) + "\n"
    found = work / MANIFEST
    work.mkdir(parents=True, exist_ok=True)
    if not (found.is_file() and found.read_text(encoding="utf-8") == text):
        (work / FEATURES).unlink(missing_ok=True)
        found.write_text(text, encoding="utf-8")
    done, missing = _begin(work / FEATURES, (len(images), *network.output_shape[1:]))
    check_space(work, missing, advice="Make room there.")
    say(f"Computing the features of {len(images) - done:,} images once, in {folder} ...")
    network, rest = without_xla(network), images.select(np.arange(done, len(images)))
    with (
        (work / FEATURES).open("ab") as file,
        progress.count("Features", len(images), done=done) as add,
        reraise_file_errors(images),
    ):
        for batch in evaluation_batches(rest, batch_size=BATCH).as_numpy_iterator():
            file.write(np.ascontiguousarray(network.predict_on_batch(batch), _DTYPE).data)
            add(len(batch))
    blocks = _hash_blocks(work / FEATURES, (work / FEATURES).stat().st_mtime_ns)
    write_json(found, dataclasses.asdict(manifest) | {"blocks": blocks})
    replace_folder(work, folder)


def _begin(path: Path, shape: tuple[int, int, int]) -> tuple[int, int]:
    """Write an array's header, or truncate what follows its last whole batch; return rows done and missing bytes."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": _DTYPE, "fortran_order": False, "shape": shape})
    header, row_bytes = buffer.getvalue(), shape[1] * shape[2] * np.dtype(_DTYPE).itemsize
    done = (path.stat().st_size - len(header)) // row_bytes // BATCH * BATCH if path.exists() else 0
    if done <= 0:
        path.write_bytes(header)
        return 0, shape[0] * row_bytes
    os.truncate(path, len(header) + done * row_bytes)
    return done, (shape[0] - done) * row_bytes


def _open(folder: Path, manifest: FeatureManifest, rows: int) -> np.ndarray:
    found = read_json(folder / MANIFEST, FeatureManifest, advice=_ADVICE)
    for name, wanted in dataclasses.asdict(manifest).items():
        if name != "blocks" and (has := getattr(found, name)) != wanted:
            problem = f"does not fit: its {name} is {has}, that of this training is {wanted}"
            raise InputError(f"{folder} {problem}. {_ADVICE}")
    try:
        features = np.load(folder / FEATURES, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise StorageError(f"{folder / FEATURES} is missing or damaged. {_ADVICE}") from error
    if features.ndim != 3 or len(features) != rows or features.dtype != _DTYPE:
        contents = f"{features.dtype} {list(features.shape)}; the dataset has {rows:,} images"
        raise StorageError(f"{folder / FEATURES} contains {contents}. {_ADVICE}")
    blocks = _hash_blocks(folder / FEATURES, (folder / FEATURES).stat().st_mtime_ns)
    if found.blocks and found.blocks != blocks:
        raise StorageError(f"{folder / FEATURES} was changed after it was computed. {_ADVICE}")
    return features


@functools.cache
def _hash_blocks(path: Path, modified: int) -> tuple[str, ...]:
    """Check that features are finite, and return the hash of each block; `modified` tells later states apart."""
    features, hashes = np.load(path, mmap_mode="r"), []
    for start in range(0, len(features), BATCH):
        block = np.ascontiguousarray(features[start : start + BATCH])
        if not np.isfinite(block).all():
            raise StorageError(f"{path} has a value that is not a finite number, in rows from {start}. {_ADVICE}")
        hashes.append(hashlib.sha256(block.data).hexdigest())
    return tuple(hashes)
