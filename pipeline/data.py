"""The data path of a run in Ray Data: read shards, have them answered, write parts, fused into one task.

A task works through a list of bundles (pipeline/slices.py), each a block of one row: it is read when the one
before was written, and its parts are durable before the next one is read. A task that Ray repeats reads the
parts first, so that no line is doubled. How requests reach an engine, and what becomes of those that kill it,
is in pipeline/calls.py. Imported only inside functions, because it imports ray at the top.

Columns of a row between reading and answering, all of them lists without nulls; an item for each shard:
    batch string, shard int64, attempt int64, home int64, rank int64, and requests int64, how many come next
and an item for each request that has no result yet, shard by shard:
    line int64, leader int64 (the line whose answer it takes, mostly itself), request large_binary (a line of
    input.jsonl)
The large type holds a block of more than 2 GiB, such as 128 lines of 16 MiB.

Limits: a waiting task is a process of Ray's, so few tasks with many lines each are in flight.
"""

from __future__ import annotations

import importlib
import itertools
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]  # has no types
import ray
import ray.data
from ray.data import DataContext, TaskPoolStrategy
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from pipeline import calls, placement, priority, twins
from pipeline.slices import Bundle
from spool import control, parts, plan
from spool.parts import Result

_log = logging.getLogger(__name__)

# A slow machine starts without them.
WARM_S = 15.0

_SHARDS = {
    "batch": pa.string(),
    **dict.fromkeys(("shard", "attempt", "home", "rank", "requests"), pa.int64()),
}
_REQUESTS = {"line": pa.int64(), "leader": pa.int64(), "request": pa.large_binary()}


