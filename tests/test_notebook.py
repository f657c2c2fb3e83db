"""A notebook that runs the README's commands with `!`, and its Python example in a cell."""

import json
import os
import re
import shutil
import site
import sys
import venv
from pathlib import Path

import nbclient
import nbformat
import pytest
from conftest import ROOT, write_slides
from test_readme import read_example

SMALLER = ["--model", "simple_cnn", "--image-size", "24", "--epochs", "2", "--members", "2"]  # the last ones count


def read_commands() -> list[str]:
    """Return the README's two commands on synthetic slides."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    build, train = re.findall(r"^ {4}(python (?:build_dataset|train_model)\.py .*datasets/demo.*)$", text, re.MULTILINE)
    return [build, " ".join([train, *SMALLER])]


def make_kernel(folder: Path) -> Path:
    """Make an environment with the packages of this one, and a kernel "other" in it; return the folder for Jupyter."""
    venv.create(folder / "environment", symlinks=True)
    (packages,) = (folder / "environment").glob("lib/python*/site-packages")
    (packages / "of_the_tests.pth").write_text("\n".join(site.getsitepackages()))
    command = [str(folder / "environment/bin/python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel = folder / "jupyter/kernels/other/kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text(json.dumps({"argv": command, "display_name": "other", "language": "python"}))
    return folder / "jupyter"


def print_output(cell) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


@pytest.mark.slow
def test_the_commands_and_the_example_run_in_a_notebook(tmp_path, monkeypatch):
    slides = write_slides(tmp_path / "datasets/sample", patients=20)  # so that --sample writes none
    for number, image in enumerate(sorted(slides.rglob("*.png"))[:2], 1):
        shutil.copy(image, tmp_path / f"patch_{number}.png")
    for script in ("build_dataset.py", "train_model.py"):
        shutil.copy(ROOT / script, tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.setenv("JUPYTER_PATH", str(make_kernel(tmp_path)))
    cells = [*(f"!{command}" for command in read_commands()), read_example(), "import sys; print(sys.prefix)"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=900, resources=resources, kernel_name="other").execute()
    build, train, example, prefix = map(print_output, notebook.cells)
    assert prefix.strip() == str(tmp_path / "environment")
    assert "Written to datasets/demo" in build
    assert "The report with its pictures: runs/demo/report.html" in train
    assert len(re.findall(r"^ +2/2 ", train, re.MULTILINE)) == 2  # one line an epoch and member
    for text in (build, train):
        assert not re.search("Traceback|^error: |findfont|━|\x1b", text, re.MULTILINE)
    assert example.startswith("['")
    assert (tmp_path / "runs/demo/confusion_matrix.png").is_file()
