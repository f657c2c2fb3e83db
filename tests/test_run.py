"""A run folder: written, loaded, or refused with what is wrong."""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import shutil
import sys

import numpy as np
import pytest

from cancernet import InputError, StorageError
from cancernet.data.dataset import Patch
from cancernet.evaluation.label_check import SuspiciousLabel
from cancernet.evaluation.predictions import Predictions
from cancernet.run import (
    Seen,
    check_same_kind,
    choose_folder,
    compare_scales,
    describe_machine,
    describe_seen,
    find_runs,
    find_seen,
    finish_folder,
    is_finished,
    load_run,
    name_class,
    name_unfinished,
    prepare_folder,
    read_predictions,
    read_report,
    read_settings,
    save_run,
    write_labels_to_check,
    write_predictions,
    write_settings,
)


def test_the_detector_is_kept_and_runs_without_one_load(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    path = run / "out_of_distribution.npz"
    reference = load_run(run).detector.references[0]
    assert reference.limit > 1
    assert reference.mean.dtype == np.float32
    with np.load(path, allow_pickle=False) as file:
        np.testing.assert_array_equal(file["0_whitening"], reference.whitening)
        parts = dict(file)
    np.savez(path, **(parts | {"0_mean": parts["0_mean"][1:]}))
    with pytest.raises(StorageError, match="out_of_distribution.npz is damaged or of another run. Train again"):
        load_run(run)
    path.unlink()
    assert load_run(run).detector is None


def test_the_detector_of_version_0_1_is_read_under_its_older_name(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    before = load_run(run).detector.references[0]
    (run / "out_of_distribution.npz").rename(run / "familiar.npz")
    for one, other in zip(before, load_run(run).detector.references[0], strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_decision_of_an_older_ensemble_is_one_on_out_of_fold_predictions(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    assert not load_run(run).decision.fitted_on.out_of_fold
    for name, part in (("decision.json", '"out_of_fold"'), ("config.json", '"members"')):
        content = (run / name).read_text()
        assert part in content
        (run / name).write_text(content.replace('"out_of_fold"', '"unknown"').replace('"members": 1', '"members": 5'))
    decision = load_run(run).decision
    assert decision.fitted_on.out_of_fold
    assert decision.without_neighbours.fitted_on.out_of_fold


def test_a_machine_is_its_versions_and_hardware_also_of_packages_that_are_not_imported_yet(monkeypatch):
    import keras

    monkeypatch.delitem(sys.modules, "imutils", raising=False)
    versions, hardware = describe_machine()
    assert versions["imutils"] == importlib.metadata.version("imutils")
    assert {"cancernet", "python", "tensorflow", "keras"} <= versions.keys()
    assert ("jax" in versions) == (keras.backend.backend() == "jax")
    assert (hardware.keys(), hardware["cores"]) == ({"device", "cores", "system"}, os.cpu_count())


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
        ("config.json", lambda c: c["classes"].append("2"), "model.keras has 2 classes, config.json has 3"),
        (
            "config.json",
            lambda c: c["experiment"].update(channels=1),
            "model.keras takes images of shape [48, 48, 3], config.json says [48, 48, 1]",
        ),
    ],
)
def test_files_of_different_runs_are_refused_with_the_difference(tiny_run, tmp_path, file, change, difference):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    edit(run / file, change)
    with pytest.raises(StorageError) as caught:
        load_run(run)
    assert str(caught.value) == f"The files in {run} are of different runs: {difference}. Copy the whole run folder."


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
    with pytest.raises(StorageError, match=rf"config\.json is damaged: {problem}.* Train again, or copy"):
        load_run(run)


def test_a_model_file_with_a_flipped_byte_is_damaged(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    content = bytearray((run / "model.keras").read_bytes())
    content[content.index(b"config.json") + 100] ^= 1
    (run / "model.keras").write_bytes(content)
    with pytest.raises(StorageError, match=r"model\.keras is missing or damaged"):
        load_run(run)


def test_a_cross_validation_is_told_from_a_damaged_run(tiny_run, tmp_path):
    for fold in (1, 2):
        shutil.copytree(tiny_run, tmp_path / f"folds/fold_{fold}")
    with pytest.raises(InputError, match=r"folds is a cross-validation, .* Give a fold: .*folds/fold_1\.$"):
        load_run(tmp_path / "folds")


def test_settings_come_back_as_they_were_written(tiny_run):
    settings = read_settings(tiny_run)
    assert settings.experiment.image_size == 48
    assert settings.classes == ("0", "1")
    assert settings.seen.patients == ("1", "2", "3", "4")
    assert name_class(settings, "1") == "IDC"


def test_predictions_come_back_to_the_last_digit(tmp_path):
    patches = [Patch("a.png", "0", "p\r\nq", 1, 51, "", ""), Patch("b.png", "1", "", None, None, "", "")]
    written = Predictions(patches, np.array([0, 1]), np.array([[0.1 + 0.2, 0.7], [1 / 3, 2 / 3]]), np.array([1, 1]))
    write_predictions(tmp_path, written, ["0", "1"])
    read = read_predictions(tmp_path, ["0", "1"])
    assert read.patches == patches
    assert len((tmp_path / "predictions.csv").read_text().splitlines()[0].split(",")) == 8
    for column in ("labels", "probabilities", "predicted"):
        np.testing.assert_array_equal(getattr(read, column), getattr(written, column))


def test_predictions_have_the_manifests_columns_of_few_values_whatever_their_names(tmp_path):
    patches = [
        Patch(
            f"{row}.png", "0", "p", 1, 51, "", "", (("age", f"{row}"), ("predicted", "1"), ("site", "a,b" * (row % 2)))
        )
        for row in range(12)
    ]
    write_predictions(tmp_path, Predictions(patches, np.zeros(12, int), np.full((12, 2), 0.5), np.zeros(12, int)), "01")
    assert (tmp_path / "predictions.csv").read_text().splitlines()[2] == '1.png,0,p,1,51,0.5,0.5,0,1,"a,b"'
    read = read_predictions(tmp_path, "01")
    assert [patch.more for patch in read.patches[:2]] == [
        (("predicted", "1"), ("site", "")),
        (("predicted", "1"), ("site", "a,b")),
    ]
    assert not read.predicted.any()


ASKED = {"epochs": 3}


def begin(run, asked=ASKED, *, force=False):
    return prepare_folder(run, asked, force=force)


def finish(work):
    """Leave what a finished training does, its checkpoints among it."""
    left = ("checkpoint/state.json", "checkpoint_head/state.json", "fold_1/checkpoint/state.json", "features/a.npy")
    for file in ("report.json", *left):
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
    said = f"{run} cannot be replaced. The finished run is in {work}; repeat the command to rename it."
    with pytest.raises(StorageError, match=said):
        finish_folder(work, run)
    assert (run / "old").is_dir()
    monkeypatch.setattr(type(tmp_path), "rename", rename)
    assert begin(run, force=True) == work
    assert is_finished(work)
    finish_folder(work, run)
    assert sorted(path.name for path in run.rglob("*")) == ["fold_1", "report.json"]
    assert os.listdir(tmp_path) == ["run"]


def test_what_is_unfinished_is_deleted_with_force_only(tmp_path):
    run = tmp_path / "run"
    work = begin(run)
    assert begin(run, {"epochs": 4}) == work  # nothing was done yet that could be lost
    begun = work / "begun.json"
    for lost in (lambda: None, lambda: begun.write_bytes(b"\xff")):  # of other settings; of unknown ones
        finish(work)
        lost()
        with pytest.raises(InputError, match="run.unfinished was started with other settings. Finish it with"):
            begin(run)
        assert is_finished(work)
    begin(run, force=True)
    assert not is_finished(work)


def test_a_folder_of_the_users_own_is_never_taken_for_an_unfinished_run(tmp_path):
    (tmp_path / "run.unfinished").mkdir()
    (tmp_path / "run.unfinished/thesis.txt").write_text("x")
    for force in (False, True):
        with pytest.raises(InputError, match="run.unfinished contains other files, not an unfinished run. Choose"):
            begin(tmp_path / "run", force=force)
    assert (tmp_path / "run.unfinished/thesis.txt").read_text() == "x"


def test_a_training_killed_as_it_began_begins_again(tmp_path):
    (tmp_path / "run.unfinished").mkdir()
    (tmp_path / "run.unfinished/.begun.json.cancernet-new").write_text("{")
    work = begin(tmp_path / "run")
    assert os.listdir(work) == ["begun.json"]


def test_the_output_folder_is_checked_before_training(tmp_path):
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(InputError, match="contains other files, not a trained run"):
        begin(tmp_path, force=True)


OLD_CONFIG = """{
 "experiment": {"model": "densenet121", "recipe": "transfer", "image_size": 96, "channels": 3, "weights": "none",
  "strategy": "frozen", "head": "kernel", "epochs": 40, "batch_size": 32, "optimizer": "adam", "learning_rate": 0.001,
  "schedule": "plateau", "weight_decay": 0.0, "class_weight": "balanced", "augmentation": {"rotation_degrees": 0.0,
  "zoom": 0.0, "shift": 0.0, "shear_degrees": 0.0, "mirror": true, "upend": false, "quarter_turns": false,
  "stain_jitter": 0.0}, "dropout": 0.5, "statistics_momentum": 0.9, "views": "mirror", "kept_weights": "best",
  "early_stopping_patience": 10, "members": 5, "mixed_precision": false, "seed": 42},
 "classes": ["covid", "normal", "pneumonia_bac"], "positive": null, "training_precision": "float32",
 "operating_point": "balanced", "neighbours": true,
 "manifest_sha256": "c9d2c797f6ff253dbf5c0e09521889971cc996b5e31c41f95261bcdc6fa2b8a9", "images_are_grey": true,
 "usual_size": "256x256", "mpp": null, "versions": {"cancernet": "0.1.0", "python": "3.11.7"},
 "hardware": {"device": "CPU", "cores": 2, "system": "Linux"}, "class_names": null,
 "seen": {"patients": ["person10", "person100"], "images": "00ce32565b247d3700ecc8c9877e2093"}
}"""


def test_a_config_of_release_0_1_is_read_with_the_present_names(tmp_path):
    (tmp_path / "config.json").write_text(OLD_CONFIG)
    settings = read_settings(tmp_path)
    flips = settings.experiment.augmentation
    assert (flips.horizontal_flip, flips.vertical_flip) == (True, False)
    assert settings.experiment.members == 5
    assert settings.seen == Seen(("person10", "person100"), "00ce32565b247d3700ecc8c9877e2093")
    write_settings(tmp_path, settings)
    assert '"head"' not in (tmp_path / "config.json").read_text()
    assert read_settings(tmp_path) == settings


@pytest.mark.parametrize("experiment", [3, [], {"augmentation": 3}, {"augmentation": {"mirror": "yes"}}])
def test_an_old_config_that_is_damaged_is_refused_as_a_new_one_is(tmp_path, experiment):
    config = json.loads(OLD_CONFIG) | {"experiment": experiment}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(StorageError, match=r"config\.json is damaged: experiment"):
        read_settings(tmp_path)


def test_a_missing_run_is_named(tmp_path):
    with pytest.raises(InputError, match=r"There is no run .*none\. Train one with train_model.py --output .*none\."):
        read_settings(tmp_path / "none")
    with pytest.raises(InputError, match=r"There is no .*config\.json\. Train again"):
        read_settings(tmp_path)


def test_a_run_on_features_takes_no_images(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    edit(run / "config.json", lambda content: content["experiment"].update(model="features"))
    with pytest.raises(InputError, match=r"run takes features, not images: .* Give features of new images to .*keras"):
        load_run(run)


def test_what_is_saved_is_loaded(tiny_run, tmp_path):
    run = load_run(tiny_run)
    assert (run.classes, run.positive, run.threshold) == (("0", "1"), "1", run.decision.threshold)
    predictions = read_predictions(tiny_run, run.classes)
    saved = dataclasses.replace(run, folder=tmp_path / "saved")
    saved.folder.mkdir()
    run.model.compile("adam", "mse")
    save_run(saved, {"loss": [2.0, 1.5], "val_loss": [2.5, 1.0]}, predictions)
    assert (saved.folder / "history.csv").read_bytes() == b"epoch,loss,val_loss\n1,2.0,2.5\n2,1.5,1.0\n"
    assert read_settings(saved.folder) == dataclasses.replace(
        run.settings, model_sha256=hashlib.sha256((saved.folder / "model.keras").read_bytes()).hexdigest()
    )
    for name in ("decision.json", "predictions.csv"):
        assert (saved.folder / name).read_bytes() == (tiny_run / name).read_bytes()
    assert (tiny_run / "config.json").read_text().startswith('{\n "experiment": {\n  "model": "tiny",')
    again = load_run(saved.folder)
    assert not again.model.compiled  # the loss of a training may be an object of ours
    images = np.zeros((1, 48, 48, 3), np.uint8)
    np.testing.assert_array_equal(run.model.predict(images, verbose=0), again.model.predict(images, verbose=0))
    np.testing.assert_array_equal(run.detector.references[0].mean, again.detector.references[0].mean)
    save_run(dataclasses.replace(saved, folder=tmp_path, detector=None), {}, predictions)
    assert (tmp_path / "history.csv").read_text() == "epoch\n"
    assert not (tmp_path / "out_of_distribution.npz").exists()


def test_a_model_that_is_no_network_is_refused(tiny_run, tmp_path):
    import keras

    run = shutil.copytree(tiny_run, tmp_path / "run")
    layer = keras.layers.Rescaling(2)
    layer.build((None, 1))
    keras.saving.save_model(layer, run / "model.keras")
    write_settings(run, dataclasses.replace(read_settings(run), model_sha256=""))
    with pytest.raises(StorageError, match=r"model\.keras is missing or damaged: it does not contain a network. Train"):
        load_run(run)


def test_a_run_without_a_report_has_none(tmp_path):
    assert read_report(tmp_path, dict) is None
    (tmp_path / "report.json").write_text('{"split": "testing"}')
    assert read_report(tmp_path, dict) == {"split": "testing"}
    (tmp_path / "report.json").write_text("[]")
    with pytest.raises(StorageError, match=r"report\.json is damaged"):
        read_report(tmp_path, dict)


def test_finished_runs_are_found_the_newest_first(tmp_path):
    for number, name in enumerate(("b", "a", "c", "d")):
        (tmp_path / name).mkdir()
        for file in ("model.keras", "config.json", "decision.json"):
            (tmp_path / name / file).write_text("")
            os.utime(tmp_path / name / file, (1000, 1000 + number // 2))
    for missing, name in (("model.keras", "e"), ("config.json", "f"), ("decision.json", "g")):
        shutil.copytree(tmp_path / "a", tmp_path / name)
        (tmp_path / name / missing).unlink()
    assert [run.name for run in find_runs(tmp_path)] == ["d", "c", "b", "a"]
    assert find_runs(tmp_path / "none") == []


def patch(file, label, patient, split="training", digit="a"):
    return Patch(file, label, patient, None, None, split, digit * 64)


def test_what_a_run_has_seen_is_known_by_patient_or_by_bytes():
    patches = [patch("a.png", "0", "p", digit="c"), patch("b.png", "0", "", "validation", "b")]
    seen = describe_seen([*patches, patch("c.png", "1", "q", "testing", "d")])
    assert seen == Seen(("p",), "b" * 16 + "c" * 16)
    new = [patch("new/a.png", "0", "r", digit="c"), patch("new/c.png", "1", "q", digit="d")]
    assert find_seen(seen, new) == ["new/a.png"]
    assert find_seen(seen, [patch("x.png", "0", "p", digit="c"), patch("y.png", "0", "", digit="b")]) == ["p", "y.png"]


def test_images_must_be_of_the_runs_classes_and_colours(tiny_run):
    settings = read_settings(tiny_run)
    check_same_kind(settings, [patch("a.png", "0", "p")], are_grey=False)
    with pytest.raises(InputError, match=r"^The run has the classes 0, 1, not cat, dog\.$"):
        check_same_kind(settings, [patch("a.png", name, "p") for name in ("1", "dog", "cat")], are_grey=False)
    with pytest.raises(InputError, match="trained on colour images; these are grey. Train another run"):
        check_same_kind(settings, [patch("a.png", "0", "p")], are_grey=True)
    grey = dataclasses.replace(settings, images_are_grey=True)
    check_same_kind(grey, [], are_grey=True)
    with pytest.raises(InputError, match="trained on grey images; these are colour"):
        check_same_kind(grey, [], are_grey=False)
    assert compare_scales(settings, "50x50", None) == []
    warning = "The images are 96x96 pixels, those in training were 50x50: is the scale the same?"
    assert compare_scales(settings, "96x96", None) == [warning]
    of_tissue = dataclasses.replace(settings, mpp=4.0)
    assert compare_scales(of_tissue, "50x50", None) == compare_scales(of_tissue, "96x96", 4.02) == []
    warning = "The images have 2 micrometres per pixel, those in training had 4."
    assert compare_scales(of_tissue, "50x50", 2.0) == [warning]


def test_a_class_has_its_own_name_where_it_has_no_other(tiny_run):
    settings = read_settings(tiny_run)
    assert (name_class(settings, "0"), name_class(settings, "x")) == ("benign", "x")
    assert name_class(dataclasses.replace(settings, class_names=None), "0") == "0"


def test_suspicious_labels_are_a_table(tmp_path):
    write_labels_to_check(tmp_path, [SuspiciousLabel("ä.png", "p", "0", "1", 0.25, 0.75)])
    header, row = (tmp_path / "labels_to_check.csv").read_bytes().decode().splitlines(keepends=True)
    assert header == "file,patient,label,suggested,probability_of_label,probability_of_suggested\n"
    assert row == "ä.png,p,0,1,0.25,0.75\n"


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: text.replace("label", "lable"),
        lambda text: text.replace("0,p,1", "cat,p,1"),
        lambda text: text.replace(",1\n", "\n"),
        lambda text: text.replace("0.25", "much"),
        lambda text: text.replace("p,1,", "p,left,"),
    ],
)
def test_damaged_predictions_are_refused(tmp_path, change):
    patches = [Patch("a.png", "0", "p", 1, 51, "", "")]
    write_predictions(tmp_path, Predictions(patches, np.array([0]), np.array([[0.25, 0.75]]), np.array([1])), "01")
    path = tmp_path / "predictions.csv"
    written = path.read_text()
    assert written == "file,label,patient,x,y,probability_0,probability_1,predicted\na.png,0,p,1,51,0.25,0.75,1\n"
    path.write_text(change(written))
    with pytest.raises(StorageError, match=r"predictions\.csv is missing or damaged. Train again"):
        read_predictions(tmp_path, "01")


def test_the_unfinished_run_is_in_the_same_folder(tmp_path):
    assert name_unfinished(tmp_path / "run.v2") == tmp_path / "run.v2.unfinished"
    assert not is_finished(tmp_path)
