"""Names in pictures."""

import pytest

from cancernet.reporting.captions import break_lines, shorten


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("10253_idx5_x1351_y1101.png", ["10253_idx5_", "x1351_", "y1101.png"]),
        ("fibroadenoma_2", ["fibroadenoma_", "2"]),  # a word as long as the line is left whole
        ("of no-special type", ["of no-", "special type"]),
        ("a" * 30, ["a" * 12, "a" * 12, "a" * 6]),
        ("$5 $" * 3, [r"\$5 \$\$5 \$\$5 \$"]),  # no formula; the strokes are not counted
        ("", [""]),
    ],
)
def test_lines_are_broken_between_words_first(text, lines):
    assert break_lines(text, 12).split("\n") == lines


def test_long_names_lose_their_middle():
    assert shorten("abcdefghij", 5) == "ab…ij"
    assert break_lines("abcdefghij", 3, limit=5) == "ab…\nij"
    assert shorten("a$b", 5) == r"a\$b"
