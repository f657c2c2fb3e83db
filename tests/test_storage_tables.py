"""No cell of a CSV file is run as a formula, and what is read is what was written."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cancernet.storage import read_rows, write_rows


def written(*row):
    file = io.StringIO(newline="")
    write_rows(file, [row])
    return file.getvalue()


@pytest.mark.parametrize("text", ["=1+1", "+x", "-x", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("http://x","y")', "＝1"])
def test_a_text_that_a_spreadsheet_would_run_gets_an_apostrophe(text):
    assert next(csv.reader(io.StringIO(written(text), newline=""))) == [f"'{text}"]


@pytest.mark.parametrize("cell", ["-1", "+1", "-0.5e-3", -1, 0.25, "", "'", "a=1", "training/0/=x.png", "'quoted'"])
def test_numbers_and_plain_texts_stay_as_they_are(cell):
    assert written("x", cell) == f"x,{cell}\n"


@given(st.lists(st.text(st.characters(codec="utf-8") | st.sampled_from("'=+-@,\t\r\n\"0")), min_size=1))
def test_what_is_read_is_what_was_written(cells):
    assert list(read_rows(io.StringIO(written(*cells), newline=""))) == [cells]
