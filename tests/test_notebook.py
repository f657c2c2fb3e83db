"""A notebook that runs the README's commands with `!`, and its Python example in a cell."""

import os
import re
import shutil
import sys
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
    cells = [*(f"!{command}" for command in read_commands()), read_example()]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    build, train, example = map(print_output, notebook.cells)
    assert "Written to datasets/demo" in build
    assert "The report with its pictures: runs/demo/report.html" in train
    assert len(re.findall(r"^ +2/2 ", train, re.MULTILINE)) == 2  # one line an epoch and member
    for text in (build, train):
        assert not re.search("Traceback|^error: |findfont|━|\x1b", text, re.MULTILINE)
    assert example.startswith("['")
    assert (tmp_path / "runs/demo/confusion_matrix.png").is_file()
