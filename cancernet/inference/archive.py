"""The folder of an archive's results: what is finished, what failed, and that one run answered one question in it."""

import csv
import hashlib
import io
import itertools
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from cancernet import InputError, storage
from cancernet.inference.work_list import printable
from cancernet.run import CONFIG, DECISION, MODEL
from cancernet.storage import FolderKind, check_replaceable, file_stem, read_json, write_files, write_json

PATCHES, SLIDES = "patches", "slides"  # folders: a Parquet file a slide; a map and the regions of each
SUMMARY, FAILED, ASKED = "summary.csv", "failed.csv", "asked.json"
SUMMARY_HEADER = ("path", "name", "class", "patches", "called", "share", "mm2", "mean_probability")  # `Slide`, and
# `summary.HEADER` without the slide: this module must not wait for Keras
LINE_SECONDS = 10.0  # between two lines of the table
FAILED_HEADER = ("path", "file", "reason")


class Slide(NamedTuple):
    """A slide that is to be answered: names only."""

    path: str  # as given: a large image, or a folder with the patches of one slide
    stem: str  # of the names of its files in the output


class Archive:
    """The tables of an archive's folder. One process writes them; a slide is finished when summary.csv names it."""

    def __init__(self, folder: Path):
        """Read what is finished and delete what is not.

        Args:
            folder: see `open_folder`; the caller has its lock.

        Raises:
            InputError: a table is damaged.
        """
        self.folder = folder
        rows = _read_table(folder / SUMMARY, SUMMARY_HEADER)
        self.finished: dict[str, list[Sequence]] = {}  # by path, the rows of each
        for row in rows:
            if (folder / PATCHES / f"{row[1]}.parquet").is_file():
                self.finished.setdefault(row[0], []).append(row)
        self.failed = [row for row in _read_table(folder / FAILED, FAILED_HEADER) if row[0] in self.finished]
        self._write()
        stems = {rows[0][1] for rows in self.finished.values()}
        for path in [*(folder / PATCHES).iterdir(), *(folder / SLIDES).iterdir()]:
            if path.stem not in stems:  # of a slide that was not finished
                path.unlink()

    def plan(self, paths: Iterable[str]) -> list[Slide]:
        """The slides that are not finished, none twice, each with a name that no other has."""
        taken = {rows[0][1].lower() for rows in self.finished.values()}
        waiting = (path for path in dict.fromkeys(paths) if path not in self.finished)
        return [Slide(path, file_stem(Path(path).stem, taken)) for path in waiting]

    def finish(self, slide: Slide, summary: Sequence[Sequence], refused: Sequence[tuple[str, str]]) -> None:
        """Keep the rows of a slide whose files are written, and which of its patches could not be read, and why.

        Of two classes there is one row, of more one a class; they are written at once.
        """
        self._refuse([(slide.path, *each) for each in refused])
        self.finished[slide.path] = [(*slide, *row) for row in summary]
        _append(self.folder / SUMMARY, self.finished[slide.path])

    def fail(self, slide: Slide, reason: str) -> None:
        """Keep why a slide was not answered. The next time it is tried again."""
        self._refuse([(slide.path, slide.path, reason.removeprefix(f"{slide.path}: "))])

    def sort(self, paths: Iterable[str]) -> None:
        """Write both tables in the order of the paths: it does not depend on who was the first to answer."""
        order = {path: number for number, path in enumerate(paths)}

        def place(path: str) -> int:
            return order.get(path, len(order))

        self.finished = {path: self.finished[path] for path in sorted(self.finished, key=place)}
        self.failed.sort(key=lambda row: place(row[0]))
        self._write()

    def _refuse(self, rows: list[tuple[str, str, str]]) -> None:
        self.failed += rows
        _append(self.folder / FAILED, rows)

    def _write(self) -> None:
        _write_table(self.folder / SUMMARY, [SUMMARY_HEADER, *itertools.chain(*self.finished.values())])
        _write_table(self.folder / FAILED, [FAILED_HEADER, *self.failed])


