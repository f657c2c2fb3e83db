"""A run folder: written, loaded, or refused with what is wrong."""

import importlib.metadata
import json
import os
import shutil
import sys

import numpy as np
import pytest

from cancernet import InputError
from cancernet.data.dataset import Patch
from cancernet.evaluation.smoothing import Predictions
from cancernet.run import (
    choose_folder,
    describe_machine,
    finish_folder,
    is_finished,
    load_run,
    name_class,
    prepare_folder,
    read_predictions,
    read_settings,
    write_predictions,
)


def test_what_validation_images_are_like_is_kept_and_runs_without_it_load(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    spread = load_run(run).familiar.spreads[0]
    assert spread.limit > 1
    assert spread.mean.dtype == np.float32
    with np.load(run / "familiar.npz", allow_pickle=False) as file:
        np.testing.assert_array_equal(file["0_whitening"], spread.whitening)
        parts = dict(file)
    np.savez(run / "familiar.npz", **(parts | {"0_mean": parts["0_mean"][1:]}))
    with pytest.raises(InputError, match="familiar.npz is damaged or of another run. Train again"):
        load_run(run)
    (run / "familiar.npz").unlink()
    assert load_run(run).familiar is None


def test_versions_are_told_of_packages_that_are_not_imported_yet(monkeypatch):
    monkeypatch.delitem(sys.modules, "imutils", raising=False)
    assert describe_machine()["versions"]["imutils"] == importlib.metadata.version("imutils")


def test_a_run_without_an_output_is_numbered_and_an_unfinished_one_goes_on(tmp_path):
    def finish(folder):
        (folder.parent / f"{folder.name}.unfinished").rename(folder)
        (folder / "report.json").write_text("{}")

    base, asked, other = tmp_path / "cancernet", {"epochs": 3}, {"epochs": 4}
    assert choose_folder(base, asked) == base
    prepare_folder(base, asked, force=False)
    assert choose_folder(base, asked) == base
    finish(base)
    second = tmp_path / "cancernet-2"
    assert choose_folder(base, asked) == second
    prepare_folder(second, asked, force=False)
    assert choose_folder(base, asked) == second
    assert choose_folder(base, other) == second  # which prepare_folder refuses: it was begun with other settings
    finish(second)
    prepare_folder(tmp_path / "cancernet-3", other, force=False)
    assert choose_folder(base, other) == tmp_path / "cancernet-3"


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def rename_classes(content):
    content["classes"] = ["cat", "dog"]
    content["positive"] = "dog"
    if content.get("without_neighbours"):
        rename_classes(content["without_neighbours"])


@pytest.mark.parametrize(
    ("file", "change", "difference"),
    [
        ("decision.json", rename_classes, "decision.json has the classes cat, dog, config.json 0, 1"),
        ("config.json", lambda c: c.update(positive="0"), "the positive class is 1 in decision.json, 0 in config.json"),
        ("config.json", lambda c: c["classes"].append("2"), "model.keras tells 2 classes apart, config.json names 3"),
        (
            "config.json",
            lambda c: c["experiment"].update(channels=1),
            "model.keras takes images of the shape [48, 48, 3], config.json says [48, 48, 1]",
        ),
    ],
)
def test_files_of_different_runs_are_refused_with_the_difference(tiny_run, tmp_path, file, change, difference):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    edit(run / file, change)
    with pytest.raises(InputError) as caught:
        load_run(run)
    assert str(caught.value) == f"The files of {run} are not of one run: {difference}. Copy the whole run folder."


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        *((lambda c, key=key: c.pop(key), f"{key}: Field required") for key in ("classes", "positive", "seen", "mpp")),
        (lambda c: c["seen"].pop("images"), r"seen\.images: Field required"),
        (lambda c: c["experiment"].update(image_size="48"), r"experiment\.image_size: .* integer, not '48'"),
        (lambda c: c["experiment"].update(learning_rate=1e400), r"experiment\.learning_rate: .* finite number"),
        (lambda c: c.update(images_are_grey="no"), "images_are_grey: .* boolean, not 'no'"),
        (lambda c: c.update(classes={"0": 1}), "classes: .* array"),
    ],
)
def test_a_config_of_wrong_types_is_damaged(tiny_run, tmp_path, change, problem):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    edit(run / "config.json", change)
    with pytest.raises(InputError, match=rf"config\.json is damaged: {problem}.* Train again, or copy"):
        load_run(run)


