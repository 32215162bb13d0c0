"""A replica: the Ray actor that owns one engine, long-lived and warm across batches.

It answers the requests of shards, many shards at a time, and hands back finished lines; reading, retrying
and writing are the callers'. It starts its engine by itself on first use, also after Ray restarted it. When
its engine dies or stands still, it answers its callers with what was finished and what was in the engine, and
ends its process, so that Ray starts a new one. A process that stands still itself is the fleet's to restart.
Imported only inside functions, because it imports ray at the top.

Limits: an engine's places are taken in order of arrival, so two runs of one model share a replica fairly only
by shard, not by request; a suspect that has to be alone lets the engine run empty first.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson
import ray

from config import settings
from pipeline import engine, errors, kinds
from spool import lines
from spool.parts import Result, Usage

_log = logging.getLogger(__name__)

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
# How long places that were given to a caller wait for its requests.
TICKET_S = 10.0
# Least and most seconds of silence after which an engine or a process counts as hung, see `patience_s`.
PATIENCE_S = (5.0, 60.0)
# Small requests that show whether an engine still computes: the first that is answered with 200 does. A model
# answers only some of them; the last is for engines that take no texts.
_PROBES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/completions", {"prompt": "a", "max_tokens": 1}),
    ("/v1/embeddings", {"input": "a"}),
    ("/score", {"text_1": "a", "text_2": "a"}),
    ("/v1/completions", {"prompt": [0, 0, 0, 0], "max_tokens": 1}),
)
# vLLM runs 128 requests at a time where nothing else is said, 256 in its offline mode (0.32, arg_utils.py).
DEFAULT_MAX_NUM_SEQS = 256


class Reply(NamedTuple):
    """What became of the requests of one call.

    Attributes:
        results: in the order of the requests; None where there is no answer yet.
        died: why the engine died meanwhile; None if it did not.
        inside: those of the requests that were in the engine when it died.
        crowd: all requests that were in it then.
    """

    results: list[Result | None]
    died: str | None
    inside: Sequence[int] = ()
    crowd: int = 0


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


class Gate:
    """The places in an engine, given in order of arrival.

    A request says how many may be in the engine at a time while it is, itself included: all `places` of them,
    or fewer if it is suspected of killing engines.
    """

    def __init__(self, places: int) -> None:
        self.places = places
        self._taken: Counter[int] = Counter()  # places by the company that their holders bear
        self._queue: deque[tuple[int, int, asyncio.Future[None]]] = deque()

    async def enter(self, company: int, count: int = 1) -> None:
        """Wait for some places at once; each is to be given back by `leave`."""
        assert 0 < count <= company <= self.places
        if not self._queue and self._has_room(company, count):
            self._taken[company] += count
            return
        admitted = asyncio.get_running_loop().create_future()
        self._queue.append((company, count, admitted))
        try:
            await admitted
        except asyncio.CancelledError:
            if admitted.done() and not admitted.cancelled():  # both in one turn of the loop
                self.leave(company, count)
            else:
                admitted.cancel()
                self._admit()
            raise

    def leave(self, company: int, count: int = 1) -> None:
        """Give places back."""
        self._taken[company] -= count
        if not self._taken[company]:
            del self._taken[company]
        self._admit()

    def _has_room(self, company: int, count: int) -> bool:
        return self._taken.total() + count <= min(company, *self._taken, self.places)

    def _admit(self) -> None:
        """Let in who is next; those behind wait, so that nobody waits for ever."""
        while self._queue:
            company, count, admitted = self._queue[0]
            if not admitted.done():
                if not self._has_room(company, count):
                    return
                self._taken[company] += count
                admitted.set_result(None)
            self._queue.popleft()


class _Ticket(NamedTuple):
    """Places that wait for a caller's requests."""

    company: int
    places: int
    expiry: asyncio.TimerHandle


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
        self._gate = Gate(slots(model))
        self._entering: dict[_Key, asyncio.Future[None]] = {}
        self._tickets: dict[_Key, _Ticket] = {}
        self._process = os.urandom(8).hex()
        self._start: asyncio.Task[None] | None = None
        self._start_s: float | None = None
        self._end: asyncio.Task[None] | None = None
        self._running: dict[_Key, list[asyncio.Task[Result]]] = {}
        self._inside: set[tuple[str, int]] = set()
        self._fallen: frozenset[tuple[str, int]] = frozenset()
        self._answered_at = float("-inf")
        self._probe: asyncio.Task[bool] | None = None
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

    async def enter(self, batch: str, shard: int, company: int, count: int) -> None:
        """Wait for places in the engine, for the suspects of a shard that `infer` is then called with.

        Args:
            batch: the batch's folder.
            shard: index of the shard.
            company: most requests in the engine at a time while these are.
            count: how many these are.

        Raises:
            EngineStartError, EngineDeadError: as `ready`.
        """
        await self.ready()
        await self.abort(batch, shard)
        key = (batch, shard)
        entering = asyncio.ensure_future(self._gate.enter(company, count))
        self._entering[key] = entering
        await asyncio.wait([entering])
        if self._entering.get(key) is entering:
            del self._entering[key]
        await self.ready()  # whoever is let in because an engine died was never in one
        if not entering.cancelled():
            expiry = asyncio.get_running_loop().call_later(TICKET_S, self._drop_ticket, key)
            self._tickets[key] = _Ticket(company, count, expiry)

    async def infer(
        self,
        batch: str,
        shard: int,
        batch_id: str,
        requests: list[tuple[int, bytes]],
        has_places: bool = False,
    ) -> Reply:
        """Answer requests of one shard, all at once as far as there are places.

        Requests of that shard that are still here from an earlier call are cancelled first: their caller
        is gone.

        Args:
            batch: the batch's folder, with `shard` the key for `abort`.
            shard: index of the shard.
            batch_id: names the requests in the answers.
            requests: index among the file's requests, and the line of input.jsonl.
            has_places: they have places from `enter`; nothing is tried if those were given up meanwhile.

        Raises:
            EngineStartError, EngineDeadError: as `ready`; nothing was tried.
        """
        await self.ready()
        key = (batch, shard)
        ticket = self._tickets.pop(key, None) if has_places else None
        if has_places and ticket is None:
            return Reply([None] * len(requests), None)
        await self._cancel_running([key])
        tasks = [asyncio.create_task(self._answer(batch, batch_id, *each, ticket)) for each in requests]
        if ticket:
            ticket.expiry.cancel()
            for task in tasks:  # also of a task that is cancelled before it begins
                task.add_done_callback(lambda _: self._gate.leave(ticket.company))
        self._running[key] = tasks
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            await _cancel(tasks)
            if self._running.get(key) is tasks:
                del self._running[key]
        results = [None if _is_open(task) else task.result() for task in tasks]
        died = next((str(task.exception()) for task in tasks if _is_failed(task)), None)
        if died is None and self._end is not None:  # it died under another shard, which cancelled ours
            died = f"model {self._name!r}: the engine died"
        if died is None:
            return Reply(results, None)
        unanswered = [line for (line, _), result in zip(requests, results, strict=True) if result is None]
        inside = [line for line in unanswered if (batch, line) in self._fallen]
        return Reply(results, died, inside, len(self._fallen))

    async def abort(self, batch: str, shard: int | None = None) -> None:
        """Cancel what is unfinished of a shard, or of a whole batch; its `infer` then returns."""
        known = {*self._running, *self._entering, *self._tickets}
        keys = [key for key in known if key[0] == batch and shard in (None, key[1])]
        for key in keys:
            if key in self._entering:
                self._entering[key].cancel()
            self._drop_ticket(key)
        await self._cancel_running(keys)

    async def _cancel_running(self, keys: list[_Key]) -> None:
        await _cancel([task for key in keys for task in self._running.get(key, ())])

    def _drop_ticket(self, key: _Key) -> None:
        """Give back places that nobody came for."""
        if ticket := self._tickets.pop(key, None):
            ticket.expiry.cancel()
            self._gate.leave(ticket.company, ticket.places)

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
            len(self._inside),
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

    async def _answer(
        self, batch: str, batch_id: str, line: int, request: bytes, ticket: _Ticket | None
    ) -> Result:
        """One finished line, in a place of the caller's or one of its own; raises EngineDeadError alone."""
        if ticket:
            return await self._answer_inside(batch, batch_id, line, request)
        await self._gate.enter(self._gate.places)
        try:
            return await self._answer_inside(batch, batch_id, line, request)
        finally:
            self._gate.leave(self._gate.places)

    async def _answer_inside(self, batch: str, batch_id: str, line: int, request: bytes) -> Result:
        if self._end is not None:
            raise errors.EngineDeadError(f"model {self._name!r}: the engine died")
        began = time.monotonic()
        self._inside.add((batch, line))
        try:
            outcome, result = await self._ask(lines.request_key(batch_id, line), line, request)
        except errors.EngineDeadError:
            self._end_soon(FLUSH_S)
            raise
        finally:
            self._inside.discard((batch, line))
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
            if ok:
                self._answered_at = time.monotonic()
            text = lines.response_line(key, custom_id, answer.status_code, _one_line(answer.body))
            return "completed" if ok else "failed", Result(line, ok, answer.usage if ok else Usage(), text)
        except errors.EngineDeadError:
            raise
        except Exception as error:  # noqa: BLE001 - an engine's mistake on one line must not lose its neighbours
            code, message = lines.Code.ENGINE, f"{type(error).__name__}: {error}"
            if limit.expired():
                await self._check_progress()
                code, message = lines.Code.TIMEOUT, f"no answer within {self._limits.request_timeout_s:g} s"
            text = lines.error_line(key, custom_id, code, message)
            return str(code), Result(line, False, Usage(), text)

    async def _check_progress(self) -> None:
        """Return if it is the request that is slow, not the engine that stands still.

        Raises:
            EngineDeadError: the engine answers nothing any more, however small.
        """
        patience = patience_s(self._limits)
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._probe_engine(patience))
        if not await asyncio.shield(self._probe):
            raise errors.EngineDeadError(
                f"model {self._name!r}: the engine stood still: no answer within "
                f"{self._limits.request_timeout_s:g} s, nor to a small request within {patience:g} s"
            )

    async def _probe_engine(self, patience: float) -> bool:
        """Whether the engine answers anything at all, a small request or what else is in it."""
        assert self._engine is not None
        began = time.monotonic()
        try:
            async with asyncio.timeout(patience):
                for url, body in _PROBES:
                    answer = await self._engine.answer(url, dict(body), f"probe-{os.urandom(4).hex()}")
                    if answer.status_code == 200:
                        break
        except errors.EngineDeadError:
            return False
        except TimeoutError:
            return self._answered_at > began
        except Exception as error:  # noqa: BLE001 - a refused probe proves nothing against the engine
            _log.warning("probe_failed", extra={"model": self._name, "reason": str(error)[:200]})
        return True

    def _end_soon(self, after_s: float) -> None:
        if self._end is None:
            self._fallen = frozenset(self._inside)
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


def patience_s(limits: settings.EngineSettings) -> float:
    """Seconds after which silence counts as a hang: as long as a request may take, within bounds."""
    return min(max(PATIENCE_S[0], limits.request_timeout_s), PATIENCE_S[1])


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
