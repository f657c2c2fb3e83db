"""The table of rooms in docs/DESIGN.md, held: who may import whom."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

ROOMS = sorted(path.relative_to(ROOT) for path in ROOT.glob("cancernet/**/*.py"))
SCRIPTS = sorted(path.relative_to(ROOT) for path in ROOT.glob("*.py"))
NEVER = {
    "cancernet/__init__.py": {"cancernet", "keras", "numpy"},
    "cancernet/config.py": {"cancernet", "keras", "numpy"},
    "cancernet/folders.py": {"cancernet", "keras", "numpy"},
    "cancernet/images.py": {"keras", "matplotlib", "sklearn"},
    "cancernet/dataset.py": {"keras", "matplotlib"},
    "cancernet/source.py": {"keras", "matplotlib"},
    "cancernet/splits.py": {"keras", "matplotlib"},
    "cancernet/building.py": {"keras", "matplotlib"},
    "cancernet/sample.py": {"keras"},
    "cancernet/precision.py": {"cancernet", "matplotlib"},
    "cancernet/fused.py": {"cancernet", "matplotlib"},
    "cancernet/regions.py": {"keras", "matplotlib"},
    "cancernet/tiles.py": {"keras", "matplotlib"},
    "cancernet/slides.py": {"keras", "matplotlib"},
    "cancernet/pipeline.py": {"cancernet.models", "cancernet.training", "matplotlib"},
    "cancernet/augment.py": {"cancernet.models", "cancernet.training", "matplotlib"},
    "cancernet/training.py": {"cancernet.models", "cancernet.pipeline", "cancernet.evaluation", "matplotlib"},
    "cancernet/decision.py": {"keras", "matplotlib"},
    "cancernet/evaluation.py": {"keras", "matplotlib"},
    "cancernet/bootstrap.py": {"keras", "matplotlib"},
    "cancernet/explain.py": {"matplotlib", "cancernet.training", "cancernet.dataset"},
    "cancernet/plots.py": {"keras"},
    "cancernet/labels.py": {"cancernet", "keras", "numpy", "matplotlib"},
    "cancernet/wording.py": {"keras", "matplotlib"},
    "cancernet/report.py": {"keras"},
    "cancernet/judgement.py": {"keras", "matplotlib", "cancernet.evaluation"},
    "cancernet/assessment.py": {"keras", "cancernet.training"},
    "cancernet/phases.py": {"cancernet.decision", "cancernet.evaluation", "matplotlib"},
    "cancernet/classifier.py": {"cancernet.training", "cancernet.plots", "matplotlib"},
    "cancernet/prediction.py": {"cancernet.training", "cancernet.plots", "matplotlib"},
    "cancernet/illustration.py": {"cancernet.training"},
    "cancernet/visit.py": {"streamlit", "cancernet.training", "matplotlib"},
    "cancernet/uploads.py": {"streamlit", "keras", "matplotlib"},
    "cancernet/slide_map.py": {"streamlit", "keras"},
    "cancernet/slide_plots.py": {"keras"},
    "cancernet/command_line.py": {"keras", "numpy"},
    "build_dataset.py": {"keras"},
    "train_model.py": {"app"},
    "evaluate_model.py": {"cancernet.training"},
    "predict_images.py": {"cancernet.training"},
    "app.py": {"cancernet.training"},
}


def find_imports(path, depth=None):
    """Every module that a file imports anywhere in it, or only at its top level."""
    tree = ast.parse((ROOT / path).read_text())
    nodes = tree.body if depth == "top" else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def reaches(imported, forbidden):
    return any(name == forbidden or name.startswith(forbidden + ".") for name in imported)


@pytest.mark.parametrize("path", [*ROOMS, *SCRIPTS], ids=str)
def test_no_room_imports_what_it_never_may(path):
    imported = find_imports(path)
    if path.name not in ("pipeline.py", "augment.py", "fused.py"):
        assert not reaches(imported, "tensorflow")
    if path.parent.name == "models":
        assert {name for name in imported if name.startswith("cancernet")} <= {
            "cancernet",
            "cancernet.InputError",
            *(name for name in imported if name.startswith("cancernet.models")),
        }
        return
    assert path.as_posix() in NEVER, "a new room: say in docs/DESIGN.md and here what it never imports"
    for forbidden in NEVER[path.as_posix()]:
        own = {name for name in imported if name != "cancernet.InputError"} if forbidden == "cancernet" else imported
        assert not reaches(own, forbidden), forbidden


@pytest.mark.parametrize("path", SCRIPTS, ids=str)
def test_scripts_load_nothing_heavy_before_their_arguments_are_known(path):
    if path.name == "app.py":
        pytest.skip("a page, not a script with arguments")
    code = f"import sys, {path.stem}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"tensorflow", "keras", "sklearn", "matplotlib", "numpy", "cv2"} & set(loaded)
