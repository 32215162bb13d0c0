"""An engine that asks OpenAI-compatible servers elsewhere: vllm serve, SGLang, TGI, TensorRT-LLM, llama.cpp.

A request goes to the server with the least to do (servers.py), as JSON equal to the file's, `model` included;
of a key that repeats, the server sees what validation judged. What it answers stands in the result, byte for
byte (http_answers.py). 429 and 503 cost a request nothing but the wait for a place, which counts against no
time limit. Useless answers and broken connections are tried elsewhere or later, until MOST_BLAME is reached;
then the request fails alone, with the server's own error if it sent one as JSON.

Servers that are away for a while: when none can be reached, no request fails. Those that wait leave the
engine unanswered (EngineAwayError), the model counts as down, its batches wait outside within their deadlines
and go on when a look at GET /v1/models finds a server that has the model. EngineDeadError is for an engine
that was stopped. A request that breaks servers while alone there is blamed for it, across such breaks too.

Imported only inside functions, as it loads aiohttp (http_client.py).

Limits: 4xx is an answer, 401 for a key that was withdrawn too. A server that always answers 429 or 503 is
waited for until the deadline. A proxy's own time limit (504) fails a request after three tries. Of identical
requests that are sent once, all answers have the id that the server made.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import orjson
from pydantic import SecretStr

from config import settings
from pipeline import answers, errors, http_client
from pipeline.engine import Answer
from pipeline.http_answers import Meaning, Verdict
from pipeline.places import Places
from pipeline.servers import Attempt, Fault, Server, Servers, describe

# What a failed attempt costs a request, which fails at the last: three useless answers, or three connections
# that broke while it was alone at the server, or twelve in company, whose fault it hardly was.
BLAME = {Meaning.USELESS: 4, Meaning.BROKE: 1, Meaning.UNREACHABLE: 0}
BLAME_ALONE = 4
MOST_BLAME = 12
# Requests whose blame is remembered while they are away.
_MOST_REMEMBERED = 10_000
# Waits of a request before it tries again, seconds: doubled from the first to the second.
RETRY_S = (0.25, 4.0)
# Between two looks at what has become due.
TICK_S = 0.25


@dataclass(slots=True)
class _Ask:
    """A request on its way through servers.

    Attributes:
        left_s: of its time.
        avoid: servers that failed it.
        error: the last error that a server sent as JSON.
        failures: useless answers and broken connections.
    """

    url: str
    data: bytes
    request_id: str
    left_s: float
    avoid: set[Server] = field(default_factory=set)
    error: Answer | None = None
    failures: int = 0


class OpenAIEngine:
    """Servers elsewhere that serve one model."""

    def __init__(self, model: settings.OpenAIModel, key: SecretStr | None, request_timeout_s: float) -> None:
        self._model = model
        self._key = key
        self._time_s = request_timeout_s
        self._servers = Servers(model.urls, model.max_concurrency)
        self._places = Places(model.name, self._servers)
        self._client: http_client.Client | None = None
        self._watching: asyncio.Task[None] | None = None
        self._looks: dict[Server, asyncio.Task[None]] = {}
        self._under_way: dict[Attempt, asyncio.Timeout] = {}
        self._stalled: set[Attempt] = set()
        self._blame: Counter[str] = Counter()

    async def start(self) -> None:
        """See Engine. Without any server that has the model it fails, and the message names all reasons."""
        most = len(self._servers.all) * self._model.max_concurrency
        if not http_client.make_room(most):
            raise errors.EngineStartError(
                f"model {self._model.name!r}: {most} connections are more than this process may have: lower "
                "max_concurrency, or raise its limit of open files (ulimit -n)"
            )
        self._client = http_client.Client(self._key)
        try:
            await asyncio.gather(*(self._look_at(server) for server in self._servers.all))
        except BaseException:
            await self.stop()
            raise
        outages = self._servers.outages()
        if len(outages) == len(self._servers.all):
            await self.stop()
            raise errors.EngineStartError(
                f"model {self._model.name!r}: no server has it: {describe(outages)}: start one, or correct "
                "urls, name (it must be the servers' own) or the API key"
            )
        self._watching = asyncio.create_task(self._watch())

    async def answer(self, url: str, body: dict[str, Any], request_id: str) -> Answer:
        """See Engine and Remote."""
        if (refusal := answers.refuse(body)) is not None:
            return refusal
        ask = _Ask(url, orjson.dumps(body), request_id, self._time_s)
        while True:
            self._raise_if_stopped()
            if ask.left_s <= 0:
                raise TimeoutError
            failures = ask.failures
            attempt = await self._places.enter(ask.avoid)
            try:
                answer = await self._try(ask, attempt)
            finally:
                self._places.changed()
            if answer is not None:
                self._blame.pop(request_id, None)
                return answer
            if ask.failures > failures:
                least_s, most_s = RETRY_S
                await asyncio.sleep(self._servers.jitter(min(most_s, least_s * 2.0 ** (ask.failures - 1))))

    async def check_health(self) -> None:
        """See Engine."""
        self._raise_if_stopped()
        self._places.check()

    def outages(self) -> dict[str, str]:
        """See Remote."""
        return self._servers.outages()

    def computed_at(self) -> float:
        """See Engine."""
        return float("-inf")

    async def stop(self) -> None:
        """See Engine."""
        tasks = [task for task in (self._watching, *self._looks.values()) if task]
        self._watching = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._places.close()
        if self._client is not None:
            await self._client.close()

    def _raise_if_stopped(self) -> None:
        if self._client is None or self._client.is_closed:
            raise errors.EngineDeadError(f"model {self._model.name!r}: the engine is not running")

    async def _try(self, ask: _Ask, attempt: Attempt) -> Answer | None:
        """Ask one server; None if the request is to be tried again.

        Raises:
            TimeoutError: its time is over.
            NoAnswerError: it was tried often enough.
        """
        assert self._client is not None
        began = time.monotonic()
        try:
            async with asyncio.timeout(ask.left_s) as limit:
                self._under_way[attempt] = limit
                verdict = await self._client.ask(attempt.server.url, ask.url, ask.data)
        except TimeoutError:
            now = time.monotonic()
            reason = f"gave no answer within {now - began:.0f} s"
            self._servers.ran_out(attempt, now, reason)
            if attempt not in self._stalled:
                raise
            ask.left_s -= now - began
            return self._failed(ask, attempt, Verdict(Meaning.USELESS, reason=reason))
        except BaseException:
            self._servers.left(attempt)
            raise
        finally:
            self._under_way.pop(attempt, None)
            self._stalled.discard(attempt)
        now = time.monotonic()
        ask.left_s = max(0.0, ask.left_s - (now - began))
        if verdict.meaning is Meaning.ANSWER:
            self._servers.answered(attempt, now)
            return verdict.answer
        if verdict.meaning is Meaning.REFUSAL:
            self._servers.refused(attempt, now, verdict.retry_after_s)
            return None
        fault = Fault.USELESS if verdict.meaning is Meaning.USELESS else Fault.UNREACHABLE
        self._servers.failed(attempt, now, fault, verdict.reason)
        return self._failed(ask, attempt, verdict)

    def _failed(self, ask: _Ask, attempt: Attempt, verdict: Verdict) -> Answer | None:
        """Note a failed attempt; the server's own error if it was the last one, None if another follows."""
        ask.avoid.add(attempt.server)
        ask.failures += 1
        ask.error = verdict.answer or ask.error
        is_suspect = verdict.meaning is Meaning.BROKE and attempt.is_alone
        self._blame[ask.request_id] += BLAME_ALONE if is_suspect else BLAME[verdict.meaning]
        if self._blame[ask.request_id] < MOST_BLAME:
            if len(self._blame) > _MOST_REMEMBERED:
                del self._blame[next(iter(self._blame))]
            return None
        del self._blame[ask.request_id]
        if ask.error is not None:
            return ask.error
        why = f"{verdict.reason}: {verdict.excerpt}" if verdict.excerpt else verdict.reason
        raise errors.NoAnswerError(
            f"no usable answer in {ask.failures} tries; last: {attempt.server.url} {why}"
        )

    async def _watch(self) -> None:
        """Look at ejected servers, and take requests away from silent ones."""
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            for server in self._servers.to_look_at(now):
                if server not in self._looks:
                    self._looks[server] = asyncio.create_task(self._look_again_at(server))
            for attempt, limit in list(self._under_way.items()):
                if self._servers.is_stalled(attempt, now, self._time_s):
                    self._stalled.add(attempt)
                    with suppress(RuntimeError):  # it is just ending
                        limit.reschedule(asyncio.get_running_loop().time())

    async def _look_again_at(self, server: Server) -> None:
        try:
            await self._look_at(server)
        finally:
            del self._looks[server]
        self._places.changed()

    async def _look_at(self, server: Server) -> None:
        """Ask a server for its models, and note whether it is well."""
        assert self._client is not None
        problem = await self._client.find_problem(server.url, self._model.name)
        if problem is None:
            self._servers.seen_well(server)
        elif server.outage is not None or self._watching is None:  # else it has answered meanwhile
            self._servers.seen_ill(server, time.monotonic(), problem)
