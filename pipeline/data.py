"""The data path of a run in Ray Data: read shards, infer, write parts, fused by Ray Data into one task.

A task carries one or a few shards, as one block with a row for each request that has no result yet. What is
finished is durable when the task ends; a task that Ray repeats reads the parts first, so that no line is
doubled. Imported only inside functions, because it imports ray at the top.

Columns between reading and inferring (all of them not null):
    batch string, shard int64, attempt int64, line int64, request large_binary (a line of input.jsonl)
and between inferring and writing:
    batch string, shard int64, attempt int64, line int64, ok bool, input_tokens, cached_tokens,
    output_tokens, reasoning_tokens int64, text large_binary (a finished JSON line)
The large types hold a block of more than 2 GiB, such as 128 lines of 16 MiB.

Limits: a waiting task is a process of Ray's, so few tasks with many lines each are in flight, and a shard's
part is written when the shards that share its task are finished too.
"""

from __future__ import annotations

import importlib
import itertools
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pyarrow as pa  # type: ignore[import-untyped]  # has no types
import ray
import ray.data
from ray.data import DataContext, TaskPoolStrategy
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasink, Datasource, ReadTask

from pipeline import errors
from pipeline.slices import MAX_TASKS, Slice
from spool import control, lines, parts, plan
from spool.parts import Result, Usage

_log = logging.getLogger(__name__)

# How often a waiting task looks for its batch's `stop` file.
POLL_S = 0.25
# How long a task waits for a replica that answers to an abort, seconds.
ABORT_S = 15.0
# How long a task waits for a dead replica to come back: a large model loads for minutes.
RETURN_S = 300.0
# Waits between two looks at a replica that is not back, seconds: doubled from the first to the second.
BACKOFF_S = (0.25, 5.0)
# Tasks wait rather than compute: Ray must not take them for work that fills a core.
TASK_CPUS = 0.01
# A slow machine starts without them.
WARM_S = 15.0

_REQUESTS = pa.schema(
    [
        pa.field("batch", pa.string(), nullable=False),
        pa.field("shard", pa.int64(), nullable=False),
        pa.field("attempt", pa.int64(), nullable=False),
        pa.field("line", pa.int64(), nullable=False),
        pa.field("request", pa.large_binary(), nullable=False),
    ]
)
_RESULTS = pa.schema(
    [
        *itertools.islice(_REQUESTS, 4),
        pa.field("ok", pa.bool_(), nullable=False),
        *(pa.field(name, pa.int64(), nullable=False) for name in Usage._fields),
        pa.field("text", pa.large_binary(), nullable=False),
    ]
)


class Route(NamedTuple):
    """Where a run's requests go.

    Attributes:
        replicas: actor handles; a shard's own is the one at its index.
        max_attempts: times a request is tried when its engine dies under it.
    """

    replicas: list[Any]
    max_attempts: int


def configure() -> None:
    """Set up Ray Data once for this process, before the first execution."""
    logger = logging.getLogger("ray.data")
    for handler in list(logger.handlers):  # Ray Data's own console and files: handlers are daemon/logs.py's
        logger.removeHandler(handler)
    logger.propagate = True
    # It warns at every execution that progress bars are off, which is what we asked for.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    # One block for each task: a shard that was cut in two blocks would become two parts of one name.
    context.target_max_block_size = None
    # One request may take request_timeout_s, many times that of one task; 30 minutes is Ray Data's default.
    context.execution_no_progress_timeout_s = -1
    # The object store is small and so are our blocks: nothing to reserve for a single fused operator.
    context.op_resource_reservation_enabled = False


