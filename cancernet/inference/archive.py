"""The folder of an archive's results: which items are finished, for which run and options, so that work resumes."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from cancernet import InputError, StorageError
from cancernet.inference.summary import ItemResult
from cancernet.inference.work_list import WorkItem, printable
from cancernet.run import CONFIG, DECISION, MODEL
from cancernet.storage import FolderKind, check_replaceable, file_stem, flush, read_json, write_files, write_json

PATCHES, SLIDES = "patches", "slides"  # folders: a Parquet file for each item; a map and the regions of each slide
FINISHED, OPTIONS = "finished.jsonl", "archive.json"
ADVICE = "Choose another --output, or --force to delete what is there."
SINGLE_STEM = "images"  # of the Parquet files of patches without a position


class Archive:
    """The results of finished items. One process writes; an item is finished when finished.jsonl has its line."""

    def __init__(self, folder: Path):
        """Read what is finished and delete the files of items that are not; the caller has the lock of the folder."""
        self.folder = folder
        written = {path.stem for path in (folder / PATCHES).glob("*.parquet")}
        self.finished = [result for result in _read_finished(folder / FINISHED) if result.item.stem in written]
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
            for name in (f"{result.item.stem}.geojson", f"{result.item.stem}.jpg"):
                if (self.folder / SLIDES / name).is_file():
                    flush(self.folder / SLIDES / name)
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

    `options` are what the predictions depend on. Raises InputError if something else is there; `force` deletes it.
    """
    path = folder / OPTIONS
    check_replaceable(folder, FolderKind.ARCHIVE, force=True)  # the options are compared below
    if force or not path.is_file():
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        write_json(path, options)
    for name in (PATCHES, SLIDES):
        (folder / name).mkdir(exist_ok=True)
    before = read_json(path, dict, advice=ADVICE)
    for name, value in options.items():
        if before.get(name) != value:
            raise InputError(f"{folder} has predictions with {name} {before.get(name)}, not {value}. {ADVICE}")


def hash_run(folder: Path) -> str:
    """Identify a run by the SHA-256 of its network, decision and settings."""
    content = b"".join((folder / name).read_bytes() for name in (MODEL, DECISION, CONFIG))
    return hashlib.sha256(content).hexdigest()


def sort_results(results: Iterable[ItemResult], items: Sequence[WorkItem]) -> list[ItemResult]:
    """Put results in the order of the work list, whoever was the first to finish; those of other items come last."""
    order = {item.files[0]: number for number, item in enumerate(items)}
    return sorted(results, key=lambda result: order.get(result.item.files[0], len(order)))


def describe_progress(results: Sequence[ItemResult], items: int, seconds: float, memory: str) -> str:
    """Describe how far the work is: slides and patches done, rate, time left, and the memory of the processes."""
    failed, patches = sum(not result.patches for result in results), sum(result.patches for result in results)
    elapsed, left = (
        str(timedelta(seconds=round(each))) for each in (seconds, seconds * (items / max(len(results), 1) - 1))
    )
    done = f"{len(results):,} of {items:,} slides in {elapsed}" + (f", {left} left" if results else "")
    return f"{done}; {failed:,} failed; {patches:,} patches, {patches / max(seconds, 1e-9):,.0f}/s; {memory}"


def _to_line(result: ItemResult) -> str:
    return json.dumps(dataclasses.asdict(result)) + "\n"


def _read_finished(path: Path) -> list[ItemResult]:
    """Read the lines, without the last where a process was killed while it wrote it."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
    parse = TypeAdapter(ItemResult).validate_json
    try:
        return [parse(line) for line in lines]
    except ValidationError as error:
        raise StorageError(f"{printable(str(path))} is damaged. Delete it to predict again what it lists.") from error
