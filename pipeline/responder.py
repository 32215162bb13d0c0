"""A responder: answers single requests by one engine, each within its time limit, and counts the outcomes.

What fails about one request becomes that request's own error line. When a request runs out of time, a small
one shows whether it is slow or the engine stands still; only an engine that is dead or stands still raises.
Needs no Ray; all of it runs on the engine's event loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter, deque
from contextlib import nullcontext
from typing import Any, NamedTuple

import orjson

from config import settings
from pipeline import errors
from pipeline.engine import Engine, Remote
from pipeline.time_limit import TimeLimit
from spool import codes, latency, lines
from spool.parts import Result, Usage

_log = logging.getLogger(__name__)

# Outcomes of a request that the engine answered; all others are codes of spool/codes.py.
COMPLETED, FAILED = "completed", "failed"
_NOTHING = Usage()
# Durations kept between two polls; what is beyond is dropped, oldest first.
MAX_DURATIONS = 10_000
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


class Activity(NamedTuple):
    """What came of requests over some time.

    Attributes:
        durations: seconds per request, at most MAX_DURATIONS of them.
        outcomes: answered requests by outcome: completed, failed, request_timeout, engine_error.
        usage: tokens of the completed ones.
    """

    durations: list[float]
    outcomes: dict[str, int]
    usage: Usage


class Responder:
    """Answers requests by one engine that has started."""

    def __init__(self, name: str, engine: Engine, limits: settings.EngineSettings, at_once: int) -> None:
        """Answer by an engine.

        Args:
            name: of the model.
            engine: that has started; a Remote one keeps the time limit itself.
            limits: of one request.
            at_once: requests that the engine computes at a time; the time of others does not run yet.
        """
        self._name = name
        self._engine = engine
        self._limits = limits
        self._limit = None if isinstance(engine, Remote) else TimeLimit(limits.request_timeout_s, at_once)
        self._answered_at = float("-inf")
        self._probe: asyncio.Task[bool] | None = None
        self._durations: deque[float] = deque(maxlen=MAX_DURATIONS)
        self._outcomes: Counter[str] = Counter()
        self._usage = Usage()

    async def answer(self, batch_id: str, line: int, request: bytes) -> Result:
        """The finished line of one request.

        Args:
            batch_id: names the request in the answer.
            line: index among the file's requests.
            request: the line of input.jsonl.

        Raises:
            EngineDeadError: the engine died or stands still; nothing is known of the request.
            EngineAwayError: the engine cannot answer now.
        """
        began = time.monotonic()
        outcome, usage, text = await self._ask(lines.request_key(batch_id, line), request)
        ended = time.monotonic()
        self._durations.append(ended - began)
        self._outcomes[outcome] += 1
        if outcome != COMPLETED:
            return Result(line, False, usage, text)
        self._answered_at = ended
        self._usage = self._usage.plus(usage)
        return Result(line, True, usage, text, latency=latency.bucket(ended - began))

    def take_activity(self) -> Activity:
        """What came of the requests since the last call."""
        activity = Activity(list(self._durations), dict(self._outcomes), self._usage)
        self._durations.clear()
        self._outcomes.clear()
        self._usage = Usage()
        return activity

    async def _ask(self, key: str, request: bytes) -> tuple[str, Usage, bytes]:
        """The outcome of one request, its tokens if it was completed, and its finished line."""
        custom_id = None
        limited = self._limit.begin() if self._limit else None
        try:
            document = orjson.loads(request)
            custom_id = document["custom_id"]
            with limited or nullcontext():
                answer = await self._engine.answer(document["url"], document["body"], key)
            text = lines.response_line(key, custom_id, answer.status_code, _one_line(answer.body))
            return (COMPLETED, answer.usage, text) if answer.status_code == 200 else (FAILED, _NOTHING, text)
        except (errors.EngineDeadError, errors.EngineAwayError):
            raise
        except Exception as error:  # noqa: BLE001 - an engine's mistake on one line must not lose its neighbours
            code, message = codes.Failure.ENGINE, f"{type(error).__name__}: {error}"
            if isinstance(error, errors.NoAnswerError):
                message = str(error)
            elif limited.is_expired if limited else isinstance(error, TimeoutError):
                if limited:
                    await self._check_progress()
                code, message = (
                    codes.Failure.TIMEOUT,
                    f"no answer within {self._limits.request_timeout_s:g} s",
                )
            text = lines.error_line(key, custom_id, code, message)
            return str(code), _NOTHING, text

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
            return max(self._answered_at, self._engine.computed_at()) > began
        except Exception as error:  # noqa: BLE001 - a refused probe proves nothing against the engine
            _log.warning("probe_failed", extra={"model": self._name, "reason": str(error)[:200]})
        return True


def patience_s(limits: settings.EngineSettings) -> float:
    """Seconds after which silence counts as a hang: as long as a request may take, within bounds."""
    return min(max(PATIENCE_S[0], limits.request_timeout_s), PATIENCE_S[1])


def _one_line(body: bytes) -> bytes:
    """A JSON document without line ends, which would break a line in two; within its texts there is none."""
    return body.translate(None, b"\r\n")
