"""A replica: the Ray actor that owns one engine, long-lived and warm across batches.

It answers the requests of shards, many at a time, and hands back finished lines; reading, retrying and
writing are the callers'. It starts its engine on first use, also after Ray restarted it. When its engine dies
or stands still, it tells its callers what was finished and what was in it, and ends its process, so that Ray
starts a new one; a process that stands still is the fleet's to restart. Import it in functions: it needs ray.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import ray
from pydantic import SecretStr

from config import settings
from pipeline import api_key, engine, engine_stats, errors, kinds, priority
from pipeline.gate import Gate, max_num_seqs, slots
from pipeline.reply import Reply
from pipeline.responder import Activity, Responder
from pipeline.tickets import Key, Tickets
from spool.parts import Result, Usage

# Calls at a time: a shard takes one, statistics and aborts one each; the requests are bounded by the slots.
MAX_CALLS = 4000
# How long a cancelled request may take to leave the engine before its caller goes on without it.
ABORT_S = 5.0
# Time for answers that are on their way to callers to leave the process before it ends.
FLUSH_S = 0.5
# A restarted replica whose engine does not start ends itself after this long, so that Ray tries again.
START_RETRY_S = 5.0


class Stats(NamedTuple):
    """What a replica did since it was last asked.

    Attributes:
        process: random name of this process, so that a restart is seen.
        start_s: seconds that the engine took to start; None while it starts.
        is_away: whether the engine has started and cannot answer now.
        outages: servers of a Remote engine that get no requests now, and why.
        inflight: requests in the engine now.
        activity: what came of requests.
        engine: what the engine says of itself, see engine_stats.
    """

    process: str
    start_s: float | None
    is_away: bool
    outages: dict[str, str]
    inflight: int
    activity: Activity
    engine: dict[str, float]


class Replica:
    """One engine and the requests in it. All methods run on the actor's one event loop."""

    def __init__(
        self,
        model: settings.ModelSettings,
        limits: settings.EngineSettings,
        omp_num_threads: str | None,
        key: SecretStr | None,
    ) -> None:
        _set_threads(omp_num_threads)
        self._model = model
        self._limits = limits
        self._key = key
        self._name = model.name
        self._engine: engine.Engine | None = None
        self._responder: Responder | None = None
        self._gate = Gate(slots(model))
        self._tickets = Tickets(self._gate)
        self._process = os.urandom(8).hex()
        self._start: asyncio.Task[None] | None = None
        self._start_s: float | None = None
        self._end: asyncio.Task[None] | None = None
        self._running: dict[Key, list[asyncio.Task[Result]]] = {}
        self._inside: set[tuple[str, int]] = set()
        self._fallen: frozenset[tuple[str, int]] = frozenset()

    async def ready(self) -> float:
        """Wait until the engine has started, and see whether it can answer.

        Returns:
            Seconds that the start took.

        Raises:
            EngineStartError: it cannot start; this process ends soon.
            EngineDeadError: it died; this process ends soon.
            EngineAwayError: it cannot answer now, and will by itself.
        """
        if self._end is not None:
            raise errors.EngineDeadError(f"model {self._name!r}: the engine died and is being restarted")
        if self._start is None:
            self._start = asyncio.create_task(self._start_engine())
        await asyncio.shield(self._start)
        assert self._start_s is not None
        assert self._engine is not None
        try:
            await self._engine.check_health()
        except errors.EngineDeadError:
            self._end_soon(FLUSH_S)
            raise
        return self._start_s

    async def enter(self, batch: str, shard: int, company: int, count: int) -> None:
        """Wait for places in the engine, for the suspects of a shard that `infer` is then called with.

        Args:
            batch: the batch's folder.
            shard: index of the shard.
            company: most requests in the engine at a time while these are.
            count: how many these are.

        Raises:
            EngineStartError, EngineDeadError, EngineAwayError: as `ready`.
        """
        await self.ready()
        await self.abort(batch, shard)
        await self._tickets.issue((batch, shard), company, count)
        await self.ready()  # whoever is let in because an engine died was never in one

    async def infer(
        self,
        batch: str,
        shard: int,
        batch_id: str,
        lines: list[int],
        requests: list[bytes],
        run: str,
        rank: int,
        has_places: bool = False,
    ) -> Reply:
        """Answer requests of one shard, all at once as far as there are places.

        Requests of that shard that are still here from an earlier call are cancelled first: their caller
        is gone.

        Args:
            batch: the batch's folder, with `shard` the key for `abort`.
            shard: index of the shard.
            batch_id: names the requests in the answers.
            lines: index of each request among the file's.
            requests: each as its line of input.jsonl. Pairs would be pickled one by one, 1 us more for each.
            run: names the run.
            rank: how many of the run's requests to this replica come before these.
            has_places: they have places from `enter`; nothing is tried if those were given up meanwhile.

        Raises:
            EngineStartError, EngineDeadError, EngineAwayError: as `ready`; nothing was tried.
        """
        await self.ready()
        key = (batch, shard)
        ticket = self._tickets.take(key) if has_places else None
        if has_places and ticket is None:
            return Reply([], None)
        await self._cancel_running([key])
        begin = asyncio.get_running_loop().create_task
        pairs = zip(lines, requests, strict=True)
        place = None if has_places else (run, rank)
        tasks = [begin(self._answer(batch, batch_id, *pair, place)) for pair in pairs]
        if ticket:
            for task in tasks:  # also of a task that is cancelled before it begins
                task.add_done_callback(lambda _: self._gate.leave(ticket.company))
        self._running[key] = tasks
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            await _cancel(tasks)
            if self._running.get(key) is tasks:
                del self._running[key]
        results, died = _outcome(tasks)
        if died is None and self._end is not None:  # it died under another shard, which cancelled ours
            died = f"model {self._name!r}: the engine died"
        if died is None:
            return Reply(results, None)
        answered = {result.line for result in results}
        inside = [line for line in lines if line not in answered and (batch, line) in self._fallen]
        return Reply(results, died, inside, len(self._fallen))

    async def abort(self, batch: str, shard: int | None = None) -> None:
        """Cancel what is unfinished of a shard, or of a whole batch; its `infer` then returns."""
        known = self._running.keys() | self._tickets.keys
        keys = [key for key in known if key[0] == batch and shard in (None, key[1])]
        for key in keys:
            self._tickets.drop(key)
        await self._cancel_running(keys)

    async def _cancel_running(self, keys: list[Key]) -> None:
        await _cancel([task for key in keys for task in self._running.get(key, ())])

    async def stats(self) -> Stats:
        """What happened since the last call; starts the engine if nothing else did, and sees it dead.

        Raises:
            EngineDeadError: the engine died; this process ends soon.
            EngineStartError: it cannot start; this process ends soon.
        """
        is_away = False
        waiting = asyncio.ensure_future(self.ready())
        await asyncio.wait([waiting], timeout=0.01 if self._start_s is None else None)
        if waiting.done():
            try:
                waiting.result()
            except errors.EngineAwayError:
                is_away = True
        outages: dict[str, str] = self._engine.outages() if isinstance(self._engine, engine.Remote) else {}
        activity = self._responder.take_activity() if self._responder else Activity([], {}, Usage())
        inflight, said = len(self._inside), engine_stats.read()
        return Stats(self._process, self._start_s, is_away, outages, inflight, activity, said)

    async def stop(self) -> None:
        """Cancel everything and stop the engine; for an orderly end."""
        await _cancel([task for tasks in self._running.values() for task in tasks])
        if self._engine is not None:
            await self._engine.stop()

    async def _start_engine(self) -> None:
        began = time.monotonic()
        try:
            made = kinds.make_engine(self._model, self._limits, self._key)
            await made.start()
        except Exception as error:
            self._end_soon(START_RETRY_S)
            if isinstance(error, errors.EngineStartError):
                raise
            reason = f"model {self._name!r}: {type(error).__name__}: {error}"
            raise errors.EngineStartError(" ".join(reason.split())) from error
        priority.leave_processors()
        # What was imported stays: the collector looked through it now and then, and all requests stood still
        # for half a second (vLLM's modules; measured 2026-11-30).
        gc.collect()
        gc.freeze()
        self._engine = made
        self._responder = Responder(self._name, made, self._limits, max_num_seqs(self._model))
        self._start_s = time.monotonic() - began

    async def _answer(
        self, batch: str, batch_id: str, line: int, request: bytes, place: tuple[str, int] | None
    ) -> Result:
        """One finished line, in a place for its run and rank, or without these in a place of the caller's.

        Raises:
            EngineDeadError, EngineAwayError: the engine has none, and nothing else raises.
        """
        if place is None:
            return await self._answer_inside(batch, batch_id, line, request)
        gate = self._gate
        if not gate.try_enter(gate.places):
            await gate.enter(gate.places, 1, *place)
        try:
            return await self._answer_inside(batch, batch_id, line, request)
        finally:
            gate.leave(gate.places)

    async def _answer_inside(self, batch: str, batch_id: str, line: int, request: bytes) -> Result:
        if self._end is not None:
            raise errors.EngineDeadError(f"model {self._name!r}: the engine died")
        assert self._responder is not None
        self._inside.add((batch, line))
        try:
            return await self._responder.answer(batch_id, line, request)
        except errors.EngineDeadError:
            self._end_soon(FLUSH_S)
            raise
        finally:
            self._inside.discard((batch, line))

    def _end_soon(self, after_s: float) -> None:
        if self._end is None:
            self._fallen = frozenset(self._inside)
            self._end = asyncio.create_task(self._end_process(after_s))

    async def _end_process(self, after_s: float) -> None:
        """End this process so that Ray starts another: ray.actor.exit_actor would be taken for intended."""
        await asyncio.wait([asyncio.create_task(self.stop())], timeout=ABORT_S)
        await asyncio.sleep(after_s)
        os._exit(1)


