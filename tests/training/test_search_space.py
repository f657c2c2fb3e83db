"""The table of what is searched: every range in it makes sense, and what makes none is refused in one line."""

import dataclasses
import json

import pytest

from cancernet import InputError
from cancernet.cli import parse_options
from cancernet.config import RECIPES, Range, TrainingOptions
from cancernet.training.experiments import choose_experiment
from cancernet.training.search_space import (
    apply_settings,
    check_space,
    default_space,
    read_space,
    widen_to,
)

BASE = RECIPES["standard"]


def choose(*options):
    return choose_experiment(parse_options(TrainingOptions, options, prog="train_model.py", about=""))


@pytest.mark.parametrize(
    ("options", "first"),
    [
        ([], {"image_size": Range(choices=(32, 48, 64)), "epochs": Range(12, 40)}),
        (["--model", "densenet121"], {"image_size": Range(choices=(64, 96, 128)), "members": Range(3, 10)}),
        (["--model", "densenet121", "--strategy", "finetune"], {"learning_rate": Range(1e-5, 1e-2, log=True)}),
        (["--recipe", "joined"], {"members": Range(2, 5), "epochs": Range(12, 40)}),
    ],
)
def test_each_way_of_training_has_ranges_that_make_sense(options, first):
    experiment = choose(*options)
    space = default_space(experiment)
    assert {name: space[name] for name in first} == first
    check_space(space, experiment, {})


def test_the_head_of_a_frozen_backbone_has_no_epochs_to_search():
    space = default_space(choose("--model", "densenet121"))
    assert list(space) == ["image_size", "class_weight", "views", "members"]


def test_grey_images_have_no_stains_to_search():
    assert "augmentation.stain_jitter" in default_space(BASE)
    assert "augmentation.stain_jitter" not in default_space(dataclasses.replace(BASE, channels=1))


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("learning_rat", {"low": 1, "high": 2}, "learning_rat cannot be searched. Choose from image_size, epochs"),
        ("seed", {"low": 1, "high": 2}, "seed cannot be searched."),
        ("epochs", {"low": 9, "high": 9}, "The range of epochs goes from 9 to 9: low must be below high."),
        ("epochs", {"low": 9}, "The range of epochs needs either low and high, or choices."),
        ("epochs", {"low": 1, "high": 2, "choices": [3]}, "The range of epochs needs either low and high, or choices"),
        ("epochs", {}, "The range of epochs needs either low and high, or choices"),
        ("epochs", {"low": 0, "high": 9}, "epochs cannot be 0: Input should be greater"),
        ("epochs", {"low": 1.5, "high": 9}, "epochs cannot be 1.5: Input should be a valid"),
        (
            "augmentation.zoom",
            {"low": 0, "high": 1},
            "augmentation.zoom cannot be 1: Input should be less",
        ),
        ("learning_rate", {"low": -1, "high": 1}, "learning_rate cannot be -1"),
        ("dropout", {"low": 0, "high": 0.5, "log": True}, "begins at 0; a logarithmic range must begin above 0"),
        ("optimizer", {"low": 0, "high": 1}, "optimizer is not a number: give choices"),
        ("optimizer", {"choices": ["adam", "sgd"]}, "optimizer cannot be 'sgd'"),
        ("optimizer", {"choices": ["adam", "adam"]}, "The choices of optimizer name a value twice: adam, adam."),
    ],
)
def test_a_range_that_makes_no_sense_is_refused(tmp_path, name, given, message):
    (tmp_path / "a.json").write_text(json.dumps({name: given}))
    with pytest.raises(InputError) as error:
        check_space(read_space(tmp_path / "a.json"), BASE, {})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "is not a search space: it names no setting"),
        ('{"epochs": {"lo": 1}}', "is not a search space: epochs.lo: Unexpected keyword argument. docs/search.md"),
        ('{"epochs": [1, 2]}', "is not a search space: epochs: Input should be an object"),
        ('{"dropout": {"low": "0", "high": 1}}', "is not a search space: dropout.low"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_space(tmp_path / "a.json")


def test_the_default_is_always_within_what_is_searched():
    space = {
        "learning_rate": Range(0.1, 0.2),
        "optimizer": Range(choices=("adam",)),
        "augmentation.zoom": Range(0.01, 0.02),
    }
    assert widen_to(space, BASE) == {
        "learning_rate": Range(0.05, 0.2),
        "optimizer": Range(choices=("adam", "adagrad")),
        "augmentation.zoom": Range(0.01, 0.05),
    }


def test_settings_are_applied_by_their_names():
    changed = apply_settings(BASE, {"epochs": 3, "augmentation.zoom": 0.2})
    expected = dataclasses.replace(BASE, epochs=3, augmentation=dataclasses.replace(BASE.augmentation, zoom=0.2))
    assert changed == expected
