"""The folder of an archive's results: which items are finished, for which run and options, so that work resumes."""

import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from cancernet import InputError, StorageError
from cancernet.inference.summary import ItemResult
from cancernet.inference.work_list import WorkItem, printable
from cancernet.run import CONFIG, DECISION, MODEL
from cancernet.storage import FolderKind, check_replaceable, file_stem, read_json, write_files, write_json

PATCHES, SLIDES = "patches", "slides"  # folders: a Parquet file for each item; a map and the regions of each slide
FINISHED, OPTIONS = "finished.jsonl", "archive.json"
SINGLE_STEM = "images"  # of the Parquet files of patches without a position
LINE_SECONDS = 10.0  # between two lines of progress

_RESULT = TypeAdapter(ItemResult)


class Archive:
    """The results of finished items. One process writes; an item is finished when finished.jsonl has its line."""

    def __init__(self, folder: Path):
        """Read what is finished and delete the files of items that are not.

        Args:
            folder: see `open_folder`; the caller has its lock.

        Raises:
            StorageError: finished.jsonl is damaged.
        """
        self.folder = folder
        self.finished = [
            result
            for result in _read_finished(folder / FINISHED)
            if (folder / PATCHES / f"{result.item.stem}.parquet").is_file()
        ]
        self._rewrite()

    def plan(self, items: Iterable[WorkItem]) -> list[WorkItem]:
        """Return the items that are not finished, each with a stem that no other has.

        The results of a finished item that shares files with one of them are deleted: it has more or fewer files now.
        """
        done = {(result.item.kind, *result.item.files) for result in self.finished}
        waiting = [item for item in items if (item.kind, *item.files) not in done]
        files = {file for item in waiting for file in item.files}
        unchanged = [result for result in self.finished if files.isdisjoint(result.item.files)]
        if len(unchanged) < len(self.finished):
            self.finished = unchanged
            self._rewrite()
        taken = {result.item.stem.lower() for result in self.finished}
        return [item._replace(stem=file_stem(item.stem or SINGLE_STEM, taken)) for item in waiting]

    def add(self, result: ItemResult) -> None:
        """Record an item whose files are written. An item without any prediction is tried again the next time."""
        if result.patches:
            self.finished.append(result)
            with (self.folder / FINISHED).open("a", encoding="utf-8") as file:
                file.write(_to_line(result))

    def _rewrite(self) -> None:
        write_files(self.folder, {FINISHED: "".join(map(_to_line, self.finished)).encode()})
        stems = {result.item.stem for result in self.finished}
        for path in [*(self.folder / PATCHES).iterdir(), *(self.folder / SLIDES).iterdir()]:
            if path.stem not in stems:
                path.unlink()


def open_folder(folder: Path, options: Mapping[str, str | float | bool | None], *, force: bool) -> None:
    """Make the folder of an archive, or check that the one that exists has results of the same run and options.

    Args:
        options: what the predictions depend on, as JSON takes it.
        force: delete what is there.

    Raises:
        InputError: something else is there, or predictions of another run or with other options.
    """
    path = folder / OPTIONS
    check_replaceable(folder, FolderKind.ARCHIVE, force=True)  # the options are compared below
    if force or not path.is_file():
        if folder.exists():
            shutil.rmtree(folder)
        for name in (PATCHES, SLIDES):
            (folder / name).mkdir(parents=True)
        write_json(path, options)
    before = read_json(path, dict, advice="Choose another --output, or --force to delete what is there.")
    for name, value in options.items():
        if before.get(name) != value:
            raise InputError(
                f"{folder} holds predictions with {name} {before.get(name)}, not {value}. "
                "Choose another --output, or --force to delete them."
            )


def hash_run(folder: Path) -> str:
    """Identify a run by the SHA-256 of its network, decision and settings."""
    digest = hashlib.sha256()
    for name in (MODEL, DECISION, CONFIG):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def sort_results(results: Iterable[ItemResult], items: Sequence[WorkItem]) -> list[ItemResult]:
    """Put results in the order of the work list, whoever was the first to finish; those of other items come last."""
    order = {item.files[0]: number for number, item in enumerate(items)}
    return sorted(results, key=lambda result: order.get(result.item.files[0], len(order)))


class Progress:
    """A growing table: items and patches done, their rate, memory, and the time that is left."""

    HEADER = "     items    failed       patches  patches/s  actors  GB an actor  GB a reader   elapsed      left"

    def __init__(self, items: int, *, clock: Callable[[], float] = time.monotonic):
        self.items, self.done, self.failed, self.patches = items, 0, 0, 0
        self._clock, self._started = clock, clock()
        self._last = (self._started, 0)  # when the last line was made, and the patches until then

    def count(self, patches: int) -> None:
        """Count an item; one without patches has failed."""
        self.done, self.failed, self.patches = self.done + 1, self.failed + (not patches), self.patches + patches

    def is_due(self) -> bool:
        """Whether it is time for a line: every LINE_SECONDS, and when all is done."""
        return self.done == self.items or self._clock() - self._last[0] >= LINE_SECONDS

    def line(self, actors: int, actor_bytes: int, reader_bytes: int) -> str:
        """Format a line. The rate is since the last line; the time left assumes items like those before.

        Args:
            actors: how many there are.
            actor_bytes: memory of the largest actor.
            reader_bytes: memory of the largest reader.
        """
        now, (before, patches) = self._clock(), self._last
        self._last = (now, self.patches)
        rate = (self.patches - patches) / max(now - before, 1e-9)
        elapsed = now - self._started
        left = _duration(elapsed * (self.items - self.done) / self.done) if self.done else "?"
        return (
            f"{self.done:>10,}{self.failed:>10,}{self.patches:>14,}{rate:>11,.0f}{actors:>8,}"
            f"{actor_bytes / 1e9:>13.2f}{reader_bytes / 1e9:>13.2f}{_duration(elapsed):>10}{left:>10}"
        )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _to_line(result: ItemResult) -> str:
    return json.dumps(dataclasses.asdict(result)) + "\n"


def _read_finished(path: Path) -> list[ItemResult]:
    """Read the lines, without the last where a process was killed while it wrote it."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
    try:
        return [_RESULT.validate_json(line) for line in lines]
    except ValidationError as error:
        raise StorageError(f"{printable(str(path))} is damaged. Delete it to predict again what it lists.") from error
