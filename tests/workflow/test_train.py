"""The training script as a user meets it: one run, made once, whose every figure is worked out again."""

import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, write_image, write_slides
from sklearn import metrics

import build_dataset
import train_model
from cancernet import CancerNetError, InputError
from cancernet.__main__ import main
from cancernet.cli import parse_options
from cancernet.config import Augmentation, TrainingOptions
from cancernet.data.dataset import Patch, read_manifest
from cancernet.evaluation.metrics import METRICS
from cancernet.reporting import illustration, report
from cancernet.run import REQUEST
from cancernet.training.experiments import choose_experiment, fit_to_grey
from cancernet.workflow import build, cross_validate, fit

QUICK = ["--image-size", "16", "--epochs", "2", "--batch-size", "16"]
# A third of the time of CancerNet and its eight views, where it does not matter which network was trained.
SMALL = ["--model", "simple_cnn", "--image-size", "24", "--views", "one"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A built dataset, a second one of other patients, and a run with what it printed."""
    folder = tmp_path_factory.mktemp("trained")
    write_slides(folder / "source", patients=20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "save_overview", lambda *_: "")
        build_datasets(folder)
    printed = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        train_model.main(["--dataset", "dataset", "--output", "runs/one", *QUICK])
    (folder / "printed.txt").write_text(printed.getvalue())
    return folder


def build_datasets(folder):
    build_dataset.main(["--source", str(folder / "source"), "--output", str(folder / "dataset")])
    write_slides(folder / "other", patients=4, patches=9, first=9100)
    split = "patient,split\n" + "".join(f"{patient},testing\n" for patient in range(9100, 9104))
    (folder / "split.csv").write_text(split)
    options = ["--split-file", str(folder / "split.csv")]
    build_dataset.main(["--source", str(folder / "other"), "--output", str(folder / "elsewhere"), *options])


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Runs without pictures, a third of the time of a small one. That of `folder` has been made with them."""
    monkeypatch.setattr(report, "draw_figures", lambda *_, **__: {})
    illustrate = illustration.illustrate

    def illustrate_without_maps(run, evaluated, *folders):
        return evaluated.report if illustration.has_grad_cam(run) else illustrate(run, evaluated, *folders)

    monkeypatch.setattr(illustration, "illustrate", illustrate_without_maps)
    monkeypatch.setattr(illustration, "draw_augmentation", lambda *_, **__: {})
    monkeypatch.setattr(build, "save_overview", lambda *_: "")


def train(folder, *options):
    train_model.main(["--dataset", str(folder / "dataset"), *QUICK, *map(str, options)])


def parse(*options):
    return parse_options(TrainingOptions, list(map(str, options)), prog="train_model.py", about="")


def read_run(run):
    """predictions.csv as arrays, and report.json."""
    with (run / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return columns, json.loads((run / "report.json").read_text())


def test_the_run_folder_is_whole_and_knows_no_absolute_path(folder):
    run = folder / "runs/one"
    expected = {"config.json", "model.keras", "decision.json", "history.csv", "predictions.csv"}
    expected |= {"report.json", "report.txt", "report.html", "confusion_matrix.png", "roc.png", "history.png"}
    assert expected <= {path.name for path in run.iterdir()}
    assert not list(folder.glob("runs/*.unfinished"))
    assert not (run / "labels_to_check.csv").exists()  # one member predicts no training image out of fold
    for name in ("config.json", "report.json", "report.txt", "predictions.csv", "decision.json"):
        assert str(folder) not in (run / name).read_text()


def test_predictions_are_the_manifests_testing_rows_in_order(folder):
    columns, _ = read_run(folder / "runs/one")
    testing = [patch for patch in read_manifest(folder / "dataset") if patch.split == "testing"]
    assert columns["file"].tolist() == [patch.file for patch in testing]
    assert columns["patient"].tolist() == [patch.patient for patch in testing]
    assert list(columns) == [
        *("file", "label", "patient", "x", "y"),
        *("probability_0", "probability_1", "predicted"),
    ]


@np.errstate(divide="ignore", invalid="ignore")  # a share of nothing is nan: the report says n/a, and why
def test_every_printed_figure_follows_from_the_predictions(folder):
    columns, report = read_run(folder / "runs/one")
    truth, said = columns["label"] == "1", columns["predicted"] == "1"
    probability = columns["probability_1"].astype(float)
    hits, misses = (truth & said).sum(), (truth & ~said).sum()
    alarms, clear = (~truth & said).sum(), (~truth & ~said).sum()
    sensitivity, specificity = hits / (hits + misses), clear / (clear + alarms)
    expected = {
        "accuracy": (hits + clear) / len(truth),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "ppv": hits / (hits + alarms),
        "npv": clear / (clear + misses),
        "lr_positive": sensitivity / (1 - specificity),
        "lr_negative": (1 - sensitivity) / specificity,
        "f1": metrics.f1_score(truth, said),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "mcc": metrics.matthews_corrcoef(truth, said) if len(set(said)) == 2 else np.nan,
        "auroc": metrics.roc_auc_score(truth, probability),
        "auprc": metrics.average_precision_score(truth, probability),
        "brier": metrics.brier_score_loss(truth, probability),
        "log_loss": metrics.log_loss(truth, probability),
    }
    printed = (folder / "printed.txt").read_text()
    for key, value in expected.items():
        found = re.search(rf"^{re.escape(METRICS[key].label)} +(\S+)", printed, re.MULTILINE)
        assert (found is not None) == ("two-class text" in METRICS[key].shown_in), key
        if np.isfinite(value):
            assert found is None or found.group(1) == f"{value:.3f}", key
            assert report["metrics"][key]["value"] == pytest.approx(value, abs=1e-6), key
        else:
            assert report["metrics"][key]["value"] is None, key
            assert report["metrics"][key]["reason"], key
    assert re.search(rf"^0 \(benign\) +{clear} +{alarms}$", printed, re.MULTILINE)
    assert re.search(rf"^1 \(IDC\) +{misses} +{hits}$", printed, re.MULTILINE)
    rows = [patch for patch in read_manifest(folder / "dataset") if patch.split == "training"]
    counts = [sum(patch.label == label for patch in rows) for label in "01"]
    assert report["class_weights"]["1"] == pytest.approx(counts[0] / counts[1])
    ending = printed[printed.index("The report with its pictures: ") :].splitlines()
    assert ending[0].endswith("runs/one/report.html")
    assert "cancernet compare " in ending[1]


def test_the_report_on_disk_is_the_printed_one(folder):
    assert (folder / "runs/one/report.txt").read_text().strip() in (folder / "printed.txt").read_text()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers(folder, tmp_path):
    train(folder, "--output", tmp_path / "same", "--seed", "42")
    train(folder, "--output", tmp_path / "other", "--seed", "6", "--views", "one")
    first, second, other = folder / "runs/one", tmp_path / "same", tmp_path / "other"
    assert (first / "predictions.csv").read_bytes() == (second / "predictions.csv").read_bytes()
    losses = [read_losses(run) for run in (first, second, other)]
    assert losses[0] == losses[1] != losses[2]  # of training, so that the views do not matter


def read_losses(run):
    with (run / "history.csv").open() as file:
        return [row["loss"] for row in csv.DictReader(file)]


def test_the_model_file_alone_answers_images(folder):
    code = (
        "import sys, keras, numpy; m = keras.models.load_model('runs/one/model.keras');"
        "print(m(numpy.full((1, 16, 16, 3), 200)).numpy().sum()); assert 'cancernet' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(1, abs=1e-5)


def test_a_finished_run_is_not_replaced_without_force(folder, tmp_path):
    with pytest.raises(InputError, match="already contains a trained run"):
        train(folder, "--output", folder / "runs/one")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/thesis.txt").write_text("x")
    with pytest.raises(InputError, match="contains other files, not a trained run"):
        train(folder, "--output", tmp_path / "thesis", "--force")


def test_folds_test_every_patient_once(folder, tmp_path, capsys):
    train(folder, "--output", tmp_path / "cv", *SMALL, "--folds", "2", "--epochs", "1")
    columns, report = read_run(tmp_path / "cv")
    assert sorted(columns["file"]) == sorted(patch.file for patch in read_manifest(folder / "dataset"))
    folds = [read_run(tmp_path / f"cv/fold_{number}")[1] for number in (1, 2)]
    values = [fold["metrics"]["auroc"]["value"] for fold in folds]
    assert report["cross_validation"]["mean"]["auroc"] == pytest.approx(np.mean(values))
    assert report["cross_validation"]["spread"]["auroc"] == pytest.approx(np.std(values, ddof=1))
    assert report["label_check"]["images"] == 120
    assert (tmp_path / "cv/labels_to_check.csv").is_file()
    printed = " ".join(capsys.readouterr().out.split())
    assert "of the 120 images from 20 patients was predicted by a model that was not trained on its patient" in printed


def test_folds_may_be_judged_in_part(folder, tmp_path):
    options = ["--output", tmp_path / "cv", *SMALL, "--folds", "3", "--epochs", "1"]
    with pytest.raises(InputError, match="--only-folds 4 is beyond --folds 3. Give --folds too."):
        train(folder, *options, "--only-folds", "2", "4")
    with pytest.raises(InputError, match="--only-folds 1 is beyond --folds none."):
        train(folder, "--output", tmp_path / "cv", "--only-folds", "1")
    train(folder, *options, "--only-folds", "2")
    assert [path.name for path in (tmp_path / "cv").glob("fold_*")] == ["fold_2"]
    columns, report = read_run(tmp_path / "cv")
    assert columns["file"].tolist() == read_run(tmp_path / "cv/fold_2")[0]["file"].tolist()
    assert report["evaluated_on"] == "folds 2 of 3"


def test_each_site_is_tested_by_a_model_that_was_trained_without_it(tmp_path, monkeypatch, capsys):
    write_slides(tmp_path / "source", patients=9)
    rows = [
        f"{path.name},{path.parent.name},{'North/1' if int(path.name[:3]) < 105 else 'South'}"
        for path in sorted((tmp_path / "source").rglob("*.png"))
    ]
    (tmp_path / "table.csv").write_text("\n".join(["path,label,site", *rows]))
    build_dataset.main(
        [
            "--source",
            str(tmp_path / "source"),
            "--labels",
            str(tmp_path / "table.csv"),
            "--output",
            str(tmp_path / "dataset"),
        ]
    )
    options = ["--output", tmp_path / "cv", *SMALL, "--epochs", "1", "--leave-out", "site"]
    for wrong, said in (
        (["--leave-out", "scanner"], "The images have no column scanner, only site."),
        (
            ["--folds", "2"],
            "--leave-out makes one fold of each value of the column. Leave out --folds and --only-folds.",
        ),
    ):
        with pytest.raises(InputError, match=said):
            train(tmp_path, *options, *wrong)
    cut_off = []

    def cut_off_in_the_second_fold(plan, data, patches, folder):
        cut_off.append(folder.name)
        if len(cut_off) == 2:
            raise KeyboardInterrupt
        return fit.fit_run(plan, data, patches, folder)

    monkeypatch.setattr(cross_validate, "fit_run", cut_off_in_the_second_fold)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, *options)
    train(tmp_path, *options)
    assert cut_off == ["fold_North_1", "fold_South", "fold_South"]
    printed = capsys.readouterr().out
    assert "\nfold_North_1 is finished already.\n" in printed
    assert re.search(r"^site North/1 +\S+ +\S+", printed, re.M)
    columns, report = read_run(tmp_path / "cv")
    sites = {patch.file: dict(patch.more)["site"] for patch in read_manifest(tmp_path / "dataset")}
    assert sorted(columns["file"]) == sorted(sites)
    for name, site in (("fold_North_1", "North/1"), ("fold_South", "South")):
        own, _ = read_run(tmp_path / "cv" / name)
        assert set(own["file"]) == {file for file in sites if sites[file] == site}
        seen = json.loads((tmp_path / "cv" / name / "config.json").read_text())["seen"]["patients"]
        assert len(seen) + len(set(own["patient"])) == 9
        assert not set(seen) & set(own["patient"])
    assert [fold["fold"] for fold in report["cross_validation"]["folds"]] == ["North/1", "South"]
    assert [(each["value"], each["patients"]) for each in report["groups"]["values"]] == [("North/1", 5), ("South", 4)]
    assert columns["site"].tolist() == [sites[file] for file in columns["file"]]


def test_values_that_would_share_a_folder_are_refused(tmp_path):
    assert [each.name for each in cross_validate.name_folders(["a b", "ü"], tmp_path).values()] == [
        "fold_a_b",
        "fold_ü",
    ]
    with pytest.raises(InputError, match=r"A/b and a:B would have the same folder, fold_a_B. Rename one of them"):
        cross_validate.name_folders(["A/b", "c", "a:B"], tmp_path)


@pytest.mark.slow
def test_an_unfinished_cross_validation_goes_on_only_as_it_was_begun(folder, tmp_path, monkeypatch, capsys):
    options = ["--output", tmp_path / "cv", *SMALL, "--folds", "2", "--epochs", "1"]
    cut_off = []

    def cut_off_in_the_second_fold(plan, data, patches, folder):
        cut_off.append(folder.name)
        if cut_off == ["fold_1", "fold_2"]:
            raise KeyboardInterrupt
        return fit.fit_run(plan, data, patches, folder)

    monkeypatch.setattr(cross_validate, "fit_run", cut_off_in_the_second_fold)
    with pytest.raises(KeyboardInterrupt):
        train(folder, *options)
    for other in (["--seed", "7"], ["--folds", "3"], ["--image-size", "25"], ["--operating-point", "0.5"]):
        with pytest.raises(InputError, match="was started with other settings"):
            train(folder, *options, *other)
    train(folder, *options, "--force")  # asked for the same: what is finished is kept
    assert cut_off == ["fold_1", "fold_2", "fold_2"]
    assert "fold_1 is finished already" in capsys.readouterr().out
    assert not (tmp_path / "cv" / REQUEST).exists()


def test_the_positive_class_can_be_chosen(folder, tmp_path, capsys):
    train(folder, "--output", tmp_path / "run", *SMALL, "--positive", "0", "--operating-point", "sensitivity=0.9")
    assert "The positive class is 0 (benign)." in capsys.readouterr().out
    columns, report = read_run(tmp_path / "run")
    benign, called = columns["label"] == "0", columns["predicted"] == "0"
    assert report["positive"] == "0"
    assert report["metrics"]["sensitivity"]["value"] == pytest.approx(called[benign].mean())
    assert report["metrics"]["specificity"]["value"] == pytest.approx((~called[~benign]).mean())
    assert json.loads((tmp_path / "run/config.json").read_text())["positive"] == "0"
    chosen = columns["probability_0"].astype(float) >= report["decision"]["threshold"]
    assert (chosen == called).all()


def test_evaluating_the_same_patients_gives_the_runs_own_figures(folder, tmp_path):
    main(["evaluate", str(folder / "runs/one"), "--dataset", str(folder / "dataset"), "--output", str(tmp_path / "e")])
    (columns, report), (own_columns, own) = read_run(tmp_path / "e"), read_run(folder / "runs/one")
    assert report["metrics"] == own["metrics"]
    assert columns["probability_1"].tolist() == own_columns["probability_1"].tolist()


@pytest.mark.slow
def test_kept_features_give_the_same_run_in_folds_too(folder, tmp_path, monkeypatch):
    from cancernet.training import feature_cache

    shutil.copytree(folder / "dataset", tmp_path / "dataset")
    small = ["--model", "mobilenetv3small", "--weights", "none", "--image-size", "32", "--members", "2"]
    options = ["--dataset", str(tmp_path / "dataset"), *small]
    train_model.main([*options, "--output", str(tmp_path / "first")])
    assert (tmp_path / "dataset.features").is_dir()
    monkeypatch.setattr(feature_cache, "extract_views", None)  # the backbone sees no image again
    train_model.main([*options, "--output", str(tmp_path / "second")])
    train_model.main([*options, "--output", str(tmp_path / "cv"), "--folds", "2"])
    assert (tmp_path / "cv/report.json").is_file()
    first, second = (tmp_path / run / "predictions.csv" for run in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


def test_a_head_on_given_features_answers_features_and_says_so(folder, tmp_path, capsys):
    import keras

    patches = read_manifest(folder / "dataset")
    labels = np.array([int(patch.label) for patch in patches])
    features = np.random.default_rng(0).normal(labels[:, None], 0.5, (len(labels), 4)).astype(np.float32)
    np.save(tmp_path / "uni.npy", features[::-1])
    (tmp_path / "uni.csv").write_text("file\n" + "".join(f"{patch.file}\n" for patch in patches[::-1]))
    options = ["--dataset", str(folder / "dataset"), "--features", str(tmp_path / "uni.npy"), "--members", "3"]
    train_model.main([*options, "--output", str(tmp_path / "run")])
    said = capsys.readouterr().out
    assert f"Training a head on {tmp_path / 'uni.npy'}" in said
    assert "This run takes features like those in uni.npy, not images" in " ".join(said.split())
    columns, report = read_run(tmp_path / "run")
    assert report["metrics"]["auroc"]["value"] > 0.8
    assert "gradcam" not in report
    assert str(tmp_path) not in (tmp_path / "run/report.json").read_text()
    testing = [row for row, patch in enumerate(patches) if patch.split == "testing"]
    check = report["label_check"]
    assert check["images"] == len(patches) - len(testing)
    with (tmp_path / "run/labels_to_check.csv").open() as file:
        assert len(list(csv.DictReader(file))) == check["suspicious"]
    answers = np.asarray(keras.models.load_model(tmp_path / "run/model.keras")(features[testing]))[:, 1]
    assert (np.argsort(answers) == np.argsort(columns["probability_1"].astype(float))).all()
    assert not (tmp_path / "run/features").exists()
    with pytest.raises(InputError, match=r"takes features, not images: it was trained with --features"):
        main(["evaluate", str(tmp_path / "run"), "--dataset", str(folder / "elsewhere")])
    (tmp_path / "uni.csv").write_text("file\n" + "".join(f"other/{row}.png\n" for row in range(len(patches))))
    with pytest.raises(InputError, match=f"uni.npy does not fit the dataset: {len(patches)} of {len(patches)} images"):
        train_model.main([*options, "--output", str(tmp_path / "other")])
    with pytest.raises(InputError, match="--image-size is for networks that take images"):
        train_model.main([*options, "--image-size", "96"])


def test_a_dataset_of_other_patients_is_a_test(folder, capsys):
    main(["evaluate", str(folder / "runs/one"), "--dataset", str(folder / "elsewhere"), "--prevalence", "0.01"])
    said = capsys.readouterr().out
    assert "Tested on 36 images from 4 patients that the model was not trained on" in " ".join(said.split())
    assert "At a prevalence of 1%, 100% of the images classified as IDC are IDC (PPV)." in said


def test_patients_that_the_run_has_seen_are_refused(folder, capsys):
    arguments = [str(folder / "runs/one"), "--dataset", str(folder / "dataset"), "--split", "training"]
    with pytest.raises(InputError, match=r"14 patients or single images of .* were in the run's own training"):
        main(["evaluate", *arguments])
    main(["evaluate", *arguments, "--allow-seen-patients"])
    unknown, title, first = [part for part in capsys.readouterr().out.split("\n\n") if part][:3]
    assert unknown.startswith("WARNING: It is unknown whether any image is out of distribution")
    assert title.startswith("Evaluation of one on ")
    assert first.startswith("Not an independent test: the training or validation data of the run include 14")


def test_patients_that_the_run_has_seen_are_known_under_other_names(folder, tmp_path):
    paths = ["--source", str(folder / "source"), "--output", str(tmp_path / "d")]
    build_dataset.main([*paths, "--patient-pattern", r"^(\d+_idx\d)"])
    arguments = [str(folder / "runs/one"), "--dataset", str(tmp_path / "d"), "--split", "training"]
    with pytest.raises(InputError, match="were in the run's own training or validation, first training/"):
        main(["evaluate", *arguments])


def test_a_dataset_of_other_classes_or_kinds_is_refused(folder, tmp_path):
    for label in ("cat", "dog"):
        for number in range(10):
            write_image(tmp_path / "source" / label / f"{number}.png", 100 + number)
    build_dataset.main(["--source", str(tmp_path / "source"), "--output", str(tmp_path / "pets")])
    with pytest.raises(InputError, match="has the classes 0, 1, not cat, dog"):
        main(["evaluate", str(folder / "runs/one"), "--dataset", str(tmp_path / "pets")])
    for label in "01":
        for number in range(10):
            write_image(tmp_path / "grey" / label / f"{number}.png", 100 + number, (50, 50))
    build_dataset.main(["--source", str(tmp_path / "grey"), "--output", str(tmp_path / "greys")])
    with pytest.raises(InputError, match="trained on colour images; these are grey"):
        main(["evaluate", str(folder / "runs/one"), "--dataset", str(tmp_path / "greys")])


@pytest.mark.parametrize("name", ["config.json", "model.keras", "decision.json"])
def test_a_broken_run_is_named(folder, tmp_path, name):
    shutil.copytree(folder / "runs/one", tmp_path / "run")
    for breakage in (lambda path: path.write_bytes(b"{broken"), lambda path: path.unlink()):
        breakage(tmp_path / "run" / name)
        with pytest.raises(CancerNetError, match=re.escape(name)):
            main(["evaluate", str(tmp_path / "run"), "--dataset", str(folder / "elsewhere")])


def test_a_changed_image_is_found(folder, tmp_path):
    shutil.copytree(folder / "dataset", tmp_path / "dataset")
    write_image(tmp_path / "dataset" / read_manifest(tmp_path / "dataset")[0].file, 77)
    with pytest.raises(InputError, match="differs from the file that the manifest lists"):
        train_model.main(["--dataset", str(tmp_path / "dataset"), "--output", str(tmp_path / "run"), *QUICK, *SMALL])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", "0"], "argument --epochs: takes a whole number of at least 1, not '0'"),
        (["--batch-size", "-3"], "argument --batch-size: takes a whole number of at least 1"),
        (["--learning-rate", "0"], "argument --learning-rate: takes a number above 0"),
        (["--prevalence", "2"], "argument --prevalence: takes a number between 0 and 1"),
        (
            ["--recipe", "best"],
            "--recipe takes tutorial, standard, joined, transfer, strong, or a file .json of",
        ),
        (["--recipe", "no.json"], "There is no no.json"),
        (["--model", "vgg"], "--model takes cancernet, simple_cnn, resnet50"),
        (["--dataset", "nowhere"], "nowhere has no manifest.csv"),
        (["--operating-point", "0.9x"], "Unknown operating point '0.9x'"),
        (["--image-size", "4"], "cancernet takes images of at least 8 pixels"),
        (["--output", "."], ". is the current folder or one of its parents"),
        (["--positive", "IDC"], "--positive takes one of the classes, 0 or 1; got IDC"),
        (["--strategy", "frozen"], "--strategy frozen needs a backbone"),
        (
            ["--model", "densenet121", "--weights", "none", "--epochs", "3"],
            "--epochs is for networks trained in epochs",
        ),
        (["--members", "40"], "16 patient(s) and"),
        (["--features", "nowhere.npy"], "nowhere.npy cannot be read as NumPy's .npy"),
        (["--model", "resnet50", "--weights", "nowhere.h5"], "No weights file nowhere.h5"),
    ],
)
def test_what_is_wrong_is_said_at_once(folder, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((CancerNetError, SystemExit)) as caught:
        train_model.main(["--dataset", str(folder / "dataset"), *options])
    said = f"error: {caught.value}\n" if issubclass(caught.type, CancerNetError) else capsys.readouterr().err
    assert said.startswith(f"error: {message}")
    assert said.count("\n") == 1


@pytest.mark.parametrize("options", [["--epochs", "0"], ["--dataset", "nowhere"]])
def test_what_is_wrong_ends_with_status_2_and_one_line(tmp_path, options):
    command = [sys.executable, str(ROOT / "train_model.py"), *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: ")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], {"recipe": "standard", "image_size": 48, "epochs": 24, "views": "eight"}),
        (["--views", "one", "--epochs", "3"], {"epochs": 3, "views": "one"}),
        (["--model", "densenet121", "--recipe", "standard"], {"weights": "imagenet", "strategy": "all"}),
        (["--recipe", "tutorial", "--seed", "7"], {"recipe": "tutorial", "epochs": 40, "seed": 7}),
        (["--model", "simple_cnn", "--image-size", "64"], {"model": "simple_cnn", "image_size": 64, "channels": 1}),
        (
            ["--model", "densenet121", "--weights", "none", "--views", "eight", "--strategy", "finetune"],
            {"recipe": "transfer", "weights": "none", "views": "eight", "learning_rate": 1e-4, "members": 1},
        ),
        (["--model", "densenet121"], {"strategy": "frozen", "members": 5, "augmentation": Augmentation()}),
        (["--model", "densenet121", "--members", "2"], {"members": 2}),
        (["--recipe", "strong"], {"model": "densenet121", "image_size": 96, "strategy": "frozen", "views": "eight"}),
        (["--recipe", "strong", "--model", "resnet50"], {"model": "resnet50", "image_size": 224}),
        (["--recipe", "joined"], {"model": "cancernet+densenet121", "image_size": 96, "strategy": "frozen"}),
        (["--model", "simple_cnn+resnet50", "--image-size", "64"], {"recipe": "joined", "image_size": 64}),
    ],
)
def test_the_command_line_changes_its_recipe(options, expected, tmp_path):
    experiment = choose_experiment(parse(*options))
    assert {name: getattr(experiment, name) for name in expected} == expected
    (tmp_path / "all.json").write_text(json.dumps(dataclasses.asdict(experiment)))
    assert choose(tmp_path / "all.json") == experiment


def choose(recipe, *options):
    return choose_experiment(parse("--recipe", str(recipe), *options))


def test_a_recipe_file_changes_the_default_and_the_command_line_changes_the_file(tmp_path):
    recipe = tmp_path / "mine.json"
    recipe.write_text(json.dumps({"epochs": 7, "augmentation": {"zoom": 0.2}, "mixed_precision": True}))
    usual = choose_experiment(parse())
    changes = {"epochs": 9, "seed": 0, "mixed_precision": True}
    expected = dataclasses.replace(usual, **changes, augmentation=dataclasses.replace(usual.augmentation, zoom=0.2))
    assert choose(recipe, "--epochs", "9", "--seed", "0") == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": "vgg"}, "--model takes cancernet, simple_cnn, resnet50"),
        ({"model": "resnet50", "weights": "none", "optimizer": "adamw"}, "optimizer is for networks trained in epochs"),
        ({"model": "resnet50", "weights": "none", "augmentation": {"zoom": 0.1}}, "augmentation is for networks"),
        ({"model": "resnet50", "weights": "none", "dropout": 0.1}, "dropout is for networks trained from scratch"),
        ({"image_size": 4}, "cancernet takes images of at least 8 pixels"),
        ({"strategy": "frozen"}, "--strategy frozen needs a backbone"),
    ],
)
def test_a_recipe_file_that_cannot_be_is_refused(tmp_path, given, message):
    (tmp_path / "mine.json").write_text(json.dumps(given))
    with pytest.raises(InputError, match=message):
        choose(tmp_path / "mine.json")


