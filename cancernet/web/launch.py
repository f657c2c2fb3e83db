"""Show a run in the browser: it classifies the images that you upload, and shows maps and explanations."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Interval

from cancernet import InputError
from cancernet.config import RUNS, option

SCRIPT = Path(__file__).with_name("app.py")
SETTINGS = {
    "server.headless": "true",
    "server.maxUploadSize": "256",  # MB per file; cancernet.web.uploads limits their number and total size
    "server.fileWatcherType": "none",
    "browser.gatherUsageStats": "false",
    "client.toolbarMode": "minimal",
    "client.showErrorDetails": "none",
    "theme.base": "light",
    "theme.primaryColor": "#1f5f7a",
    "theme.textColor": "#1c2b33",
    "theme.secondaryBackgroundColor": "#f3f6f7",
}


@dataclass(frozen=True)
class AppOptions:
    """Which run the page shows, and where it listens."""

    run: Path | None = option(
        None, help=f"Folder of the run (default: the newest under {RUNS})", group="data", positional=True
    )
    port: Annotated[int, Interval(ge=1, lt=2**16)] | None = option(
        None, help="TCP port", default="8501, or the next free one"
    )
    address: str = option("localhost", help="Network address; 0.0.0.0 lets other machines open the page")


def launch(options: AppOptions) -> None:
    """Serve the page until the process is interrupted; InputError without Streamlit, or if the folder has no run."""
    try:
        from streamlit.web import cli
    except ImportError as error:
        raise InputError(f'The page needs Streamlit ({error}): pip install "cancernet[app]"') from error
    from cancernet.run import read_settings

    if options.run:
        read_settings(options.run)
    keep_compiled_models()
    settings = SETTINGS | {"server.address": options.address}
    if options.port:
        settings |= {"server.port": str(options.port)}
    flags = [f"--{name}={value}" for name, value in settings.items()]
    cli.main(["run", str(SCRIPT), *flags, "--", *([str(options.run)] if options.run else [])], standalone_mode=False)


def keep_compiled_models() -> None:
    """Stop Streamlit from clearing the global state of Keras after each run of the script.

    All visitors share the models. Clearing discards everything that TensorFlow compiled for them, also while another
    thread uses it, and compiling takes seconds (5 s for DenseNet121 on two cores). Streamlit has no setting for it.
    """
    from streamlit.runtime.scriptrunner import script_runner

    script_runner._clean_problem_modules = lambda: None
