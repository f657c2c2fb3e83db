"""The settings of an experiment: what is read back is one of the allowed values."""

import dataclasses
import json

import pytest

from cancernet import InputError, StorageError
from cancernet.config import RECIPES, Experiment, read_recipe
from cancernet.storage import read_json


@pytest.mark.parametrize("experiment", RECIPES.values(), ids=RECIPES)
def test_a_recipe_comes_back_as_it_was_written(tmp_path, experiment):
    (tmp_path / "a.json").write_text(json.dumps(dataclasses.asdict(experiment)))
    assert read_json(tmp_path / "a.json", Experiment, advice="") == experiment


@pytest.mark.parametrize("name", ["strategy", "optimizer", "schedule", "class_weight", "views", "kept_weights"])
def test_an_unknown_value_of_a_setting_is_refused(tmp_path, name):
    (tmp_path / "a.json").write_text(json.dumps(dataclasses.asdict(Experiment()) | {name: "x"}))
    with pytest.raises(StorageError, match=f"is damaged: {name}: Input should be '.*', not 'x'"):
        read_json(tmp_path / "a.json", Experiment, advice="")


def write(path, text):
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return path


def test_a_recipe_file_gives_what_it_names_and_nothing_else(tmp_path):
    given = {"learning_rate": 1, "augmentation": {"zoom": 0.2}, "recipe": "tutorial"}
    assert read_recipe(write(tmp_path / "a.json", given)) == given


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"learning_rat": 1}, "a.json is not a recipe: learning_rat: Unexpected keyword argument. docs/recipes.md"),
        ({"augmentation": {"zom": 0.1}}, "augmentation.zom: Unexpected keyword argument. docs"),
        ({"epochs": "3"}, "epochs: Input should be a valid integer, not '3'."),
        ({"epochs": 0}, "epochs: Input should be greater than or equal to 1, not '0'."),
        ({"learning_rate": -0.1}, "learning_rate: Input should be greater than 0, not '-0.1'."),
        ('{"learning_rate": Infinity}', "learning_rate: Input should be a finite number, not 'inf'."),
        ({"augmentation": {"zoom": 1}}, "augmentation.zoom: Input should be less than 1, not '1'."),
        ({"mixed_precision": 1}, "mixed_precision: Input should be a valid boolean"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0"),
        ({"optimizer": "sgd"}, "optimizer: Input should be 'adagrad', 'adam' or 'adamw', not 'sgd'."),
        ({"recipe": "best"}, "recipe is 'best'; choose one of tutorial, standard, joined, transfer, strong."),
        ([], "a.json is not a recipe: Input should be an object"),
        ("{", "a.json is not a recipe: Invalid JSON"),
    ],
)
def test_a_bad_recipe_file_is_told_in_one_line(tmp_path, text, message):
    with pytest.raises(InputError) as error:
        read_recipe(write(tmp_path / "a.json", text))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_recipe_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(InputError, match=r"There is no .*a.json"):
        read_recipe(tmp_path / "a.json")