@pytest.mark.parametrize("option", [["--positive", "a"], ["--prevalence", "0.1"], ["--operating-point", "0.3"]])
def test_what_needs_two_classes_is_refused_of_three(option):
    with pytest.raises(InputError, match=f"^{option[0]} is for two classes; datasets/idc has 3"):
        fit.choose_positive(parse(*option), ["a", "b", "c"])


def test_grey_images_are_never_turned_or_upside_down():
    experiment = choose_experiment(parse("--model", "simple_cnn"))
    assert experiment.augmentation.stain_jitter == 0
    changed = fit_to_grey(choose_experiment(parse()), views=None)
    assert changed.views == "mirror"
    assert changed.augmentation.horizontal_flip
    assert not any(
        (changed.augmentation.vertical_flip, changed.augmentation.quarter_turns, changed.augmentation.stain_jitter)
    )
    assert fit_to_grey(experiment, views="eight").views == "eight"


def test_few_validation_patients_are_warned_of():
    patches = [Patch(f"{n}.png", "0", f"p{n}", None, None, "validation", "") for n in range(10)]
    assert fit.list_warnings(None, patches) == []
    (warning,) = fit.list_warnings(None, patches[:9])
    assert warning.startswith("Calibration and threshold were fitted on 9 validation patients;")
    assert fit.list_warnings(None, [patch._replace(patient="") for patch in patches]) == []
    (pooled,) = fit.list_warnings(None, [patch._replace(split="training") for patch in patches[:9]])
    assert pooled == "Calibration and threshold were fitted on 9 patients; other patients would have led to others."


