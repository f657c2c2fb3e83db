"""A search in words, as a table and in a picture: the drawn data, the sentences, and what they do not claim."""

import csv
import io
import re

import pytest

from cancernet.evaluation.results import Difference
from cancernet.reporting.search import (
    SearchResult,
    TrialRow,
    describe_changes,
    plot_search,
    search_page,
    search_text,
    trials_csv,
)

DEFAULT = TrialRow(0, "finished", 0.5, 3, 10.0, {"epochs": 24, "learning_rate": 0.05})
ROWS = [
    DEFAULT,
    TrialRow(1, "pruned", 0.7, 1, 4.0, {"epochs": 30, "learning_rate": 0.3}),
    TrialRow(2, "finished", 0.42, 3, 12.4, {"epochs": 24, "learning_rate": 0.01234}),
    TrialRow(3, "diverged", None, 0, 1062.4, {"epochs": 12, "learning_rate": 0.2}),
    TrialRow(4, "interrupted", None, 0, 1.0, {}),
]
BETTER = Difference(-0.08, -0.1, -0.02, verdict="better")


def make_result(**changes):
    given = {"best": ROWS[2], "difference": BETTER, "importance": {"learning_rate": 0.9, "epochs": 0.1}}
    given |= {"rows": ROWS, "default": DEFAULT, "data": "on 10 patients", "running": 0}
    return SearchResult(**(given | changes))


def test_the_text_has_the_trials_the_interval_and_what_it_does_not_claim():
    said = " ".join(search_text(make_result()).split())
    assert "4 trials (2 finished, 1 pruned, 1 diverged), on 10 patients. Test patients were not used." in said
    assert "2 0.4200 -0.0800 12 0 (default) 0.5000 +0.0000 10" in said
    assert "its log-loss minus that of the default is -0.0800 (95% interval over patients -0.1000 to -0.0200)" in said
    assert (
        "It is better than the default on these patients. This is over-optimistic, because the trial was selected"
        in said
    )
    assert "learning_rate 0.0123 (0.05)." in said
    assert "epochs" not in said
    assert "other processes" not in said


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"difference": Difference(-0.08, -0.1, 0.01, verdict="unclear")}, "better than the default is inconclusive."),
        (
            {"difference": Difference(-0.1, None, None, "few patients", verdict="unclear")},
            "is -0.1000 (few patients). Whether it is better than the default is inconclusive.",
        ),
        ({"difference": None, "best": DEFAULT}, "No trial was better than the default settings."),
        ({"running": 2}, "Still running in other processes: 2 trials."),
    ],
)
def test_no_more_is_claimed_than_is_known(changes, expected):
    assert expected in " ".join(search_text(make_result(**changes)).split())


def test_the_default_is_in_the_table_however_many_are_better():
    better = [TrialRow(n, "finished", 0.3 + n / 1000, 3, 1.0, DEFAULT.settings) for n in range(5, 20)]
    said = search_text(make_result(rows=[*ROWS, *better], best=better[0]))
    assert said.count("\n5 ") == 1
    assert said.count("\n13 ") == 0
    assert "0 (default)" in said


def test_a_best_that_is_the_default_changes_nothing():
    assert describe_changes(make_result(best=DEFAULT, difference=None)) == ""


def test_the_table_has_every_trial_with_its_settings():
    rows = list(csv.DictReader(io.StringIO(trials_csv(make_result()))))
    assert [row["trial"] for row in rows] == ["0", "1", "2", "3", "4"]
    expected = {"trial": "2", "state": "finished", "log_loss": "0.42", "folds": "3", "seconds": "12.4"}
    assert rows[2] == expected | {"epochs": "24", "learning_rate": "0.01234"}
    assert (rows[3]["state"], rows[3]["log_loss"], rows[4]["epochs"]) == ("diverged", "", "")


def test_the_picture_shows_every_trial_the_best_so_far_and_what_mattered():
    history, importance = plot_search(make_result()).axes
    drawn = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in history.lines}
    assert drawn["finished"] == ([0, 2], [0.5, 0.42])
    assert drawn["best so far"] == ([0, 2], [0.5, 0.42])
    assert drawn["pruned (fewer folds)"] == ([1], [0.7])
    assert drawn["best"] == ([2], [0.42])
    assert drawn["default"][1] == [0.5, 0.5]
    assert [bar.get_width() for bar in importance.patches] == [0.1, 0.9]
    assert [label.get_text() for label in importance.get_yticklabels()] == ["epochs", "learning_rate"]


def test_one_bad_trial_does_not_flatten_the_others():
    bad = TrialRow(5, "pruned", 9.0, 1, 1.0, DEFAULT.settings)
    history = plot_search(make_result(rows=[*ROWS, bad])).axes[0]
    assert history.get_ylim()[1] == pytest.approx(0.42 + 6 * 0.04)
    assert "2 trials off scale, up to 9" in [text.get_text() for text in history.texts]


def test_too_few_trials_have_no_importance():
    _, importance = plot_search(make_result(importance={})).axes
    assert importance.texts[0].get_text() == "too few trials"


def test_the_page_has_the_verdict_the_picture_and_all_trials_the_best_first():
    html = search_page(make_result(), "my search", {"search.png": b"\x89PNG"})
    assert "<h1>my search</h1>" in html
    assert "4 trials (2 finished, 1 pruned, 1 diverged), on 10 patients." in html
    assert '<li class="better">Trial 2 is the best:' in html
    assert "<li>Changed settings, with the default in parentheses: learning_rate 0.0123 (0.05).</li>" in html
    assert 'src="data:image/png;base64,' in html
    assert re.findall(r"<tr.*?><td>(.*?)</td>", html) == ["2", "0 (default)", "1", "3", "4"]
    assert html.count('<tr class="hit"><td>2</td>') == 1
    assert re.findall('data-heading="seconds">(.*?)<', html) == ["12", "10", "4", "1,062", "1"]
    unclear = search_page(make_result(difference=None, best=DEFAULT), "my search", {})
    assert '<li class="unclear">No trial was better than the default settings.</li>' in unclear
    assert "Changed settings" not in unclear