def test_a_model_file_with_a_flipped_byte_is_damaged(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    content = bytearray((run / "model.keras").read_bytes())
    content[content.index(b"config.json") + 100] ^= 1
    (run / "model.keras").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.keras is missing or damaged"):
        load_run(run)


def test_a_cross_validation_is_told_from_a_damaged_run(tiny_run, tmp_path):
    for fold in (1, 2):
        shutil.copytree(tiny_run, tmp_path / f"folds/fold_{fold}")
    with pytest.raises(InputError, match=r"folds is a cross-validation, .* Give a run of it: .*folds/fold_1\.$"):
        load_run(tmp_path / "folds")


def test_settings_come_back_as_they_were_written(tiny_run):
    settings = read_settings(tiny_run)
    assert settings.experiment.image_size == 48
    assert settings.classes == ("0", "1")
    assert settings.seen.patients == ("1", "2", "3", "4")
    assert name_class(settings, "1") == "IDC"


def test_predictions_come_back_to_the_last_digit(tmp_path):
    patches = [Patch("a.png", "0", "p", 1, 51, "", ""), Patch("b.png", "1", "", None, None, "", "")]
    written = Predictions(patches, np.array([0, 1]), np.array([[0.1 + 0.2, 0.7], [1 / 3, 2 / 3]]), np.array([1, 1]))
    write_predictions(tmp_path, written, ["0", "1"])
    read = read_predictions(tmp_path, ["0", "1"])
    assert read.patches == patches
    for before, after in zip(written[1:], read[1:], strict=True):
        np.testing.assert_array_equal(before, after)


ASKED = {"epochs": 3}


def begin(run, asked=ASKED, *, force=False):
    return prepare_folder(run, asked, force=force)


def finish(work):
    """Leave what a finished training does, its checkpoints among it."""
    for file in ("report.json", "checkpoint/state.json", "checkpoint_head/state.json", "fold_1/checkpoint/state.json"):
        (work / file).parent.mkdir(parents=True, exist_ok=True)
        (work / file).write_text("{}")


def test_a_run_that_cannot_be_replaced_is_finished_by_the_next_call(tmp_path, monkeypatch):
    run, rename = tmp_path / "run", type(tmp_path).rename
    (run / "old").mkdir(parents=True)
    for file in ("report.json", "model.keras"):
        (run / file).write_text("{}")
    work = begin(run, force=True)
    finish(work)
    monkeypatch.setattr(type(tmp_path), "rename", lambda path, to: rename(path, to if path != work else "/proc/x"))
    with pytest.raises(InputError, match=f"The run is finished and lies in {work}; the same command gives it its name"):
        finish_folder(work, run)
    assert (run / "old").is_dir()
    monkeypatch.setattr(type(tmp_path), "rename", rename)
    assert begin(run, force=True) == work
    assert is_finished(work)
    finish_folder(work, run)
    assert sorted(path.name for path in run.iterdir()) == ["fold_1", "report.json"]
    assert os.listdir(tmp_path) == ["run"]


def test_what_is_unfinished_is_deleted_with_force_only(tmp_path):
    run = tmp_path / "run"
    work = begin(run)
    assert begin(run, {"epochs": 4}) == work  # nothing was done yet that could be lost
    begun = work / "begun.json"
    for lost in (lambda: None, lambda: begun.write_bytes(b"\xff"), begun.unlink):  # of other settings; of unknown ones
        finish(work)
        lost()
        with pytest.raises(InputError, match=r"run.unfinished was begun with other settings. Start again with --force"):
            begin(run)
        assert is_finished(work)
    begin(run, force=True)
    assert not is_finished(work)


def test_a_training_killed_as_it_began_begins_again(tmp_path):
    (tmp_path / "run.unfinished").mkdir()
    (tmp_path / "run.unfinished/.begun.json.partial").write_text("{")
    work = begin(tmp_path / "run")
    assert os.listdir(work) == ["begun.json"]


def test_a_run_in_a_link_or_a_mount_point_is_refused_before_training(tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(InputError, match="is a link"):
        begin(tmp_path / "link")
    monkeypatch.setattr(os.path, "ismount", lambda path: path == tmp_path / "volume")
    with pytest.raises(InputError, match="is a mount point and cannot"):
        begin(tmp_path / "volume")
