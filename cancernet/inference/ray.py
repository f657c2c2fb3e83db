"""Slides answered on a Ray cluster: tasks read them, actors hold one loaded run each and answer them.

The only module that knows Ray. Plain tasks and actors, not Ray Data: see docs/scale.md.
"""

import io
import os
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import psutil
import pyarrow
import pyarrow.parquet
import ray
from ray.exceptions import RayError, RayTaskError

from cancernet import InputError
from cancernet.inference import work_list
from cancernet.inference.archive import PATCHES, SLIDES, Archive, Progress, Slide, identify_run
from cancernet.inference.reading import OpenPart, open_part
from cancernet.run import Settings
from cancernet.storage import write_files

LOCAL = "local"  # an address: start a cluster on this machine
SLIDES_A_READER = 100  # libraries that read slides leak: a process is replaced after so many
SLIDES_AN_ACTOR = 500  # likewise; it takes longer to start
TRIES = 3  # of a slide whose process dies: of lack of memory, or with its machine
READ_SHARE = 0.2  # of a core for a reader where cores answer too; a whole one where GPUs do
_TYPES = {"x": pyarrow.int32(), "y": pyarrow.int32()} | dict.fromkeys(("file", "predicted", "slide"), pyarrow.string())
WAIT_SECONDS = 2.0  # at most until the cluster is looked at again


class Work(NamedTuple):
    """What every process must know."""

    run: Path  # folder of the run, as every machine of the cluster sees it
    settings: Settings  # of the run
    output: Path  # folder of the archive, likewise
    tile: str  # as `work_list.plan_parts`
    mpp: float | None  # as `results.Options`
    neighbours: bool
    threshold: float | None


class Answer(NamedTuple):
    """What came of a slide."""

    slide: Slide
    reason: str = ""  # why it was not answered
    summary: tuple = ()  # its rows of summary.csv
    refused: tuple = ()  # file and reason of its patches that could not be read
    patches: int = 0


