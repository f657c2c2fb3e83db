"""pyproject.toml names what requirements.txt pins, in versions that take the tested ones."""

import re
import tomllib

import pytest
from conftest import ROOT
from packaging.requirements import Requirement

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
GROUPS = {
    "requirements.txt": PROJECT["dependencies"],
    **{f"requirements-{name}.txt": asked for name, asked in PROJECT["optional-dependencies"].items()},
}


def test_every_file_of_pins_has_its_part_of_the_project():
    files = {path.name for path in ROOT.glob("requirements*.txt")}
    assert files - {"requirements-dev.txt"} == GROUPS.keys()


@pytest.mark.parametrize("file", GROUPS)
def test_the_project_asks_for_what_was_tested(file):
    pins = dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE))
    asked = {Requirement(each).name: Requirement(each).specifier for each in GROUPS[file]}
    assert asked.keys() == pins.keys()
    for name, version in pins.items():
        assert len(asked[name]) == 1
        assert asked[name].contains(version), f"{name}: {version} was tested, {asked[name]} is asked for"