def test_a_patient_in_two_splits_is_refused(folder, tmp_path):
    shutil.copytree(folder / "dataset", tmp_path / "dataset")
    manifest = tmp_path / "dataset/manifest.csv"
    patch = next(patch for patch in read_manifest(tmp_path / "dataset") if patch.split == "testing")
    other = next(row for row in read_manifest(tmp_path / "dataset") if row.split == "training")
    text = manifest.read_text().replace(
        f"{patch.file},{patch.label},{patch.patient}", f"{patch.file},{patch.label},{other.patient}"
    )
    manifest.write_text(text)
    summary = json.loads((tmp_path / "dataset/dataset.json").read_text())
    summary["manifest_sha256"] = hashlib.sha256(text.encode()).hexdigest()  # as of a build by other rules
    (tmp_path / "dataset/dataset.json").write_text(json.dumps(summary))
    with pytest.raises(InputError, match=f"Patient {other.patient} is in both training and testing"):
        train_model.main(["--dataset", str(tmp_path / "dataset"), "--output", str(tmp_path / "run")])


def test_without_a_testing_split_the_report_says_so_first(tmp_path, capsys):
    for split, start in (("train", 0), ("val", 50)):
        for label in "ab":
            for number in range(12):
                write_image(
                    tmp_path / "source" / split / label / f"{number}.png", start + number + 200 * (label == "a")
                )
    build_dataset.main(["--source", str(tmp_path / "source"), "--output", str(tmp_path / "dataset")])
    capsys.readouterr()
    train_model.main(["--dataset", str(tmp_path / "dataset"), "--output", str(tmp_path / "run"), *QUICK, *SMALL])
    report = (tmp_path / "run/report.txt").read_text()
    said = " ".join(report.split())
    assert said.startswith("There is no testing split: these results are over-optimistic, because the same 24 images")
    assert "patients are unknown" in report


