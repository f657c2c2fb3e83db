"""The parts and their order: nothing imports upwards; training and evaluation do not know each other."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(ROOT.glob("*.py"))
MODULES = sorted((ROOT / "cancernet").rglob("*.py"))
MAY_IMPORT = {  # part -> the parts it may import, in addition to itself
    "ground": set(),
    "data": {"ground"},
    "models": {"ground", "data"},
    "training": {"ground", "data", "models"},
    "evaluation": {"ground", "data"},
    "explain": {"ground", "data", "models"},
    "run": {"ground", "data", "models", "training", "evaluation", "explain"},
    "reporting": {"ground", "data", "models", "training", "evaluation", "explain", "run"},
    "workflow": {"ground", "data", "models", "training", "evaluation", "explain", "run", "reporting"},
    "inference": {"ground", "data", "models", "training", "evaluation", "explain", "run", "reporting"},
    "web": {"ground", "data", "models", "training", "evaluation", "explain", "run", "reporting", "inference"},
    "doors": {"ground", "data", "models", "training", "evaluation", "explain", "run", "reporting"}
    | {"workflow", "inference", "web"},
}
DOORS = {"__init__", "api", "__main__"}  # from Python and from a shell
WITHOUT_KERAS = {"ground", "data", "evaluation"}
# All else is written against Keras; the third and the fourth load TensorFlow only where it is Keras' backend.
KNOW_TENSORFLOW = {"augment.py", "pipeline.py", "batch_normalization.py", "gradcam.py", "tensorboard.py"}


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
    return second if second in MAY_IMPORT else "doors" if second in DOORS else "ground"


def find_faults(path: str, source: str) -> list[str]:
    """What a module at `path`, such as cancernet/data/grid.py, imports and must not."""
    part = find_part(path.removesuffix(".py").replace("/", "."))
    faults = []
    for name in sorted(find_imports(source)):
        package = name.split(".")[0]
        if package == "cancernet" and find_part(name) not in MAY_IMPORT[part] | {part}:
            faults.append(f"{part} imports {name}")
        if package in ("keras", "tensorflow") and part in WITHOUT_KERAS and path != "cancernet/cli.py":
            faults.append(f"{part} imports {name}")
        if package == "tensorflow" and path.rpartition("/")[2] not in KNOW_TENSORFLOW:
            faults.append(f"{path} imports {name}")
        if package in ("ray", "pyarrow") and path != "cancernet/inference/ray.py":
            faults.append(f"{path} imports {name}")
        if package == "streamlit" and part != "web":
            faults.append(f"{part} imports {name}")
    return faults


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_module_imports_upwards(path):
    assert find_faults(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("cancernet/storage.py", "from cancernet.data import images"),
        ("cancernet/data/grid.py", "from cancernet.evaluation.decision import decide"),
        ("cancernet/data/grid.py", "import keras"),
        ("cancernet/evaluation/decision.py", "from cancernet.training import scoring"),
        ("cancernet/evaluation/decision.py", "from keras import ops"),
        ("cancernet/models/structure.py", "from cancernet.training import heads"),
        ("cancernet/training/ensembles.py", "from cancernet.evaluation import decision"),
        ("cancernet/training/ensembles.py", "import tensorflow as tf"),
        ("cancernet/run.py", "from cancernet.reporting import wording"),
        ("cancernet/reporting/plots.py", "from cancernet.inference import prediction"),
        ("cancernet/reporting/plots.py", "import streamlit"),
        ("cancernet/inference/archive.py", "import ray"),
        ("cancernet/inference/prediction.py", "from cancernet.workflow import train"),
        ("cancernet/workflow/train.py", "from cancernet.inference import prediction"),
    ],
)
def test_an_import_that_runs_back_is_found(path, line):
    assert find_faults(path, f"def later():\n    {line}\n")


def test_what_is_slow_to_import_is_not_imported_before_it_is_needed():
    """Of each of these, imported one after another in a process, the packages that must not be loaded by then."""
    must_wait = {
        "cancernet": ["numpy", "keras", "pydantic"],
        "cancernet.models.architectures": ["keras", "tensorflow"],
        "cancernet.inference.reading": ["keras", "tensorflow", "matplotlib"],
        "cancernet.reporting.plots": ["keras", "tensorflow", "matplotlib.pyplot"],
        "cancernet.web.answer_cache": ["keras"],
        "cancernet.web.app": ["keras"],  # the first view of the page
        "cancernet.web.launch": ["keras"],
    }
    code = "import importlib, sys\nfor module, packages in eval(sys.argv[1]).items():\n"
    code += "    importlib.import_module(module)\n    print(module, [each for each in packages if each in sys.modules])"
    command = [sys.executable, "-c", code, repr(must_wait)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{module} []" for module in must_wait]


def test_every_module_lies_in_a_part_that_has_an_order():
    folders = {path.parent.name for path in MODULES} - {"cancernet"}
    assert folders | {"ground", "run", "doors"} == set(MAY_IMPORT)
    ground = {"cli", "config", "progress", "storage"}
    assert {path.stem for path in (ROOT / "cancernet").glob("*.py")} == ground | {"run"} | DOORS


def test_only_the_command_line_reads_arguments():
    for path in MODULES:
        if path.name != "cli.py":
            assert "argparse" not in find_imports(path.read_text(encoding="utf-8")), path


def find_prints(source: str) -> list[int]:
    """Lines that call `print`."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [node.lineno for node in calls if isinstance(node.func, ast.Name) and node.func.id == "print"]


def test_only_commands_print():
    verbs = {"predict.py", "export.py"}
    for path in MODULES:
        is_command = path.parent.name == "workflow" or (path.parent.name == "inference" and path.name in verbs)
        if not is_command and path.name not in ("cli.py", "__main__.py"):
            assert not find_prints(path.read_text(encoding="utf-8")), path
