"""Start the page, an application of Streamlit, with the settings of this project."""

from pathlib import Path

from cancernet import InputError
from cancernet.run import read_settings

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


def launch(run: Path | None = None, *, port: int | None = None, address: str = "localhost") -> None:
    """Serve the page until the process is interrupted.

    Args:
        run: folder of a run; the default is the newest one under `runs`.
        port: TCP port; the default is 8501, or the next free one.
        address: network address to listen on. The default accepts connections from this machine only.

    Raises:
        InputError: Streamlit is not installed, or the folder contains no run.
    """
    try:
        from streamlit.web import cli
    except ImportError as error:
        raise InputError(f'The page needs Streamlit ({error}): pip install "cancernet[app]"') from error
    if run is not None:
        read_settings(run)
    keep_compiled_models()
    settings = SETTINGS | {"server.address": address} | ({"server.port": str(port)} if port else {})
    options = [f"--{name}={value}" for name, value in settings.items()]
    cli.main(["run", str(SCRIPT), *options, "--", *([str(run)] if run else [])], standalone_mode=False)


def keep_compiled_models() -> None:
    """Stop Streamlit from clearing the global state of Keras after each run of the script.

    All visitors share the models. Clearing discards everything that TensorFlow compiled for them, also while another
    thread uses it, and compiling takes seconds (5 s for DenseNet121 on two cores). Streamlit has no setting for it.
    """
    from streamlit.runtime.scriptrunner import script_runner

    script_runner._clean_problem_modules = lambda: None
