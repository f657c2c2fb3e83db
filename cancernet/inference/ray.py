"""Work items predicted on a Ray cluster: tasks read them, actors hold one loaded run each and predict.

The only module that knows Ray. Plain tasks and actors, not Ray Data: see docs/scale.md.
"""

import io
import logging
import os
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import cv2
import psutil
import pyarrow
import pyarrow.parquet
import ray
from ray.exceptions import RayError, RayTaskError

from cancernet import CancerNetError, InputError
from cancernet.inference.archive import PATCHES, SLIDES, Archive, describe_progress
from cancernet.inference.predict import PredictOptions
from cancernet.inference.reading import OpenItem, explain, open_item
from cancernet.inference.summary import ItemResult, summarise_item
from cancernet.inference.work_list import WorkItem, printable
from cancernet.run import Settings, name_class
from cancernet.storage import write_files

LOCAL = "local"  # an address: start a cluster on this machine
ITEMS_PER_READER = 100  # libraries that read slides leak: a process is replaced after so many
ITEMS_PER_ACTOR = 500  # likewise; it takes longer to start
TRIES = 3  # of an item whose process dies: of lack of memory, or with its machine
READER_SHARE = 0.2  # of a core for a reader where cores also predict; a whole one where GPUs do
LINE_SECONDS = 10.0  # between two lines about the progress
WAIT_SECONDS = 2.0  # at most until the cluster is looked at again
_TEXTS = ("file", "predicted", "slide", "answer")
_TYPES = {"x": pyarrow.int32(), "y": pyarrow.int32()} | dict.fromkeys(_TEXTS, pyarrow.string())


class Job(NamedTuple):
    """What every process must know. Every machine of the cluster sees the run and the output under the same paths."""

    settings: Settings  # of the run
    options: PredictOptions