def warm_up(replicas: list[Any]) -> None:
    """Have Ray's workers started, their imports done and the replicas known to them, before the first run.

    3 s, 10 s on a busy machine; without it that time is lost in the first run of more than one task
    (measured 2026-11-23, 2 cores: 1,000 requests took 2.3 to 4.7 s instead of 0.35 s).
    """
    # The driver's side, and the actors that Ray Data keeps: they take a worker each, so they come first.
    ray.data.range(1).materialize()
    linger = ray.remote(_linger).options(num_cpus=TASK_CPUS)
    give_up_at = time.monotonic() + WARM_S
    seen: set[int] = set()
    quiet_rounds = 0  # Ray starts more workers than it needs, and a task that gets one waits for its imports
    while quiet_rounds < 2 and time.monotonic() < give_up_at:
        pids = set(ray.get([linger.remote(replicas) for _ in range(MAX_TASKS)]))
        quiet_rounds = quiet_rounds + 1 if pids <= seen and len(seen) >= MAX_TASKS else 0
        seen |= pids


def execute(groups: Sequence[Sequence[Slice]], route: Route, tasks: int, resources: dict[str, float]) -> None:
    """Run groups of shards, each in one task; returns when all are done.

    Args:
        groups: shards that share a task, in the order in which they should run.
        route: where the requests go.
        tasks: most tasks at a time.
        resources: Ray resources of each task, which place it on a pool's nodes.

    Raises:
        Exception: what a task raised, in Ray's wrapping; other tasks may still write their parts.
    """
    concurrency = min(tasks, len(groups))
    pool = TaskPoolStrategy(concurrency)
    placed: dict[str, Any] = {"num_cpus": TASK_CPUS, "resources": resources}
    # Equal resources and concurrency are what lets Ray Data fuse the three steps into one task.
    requests = ray.data.read_datasource(
        ShardSource(groups), override_num_blocks=len(groups), compute=pool, **placed
    )
    results = requests.map_batches(
        infer,
        fn_kwargs={"route": route},
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=pool,
        **placed,
    )
    results.write_datasink(PartSink(), ray_remote_args=placed, concurrency=concurrency)