def open_folder(folder: Path, asked: Mapping, *, force: bool) -> None:
    """Make the folder of an archive, or see that what lies there answers the same question.

    Args:
        asked: by what the answers are made, as JSON takes it.
        force: what is there is deleted.

    Raises:
        InputError: something else is there, or answers of another run or with other options.
    """
    path = folder / ASKED
    check_replaceable(folder, FolderKind.ARCHIVE, force=True)  # what was requested is compared below
    if force or not path.is_file():
        if folder.exists():
            shutil.rmtree(folder)
        for name in (PATCHES, SLIDES):
            (folder / name).mkdir(parents=True)
        write_json(path, asked)
    before = read_json(path, dict, advice="Choose another --output, or --force to delete what is there.")
    different = [name for name in asked if before.get(name) != asked[name]]
    if different:
        name = different[0]
        raise InputError(
            f"{folder} holds answers with {name} {before.get(name)}, not {asked[name]}. "
            "Choose another --output, or --force to delete them."
        )


def identify_run(folder: Path) -> str:
    """What tells a run from others: the SHA-256 of its network, decision and settings."""
    digest = hashlib.sha256()
    for name in (MODEL, DECISION, CONFIG):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


class Progress:
    """A growing table: how many slides and patches, how fast, in how much memory, and how long it takes still."""

    HEADER = "    slides    failed       patches  patches/s  actors  GB an actor  GB a reader   elapsed     to go"

    def __init__(self, slides: int, *, clock=time.monotonic):
        self.slides, self.done, self.failed, self.patches = slides, 0, 0, 0
        self._clock, self._begun = clock, clock()
        self._last = (self._begun, 0)  # when the last line was made, and the patches until then

    def count(self, *, patches: int = 0, failed: bool = False) -> None:
        """Count a slide that was answered, or was not."""
        self.done, self.failed, self.patches = self.done + 1, self.failed + failed, self.patches + patches

    def is_due(self) -> bool:
        """Whether it is time for a line: every LINE_SECONDS, and when all is done."""
        return self.done == self.slides or self._clock() - self._last[0] >= LINE_SECONDS

    def line(self, actors: int, actor_bytes: int, reader_bytes: int) -> str:
        """A line of the table. The rate is since the last line; the time to go supposes slides like those before.

        Args:
            actors: at work.
            actor_bytes: memory of the largest actor.
            reader_bytes: memory of the largest reader.
        """
        now, (before, patches) = self._clock(), self._last
        self._last = (now, self.patches)
        rate = (self.patches - patches) / max(now - before, 1e-9)
        elapsed = now - self._begun
        to_go = _duration(elapsed * (self.slides - self.done) / self.done) if self.done else "?"
        return (
            f"{self.done:>10,}{self.failed:>10,}{self.patches:>14,}{rate:>11,.0f}{actors:>8,}"
            f"{actor_bytes / 1e9:>13.2f}{reader_bytes / 1e9:>13.2f}{_duration(elapsed):>10}{to_go:>10}"
        )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def _read_table(path: Path, header: Sequence[str]) -> list[list[str]]:
    """The rows of a table; without the last where a process was killed while it wrote it."""
    if not path.is_file():
        return []
    whole = path.read_text(encoding="utf-8", errors="surrogateescape").rpartition("\n")[0].splitlines(keepends=True)
    try:
        first, *rows = storage.read_rows(whole)
    except (csv.Error, ValueError):
        first, rows = [], []
    if first != list(header) or any(len(row) != len(header) for row in rows):
        raise InputError(f"{printable(str(path))} is damaged. Remove it, and what it names is answered again.")
    return rows


def _write_table(path: Path, rows: Iterable[Sequence]) -> None:
    text = io.StringIO(newline="")
    storage.write_rows(text, rows)
    write_files(path.parent, {path.name: text.getvalue().encode("utf-8", "surrogateescape")})


def _append(path: Path, rows: Iterable[Sequence]) -> None:
    with path.open("a", newline="", encoding="utf-8", errors="surrogateescape") as file:
        storage.write_rows(file, rows)