def connect(address: str) -> None:
    """Join a Ray cluster; LOCAL starts one on this machine, which ends with `ray.shutdown` or this process.

    Raises:
        InputError: no cluster answers there, or it has another version of Ray or Python.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to Ray's makers
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # a slide that cannot be read is told once, in our table
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "60000")  # a reader takes seconds to start
    ended = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except Exception as error:  # Ray raises errors of many types
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        place = "started on this machine" if address == LOCAL else f"joined at {address}"
        raise InputError(f"No Ray cluster can be {place}: {first}") from error
    signal.signal(signal.SIGTERM, ended)  # Ray put its own in this place, which prints a stack


def describe_work(work: Work) -> dict[str, str | float | bool | None]:
    """All that the answers depend on."""
    asked = {name: getattr(work, name) for name in ("tile", "mpp", "neighbours", "threshold")}
    return {"run": identify_run(work.run), **asked}


def answer_archive(
    address: str, work: Work, kept: Archive, paths: Sequence[str], *, say: Callable[[str], object]
) -> None:
    """Answer all slides that are not finished.

    Args:
        address: see `connect`.
        kept: gets what comes of each slide.
        paths: a slide each.
        say: gets lines to be shown: how many slides there are, and a table that grows.

    Raises:
        InputError: as `connect`, or the run cannot be loaded.
        OSError: the results cannot be written.
    """
    paths = [os.path.abspath(path) for path in paths]
    slides = kept.plan(paths)
    say(f"{len(slides):,} slides to answer; {len(kept.finished):,} are finished.")
    if not slides:
        return
    connect(address)
    try:
        crew, progress = Crew(slides, work), Progress(len(slides))
        say(Progress.HEADER)
        for answer in crew:
            if answer:
                _keep(answer, kept)
                progress.count(patches=answer.patches, failed=bool(answer.reason))
            if progress.is_due():
                say(progress.line(crew.actors, crew.actor_bytes, crew.reader_bytes))
    finally:
        ray.shutdown()
    kept.sort(paths)


def _keep(answer: Answer, kept: Archive) -> None:
    if answer.reason:
        kept.fail(answer.slide, answer.reason)
    else:
        kept.finish(answer.slide, answer.summary, answer.refused)


class Crew:
    """The processes at work. Iterating over it answers all slides, in the order in which they are finished."""

    def __init__(self, slides: Sequence[Slide], work: Work):
        """Nothing is started yet; `connect` comes first."""
        self._waiting, self._tries = deque(slides), Counter()
        self._unfinished = len(slides)
        self._work, self._folder = ray.put(work), work.run
        self._reading: dict = {}  # what tells that a slide is read -> slide, its pixels
        self._read: deque = deque()  # slide, its pixels, files that could not be read
        self._busy: dict = {}  # what tells that an actor is ready -> actor, slide (None while it loads the run)
        self._idle: list = []
        self._answered: Counter = Counter()  # by actor
        self._deaths = 0  # of actors that were loading the run, one after the other
        self._actor_bytes: dict = {}  # by actor: its memory
        self.reader_bytes = 0  # memory of the largest reader there was

    @property
    def actors(self) -> int:
        """How many have loaded the run, or are loading it."""
        return len(self._busy) + len(self._idle)

    @property
    def actor_bytes(self) -> int:
        """Memory of the largest actor."""
        return max(self._actor_bytes.values(), default=0)

    def __iter__(self) -> Iterator[Answer | None]:
        """Yields each slide's answer, and None when nothing happened for a while.

        Raises:
            InputError: the run cannot be loaded.
            OSError: the results cannot be written.
        """
        while self._unfinished:
            self._hand_out()
            promised = [*self._reading, *self._busy]
            ray.wait(promised, timeout=WAIT_SECONDS, fetch_local=False)  # for the first
            done, _ = ray.wait(promised, num_returns=len(promised), timeout=0, fetch_local=False)  # all that are there
            taken = [self._take_read(each) if each in self._reading else self._take_answer(each) for each in done]
            answers = [answer for answer in taken if answer]
            self._unfinished -= len(answers)
            yield from answers or [None]

    def _hand_out(self) -> None:
        """Give work to whoever is free: actors to the cluster, names to readers, read slides to actors."""
        resources = ray.cluster_resources()  # machines come and go
        cores, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
        wanted = min(gpus or cores or 1, self._unfinished)
        needs = {"num_cpus": 1, "num_gpus": 1} if gpus else {"num_cpus": 1 - READ_SHARE}
        while self.actors < wanted:
            actor = Answerer.options(**needs).remote()
            self._busy[actor.load.remote(self._work)] = (actor, None)
        reader = read_slide.options(num_cpus=1 if gpus else READ_SHARE)
        while self._waiting and len(self._reading) + len(self._read) < wanted + cores:
            slide = self._waiting.popleft()
            told, pixels = reader.remote(slide, self._work)
            self._reading[told] = (slide, pixels)
        while self._idle and self._read:
            actor, (slide, pixels, refused) = self._idle.pop(), self._read.popleft()
            self._busy[actor.answer.remote(slide, pixels, refused)] = (actor, slide)

    def _take_read(self, told: ray.ObjectRef) -> Answer | None:
        slide, pixels = self._reading.pop(told)
        try:
            refused, used = ray.get(told)
        except RayTaskError as error:
            return Answer(slide, _describe(error.cause))
        except RayError as error:
            return Answer(slide, f"the process that read it died {TRIES} times: {_describe(error)}")
        self.reader_bytes = max(self.reader_bytes, used)
        self._read.append((slide, pixels, refused))
        return None

    def _take_answer(self, ready: ray.ObjectRef) -> Answer | None:
        actor, slide = self._busy.pop(ready)
        try:
            answer, self._actor_bytes[actor] = ray.get(ready)
        except RayTaskError as error:
            if not isinstance(error.cause, RayError):  # raised by our own code
                self._idle.append(actor)
                if slide and isinstance(error.cause, InputError):
                    return Answer(slide, str(error.cause))
                raise error.cause from error
            return self._try_again(actor, slide, error)
        except RayError as error:
            return self._try_again(actor, slide, error)
        self._deaths = 0
        self._answered[actor] += slide is not None
        if self._answered[actor] < SLIDES_AN_ACTOR:
            self._idle.append(actor)
        else:
            self._forget(actor)
        return answer

    def _forget(self, actor: ray.actor.ActorHandle) -> None:
        """Ray ends an actor that nobody holds; the next `_hand_out` starts another."""
        self._answered.pop(actor, None)
        self._actor_bytes.pop(actor, None)

    def _try_again(self, actor: ray.actor.ActorHandle, slide: Slide | None, error: RayError) -> Answer | None:
        """An actor died, or what it was to answer was lost with a machine."""
        self._forget(actor)
        if slide is None:
            self._deaths += 1
            if self._deaths == TRIES:
                raise InputError(f"{TRIES} actors died while they loaded {self._folder}: {_describe(error)}") from error
            return None
        self._tries[slide] += 1
        if self._tries[slide] == TRIES:
            return Answer(slide, f"the process that answered it died {TRIES} times: {_describe(error)}")
        self._waiting.appendleft(slide)
        return None


@ray.remote(num_returns=2, max_calls=SLIDES_A_READER, max_retries=TRIES - 1)
def read_slide(slide: Slide, work: Work) -> tuple[tuple[list[tuple[str, str]], int], tuple[work_list.Part, OpenPart]]:
    """Read the patches of a slide.

    Returns:
        File and reason of patches that cannot be read, with the memory of this process; and what is read, apart from
        it, so that pixels go to the machine that answers and nowhere else.

    Raises:
        InputError: the row is not one slide, or none of its patches can be read; or as `reading.open_part`.
    """
    cv2.setNumThreads(1)  # as many readers as there are cores
    files, _ = work_list.find_files([slide.path])
    if any(file != work_list.printable(file) for file in files):
        raise InputError(f"{slide.path}: names of its files are not UTF-8, and Parquet knows no other. Rename them.")
    planned = work_list.plan_parts(files, mpp=work.settings.mpp, tile=work.tile)
    if len(planned) != 1 or planned[0].kind == work_list.LOOSE:
        raise InputError(f"{slide.path}: is not one slide: {work_list.describe_plan(planned)} Give each slide a row.")
    part, refused = planned[0]._replace(stem=slide.stem), []

    def refuse(files: Sequence[str], reason: str) -> None:
        refused.extend((file, reason.removeprefix(f"{file}: ")) for file in files)

    with open_part(work.settings, part, mpp=work.mpp, refuse=refuse) as opened:
        opened = opened._replace(tiles=list(opened.tiles))
    if not opened.tiles:
        raise InputError(f"{slide.path}: none of its patches can be read, first {': '.join(refused[0])}")
    return (refused, _measure()), (part, opened)


@ray.remote(max_restarts=0)
class Answerer:
    """A loaded run, one slide at a time."""

    def load(self, work: Work) -> tuple[None, int]:
        """Load the run.

        Raises:
            InputError: as `run.load_run`.
        """
        if not ray.get_gpu_ids():  # one core each: threads of many actors would get in each other's way
            os.environ |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
        from cancernet.run import load_run

        self.run, self.work = load_run(work.run), work
        return None, _measure()

    def answer(
        self, slide: Slide, read: tuple[work_list.Part, OpenPart], refused: list[tuple[str, str]]
    ) -> tuple[Answer, int]:
        """Score and decide a slide and write its files.

        Raises:
            InputError: as `prediction.score_images`, or a threshold for more than two classes.
        """
        from cancernet.inference import prediction, results
        from cancernet.inference.summary import Summary

        (part, opened), work = read, self.work
        scored = prediction.score_opened(self.run, opened)
        decided = prediction.decide_patches(self.run, scored, neighbours=work.neighbours, threshold=work.threshold)
        said = results.write_slide(self.run, part, decided, work.output / SLIDES)
        summary = Summary(self.run)
        summary.add(part, decided, has_map=bool(said))
        rows = results.list_rows(decided, summary.words)
        path = work.output / PATCHES / f"{slide.stem}.parquet"
        _write_parquet(results.name_columns(summary.words), rows, path)
        summed_up = tuple(tuple(row[1:]) for row in summary.rows()[1:])
        return Answer(slide, "", summed_up, tuple(refused), len(rows)), _measure()


def _write_parquet(header: Sequence[str], rows: Sequence[Sequence], path: Path) -> None:
    columns = dict(zip(header, zip(*rows), strict=True))
    types = {name: _TYPES.get(name, pyarrow.float64()) for name in header}
    table = pyarrow.table({name: pyarrow.array(each, types[name]) for name, each in columns.items()})
    content = io.BytesIO()
    pyarrow.parquet.write_table(table, content)
    write_files(path.parent, {path.name: content.getvalue()})


def _measure() -> int:
    return psutil.Process().memory_info().rss


def _describe(error: BaseException) -> str:
    """An error in one line; those that are not ours with their kind."""
    first = (str(error).strip() or "no reason given").splitlines()[0]
    return first if isinstance(error, InputError) else f"{type(error).__name__}: {first}"
