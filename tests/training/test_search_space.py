"""The table of what is searched: every range in it makes sense, and what makes none is refused in one line."""

import dataclasses
import json

import pytest

import train_model
from cancernet import InputError
from cancernet.config import RECIPES
from cancernet.training.search_space import (
    SPACES,
    Range,
    apply_settings,
    check_space,
    choose_space,
    get_setting,
    read_space,
    widen_to,
)

BASE = RECIPES["standard"]


def choose(*options):
    return train_model.choose_experiment(train_model.parse_arguments(list(options)))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ([], "scratch"),
        (["--model", "densenet121"], "frozen"),
        (["--model", "densenet121", "--strategy", "finetune"], "finetuned"),
        (["--recipe", "joined"], "joined"),
    ],
)
def test_each_way_of_training_has_a_table_that_makes_sense(options, name):
    experiment = choose(*options)
    assert choose_space(experiment) == SPACES[name]
    check_space(SPACES[name], experiment)


def test_grey_images_have_no_stains_to_search():
    assert "augmentation.stain_jitter" in choose_space(BASE)
    assert "augmentation.stain_jitter" not in choose_space(dataclasses.replace(BASE, channels=1))


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("learning_rat", {"low": 1, "high": 2}, "learning_rat cannot be searched. Choose of image_size, epochs"),
        ("seed", {"low": 1, "high": 2}, "seed cannot be searched."),
        ("epochs", {"low": 9, "high": 9}, "The range of epochs goes from 9 to 9: low must be below high."),
        ("epochs", {"low": 9}, "The range of epochs needs low and high, or choices: one of the two."),
        ("epochs", {"low": 1, "high": 2, "choices": [3]}, "The range of epochs needs low and high, or choices"),
        ("epochs", {}, "The range of epochs needs low and high, or choices"),
        ("epochs", {"low": 0, "high": 9}, "The range of epochs has 0, which it cannot be: Input should be greater"),
        ("epochs", {"low": 1.5, "high": 9}, "The range of epochs has 1.5, which it cannot be: Input should be a valid"),
        (
            "augmentation.zoom",
            {"low": 0, "high": 1},
            "augmentation.zoom has 1, which it cannot be: Input should be less",
        ),
        ("learning_rate", {"low": -1, "high": 1}, "The range of learning_rate has -1, which it cannot be"),
        ("dropout", {"low": 0, "high": 0.5, "log": True}, "begins at 0; by order of magnitude it must begin above 0"),
        ("optimizer", {"low": 0, "high": 1}, "optimizer is no number: give choices"),
        ("optimizer", {"choices": ["adam", "sgd"]}, "The range of optimizer has 'sgd', which it cannot be"),
        ("optimizer", {"choices": ["adam", "adam"]}, "The choices of optimizer name a value twice: adam, adam."),
    ],
)
def test_a_range_that_makes_no_sense_is_refused(tmp_path, name, given, message):
    (tmp_path / "a.json").write_text(json.dumps({name: given}))
    with pytest.raises(InputError) as error:
        check_space(read_space(tmp_path / "a.json"), BASE)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "is no search space: it names no setting"),
        ('{"epochs": {"lo": 1}}', "is no search space: epochs.lo: Unexpected keyword argument. docs/search.md"),
        ('{"epochs": [1, 2]}', "is no search space: epochs: Input should be an object"),
        ('{"dropout": {"low": "0", "high": 1}}', "is no search space: dropout.low"),
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
    assert (get_setting(changed, "augmentation.zoom"), get_setting(changed, "epochs")) == (0.2, 3)
