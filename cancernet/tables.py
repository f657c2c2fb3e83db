"""CSV files that a spreadsheet shows as they are: no cell of them is run as a formula."""

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import TextIO

_RUN = set("=+-@＝＋－＠\t\r\n")  # what a spreadsheet takes for the beginning of a formula, by OWASP's "CSV Injection"
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")


def write_rows(file: TextIO, rows: Iterable[Sequence]) -> None:
    """Write rows to an open file; a text that would be run gets an apostrophe in front, that `read_rows` takes away."""
    lines = SimpleNamespace(write=lambda line: file.write(line[:-2] + "\n"))
    # Only a writer whose lines end in \r\n puts a name with \r in it in quotation marks.
    csv.writer(lines, lineterminator="\r\n").writerows([_escape(cell) for cell in row] for row in rows)


def read_rows(file: Iterable[str]) -> Iterator[list[str]]:
    """The rows of an open file, as they were given to `write_rows`.

    Raises:
        csv.Error: it is no CSV file.
    """
    for row in csv.reader(file):
        yield [cell[1:] if cell[:1] == "'" and cell.lstrip("'")[:1] in _RUN else cell for cell in row]


def _escape(cell: object) -> object:
    if not isinstance(cell, str) or cell[:1] not in _RUN | {"'"} or _NUMBER.fullmatch(cell):
        return cell
    return f"'{cell}" if cell.lstrip("'")[:1] in _RUN else cell