class ShardSource(Datasource):
    """Reads the missing requests of shards, a read task for each group."""

    def __init__(self, groups: Sequence[Sequence[Slice]]) -> None:
        super().__init__()
        self._tasks = [_read_task(list(group)) for group in groups]
        self._size_bytes = sum(part.shard.size_bytes for group in groups for part in group)

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of all shards."""
        return self._size_bytes

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """One task for each group, whatever Ray Data asks for."""
        return self._tasks


def _read_task(group: list[Slice]) -> ReadTask:
    size_bytes = sum(part.shard.size_bytes for part in group)
    metadata = BlockMetadata(num_rows=None, size_bytes=size_bytes, exec_stats=None, input_files=None)
    return ReadTask(partial(read, group), metadata)


def read(group: Iterable[Slice]) -> Iterator[pa.Table]:
    """The requests of some shards that have no result yet, as one table.

    A batch that is stopped, or that another daemon has adopted, yields nothing.

    Raises:
        ValueError: the batch's files are damaged.
    """
    rows: list[tuple[str, int, int, int, bytes]] = []
    for part in group:
        if control.must_stop(part.batch):
            continue
        try:
            rows += [
                (str(part.batch), part.shard.index, part.attempt, line, request)
                for line, request in _missing(part.batch, part.shard)
            ]
        except FileNotFoundError:
            _log.warning("shard_gone", extra={"batch": part.batch.name, "shard": part.shard.index})
    columns = list(zip(*rows, strict=True)) or [()] * len(_REQUESTS)
    yield pa.Table.from_arrays(
        [pa.array(column, field.type) for column, field in zip(columns, _REQUESTS, strict=True)],
        schema=_REQUESTS,
    )


def _missing(batch: Path, shard: plan.Shard) -> Iterator[tuple[int, bytes]]:
    names = [name for name in parts.list_parts(batch) if name.shard == shard.index]
    done = {result.line for name in names for result in parts.read(batch, name)}
    requests = list(plan.read_requests(batch, shard))
    if len(requests) != shard.lines:
        raise ValueError(
            f"{batch.name}: input.jsonl holds {len(requests)} requests of shard {shard.index}, "
            f"its plan says {shard.lines}"
        )
    return (request for request in requests if request[0] not in done)


def infer(table: pa.Table, route: Route) -> pa.Table:
    """Have the requests of some shards answered; those of stopped batches as far as they got.

    Requests whose replica did not come back in time have no result either; the caller of the run sees that.
    """
    calls = [_Call(key, requests, route) for key, requests in _by_shard(table)]
    looked_at = time.monotonic()
    while active := [call for call in calls if call.is_active]:
        _wait_for(active)
        if time.monotonic() - looked_at >= POLL_S:
            looked_at = time.monotonic()
            for batch in {call.batch for call in active}:
                if control.must_stop(Path(batch)):
                    for call in active:
                        call.abort_if_of(batch)
    columns: list[list[Any]] = [[] for _ in _RESULTS]
    for call in calls:
        for result in call.results.values():
            row = (call.batch, call.shard, call.attempt, result.line, result.ok, *result.usage, result.text)
            for column, value in zip(columns, row, strict=True):
                column.append(value)
    return pa.Table.from_arrays(
        [pa.array(column, field.type) for column, field in zip(columns, _RESULTS, strict=True)],
        schema=_RESULTS,
    )


def _by_shard(table: pa.Table) -> Iterator[tuple[tuple[str, int, int], list[tuple[int, bytes]]]]:
    rows = zip(*(table.column(name).to_pylist() for name in _REQUESTS.names), strict=True)
    for key, group in itertools.groupby(rows, key=lambda row: row[:3]):
        yield key, [row[3:] for row in group]


def _wait_for(active: list[_Call]) -> None:
    """Wait until one call can go on, at most POLL_S, and let all go on that can."""
    asked = {call.asked: call for call in active if call.asked is not None}
    if asked:
        for done in ray.wait(list(asked), num_returns=1, timeout=POLL_S)[0]:
            asked[done].go_on()
    else:
        time.sleep(BACKOFF_S[0])
    for call in active:
        call.try_again_if_due()


class _Call:
    """The requests of one shard on their way: asks its replica whether it is ready, then for answers.

    Attributes:
        asked: what is awaited; None while it waits to try again, and at the end.
        results: by line.
        is_active: whether there is anything left to wait for.
    """

    def __init__(self, key: tuple[str, int, int], requests: list[tuple[int, bytes]], route: Route) -> None:
        self.batch, self.shard, self.attempt = key
        self.results: dict[int, Result] = {}
        self.asked: Any = None
        self.is_active = True
        self._open = dict(requests)
        self._route = route
        self._turn = self.shard
        self._tries = 0
        self._is_sent = False
        self._give_up_at = float("inf")
        self._due_at = 0.0
        self._backoff_s = BACKOFF_S[0]
        self._absent_since: float | None = None
        self._ask()

    @property
    def _replica(self) -> Any:
        return self._route.replicas[self._turn % len(self._route.replicas)]

    @property
    def _is_aborted(self) -> bool:
        return self._give_up_at < float("inf")

    def _ask(self) -> None:
        """Ask whether the replica is ready: a request that is never sent costs no attempt."""
        self._is_sent = False
        self.asked = self._replica.ready.remote()

    def _send(self) -> None:
        self._is_sent = True
        batch_id = Path(self.batch).name.rpartition("~")[0]
        self.asked = self._replica.infer.remote(self.batch, self.shard, batch_id, list(self._open.items()))

    def go_on(self) -> None:
        """Take what was awaited."""
        asked, self.asked = self.asked, None
        try:
            value = ray.get(asked)
        except errors.PipelineError as error:  # there is a process, but no engine in it: nothing was tried
            self._not_ready(reason(error))
            return
        except ray.exceptions.RayActorError as error:
            if self._is_sent:
                self._lost(reason(error))
            else:
                self._not_ready(reason(error))
            return
        self._absent_since, self._backoff_s = None, BACKOFF_S[0]
        if not self._is_sent:
            self._send()
            return
        for result in value.results:
            if result is not None:
                self.results[result.line] = result
                del self._open[result.line]
        if not self._open or self._is_aborted:
            self.is_active = False
        elif value.died is not None:
            self._lost(value.died)
        else:
            self._not_ready("the replica let go of the requests")

    def _lost(self, reason: str) -> None:
        """The replica died with these requests in it."""
        self._tries += 1
        _log.warning("requests_lost", extra={"batch": self.batch, "shard": self.shard, "reason": reason})
        if self._is_aborted:
            self.is_active = False
        elif self._tries >= self._route.max_attempts:
            self._fail(reason)
        else:
            self._later()

    def _fail(self, reason: str) -> None:
        """Every request that was in a dying engine max_attempts times fails."""
        batch_id = Path(self.batch).name.rpartition("~")[0]
        message = f"the engine died {self._tries} times with this request in it; last: {reason}"
        for line, request in self._open.items():
            key = lines.request_key(batch_id, line)
            text = lines.error_line(key, orjson.loads(request)["custom_id"], lines.Code.ENGINE, message)
            self.results[line] = Result(line, False, Usage(), text)
        self.is_active = False

    def _not_ready(self, reason: str) -> None:
        now = time.monotonic()
        self._absent_since = self._absent_since or now
        self._turn += 1  # another replica may be there
        if now - self._absent_since > RETURN_S or self._is_aborted:
            _log.error("replica_absent", extra={"batch": self.batch, "shard": self.shard, "reason": reason})
            self.is_active = False
        else:
            self._later()

    def _later(self) -> None:
        self._due_at = time.monotonic() + self._backoff_s
        self._backoff_s = min(self._backoff_s * 2, BACKOFF_S[1])

    def try_again_if_due(self) -> None:
        """Ask again after a backoff; give up what was aborted and did not return."""
        now = time.monotonic()
        if now >= self._give_up_at:
            self.is_active = False
        elif self.is_active and self.asked is None and now >= self._due_at:
            self._ask()

    def abort_if_of(self, batch: str) -> None:
        """End early with what is finished; the replica then returns it."""
        if self.batch != batch or self._is_aborted:
            return
        self._give_up_at = time.monotonic() + ABORT_S
        if self._is_sent and self.asked is not None:
            self._replica.abort.remote(self.batch, self.shard)
        else:
            self.is_active = False


class PartSink(Datasink):
    """Writes a part for each shard of a block, durably."""

    def write(self, blocks: Iterable[pa.Table], ctx: Any) -> None:
        """Write what there is; a batch that another daemon adopted is dropped, which is the fence.

        Raises:
            OSError: the part cannot be written, such as on a full disk.
        """
        for block in blocks:
            rows = zip(*(block.column(name).to_pylist() for name in _RESULTS.names), strict=True)
            for (batch, shard, attempt), group in itertools.groupby(rows, key=lambda row: row[:3]):
                results = [Result(row[3], row[4], Usage(*row[5:9]), row[9]) for row in group]
                try:
                    parts.write(Path(batch), shard, attempt, results)
                except FileNotFoundError:
                    _log.warning("part_dropped", extra={"batch": Path(batch).name, "shard": shard})


def reason(error: Exception) -> str:
    """One line; of an error that Ray wrapped, what was raised in the replica."""
    return " ".join(str(getattr(error, "cause", None) or error).split())[:300]


def _linger(replicas: list[Any]) -> int:
    """Make a worker ready, and hold it for long enough that another one gets the next task."""
    importlib.import_module("pandas")  # which Ray Data imports when it has written
    read([])
    calls = [handle.abort.remote("") for handle in replicas]
    ray.wait(calls, num_returns=len(calls), timeout=1)
    time.sleep(0.2)
    return os.getpid()
