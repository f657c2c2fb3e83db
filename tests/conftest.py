"""Small synthetic slides, and where the real images are."""

import io
import os
import signal
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from filelock import FileLock
from hypothesis import settings

# A shell that starts a program in the background lets it ignore these, and all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Tests limit the size of files and kill processes: a truncated .pyc file would break all later runs.
sys.dont_write_bytecode = True
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"

# The same examples in every run; HYPOTHESIS_PROFILE=default draws others.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

ROOT = Path(__file__).parents[1]
# Slow tests visit every place, and draw all examples, only in `make test-thorough`.
THOROUGH = os.environ.get("THOROUGH") == "1"
KILLS = 5 if THOROUGH else 2  # of each of four kinds of trainings, a quarter of those of builds
SHARED = ROOT.parent / "shared"
sys.path.insert(0, str(ROOT))
from cancernet.data.dataset import BuildSettings, Counts, Summary  # noqa: E402

# A worker that begins one of these last would end long after the other.
SLOWEST = ["test_ray", "test_faults", "test_killed_trainings", "test_distribution", "test_search_verb"]
SLOWEST += ["test_train", "test_architectures", "test_fitting", "test_app"]  # of the fast tests


def pytest_collection_modifyitems(items):
    """Begin with the slowest files, in an order that `--no-loadscope-reorder` keeps."""
    items.sort(key=lambda item: SLOWEST.index(item.path.stem) if item.path.stem in SLOWEST else len(SLOWEST))


@pytest.fixture
def shared():
    """The folder of real images; the test is skipped where there is none."""
    if not (SHARED / "data").is_dir():
        pytest.skip("no real images in ../shared/data")
    return SHARED


def thin(count: int) -> int:
    """A fifth of so many examples, unless the tests are thorough."""
    return count if THOROUGH else count // 5


def write_image(path: Path, seed: int = 0, shape=(50, 50, 3)) -> Path:
    """A picture of noise, different for every seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))
    return path


def write_slides(folder: Path, patients: int = 10, patches: int = 6, *, first: int = 100) -> Path:
    """IDC's layout: noise for both classes, IDC darker, a third of each patient's patches."""
    for patient in range(first, first + patients):
        for number in range(patches):
            label = int(number % 3 == 0)
            name = f"{patient}_idx5_x{50 * number + 1}_y{51 + 50 * (patient % 2)}_class{label}.png"
            path = folder / str(patient) / str(label) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            rng = np.random.default_rng([patient, number])
            cv2.imwrite(str(path), rng.integers(0, 120 if label else 256, (50, 50, 3), dtype=np.uint8))
    return folder


def zip_files(files, method=zipfile.ZIP_DEFLATED) -> bytes:
    """A zip of (name, bytes)."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return stream.getvalue()


def make_summary(**changes) -> Summary:
    """What a build of four images wrote in dataset.json, with some fields changed."""
    counts = Counts(images=4, patients=2, classes={"0": 3, "1": 1})
    summary = Summary(
        source_images=6,
        images=4,
        splits={"training": counts, "all": counts},
        images_without_patient=0,
        rejected=1,
        left_out_images=1,
        left_out_patients=0,
        grey_images=2,
        almost_black=0,
        edge_tiles=1,
        sizes={"50x50": 3, "7x50": 1},
        duplicates_across_patients=1,
        duplicates_across_splits=0,
        duplicates=(("a", "b"),),
        split="file",
        settings=BuildSettings("source", "patient", {"8863": "training"}, 42, "copy", r"^(\d+)_idx"),
        nesting="",
        source_fingerprint="ab",
    )
    return replace(summary, **changes)


# What a child process prints of its own peak memory, in MB. Not ru_maxrss: that begins at the parent's.
# For a process that trains: a backbone of four layers, and a checkpoint before every step, so that a kill can meet one.
SMALL_BACKBONE = """
import keras
from cancernet.models.architectures import ARCHITECTURES
from cancernet.training import checkpoints
def small_backbone(include_top, weights, input_tensor):
    maps = input_tensor
    for name in ARCHITECTURES["mobilenetv3small"].stages:
        maps = keras.layers.Conv2D(4, 3, strides=2, activation="relu", name=name)(maps)
    return keras.Model(input_tensor, keras.layers.Conv2D(8, 3, activation="relu")(maps))

keras.applications.MobileNetV3Small = small_backbone
checkpoints._SECONDS_BETWEEN_CHECKPOINTS = checkpoints._MAX_SECONDS_BETWEEN = -1
"""

PRINT_PEAK_MB = """
import re
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read()).group(1)) // 1024)
"""


@pytest.fixture
def slides(tmp_path):
    return write_slides(tmp_path / "source")


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """The folder of a small finished run of two classes, with smoothing over neighbours. Tests must not change it.

    The processes of pytest-xdist share it; the first one that needs it makes it.
    """
    from tiny_run import make_run

    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    with FileLock(shared / "tiny.lock"):
        if not (shared / "tiny").is_dir():
            make_run(tmp_path_factory.mktemp("runs") / "tiny").rename(shared / "tiny")
    before = read_files(shared / "tiny")
    yield shared / "tiny"
    assert read_files(shared / "tiny") == before


def read_files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def folders(tmp_path):
    """Three runs on the same images, to be compared."""
    from evaluated_runs import make_predictions, write_run

    warned = {"warnings": ["Beware of the dog."]}
    return [
        write_run(tmp_path / "weak", make_predictions(1, 0.5), **warned),
        write_run(tmp_path / "strong", make_predictions(2, 2.5), **warned, decision=None),
        write_run(tmp_path / "$mine", make_predictions(5, 0.5), warnings=["Only here."]),
    ]
