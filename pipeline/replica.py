"""A replica: the Ray actor that owns one engine, long-lived and warm across batches.

It answers the requests of shards, many shards at a time, and hands back finished lines; reading, retrying
and writing are the callers'. It starts its engine by itself on first use, also after Ray restarted it. When
its engine dies, it answers its callers with what was finished and ends its process, so that Ray starts a
new one. Imported only inside functions, because it imports ray at the top.

Limits: an engine's slots are taken in order of arrival, so two runs of one model share a replica fairly only
by shard, not by request.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter, deque
from typing import Any, NamedTuple

import orjson
import ray

from config import settings
from pipeline import engine, errors, kinds
from spool import lines
from spool.parts import Result, Usage

# Calls at a time: a shard takes one, statistics and aborts one each; the requests are bounded by the slots.
MAX_CALLS = 4000
# Durations kept between two polls; what is beyond is dropped, oldest first.
MAX_DURATIONS = 10_000
# How long a cancelled request may take to leave the engine before its caller goes on without it.
ABORT_S = 5.0
# Time for answers that are on their way to callers to leave the process before it ends.
FLUSH_S = 0.5
# A restarted replica whose engine does not start ends itself after this long, so that Ray tries again.
START_RETRY_S = 5.0
# vLLM runs 128 requests at a time where nothing else is said, 256 in its offline mode (0.32, arg_utils.py).
DEFAULT_MAX_NUM_SEQS = 256


class Reply(NamedTuple):
    """What became of the requests of one call.

    Attributes:
        results: in the order of the requests; None where there is no answer yet.
        died: why the engine died meanwhile; None if it did not.
    """

    results: list[Result | None]
    died: str | None


class Stats(NamedTuple):
    """What a replica did since it was last asked.

    Attributes:
        process: random name of this process, so that a restart is seen.
        start_s: seconds that the engine took to start; None while it starts.
        inflight: requests in the engine now.
        durations: seconds per request, at most MAX_DURATIONS of them.
        outcomes: answered requests by outcome: completed, failed, request_timeout, engine_error.
        usage: tokens of the completed ones.
    """

    process: str
    start_s: float | None
    inflight: int
    durations: list[float]
    outcomes: dict[str, int]
    usage: Usage


_Key = tuple[str, int]


class Replica:
    """One engine and the requests in it. All methods run on the actor's one event loop."""

    def __init__(
        self, model: settings.ModelSettings, limits: settings.EngineSettings, omp_num_threads: str | None
    ) -> None:
        _set_threads(omp_num_threads)
        self._model = model
        self._limits = limits
        self._name = model.name
        self._engine: engine.Engine | None = None
        self._slots = asyncio.Semaphore(slots(model))
        self._process = os.urandom(8).hex()
        self._start: asyncio.Task[None] | None = None
        self._start_s: float | None = None
        self._end: asyncio.Task[None] | None = None
        self._running: dict[_Key, list[asyncio.Task[Result]]] = {}
        self._inflight = 0
        self._reset()

    async def ready(self) -> float:
        """Wait until the engine has started.

        Returns:
            Seconds that the start took.

        Raises:
            EngineStartError: it cannot start; this process ends soon.
            EngineDeadError: it died; this process ends soon.
        """
        if self._end is not None:
            raise errors.EngineDeadError(f"model {self._name!r}: the engine died and is being restarted")
        if self._start is None:
            self._start = asyncio.create_task(self._start_engine())
        await asyncio.shield(self._start)
        assert self._start_s is not None
        return self._start_s

    async def infer(self, batch: str, shard: int, batch_id: str, requests: list[tuple[int, bytes]]) -> Reply:
        """Answer requests of one shard, all at once as far as there are slots.

        Requests of that shard that are still here from an earlier call are cancelled first: their caller
        is gone.

        Args:
            batch: the batch's folder, with `shard` the key for `abort`.
            shard: index of the shard.
            batch_id: names the requests in the answers.
            requests: index among the file's requests, and the line of input.jsonl.

        Raises:
            EngineStartError, EngineDeadError: as `ready`; nothing was tried.
        """
        await self.ready()
        await self.abort(batch, shard)
        tasks = [asyncio.create_task(self._answer(batch_id, *request)) for request in requests]
        self._running[batch, shard] = tasks
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            await _cancel(tasks)
            if self._running.get((batch, shard)) is tasks:
                del self._running[batch, shard]
        died = next((str(task.exception()) for task in tasks if _is_failed(task)), None)
        if died is None and self._end is not None:  # it died under another shard, which cancelled ours
            died = f"model {self._name!r}: the engine died"
        return Reply([None if _is_open(task) else task.result() for task in tasks], died)

    async def abort(self, batch: str, shard: int | None = None) -> None:
        """Cancel what is unfinished of a shard, or of a whole batch; its `infer` then returns."""
        keys = [key for key in self._running if key[0] == batch and shard in (None, key[1])]
        await _cancel([task for key in keys for task in self._running[key]])

    async def stats(self) -> Stats:
        """What happened since the last call; starts the engine if nothing else did, and sees it dead.

        Raises:
            EngineDeadError: the engine died; this process ends soon.
            EngineStartError: it cannot start; this process ends soon.
        """
        if self._start_s is None:
            waiting = asyncio.ensure_future(self.ready())
            await asyncio.wait([waiting], timeout=0.01)
            if waiting.done():
                waiting.result()
        else:
            await self.check_health()
        stats = Stats(
            self._process,
            self._start_s,
            self._inflight,
            list(self._durations),
            dict(self._outcomes),
            self._usage,
        )
        self._reset()
        return stats

    async def check_health(self) -> None:
        """Return if the engine can answer.

        Raises:
            EngineDeadError: it cannot; this process ends soon.
        """
        await self.ready()
        assert self._engine is not None
        try:
            await self._engine.check_health()
        except errors.EngineDeadError:
            self._end_soon(FLUSH_S)
            raise

    async def stop(self) -> None:
        """Cancel everything and stop the engine; for an orderly end."""
        await _cancel([task for tasks in self._running.values() for task in tasks])
        if self._engine is not None:
            await self._engine.stop()

    def _reset(self) -> None:
        self._durations: deque[float] = deque(maxlen=MAX_DURATIONS)
        self._outcomes: Counter[str] = Counter()
        self._usage = Usage()

    async def _start_engine(self) -> None:
        began = time.monotonic()
        try:
            made = kinds.make_engine(self._model, allowed_media_domains=self._limits.allowed_media_domains)
            await made.start()
        except Exception as error:
            self._end_soon(START_RETRY_S)
            if isinstance(error, errors.EngineStartError):
                raise
            reason = f"model {self._name!r}: {type(error).__name__}: {error}"
            raise errors.EngineStartError(" ".join(reason.split())) from error
        self._engine = made
        self._start_s = time.monotonic() - began

    async def _answer(self, batch_id: str, line: int, request: bytes) -> Result:
        """One finished line; raises EngineDeadError alone."""
        async with self._slots:
            if self._end is not None:
                raise errors.EngineDeadError(f"model {self._name!r}: the engine died")
            began = time.monotonic()
            self._inflight += 1
            try:
                outcome, result = await self._ask(lines.request_key(batch_id, line), line, request)
            except errors.EngineDeadError:
                self._end_soon(FLUSH_S)
                raise
            finally:
                self._inflight -= 1
        self._durations.append(time.monotonic() - began)
        self._outcomes[outcome] += 1
        self._usage = self._usage.plus(result.usage)
        return result

    async def _ask(self, key: str, line: int, request: bytes) -> tuple[str, Result]:
        """The outcome and the finished line of one request."""
        assert self._engine is not None
        custom_id = None
        limit = asyncio.timeout(self._limits.request_timeout_s)
        try:
            document = orjson.loads(request)
            custom_id = document["custom_id"]
            async with limit:
                answer = await self._engine.answer(document["url"], document["body"], key)
            ok = answer.status_code == 200
            text = lines.response_line(key, custom_id, answer.status_code, _one_line(answer.body))
            return "completed" if ok else "failed", Result(line, ok, answer.usage if ok else Usage(), text)
        except errors.EngineDeadError:
            raise
        except Exception as error:  # noqa: BLE001 - an engine's mistake on one line must not lose its neighbours
            code, message = lines.Code.ENGINE, f"{type(error).__name__}: {error}"
            if limit.expired():
                code, message = lines.Code.TIMEOUT, f"no answer within {self._limits.request_timeout_s:g} s"
            text = lines.error_line(key, custom_id, code, message)
            return str(code), Result(line, False, Usage(), text)

    def _end_soon(self, after_s: float) -> None:
        if self._end is None:
            self._end = asyncio.create_task(self._end_process(after_s))

    async def _end_process(self, after_s: float) -> None:
        """End this process so that Ray starts another: ray.actor.exit_actor would be taken for intended."""
        await asyncio.wait([asyncio.create_task(self.stop())], timeout=ABORT_S)
        await asyncio.sleep(after_s)
        os._exit(1)


