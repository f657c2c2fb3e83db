"""The sub-packages and their order: nothing imports upwards, learning and judging do not know each other."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(ROOT.glob("*.py"))
MODULES = sorted((ROOT / "cancernet").rglob("*.py"))
MAY_IMPORT = {  # sub-package -> those it may import, beside itself
    "ground": set(),
    "data": {"ground"},
    "learning": {"ground", "data"},
    "judging": {"ground", "data"},
    "run": {"ground", "data", "learning", "judging"},
    "reporting": {"ground", "data", "learning", "judging", "run"},
    "using": {"ground", "data", "learning", "judging", "run", "reporting"},
}
WITHOUT_KERAS = {"ground", "data", "judging"}
TRAINS = tuple(f"cancernet.learning.{name}" for name in ("training", "fitting", "members", "heads"))
# All else is written against Keras; the last two load TensorFlow only where it is Keras' backend.
KNOW_TENSORFLOW = {"augment.py", "pipeline.py", "fused.py", "explain.py"}


def find_imports(source: str) -> set[str]:
    """Dotted names of what a module imports anywhere, functions included; `a.b` for `from a import b`."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def find_part(name: str) -> str:
    """The sub-package that a dotted name under `cancernet` belongs to."""
    second = name.split(".")[1] if "." in name else ""
    return second if second in MAY_IMPORT else "ground"


def find_faults(path: str, source: str) -> list[str]:
    """What a module at `path`, such as cancernet/data/grid.py, imports and must not."""
    part = find_part(path.removesuffix(".py").replace("/", "."))
    faults = []
    for name in sorted(find_imports(source)):
        package = name.split(".")[0]
        if package == "cancernet" and find_part(name) not in MAY_IMPORT[part] | {part}:
            faults.append(f"{part} imports {name}")
        if package in ("keras", "tensorflow") and part in WITHOUT_KERAS and path != "cancernet/command_line.py":
            faults.append(f"{part} imports {name}")
        if package == "tensorflow" and path.rpartition("/")[2] not in KNOW_TENSORFLOW:
            faults.append(f"{path} imports {name}")
        if package in ("ray", "pyarrow") and path != "cancernet/using/cluster.py":
            faults.append(f"{path} imports {name}")
        if part == "using" and name.startswith(
            ("cancernet.learning.training", "cancernet.learning.fitting", "cancernet.learning.members")
        ):
            faults.append(f"using imports {name}, which trains")
    return faults


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_module_imports_upwards(path):
    assert find_faults(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("cancernet/folders.py", "from cancernet.data import images"),
        ("cancernet/data/grid.py", "from cancernet.judging.decision import decide"),
        ("cancernet/data/grid.py", "import keras"),
        ("cancernet/judging/decision.py", "from cancernet.learning import scoring"),
        ("cancernet/judging/decision.py", "from keras import ops"),
        ("cancernet/learning/members.py", "from cancernet.judging import decision"),
        ("cancernet/learning/members.py", "import tensorflow as tf"),
        ("cancernet/run.py", "from cancernet.reporting import wording"),
        ("cancernet/reporting/plots.py", "from cancernet.using import prediction"),
        ("cancernet/using/archive.py", "import ray"),
        ("cancernet/using/page.py", "from cancernet.learning.training import fit_model"),
    ],
)
def test_an_import_that_runs_back_is_found(path, line):
    assert find_faults(path, f"def later():\n    {line}\n")


def test_every_module_lies_in_a_part_that_has_an_order():
    folders = {path.parent.name for path in MODULES} - {"cancernet", "models"}
    assert folders | {"ground", "run"} == set(MAY_IMPORT)
    ground = {"__init__", "command_line", "config", "folders", "tables"}
    assert {path.stem for path in (ROOT / "cancernet").glob("*.py")} == ground | {"run"}


def test_only_scripts_read_arguments_and_print():
    for path in MODULES:
        if path.name != "command_line.py":
            assert "argparse" not in find_imports(path.read_text(encoding="utf-8")), path
