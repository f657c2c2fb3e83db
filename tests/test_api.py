"""The package from Python: lazy, typed, with the options of the commands."""

import numpy as np
import pytest
from conftest import write_slides

import cancernet
from cancernet import InputError
from cancernet.config import TrainingOptions


def test_a_loaded_run_predicts_arrays_and_files(tiny_run, tmp_path):
    run = cancernet.load(tiny_run)
    assert (run.classes, run.positive) == (("0", "1"), "1")
    source = write_slides(tmp_path / "source", patients=1)
    files = sorted(source.rglob("*.png"))
    from_files = run.predict(files)
    assert from_files.probabilities.shape == (6, 2)
    np.testing.assert_allclose(from_files.probabilities.sum(axis=1), 1)
    assert set(from_files.decisions) <= set(from_files.classes) == {"benign", "IDC"}
    alone = run.decision.without_neighbours or run.decision
    decided = [from_files.classes[int(share >= alone.threshold)] for share in from_files.probabilities[:, 1]]
    assert from_files.decisions == decided
    slides = cancernet.predict_slides(run, [source])
    assert sum(len(item.predicted) for item in slides.items) == 6


def test_unknown_and_impossible_options_are_named(tmp_path):
    with pytest.raises(InputError, match="Unknown option flods. Choose from cache_limit, dataset"):
        cancernet.train("nowhere", flods=5)
    with pytest.raises(InputError, match="folds cannot be 1: Input should be greater than or equal to 2"):
        cancernet.train("nowhere", folds=1)
    with pytest.raises(InputError, match="epochs cannot be 0"):
        cancernet.train("nowhere", epochs=0)
    with pytest.raises(InputError, match=r"--model takes cancernet, .*, not 'vgg'"):
        cancernet.train("nowhere", model="vgg")
    with pytest.raises(InputError, match="Unknown option slit. Choose from allow_seen_patients, dataset"):
        cancernet.evaluate("nowhere", slit="testing")
    with pytest.raises(InputError, match="One run alone"):
        cancernet.compare("one")


def test_options_of_predict_slides_are_checked(tiny_run, tmp_path):
    run = cancernet.load(tiny_run)
    with pytest.raises(InputError, match="Unknown option scale. Choose from force, mpp"):
        cancernet.predict_slides(run, [tmp_path], scale=2)
    with pytest.raises(InputError, match="threshold cannot be 2: Input should be less than 1"):
        cancernet.predict_slides(run, [tmp_path], threshold=2)
    with pytest.raises(InputError, match="ray and shard divide the work of the command"):
        cancernet.predict_slides(run, [tmp_path], ray="local")


def test_the_defaults_are_those_of_the_commands(monkeypatch):
    from cancernet.workflow import train

    given = []
    monkeypatch.setattr(train, "train", lambda options: given.append(options) or (None, None))
    cancernet.train()
    cancernet.train("d", seed=3, folds=5)
    assert given == [TrainingOptions(), TrainingOptions(dataset=given[1].dataset, settings={"seed": 3}, folds=5)]
    assert given[1].dataset.name == "d"
