"""Names in pictures: shortened, broken into lines, and never read as a formula."""

import re


def _plain(text: str) -> str:
    """The text with `$` escaped: Matplotlib reads a pair of them as a formula."""
    return text.replace("$", r"\$")


def shorten(text: str, limit: int) -> str:
    """Plain, of at most `limit` characters: the middle is left out."""
    return _plain(cut(text, limit))


def cut(text: str, limit: int) -> str:
    """At most `limit` characters: the middle is left out."""
    half = (limit - 1) // 2
    return text if len(text) <= limit else f"{text[: limit - 1 - half]}…{text[-half:]}"


def break_lines(text: str, width: int, *, limit: int = 999) -> str:
    """Plain, in lines of at most `width` characters, beside a `_` or `-` at their end; words longer than that are cut.

    It is broken after a blank, `_` or `-`, and shortened to `limit` characters first.
    """
    lines = [""]
    for part in re.findall(rf"[^ _-]{{1,{width}}}[ _-]?|[ _-]", cut(text, limit)):
        lines += [""] if lines[-1] and len(lines[-1]) + len(part.rstrip(" _-")) > width else []
        lines[-1] += part
    return _plain("\n".join(line.rstrip() for line in lines))
