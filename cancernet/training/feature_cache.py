"""Features of a frozen backbone as a dataset of their own: computed once, kept on disk, never in memory as a whole.

`<dataset>.features/<key>/` holds `features.npy`, float32 [n, views, f] with its rows in the manifest's order, and
`features.json`, which says what made them.
"""

import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
from tqdm import tqdm

from cancernet import InputError
from cancernet.config import Experiment
from cancernet.data.images import ImageStore
from cancernet.models.test_time_augmentation import extract_views
from cancernet.storage import check_space, lock_folder, read_json
from cancernet.training.pipeline import evaluation_batches, naming_bad_files
from cancernet.training.scoring import BATCH

FEATURES, MADE = "features.npy", "features.json"
_FORM = 1  # to be raised when the same encoder comes to give other features, or the files get another form
_DTYPE = "<f4"
_AGAIN = "Remove this folder; the next training computes it again."


class Place(NamedTuple):
    """Where the features of a dataset are kept."""

    folder: Path  # as `name_folder`
    otherwise: Path  # where they are kept if `folder` cannot be written
    manifest_sha256: str  # of the dataset


@dataclasses.dataclass(frozen=True)
class Made:
    """features.json: what made the features. Those that something else made are refused."""

    form: int
    encoder: str
    sha256: str  # of the encoder, as `hash_extractor`
    image_size: int
    views: str
    manifest_sha256: str


def name_folder(dataset: Path) -> Path:
    """The folder of a dataset's features, beside the dataset."""
    return Path(f"{os.path.abspath(dataset)}.features")


def find_features(extractor: keras.Model, experiment: Experiment, images: ImageStore, place: Place) -> np.ndarray:
    """Open the features of a dataset's images; compute them first where they are not there yet.

    What a killed process had computed is kept. Where another process computes the same features, this one waits.

    Args:
        extractor: raw images to features [n, f].
        experiment: its model and views count.
        images: n images, all of the dataset in the manifest's order.

    Returns:
        float32 [n, views, f], mapped from the file and read-only.

    Raises:
        InputError: a file cannot be used, what lies there is of something else, or there is no room for it.
    """
    made = Made(
        form=_FORM,
        encoder=experiment.model,
        sha256=hash_extractor(extractor),
        image_size=images.image_size,
        views=experiment.views,
        manifest_sha256=place.manifest_sha256,
    )
    key = f"{made.encoder}-{made.image_size}-{made.views}-{made.sha256[:8]}"
    key = re.sub(r"[^\w.-]+", "_", key)
    folder = place.folder / key
    if not folder.is_dir():
        folder = _choose_parent(place) / key
        with lock_folder(folder, announce=lambda text: print(text, flush=True)):
            if not folder.is_dir():
                _compute(extract_views(extractor, experiment.views), images, made, folder)
    return _open(folder, made, len(images))


def hash_extractor(extractor: keras.Model) -> str:
    """SHA-256 of all weights of an extractor and of the settings of its layers without weights, in hexadecimal.

    Such layers prepare the image, so that the same backbone on other pixels is another extractor. Their names, which
    Keras counts up, do not matter.
    """
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


def _choose_parent(place: Place) -> Path:
    """The folder beside the dataset; where it cannot be written, the other place, so that memory stays small."""
    try:
        place.folder.mkdir(exist_ok=True)
    except OSError:
        is_writable = False
    else:
        is_writable = os.access(place.folder, os.W_OK)
    if not is_writable:
        print(f"{place.folder} cannot be written: features are kept in {place.otherwise} until the run is finished.")
    return place.folder if is_writable else place.otherwise


def _compute(network: keras.Model, images: ImageStore, made: Made, folder: Path) -> None:
    """Compute features [n, views, f], appended to a file batch after batch: its length says how many are done."""
    work = folder.with_name(f"{folder.name}.unfinished")
    if work.exists() and _read_text(work / MADE) != _to_json(made):
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    (work / MADE).write_text(_to_json(made), encoding="utf-8")
    done, missing = _begin(work / FEATURES, (len(images), *network.output_shape[1:]))
    check_space(work, missing, advice="Make room there.")
    print(f"Computing the features of {len(images) - done:,} images, once, into {folder} ...", flush=True)
    rest = images.select(np.arange(done, len(images)))
    with (
        (work / FEATURES).open("ab") as file,
        tqdm(total=len(images), initial=done, unit=" images", disable=None) as bar,
        naming_bad_files(images),
    ):
        for batch in evaluation_batches(rest, batch_size=BATCH).as_numpy_iterator():
            file.write(np.ascontiguousarray(network.predict_on_batch(batch), _DTYPE).data)
            bar.update(len(batch))
        file.flush()
        os.fsync(file.fileno())
    work.rename(folder)


def _begin(path: Path, shape: tuple[int, int, int]) -> tuple[int, int]:
    """Write the header of an array, or cut off what a killed process left after its last whole batch.

    Returns:
        The number of rows that are there, and the bytes that are still to come.
    """
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": _DTYPE, "fortran_order": False, "shape": shape})
    beginning, row_bytes = header.getvalue(), shape[1] * shape[2] * np.dtype(_DTYPE).itemsize
    done = (path.stat().st_size - len(beginning)) // row_bytes // BATCH * BATCH if path.exists() else 0
    if done <= 0:
        path.write_bytes(beginning)
        return 0, shape[0] * row_bytes
    os.truncate(path, len(beginning) + done * row_bytes)
    return done, (shape[0] - done) * row_bytes


def _open(folder: Path, made: Made, rows: int) -> np.ndarray:
    found = read_json(folder / MADE, Made, advice=_AGAIN)
    for name, wanted in dataclasses.asdict(made).items():
        if getattr(found, name) != wanted:
            raise InputError(
                f"{folder} does not fit: its {name} is {getattr(found, name)}, that of this training {wanted}. {_AGAIN}"
            )
    try:
        features = np.load(folder / FEATURES, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / FEATURES} is missing or damaged. {_AGAIN}") from error
    if features.ndim != 3 or len(features) != rows or features.dtype != _DTYPE:
        raise InputError(
            f"{folder / FEATURES} holds {features.dtype} {list(features.shape)}; the dataset has {rows:,} images. "
            f"{_AGAIN}"
        )
    return features


def _to_json(made: Made) -> str:
    return json.dumps(dataclasses.asdict(made), indent=1) + "\n"


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