def create(
    model: settings.ModelSettings, limits: settings.EngineSettings, placed: Mapping[str, Any] | None = None
) -> Any:
    """Create a replica's actor, which belongs to this driver and is never detached.

    Args:
        model: whose engine it runs.
        limits: how requests are sent to it.
        placed: Ray's options that say where it stands.

    Returns:
        Its handle, before the engine has started.

    Raises:
        EngineStartError: the API key is not where the settings say.
    """
    key = api_key.read(model)
    options: dict[str, Any] = {
        "num_cpus": 0,
        **(placed or {}),
        "max_restarts": -1,
        "max_task_retries": 0,  # callers retry, since they know which lines are finished
        "max_concurrency": MAX_CALLS,
    }
    actor = ray.remote(Replica).options(**options)
    return actor.remote(model, limits, os.environ.get("OMP_NUM_THREADS"), key)


def _set_threads(omp_num_threads: str | None) -> None:
    """Undo Ray's OMP_NUM_THREADS=1 for actors without CPUs of their own, before torch is imported."""
    if omp_num_threads is None:
        os.environ.pop("OMP_NUM_THREADS", None)
    else:
        os.environ["OMP_NUM_THREADS"] = omp_num_threads


async def _cancel(tasks: list[asyncio.Task[Result]]) -> None:
    """Cancel what is not done and wait until it is, within limits."""
    unfinished = [task for task in tasks if not task.done()]
    for task in unfinished:
        task.cancel()
    if unfinished:
        await asyncio.wait(unfinished, timeout=ABORT_S)


def _outcome(tasks: list[asyncio.Task[Result]]) -> tuple[list[Result], str | None]:
    """The results of those that have one, and what the first that failed raised."""
    results, failure = [], None
    for task in tasks:
        if not task.done() or task.cancelled():
            continue
        if (error := task.exception()) is None:
            results.append(task.result())
        elif failure is None:
            failure = str(error)
    return results, failure