def connect(address: str) -> None:
    """Join a Ray cluster; LOCAL starts one on this machine, which ends with `ray.shutdown` or this process.

    Raises InputError if no cluster responds there, or it has another version of Ray or Python.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # send nothing to Ray's makers
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # our own table reports an item that cannot be read
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "60000")  # a reader takes seconds to start
    on_termination = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises errors of many types
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        place = "started on this machine" if address == LOCAL else f"joined at {address}"
        raise InputError(f"No Ray cluster can be {place}: {first}") from error
    signal.signal(signal.SIGTERM, on_termination)  # Ray replaced it by its own, which prints a stack


def predict_items(
    items: Sequence[WorkItem], job: Job, archive: Archive, *, print_line: Callable[[str], object]
) -> Iterator[ItemResult]:
    """Predict items on the cluster at `options.ray`; yield the results as they come, recorded in the archive.

    `items` are those that `Archive.plan` returned. `print_line` gets a line about the progress every LINE_SECONDS.
    """
    connect(job.options.ray or LOCAL)
    try:
        scheduler, done, started, shown = Scheduler(items, job), [], time.monotonic(), 0.0
        for result in scheduler:
            if result:
                archive.add(result)
                done.append(result)
                yield result
            seconds = time.monotonic() - started
            if seconds - shown >= LINE_SECONDS or len(done) == len(items):
                shown = seconds
                print_line(describe_progress(done, len(items), seconds, scheduler.describe_memory()))
    finally:
        ray.shutdown()


class Scheduler:
    """The processes at work. Iterating over it predicts all items, in the order in which they are finished."""

    def __init__(self, items: Sequence[WorkItem], job: Job):
        self._waiting, self._tries = deque(items), Counter[str]()  # tries by stem
        self._unfinished = len(items)
        self._job, self._folder = ray.put(job), job.options.run
        self._reading: dict[ray.ObjectRef, tuple[WorkItem, ray.ObjectRef]] = {}  # item, and its pixels
        self._read: deque[tuple[WorkItem, ray.ObjectRef]] = deque()
        self._busy: dict[ray.ObjectRef, tuple[ray.actor.ActorHandle, WorkItem | None]] = {}  # None: it loads the run
        self._idle: list[ray.actor.ActorHandle] = []
        self._predicted = Counter[ray.actor.ActorHandle]()  # items of each actor
        self._deaths = 0  # in a row, of actors that were loading the run
        self._actor_bytes: dict[ray.actor.ActorHandle, int] = {}
        self._reader_bytes = 0  # memory of the largest reader so far

    def describe_memory(self) -> str:
        """Name the number of actors, and the memory of the largest actor and reader."""
        actors, largest = len(self._busy) + len(self._idle), max(self._actor_bytes.values(), default=0) / 1e9
        return f"{actors} actors of {largest:.2f} GB, readers of {self._reader_bytes / 1e9:.2f} GB"

    def __iter__(self) -> Iterator[ItemResult | None]:
        """Yield the result of each item, and None when nothing happened for a while."""
        while self._unfinished:
            self._assign()
            promised = [*self._reading, *self._busy]
            ray.wait(promised, timeout=WAIT_SECONDS, fetch_local=False)  # for the first
            done, _ = ray.wait(promised, num_returns=len(promised), timeout=0, fetch_local=False)  # all that are there
            taken = [self._take_read(each) if each in self._reading else self._take_result(each) for each in done]
            results = [result for result in taken if result]
            self._unfinished -= len(results)
            yield from results
            if not results:
                yield None

    def _assign(self) -> None:
        """Give work to whoever is free: actors to the cluster, items to readers, read items to actors."""
        resources = ray.cluster_resources()  # machines come and go
        cores, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
        wanted = min(gpus or cores or 1, self._unfinished)
        needs = {"num_cpus": 1, "num_gpus": 1} if gpus else {"num_cpus": 1 - READER_SHARE}
        while len(self._busy) + len(self._idle) < wanted:
            actor = cast("ray.actor.ActorHandle", RemotePredictor.options(**needs).remote())
            self._busy[actor.load.remote(self._job)] = (actor, None)
        reader = read_item.options(num_cpus=1 if gpus else READER_SHARE)
        while self._waiting and len(self._reading) + len(self._read) < wanted + cores:
            item = self._waiting.popleft()
            used, pixels = cast("tuple[ray.ObjectRef, ray.ObjectRef]", reader.remote(item, self._job))  # num_returns=2
            self._reading[used] = (item, pixels)
        while self._idle and self._read:
            actor, (item, pixels) = self._idle.pop(), self._read.popleft()
            self._busy[actor.predict.remote(item, pixels)] = (actor, item)

    def _take_read(self, used: ray.ObjectRef) -> ItemResult | None:
        item, pixels = self._reading.pop(used)
        try:
            self._reader_bytes = max(self._reader_bytes, ray.get(used))
        except RayTaskError as error:
            return _fail(item, _describe(error.cause))
        except RayError as error:
            return _fail(item, f"the process that read it died {TRIES} times: {_describe(error)}")
        self._read.append((item, pixels))
        return None

    def _take_result(self, ready: ray.ObjectRef) -> ItemResult | None:
        actor, item = self._busy.pop(ready)
        try:
            result, self._actor_bytes[actor] = ray.get(ready)
        except RayTaskError as error:
            if not isinstance(error.cause, RayError):  # raised by our own code
                self._idle.append(actor)
                if item and isinstance(error.cause, InputError):
                    return _fail(item, str(error.cause))
                raise error.cause from error
            return self._try_again(actor, item, error)
        except RayError as error:
            return self._try_again(actor, item, error)
        self._deaths = 0
        self._predicted[actor] += item is not None
        if self._predicted[actor] < ITEMS_PER_ACTOR:
            self._idle.append(actor)
        else:
            self._forget(actor)
        return result

    def _forget(self, actor: ray.actor.ActorHandle) -> None:
        """Let Ray end an actor, since nobody holds it any more; the next `_assign` starts another."""
        self._predicted.pop(actor, None)
        self._actor_bytes.pop(actor, None)

    def _try_again(self, actor: ray.actor.ActorHandle, item: WorkItem | None, error: RayError) -> ItemResult | None:
        """Plan an item again whose actor died, or that was lost with a machine; after TRIES it has failed."""
        self._forget(actor)
        if item is None:
            self._deaths += 1
            if self._deaths == TRIES:
                raise InputError(f"{TRIES} actors died while they loaded {self._folder}: {_describe(error)}") from error
            return None
        self._tries[item.stem] += 1
        if self._tries[item.stem] == TRIES:
            return _fail(item, f"the process that predicted it died {TRIES} times: {_describe(error)}")
        self._waiting.appendleft(item)
        return None


@ray.remote(num_returns=2, max_calls=ITEMS_PER_READER, max_retries=TRIES - 1)
def read_item(item: WorkItem, job: Job) -> tuple[int, OpenItem]:
    """Read the patches of an item; also return the memory of this process.

    They are separate so that the pixels go straight to the machine that predicts. Raises InputError as `open_item`.
    """
    cv2.setNumThreads(1)  # there are as many readers as cores
    if any(file != printable(file) for file in item.files):
        raise InputError("the names of its files are not UTF-8, which Parquet requires. Rename them.")
    with open_item(job.settings, item, mpp=job.options.mpp) as opened:
        return _measure(), opened._replace(tiles=list(opened.tiles))


class Predictor:
    """A loaded run, one item at a time."""

    def load(self, job: Job) -> tuple[None, int]:
        """Load the run; return the memory of this process."""
        if not ray.get_gpu_ids():  # one core each: threads of many actors would compete
            os.environ |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
        from cancernet.run import load_run

        self.run, self.job = load_run(job.options.run), job
        return None, _measure()

    def predict(self, item: WorkItem, opened: OpenItem) -> tuple[ItemResult, int]:
        """Score and decide an item and write its files; return the memory of this process too."""
        from cancernet.inference import prediction, results

        run, options = self.run, self.job.options
        scores = prediction.score_tiles(run, opened)
        if not scores.patches:
            return ItemResult(item, tuple(opened.rejected)), _measure()
        predictions = prediction.decide_item(run, scores, neighbours=options.neighbours, threshold=options.threshold)
        line = results.write_slide(run, item, predictions, options.output / SLIDES)
        names = [name_class(run.settings, name) for name in run.decision.classes]
        path = options.output / PATCHES / f"{item.stem}.parquet"
        _write_parquet(results.list_columns(run.decision, names), results.list_rows(predictions, names), path)
        return summarise_item(run.settings, item, predictions, has_map=bool(line)), _measure()


RemotePredictor = ray.remote(max_restarts=0)(Predictor)


def _write_parquet(columns: Sequence[str], rows: Sequence[Sequence[object]], path: Path) -> None:
    types = [_TYPES.get(name, pyarrow.float64()) for name in columns]
    arrays = [pyarrow.array(values, kind) for values, kind in zip(zip(*rows, strict=True), types, strict=True)]
    content = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(dict(zip(columns, arrays, strict=True))), content)
    write_files(path.parent, {path.name: content.getvalue()})


def _fail(item: WorkItem, reason: str) -> ItemResult:
    return ItemResult(item, tuple(explain(item.files, reason)))


def _measure() -> int:
    return psutil.Process().memory_info().rss


def _describe(error: BaseException) -> str:
    """Put an error into one line, with its type if it is not ours."""
    first = (str(error).strip() or "no reason given").splitlines()[0]
    return first if isinstance(error, CancerNetError) else f"{type(error).__name__}: {first}"
