"""The README: its Python example runs, its links lead to files, and its options exist."""

import re
import shutil

from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def read_example() -> str:
    """Return the only Python block of the README."""
    (example,) = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return example


def test_the_python_example_predicts_two_patches(tiny_run, slides, tmp_path, monkeypatch, capsys):
    shutil.copytree(tiny_run, tmp_path / "runs/demo")
    for number, image in enumerate(sorted(slides.rglob("*.png"))[:2], 1):
        shutil.copy(image, tmp_path / f"patch_{number}.png")
    monkeypatch.chdir(tmp_path)
    exec(compile(read_example(), "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_links_of_the_documentation_lead_to_files():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert "://" in link or (page.parent / link).is_file(), f"{page.name}: {link} does not exist"