def configure() -> None:
    """Set up Ray Data once for this process, before the first execution."""
    logger = logging.getLogger("ray.data")
    for handler in list(logger.handlers):  # Ray Data's own console and files: handlers are daemon/logs.py's
        logger.removeHandler(handler)
    logger.propagate = True
    # It warns that progress bars are off, which is what we asked for. A level would not last: Ray Data sets
    # its loggers up again at the first execution, and takes away the levels of those below its own.
    progress = logging.getLogger("ray.data._internal.progress")
    progress.addFilter(lambda record: record.levelno >= logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    # Each row, which is a bundle, is a block of its own and moves on at once.
    context.target_max_block_size = 1
    # One request may take request_timeout_s, many times that of one task; 30 minutes is Ray Data's default.
    context.execution_no_progress_timeout_s = -1
    # So that a run sees whether a disk is to blame.
    context.raise_original_map_exception = True
    # The object store is small and so are our blocks: nothing to reserve for a single fused operator.
    context.op_resource_reservation_enabled = False


def warm_up(replicas: list[Any], workers: int, is_over: Callable[[], bool] = lambda: False) -> None:
    """Have Ray's workers started, their imports done and the replicas known to them, before a run needs them.

    1 s and 1.3 s of processor time for each; without it that time is lost in the first run of more than one
    task (measured 2026-11-23, 2 cores: 1,000 requests took 2.3 to 4.7 s instead of 0.35 s).

    Args:
        replicas: actor handles.
        workers: how many at least.
        is_over: asked now and then whether nobody needs them any more.
    """
    # The driver's side, and the actors that Ray Data keeps: they take a worker each, so they come first.
    ray.data.range(1).materialize()
    linger = ray.remote(_linger).options(**placement.of_task())
    give_up_at = time.monotonic() + WARM_S
    seen: set[int] = set()
    quiet_rounds = 0  # Ray starts more workers than it needs, and a task that gets one waits for its imports
    while quiet_rounds < 2 and time.monotonic() < give_up_at and not is_over():
        asked = [linger.remote(replicas) for _ in range(workers)]
        done, late = ray.wait(asked, num_returns=workers, timeout=max(0.0, give_up_at - time.monotonic()))
        pids = set(ray.get(done))
        if late:
            return
        quiet_rounds = quiet_rounds + 1 if pids <= seen and len(seen) >= workers else 0
        seen |= pids


def execute(
    tasks: Sequence[Sequence[Bundle]],
    route: calls.Route,
    concurrency: int,
    is_deduping: bool,
) -> None:
    """Run tasks, each a list of bundles; returns when all are done.

    Args:
        tasks: in the order in which they should begin.
        route: where the requests go.
        concurrency: most tasks at a time.
        is_deduping: send one of several identical requests.

    Raises:
        Exception: what a task raised, in Ray's wrapping; other tasks may still write their parts.
    """
    steps(tasks, route, concurrency, is_deduping).materialize()


def steps(
    tasks: Sequence[Sequence[Bundle]],
    route: calls.Route,
    concurrency: int,
    is_deduping: bool,
) -> ray.data.Dataset:
    """What `execute` runs, see there: two steps, of equal resources and concurrency, so that both fuse.

    A Datasink would be a third, but Ray Data (2.60) forgets the concurrency when it fuses one with the step
    before it, and then does not fuse the reading: each bundle goes through the object store into a task of
    its own. That took 280 us of processor time a line in all processes together, and takes 95 so (measured
    2026-11-24).
    """
    pool = TaskPoolStrategy(min(concurrency, len(tasks)))
    placed = placement.of_task()
    requests = ray.data.read_datasource(
        ShardSource(tasks, is_deduping), override_num_blocks=len(tasks), compute=pool, **placed
    )
    return requests.map_batches(
        answer,
        fn_kwargs={"route": route},
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=pool,
        **placed,
    )


class ShardSource(Datasource):
    """Reads the missing requests of shards, a read task for each list of bundles."""

    def __init__(self, tasks: Sequence[Sequence[Bundle]], is_deduping: bool) -> None:
        super().__init__()
        self._tasks = [_read_task(list(bundles), is_deduping) for bundles in tasks]
        self._size_bytes = sum(
            part.shard.size_bytes for bundles in tasks for bundle in bundles for part in bundle
        )

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of all shards."""
        return self._size_bytes

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """One task for each list of bundles, whatever Ray Data asks for."""
        return self._tasks


def _read_task(bundles: list[Bundle], is_deduping: bool) -> ReadTask:
    size_bytes = sum(part.shard.size_bytes for bundle in bundles for part in bundle)
    metadata = BlockMetadata(num_rows=None, size_bytes=size_bytes, exec_stats=None, input_files=None)
    return ReadTask(partial(read, bundles, is_deduping), metadata)


def read(bundles: Iterable[Bundle], is_deduping: bool = False) -> Iterator[pa.Table]:
    """The requests of each bundle that have no result yet, as a table of one row; read when it is asked for.

    A batch that is stopped, or that another daemon has adopted, yields nothing.

    Args:
        bundles: each is read when the one before has been taken.
        is_deduping: have identical requests follow the first of them.

    Raises:
        ValueError: the batch's files are damaged.
    """
    for bundle in bundles:
        shards: list[tuple[str, int, int, int, int, int]] = []
        rows: list[tuple[int, int, bytes]] = []
        for part in bundle:
            if control.must_stop(part.batch):
                continue
            try:
                requests = _missing(part.batch, part.shard)
            except FileNotFoundError:
                if part.batch.is_dir():
                    raise  # not adopted: the volume does not find what is there, and is asked again
                _log.warning("shard_gone", extra={"batch": part.batch.name, "shard": part.shard.index})
                continue
            # Twins that have no result yet follow the first of them that has none either.
            has_twins = part.shard.distinct is not None and part.shard.distinct < part.shard.lines
            leaders = twins.leaders(requests) if has_twins and is_deduping else [line for line, _ in requests]
            name = str(part.batch)
            shards.append((name, part.shard.index, part.attempt, part.home, part.rank, len(requests)))
            rows += [
                (line, leader, request) for (line, request), leader in zip(requests, leaders, strict=True)
            ]
        if rows:
            arrays = _to_arrays(shards, _SHARDS) + _to_arrays(rows, _REQUESTS)
            yield pa.Table.from_arrays(arrays, names=[*_SHARDS, *_REQUESTS])


def _to_arrays(rows: Sequence[tuple[Any, ...]], columns: dict[str, pa.DataType]) -> list[pa.Array]:
    """Columns of one row, which are lists with an item for each of these."""
    lists = zip(*rows, strict=True)
    return [pa.array([column], pa.list_(kind)) for column, kind in zip(lists, columns.values(), strict=True)]


def _to_rows(table: pa.Table, columns: dict[str, pa.DataType]) -> Iterator[tuple[Any, ...]]:
    """What `_to_arrays` was given; nothing of a block without columns, which Ray Data makes of nothing."""
    if table.num_rows:
        yield from zip(*(table.column(name)[0].values.to_pylist() for name in columns), strict=True)


def _missing(batch: Path, shard: plan.Shard) -> list[tuple[int, bytes]]:
    names = parts.list_shard(batch, shard.index)
    done = {result.line for name in names for result in parts.read(batch, name)}
    return [request for request in plan.read_requests(batch, shard) if request[0] not in done]


def answer(table: pa.Table, route: calls.Route) -> pa.Table:
    """Have the requests of a bundle answered, and make a part of each shard durable.

    Of stopped batches that is as far as they got; requests whose replica did not come back in time have no
    result either, and the caller of the run sees that. A batch that another daemon adopted is dropped, which
    is the fence.

    Returns:
        Nothing: the parts are the whole result.

    Raises:
        OSError: a part cannot be written, such as on a full disk.
    """
    priority.give_way()
    waiting = [_Waiting(*shard, route) for shard in _by_shard(table)]
    calls.answer_all([each.call for each in waiting])
    for each in waiting:
        batch, shard, attempt = each.key
        if results := list(each.results()):
            try:
                parts.write(Path(batch), shard, attempt, results)
            except FileNotFoundError:
                if Path(batch).is_dir():
                    raise
                _log.warning("part_dropped", extra={"batch": Path(batch).name, "shard": shard})
    return pa.table({})


class _Waiting:
    """The requests of a shard: one of each kind is called, its twins wait for what it brings."""

    def __init__(
        self,
        key: tuple[str, int, int],
        home: int,
        rank: int,
        rows: list[tuple[int, int, bytes]],
        route: calls.Route,
    ) -> None:
        self.key = key
        self._leaders = {line: request for line, leader, request in rows if line == leader}
        self._followers: dict[int, list[tuple[int, bytes]]] = {}
        for line, leader, request in rows:
            if line != leader:
                self._followers.setdefault(leader, []).append((line, request))
        self.call = calls.Call(key, home, rank, list(self._leaders.items()), route)

    def results(self) -> Iterator[Result]:
        """What the call brought, and the same for the twins."""
        for line, result in self.call.results.items():
            yield result
            if followers := self._followers.get(line):
                yield from twins.share(result, self.call.batch_id, self._leaders[line], followers)


def _by_shard(
    table: pa.Table,
) -> Iterator[tuple[tuple[str, int, int], int, int, list[tuple[int, int, bytes]]]]:
    """Key, home and rank of each shard, and its requests."""
    rows = _to_rows(table, _REQUESTS)
    for *key, home, rank, requests in _to_rows(table, _SHARDS):
        if requests:
            yield tuple(key), home, rank, list(itertools.islice(rows, requests))


def _linger(replicas: list[Any]) -> int:
    """Make a worker ready, and hold it for long enough that another one gets the next task."""
    priority.give_way()
    importlib.import_module("pandas")  # which Ray Data imports when it has written
    list(read([]))
    calls = [handle.abort.remote("") for handle in replicas]
    ray.wait(calls, num_returns=len(calls), timeout=1)
    time.sleep(0.2)
    return os.getpid()
