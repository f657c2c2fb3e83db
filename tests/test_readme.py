"""The documentation: the README's Python example runs, links lead to files, commands and their options exist."""

import re
import shutil

import pytest
from conftest import ROOT

from cancernet.__main__ import VERBS, main

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = {"build_dataset.py": "build", "train_model.py": "train"}


def read_example() -> str:
    """Return the only Python block of the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return example


def list_commands(text: str) -> list[tuple[str, set[str]]]:
    """List the verb and the options of every command in the code of a page, as in `cancernet train --epochs 1`."""
    code = [*re.findall(r"`([^`\n]+)`", text), *re.findall(r"^ {4}(.+)$", text, re.MULTILINE)]
    commands = []
    for line in code:
        for script, verb, rest in re.findall(r"(?:(\w+\.py)|(?:^|-m )cancernet ([a-z]+)(?!\||\w))([^#;&]*)", line):
            if verb or script in SCRIPTS:
                commands.append((verb or SCRIPTS[script], set(re.findall(r"--[a-z][a-z-]*", rest))))
    return commands


def test_commands_are_found_in_the_code_of_a_page():
    text = (
        "Run `cancernet tune --trials 5`, not cancernet nothing.\n\n    python train_model.py --folds 5  # --not-this\n"
    )
    assert list_commands(text) == [("tune", {"--trials"}), ("train", {"--folds"})]


def test_the_python_example_predicts_two_patches(tiny_run, slides, tmp_path, monkeypatch, capsys):
    shutil.copytree(tiny_run, tmp_path / "runs/demo")
    for number, image in enumerate(sorted(slides.rglob("*.png"))[:2], 1):
        shutil.copy(image, tmp_path / f"patch_{number}.png")
    monkeypatch.chdir(tmp_path)
    exec(compile(read_example(), "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert "://" in link or (page.parent / link).is_file(), f"{page.name}: {link} does not exist"


def test_commands_in_the_documentation_have_the_options_that_they_are_given(capsys):
    options = {}
    for verb in VERBS:
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        options[verb] = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
    options["train"].add("--check")  # of train_model.py, which hands it to `cancernet check`
    commands = [(page.name, *command) for page in PAGES for command in list_commands(page.read_text(encoding="utf-8"))]
    assert len(commands) > 30
    for page, verb, given in commands:
        assert verb in options, f"{page}: there is no cancernet {verb}"
        assert given <= options[verb], f"{page}: cancernet {verb} has no {', '.join(given - options[verb])}"
