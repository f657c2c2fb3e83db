"""The wheel, installed without the checkout: what it contains, the command, and the example of the README."""

import json
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT
from test_readme import read_example

import cancernet

pytestmark = pytest.mark.slow
SOURCES = ("cancernet", "pyproject.toml", "README.md", "LICENSE")


def run(*command: str | Path, folder: Path) -> str:
    done = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel from a copy of the sources, because setuptools writes into the folder that it builds from."""
    folder = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder)
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    run(*pip, "--wheel-dir", folder / "dist", folder, folder=folder)
    return next((folder / "dist").glob("cancernet-*.whl"))


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """Install the wheel into a new environment that takes its dependencies from the environment of the tests."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", folder=folder)
    scripts = folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
    python = scripts / "python"
    (site_packages,) = (folder / "venv").glob("**/site-packages")
    (site_packages / "tests.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, folder=folder)
    return scripts


def test_the_wheel_installs_only_the_package_and_its_command(wheel):
    with zipfile.ZipFile(wheel) as files:
        names = set(files.namelist())
        entry_points = files.read(f"cancernet-{cancernet.__version__}.dist-info/entry_points.txt").decode()
        metadata = files.read(f"cancernet-{cancernet.__version__}.dist-info/METADATA").decode()
    assert {name.split("/")[0] for name in names} == {"cancernet", f"cancernet-{cancernet.__version__}.dist-info"}
    assert {"cancernet/py.typed", "cancernet/reporting/templates/report.html"} <= names
    tracked = {path.relative_to(ROOT).as_posix() for path in (ROOT / "cancernet").rglob("*.py")}
    assert tracked <= names
    assert entry_points.startswith("[console_scripts]\ncancernet = cancernet.")
    assert "\nLicense-Expression: Apache-2.0\n" in metadata


def test_the_installed_command_builds_and_trains_outside_the_checkout(environment, tmp_path):
    command = environment / "cancernet"
    assert run(command, "--version", folder=tmp_path) == f"cancernet {cancernet.__version__}\n"
    imported = run(environment / "python", "-c", "import cancernet; print(cancernet.__file__)", folder=tmp_path)
    assert Path(imported.strip()).is_relative_to(environment.parent)
    run(command, "build", "--sample", "--source", "sample", "--output", "dataset", folder=tmp_path)
    train = ["train", "--dataset", "dataset", "--output", "runs/demo", "--epochs", "1", "--views", "one"]
    run(command, *train, "--model", "simple_cnn", "--image-size", "24", folder=tmp_path)
    metrics = json.loads((tmp_path / "runs/demo/report.json").read_text(encoding="utf-8"))["metrics"]
    assert 0 <= metrics["sensitivity"]["value"] <= 1
    assert (tmp_path / "runs/demo/report.html").is_file()
    patches = sorted((tmp_path / "dataset/testing").glob("*/*.png"))
    for number in (1, 2):
        shutil.copy(patches[-number], tmp_path / f"patch_{number}.png")
    assert run(environment / "python", "-c", read_example(), folder=tmp_path).strip()
