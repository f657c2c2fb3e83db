"""The command `cancernet VERB`, also `python -m cancernet VERB`: each verb parses its options and makes one call."""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from cancernet import InputError, __version__
from cancernet.cli import parse_options, run_command


class Verb(NamedTuple):
    """Where a verb's function and its options are; its module is imported when the verb is used."""

    summary: str
    module: str
    options: str  # a dataclass of the module
    function: str  # of the module; takes the options


VERBS = {
    "build": Verb("build a dataset of a folder of images", "cancernet.workflow.build", "BuildOptions", "write_dataset"),
    "train": Verb("train a network on a built dataset", "cancernet.workflow.train", "TrainingOptions", "train"),
    "evaluate": Verb(
        "evaluate a run on another dataset", "cancernet.workflow.evaluate", "EvaluationOptions", "evaluate"
    ),
    "compare": Verb("compare runs on the same images", "cancernet.workflow.compare", "ComparisonOptions", "compare"),
    "predict": Verb("predict new images with a run", "cancernet.inference.predict", "PredictOptions", "predict"),
    "export": Verb("export a run for other programs", "cancernet.inference.export", "ExportOptions", "export"),
    "tune": Verb("search for better settings", "cancernet.workflow.search", "SearchOptions", "search"),
    "check": Verb("check whether this machine can train", "cancernet.workflow.check", "CheckOptions", "check"),
    "app": Verb("show a run in the browser", "cancernet.web.launch", "AppOptions", "launch"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the verb that the arguments name."""
    verb, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if verb in ("-h", "--help"):
        lines = [f"  {name:<10}{each.summary}" for name, each in VERBS.items()]
        print("usage: cancernet VERB [options]\n\n" + "\n".join(lines))
        print("\ncancernet VERB --help lists the options of a verb; cancernet --version prints the version.")
    elif verb == "--version":
        print(f"cancernet {__version__}")
    elif verb in VERBS:
        run_verb(verb, rest, prog=f"cancernet {verb}")
    else:
        raise InputError(f"Unknown verb {verb!r}. Choose one of {', '.join(VERBS)}; see cancernet --help.")


def run_verb(name: str, argv: Sequence[str], *, prog: str) -> object:
    """Parse the options of a verb and return what its function returns; `prog` is what the user typed."""
    verb = VERBS[name]
    module = import_module(verb.module)
    options = parse_options(
        getattr(module, verb.options), argv, prog=prog, about=module.__doc__ or "", epilog=getattr(module, "EPILOG", "")
    )
    return getattr(module, verb.function)(options)


def run() -> None:
    """Run the command line of this process and end it: the entry point of `cancernet`."""
    run_command(main)


if __name__ == "__main__":
    run()
