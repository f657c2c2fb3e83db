"""The export script: what it says, and what it refuses."""

import shutil

import pytest
from conftest import write_slides

import build_dataset
import export_model
from cancernet import InputError


@pytest.fixture
def dataset(tmp_path):
    write_slides(tmp_path / "source", patients=10)
    build_dataset.main(["--source", str(tmp_path / "source"), "--output", str(tmp_path / "dataset")])
    return tmp_path / "dataset"


def test_an_export_lies_in_the_run_and_says_how_equal_it_is(tiny_run, dataset, tmp_path, capsys):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    export_model.main([str(run), "--format", "saved_model", "--dataset", str(dataset)])
    said = capsys.readouterr().out
    assert "differs by more than" in said
    assert "from the run's on 60 images." in said
    assert {"saved_model.pb", "model.json"} <= {path.name for path in (run / "saved_model").iterdir()}


@pytest.mark.parametrize(
    ("run", "options", "message"),
    [
        ("none", [], "There is no run .*none. Train one with train_model.py"),
        ("run", ["--dataset", "nowhere"], "nowhere has no manifest.csv"),
        ("run", ["--format", "h5"], "argument --format: invalid choice: 'h5'"),
    ],
)
def test_what_cannot_be_exported_is_told_at_once(tiny_run, tmp_path, run, options, message):
    (tmp_path / "run").symlink_to(tiny_run)
    with pytest.raises(InputError, match=message):
        export_model.main([str(tmp_path / run), "--format", "onnx", *options])