def test_a_kept_model_learns_what_is_plain_to_see(folder, tmp_path):
    train(folder, "--output", tmp_path / "run", "--epochs", "12", "--learning-rate", "0.05", "--views", "one")
    _, report = read_run(tmp_path / "run")
    assert report["metrics"]["auroc"]["value"] > 0.95


def test_mixed_precision_is_measured_recorded_and_gone_from_the_saved_model(folder, monkeypatch, capsys):
    import keras

    from cancernet.training import precision

    seconds = iter((0.1, 0.05))
    monkeypatch.setattr(precision, "_time_step", lambda *_: next(seconds))
    train(folder, *SMALL, "--mixed-precision", "--output", folder / "runs/mixed")
    said = "A training step takes 100 ms in float32 and 50 ms in mixed_bfloat16: training in mixed_bfloat16."
    assert said in capsys.readouterr().out
    config = json.loads((folder / "runs/mixed/config.json").read_text())
    assert config["experiment"]["mixed_precision"]
    assert config["training_precision"] == "mixed_bfloat16"
    assert json.loads((folder / "runs/one/config.json").read_text())["training_precision"] == "float32"
    model = keras.models.load_model(folder / "runs/mixed/model.keras")
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}


@pytest.mark.parametrize(("positive", "expected"), [("b", np.log(3)), ("a", -np.log(3)), (None, 0.0)])
def test_the_weight_of_the_positive_class_is_that_of_training(positive, expected):
    assert fit.log_weight_of_positive(positive, ["a", "b"], {0: 1.0, 1: 3.0}) == pytest.approx(expected)
