"""One file operation fails, or kills the process: the old or the new result, whole, and the next run ends well.

The operations are failed by a library that is compiled here, also those of C code. Of each kind of operation a place is
drawn; THOROUGH=1 tries every error at the first, the middle and the last place of each kind, and takes half an hour.
"""

import errno
import hashlib
import mmap
import os
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, THOROUGH, write_slides
from forking import TRAINER, ForkServer

pytestmark = pytest.mark.slow

KINDS = ("open to write", "write", "flush", "rename", "delete", "make a folder", "open to read")
KILLED = 0
ERRORS = (errno.EIO, errno.ENOSPC, KILLED)
BUILDER = """
import sklearn.model_selection
from cancernet.data import building
from cancernet.workflow import build

build.save_overview = lambda *_: None
"""
WITHOUT_PICTURES = """
report.draw_figures = lambda *_, **__: {}
illustration.draw_augmentation = lambda *_, **__: {}
"""


class FaultServer(ForkServer):
    """A server of whose commands one file operation below `folder` fails."""

    def __init__(self, code: str, folder: Path, hidden: Path):
        library, control = hidden / "fault.so", hidden / "control"
        compiler = shutil.which("cc")
        if not compiler or sys.platform != "linux":
            pytest.skip("needs Linux and a C compiler")
        source = ROOT / "tests/fault.c"
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
        control.write_bytes(bytes(8 * (3 + len(KINDS))))
        with control.open("r+b") as file:
            self.control = mmap.mmap(file.fileno(), 0)
        variables = {"LD_PRELOAD": library, "FAULT_FOLDER": folder, "FAULT_CONTROL": control}
        super().__init__(code, hidden, **{name: str(value) for name, value in variables.items()})

    def run(self, command, *, kind=-1, number=0, error=0):
        """Return exit status, what was printed, and how many operations of each kind there were."""
        self.control[:] = struct.pack(f"{3 + len(KINDS)}q", kind, number, error, *[0] * len(KINDS))
        status, said = self.start(command).finish()
        return status, said, struct.unpack(f"{3 + len(KINDS)}q", self.control[:])[3:]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A server that builds, a source and a dataset."""
    hidden, folder = tmp_path_factory.mktemp("hidden"), tmp_path_factory.mktemp("faults")
    server = FaultServer(BUILDER, folder, hidden)
    write_slides(hidden / "source", patients=12, patches=6)
    assert server.run(["build", "--source", hidden / "source", "--output", hidden / "dataset"])[0] == 0
    yield server, hidden, folder
    server.end()


@pytest.fixture(scope="module")
def made(built):
    """A server that trains and predicts, and a run."""
    _, hidden, folder = built
    server = FaultServer(TRAINER + WITHOUT_PICTURES, folder, hidden)
    status, said, _ = server.run([*TRAIN, "--dataset", hidden / "dataset", "--output", hidden / "run"])
    assert status == 0, said
    yield server, hidden, folder
    server.end()


TRAIN = ["train", "--model", "simple_cnn", "--image-size", 24, "--views", "one", "--batch-size", 16, "--epochs", 2]
FROZEN = ["train", "--model", "mobilenetv3small", "--weights", "none", "--image-size", 32, "--views", "one"]


def hash_files(folder, names):
    """The content of a finished result; None where there is none."""
    files = sorted(
        path for name in names for path in folder.glob(name) if path.is_file() and ".unfinished" not in str(path)
    )
    return [(str(path.relative_to(folder)), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files] or None


def list_faults(counts):
    """Kind, number and error of the operations to fail: of each kind one, and the last to delete and to rename."""
    if THOROUGH:
        places = [(kind, number) for kind, n in enumerate(counts) for number in sorted({1, (n + 1) // 2, n} - {0})]
        return [(*place, error) for place in places for error in ERRORS]
    drawn = random.Random(0)
    places = [(kind, drawn.randint(1, count)) for kind, count in enumerate(counts) if count]
    places += [(kind, counts[kind]) for kind in map(KINDS.index, ("delete", "rename", "rename"))]
    return [(*place, ERRORS[number % len(ERRORS)]) for number, place in enumerate(places)]


def sweep(server, command, output, begin, names):
    """Fail operations of a command one by one, and check what is left, what is said, and the next run."""
    begin()
    old = hash_files(output, names)
    status, said, counts = server.run(command)
    assert status == 0, said
    new = hash_files(output, names)
    assert new
    assert new != old
    tried = []
    for kind, number, error in list_faults(counts):
        begin()
        status, said, _ = server.run(command, kind=kind, number=number, error=error)
        what = f"{KINDS[kind]} {number} of {counts[kind]}, {errno.errorcode.get(error, 'killed')}: {status}, {said}"
        assert status in (0, 2) or (error, status) == (KILLED, -9), what
        assert "Traceback" not in said, what
        if status == 2:
            assert sum(line.startswith("error: ") for line in said.splitlines()) == 1, what
        assert hash_files(output, names) in ([new] if status == 0 else [old, new]), what
        status, said, _ = server.run(command)
        assert status == 0, f"after {what}: {said}"
        assert hash_files(output, names) == new, what
        assert not [name for name in os.listdir(output.parent) if "cancernet-" in name], what
        tried.append(status)
        print(what.splitlines()[0][:300], flush=True)
    print(f"{len(tried)} faults; operations: {dict(zip(KINDS, counts, strict=True))}")
    assert len(tried) >= 7


def begin_with(folder, **copied):
    """Empty the folder, and put copies of other folders, such as an old result, into it."""

    def begin():
        shutil.rmtree(folder)
        folder.mkdir()
        for name, path in copied.items():
            shutil.copytree(path, folder / name)

    return begin


def test_a_build(built):
    server, hidden, folder = built
    command = ["build", "--source", folder / "source", "--output", folder / "built", "--seed", 7, "--force"]
    names = ("manifest.csv", "rejected.csv", "*/*/*.png")
    begin = begin_with(folder, source=hidden / "source", built=hidden / "dataset")
    sweep(server, command, folder / "built", begin, names)


def test_a_training_with_checkpoints_and_report(made):
    server, hidden, folder = made
    command = [*TRAIN, "--dataset", hidden / "dataset", "--output", folder / "run", "--seed", 3, "--force"]
    names = ("predictions.csv", "decision.json", "samples/*/*")
    sweep(server, command, folder / "run", begin_with(folder, run=hidden / "run"), names)


def test_features(made):
    server, hidden, folder = made
    shutil.copytree(hidden / "dataset", hidden / "copy", dirs_exist_ok=True)
    command = [*FROZEN, "--dataset", folder / "dataset", "--output", hidden / "frozen", "--force"]
    features = folder / "dataset.features"
    sweep(server, command, features, begin_with(folder, dataset=hidden / "copy"), ("*/features.npy", "*/features.json"))


def test_a_prediction(made):
    server, hidden, folder = made
    assert server.run(["predict", hidden / "run", hidden / "source/100", "--output", hidden / "old"])[0] == 0
    command = ["predict", hidden / "run", folder / "source/100", folder / "source/101", "--output", folder / "new"]
    begin = begin_with(folder, source=hidden / "source", new=hidden / "old")
    sweep(server, [*command, "--force"], folder / "new", begin, ("*.csv", "*.geojson"))
