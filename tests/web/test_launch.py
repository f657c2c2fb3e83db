"""The start of the page: the options of Streamlit, and errors before it starts."""

import sys

import pytest
from streamlit import config
from streamlit.runtime.scriptrunner import script_runner
from streamlit.web import cli

from cancernet import InputError
from cancernet.web.launch import SCRIPT, SETTINGS, AppOptions, launch


@pytest.fixture
def started(monkeypatch):
    """Collect what is passed to Streamlit in place of starting it."""
    calls = []
    monkeypatch.setattr(cli, "main", lambda arguments, standalone_mode: calls.append(arguments))
    monkeypatch.setattr(script_runner, "_clean_problem_modules", None)
    return calls


def test_the_page_listens_on_this_machine_only_unless_an_address_is_given(started):
    launch(AppOptions())
    launch(AppOptions(port=8600, address="0.0.0.0"))
    default, other = started
    assert default[:2] == other[:2] == ["run", str(SCRIPT)]
    assert {"--server.address=localhost", "--server.maxUploadSize=256", "--theme.base=light"} < set(default)
    assert not any("server.port" in option for option in default)
    assert {"--server.address=0.0.0.0", "--server.port=8600"} < set(other)
    assert default[-1] == other[-1] == "--"


def test_streamlit_knows_all_settings():
    assert SETTINGS.keys() <= config.get_config_options().keys()


def test_the_run_is_passed_to_the_script(started, tiny_run):
    launch(AppOptions(tiny_run))
    assert started[0][-2:] == ["--", str(tiny_run)]


def test_a_missing_run_is_reported_before_the_page_starts(started, tmp_path):
    with pytest.raises(InputError, match="There is no run"):
        launch(AppOptions(tmp_path / "none"))
    assert not started


def test_missing_streamlit_is_one_line_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "streamlit.web", None)
    with pytest.raises(InputError, match=r'The page needs Streamlit .*: pip install "cancernet\[app\]"'):
        launch(AppOptions())
