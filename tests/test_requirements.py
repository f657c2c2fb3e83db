"""The pins of the requirements files satisfy the ranges of pyproject.toml, package by package."""

import re
import tomllib

import pytest
from conftest import ROOT
from packaging.requirements import Requirement

import cancernet

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NOT_IN_CI = {"encoders"}  # KerasHub brings tensorflow-text, which must match TensorFlow to the minor version


def read_pins(file: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE))


def check_pins(requirements: list[str], pins: dict[str, str]) -> None:
    for requirement in map(Requirement, requirements):
        assert requirement.specifier, f"{requirement.name} has no lowest version in pyproject.toml"
        assert requirement.name in pins, f"{requirement.name} is not pinned"
        tested = pins[requirement.name]
        assert requirement.specifier.contains(tested), f"{requirement}: {tested} was tested"


def test_requirements_pin_exactly_the_dependencies_of_the_package():
    pins = read_pins("requirements.txt")
    check_pins(PROJECT["dependencies"], pins)
    assert pins.keys() == {Requirement(each).name for each in PROJECT["dependencies"]}


@pytest.mark.parametrize("extra", sorted(PROJECT["optional-dependencies"].keys() - NOT_IN_CI))
def test_development_requirements_pin_the_optional_dependencies(extra):
    check_pins(PROJECT["optional-dependencies"][extra], read_pins("requirements-dev.txt"))


def test_there_are_two_files_of_pins():
    assert {path.name for path in ROOT.glob("requirements*.txt")} == {"requirements.txt", "requirements-dev.txt"}
    assert "\n-r requirements.txt\n" in (ROOT / "requirements-dev.txt").read_text(encoding="utf-8")


def test_the_citation_names_the_version_and_the_license_of_the_package():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {cancernet.__version__}\n" in citation
    assert f"\nlicense: {PROJECT['license']}\n" in citation