def create(model: settings.ModelSettings, limits: settings.EngineSettings, num_gpus: float) -> Any:
    """Create a replica's actor, which belongs to this driver and is never detached.

    Returns:
        Its handle, before the engine has started.
    """
    options: dict[str, Any] = {
        "num_cpus": 0,
        "num_gpus": num_gpus,
        "max_restarts": -1,
        "max_task_retries": 0,  # callers retry, since they know which lines are finished
        "max_concurrency": MAX_CALLS,
    }
    actor = ray.remote(Replica).options(**options)
    return actor.remote(model, limits, os.environ.get("OMP_NUM_THREADS"))


def slots(model: settings.ModelSettings) -> int:
    """Requests in the engine at a time: a few more than it computes at once, so that no place stays empty.

    The others wait here, where their time limit does not run yet.
    """
    return max(8, max_num_seqs(model) * 5 // 4)


def max_num_seqs(model: settings.ModelSettings) -> int:
    """Requests that a replica's engine computes at once."""
    given = model.engine_args.get("max_num_seqs") if isinstance(model, settings.VllmModel) else None
    return given if isinstance(given, int) and given > 0 else DEFAULT_MAX_NUM_SEQS


def _set_threads(omp_num_threads: str | None) -> None:
    """Undo Ray's OMP_NUM_THREADS=1 for actors without CPUs of their own, before torch is imported."""
    if omp_num_threads is None:
        os.environ.pop("OMP_NUM_THREADS", None)
    else:
        os.environ["OMP_NUM_THREADS"] = omp_num_threads


def _one_line(body: bytes) -> bytes:
    """A JSON document without line ends, which would break a line in two."""
    return orjson.dumps(orjson.loads(body)) if b"\n" in body or b"\r" in body else body


async def _cancel(tasks: list[asyncio.Task[Result]]) -> None:
    """Cancel what is not done and wait until it is, within limits."""
    unfinished = [task for task in tasks if not task.done()]
    for task in unfinished:
        task.cancel()
    if unfinished:
        await asyncio.wait(unfinished, timeout=ABORT_S)


def _is_failed(task: asyncio.Task[Result]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is not None


def _is_open(task: asyncio.Task[Result]) -> bool:
    return not task.done() or task.cancelled() or task.exception() is not None
