"""What becomes of one request: its outcome, its time limit, and an engine that stands still. No Ray."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import pytest

from config import settings
from pipeline import errors, responder
from pipeline.engine import Answer
from pipeline.responder import Activity, Responder
from spool import latency
from spool.parts import Result, Usage

USAGE = Usage(3, 1, 2, 0)
Act = Callable[[str, dict[str, Any]], Awaitable[Answer]]


class Scripted:
    """An engine that does what a test says."""

    def __init__(self, act: Act, computes: bool = False) -> None:
        self.act = act
        self.computes = computes
        self.asked: list[str] = []

    async def start(self) -> None:
        pass

    async def answer(self, url: str, body: dict[str, Any], request_id: str) -> Answer:
        self.asked.append(request_id)
        return await self.act(url, body)

    async def check_health(self) -> None:
        pass

    def computed_at(self) -> float:
        return time.monotonic() if self.computes else float("-inf")

    async def stop(self) -> None:
        pass


def request(custom_id: str = "a", **body: Any) -> bytes:
    return orjson.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": body})


def make(act: Act, **limits: Any) -> Responder:
    return Responder("m", Scripted(act), settings.EngineSettings(**limits), 8)


def answered(responder: Responder, line: bytes) -> tuple[Result, Any, Activity]:
    result = asyncio.run(responder.answer("batch_x", 7, line))
    return result, orjson.loads(result.text), responder.take_activity()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that answers nothing for this long stands still."""
    monkeypatch.setattr(responder, "PATIENCE_S", (0.05, 0.05))


def test_an_answer_is_completed() -> None:
    """Its body becomes one line whatever line ends it holds, and its tokens are counted."""

    async def act(url: str, body: dict[str, Any]) -> Answer:
        return Answer(200, b'{"model":\r\n"m"}\n', USAGE)

    result, line, activity = answered(make(act), request("a"))
    assert (result.line, result.ok, result.usage) == (7, True, USAGE)
    assert b"\n" not in result.text and b"\r" not in result.text
    assert line["custom_id"] == "a" and line["response"]["body"] == {"model": "m"} and line["error"] is None
    assert (len(activity.durations), activity.outcomes, activity.usage) == (1, {"completed": 1}, USAGE)


def test_an_answer_says_how_long_the_engine_took_and_a_failure_does_not() -> None:
    """What was refused at once, or ran out of time, says nothing of an answer's latency."""

    async def act(url: str, body: dict[str, Any]) -> Answer:
        await asyncio.sleep(0.05)
        return Answer(body["status"], b"{}", Usage())

    took = answered(make(act), request("a", status=200))[0].latency
    assert took is not None and latency.bucket(0.05) <= took <= latency.bucket(5.0)
    assert answered(make(act), request("a", status=400))[0].latency is None


def test_a_refusal_is_failed_and_its_tokens_do_not_count() -> None:
    """What the engine said stands in the line, under its status."""

    async def act(url: str, body: dict[str, Any]) -> Answer:
        return Answer(400, b'{"error":{}}', USAGE)

    result, line, activity = answered(make(act), request())
    assert not result.ok and result.usage == Usage()
    assert line["response"]["status_code"] == 400
    assert (activity.outcomes, activity.usage) == ({"failed": 1}, Usage())


def test_a_mistake_of_the_engine_stays_with_its_request() -> None:
    """Anything that it raises becomes the line's error, as does a request that is no JSON."""

    async def act(url: str, body: dict[str, Any]) -> Answer:
        raise KeyError("tokens")

    it = make(act)
    _, line, activity = answered(it, request("a"))
    assert line["custom_id"] == "a" and line["response"] is None
    assert line["error"] == {"code": "engine_error", "message": "KeyError: 'tokens'"}
    assert activity.outcomes == {"engine_error": 1}
    _, line, _ = answered(it, b"no JSON")
    assert line["error"]["code"] == "engine_error"


def test_activity_is_taken_once() -> None:
    """A second call tells what came after the first."""

    async def act(url: str, body: dict[str, Any]) -> Answer:
        return Answer(200, b"{}", USAGE)

    it = make(act)
    answered(it, request())
    assert it.take_activity() == Activity([], {}, Usage())


def test_a_dead_engine_is_the_callers_to_see() -> None:
    """It is no outcome of the request."""

    async def act(url: str, body: dict[str, Any]) -> Answer:
        raise errors.EngineDeadError("gone")

    it = make(act)
    with pytest.raises(errors.EngineDeadError, match="gone"):
        answered(it, request())
    assert it.take_activity() == Activity([], {}, Usage())


def test_a_request_without_an_answer_fails_with_what_the_engine_says() -> None:
    """In its own words, which name the servers."""

    async def act(url: str, body: dict[str, Any]) -> Answer:
        raise errors.NoAnswerError("no usable answer in 3 tries")

    _, line, activity = answered(make(act), request("a"))
    assert line["error"] == {"code": "engine_error", "message": "no usable answer in 3 tries"}
    assert activity.outcomes == {"engine_error": 1}


def test_an_engine_that_is_away_is_the_callers_to_wait_for() -> None:
    """It is no outcome of the request."""

    async def act(url: str, body: dict[str, Any]) -> Answer:
        raise errors.EngineAwayError("no server")

    it = make(act)
    with pytest.raises(errors.EngineAwayError, match="no server"):
        answered(it, request())
    assert it.take_activity() == Activity([], {}, Usage())


class Elsewhere(Scripted):
    """An engine that keeps the time limit itself."""

    def outages(self) -> dict[str, str]:
        return {}


def test_an_engine_of_servers_elsewhere_keeps_the_time_limit_itself() -> None:
    """The responder neither ends its requests nor asks whether it stands still."""

    async def act(url: str, body: dict[str, Any]) -> Answer:
        await asyncio.sleep(0.05)
        raise TimeoutError

    engine = Elsewhere(act)
    it = Responder("m", engine, settings.EngineSettings(request_timeout_s=0.01), 8)
    _, line, activity = answered(it, request())
    assert line["error"] == {"code": "request_timeout", "message": "no answer within 0.01 s"}
    assert activity.outcomes == {"request_timeout": 1} and len(engine.asked) == 1


@pytest.mark.usefixtures("impatient")
def test_a_slow_request_fails_where_a_small_one_is_answered() -> None:
    """The first small request that the model can answer is proof enough."""

    async def act(url: str, body: dict[str, Any]) -> Answer:
        if body.get("slow"):
            await asyncio.sleep(10)
        return Answer(200 if url == "/score" else 404, b"{}", Usage())

    engine = Scripted(act)
    it = Responder("m", engine, settings.EngineSettings(request_timeout_s=0.01), 8)
    result, line, activity = answered(it, request(slow=True))
    assert not result.ok
    assert line["error"] == {"code": "request_timeout", "message": "no answer within 0.01 s"}
    assert activity.outcomes == {"request_timeout": 1}
    assert len(engine.asked) == 4  # and three small ones: two were refused


@pytest.mark.usefixtures("impatient")
def test_an_engine_that_answers_nothing_stands_still() -> None:
    """That is the engine's death, not the request's failure; one small request asks for all that wait."""

    async def act(url: str, body: dict[str, Any]) -> Answer:
        await asyncio.sleep(10)
        raise AssertionError

    engine = Scripted(act)
    it = Responder("m", engine, settings.EngineSettings(request_timeout_s=0.01), 8)

    async def ask_twice() -> list[Any]:
        asked = (it.answer("batch_x", line, request()) for line in (1, 2))
        return await asyncio.gather(*asked, return_exceptions=True)

    for error in asyncio.run(ask_twice()):
        assert isinstance(error, errors.EngineDeadError)
        assert str(error) == (
            "model 'm': the engine stood still: no answer within 0.01 s, nor to a small request within 0.05 s"
        )
    assert len(engine.asked) == 3


@pytest.mark.usefixtures("impatient")
def test_an_engine_that_computes_is_slow_and_does_not_stand_still() -> None:
    """It is full of others that take as long: the small request has to wait behind them."""

    async def act(url: str, body: dict[str, Any]) -> Answer:
        await asyncio.sleep(10)
        raise AssertionError

    it = Responder("m", Scripted(act, computes=True), settings.EngineSettings(request_timeout_s=0.01), 8)
    _, line, activity = answered(it, request())
    assert line["error"] == {"code": "request_timeout", "message": "no answer within 0.01 s"}
    assert activity.outcomes == {"request_timeout": 1}


@pytest.mark.usefixtures("impatient")
def test_another_answer_proves_that_the_engine_computes() -> None:
    """A full engine may leave the small request waiting, as long as it answers anything."""

    others: list[asyncio.Task[Result]] = []

    async def act(url: str, body: dict[str, Any]) -> Answer:
        if not body.get("other"):
            if "prompt" in body:  # the small request
                others.append(asyncio.create_task(it.answer("batch_x", 2, request(other=True))))
            await asyncio.sleep(10)
        return Answer(200, b"{}", USAGE)

    it = make(act, request_timeout_s=0.01)
    _, line, activity = answered(it, request())
    assert line["error"]["code"] == "request_timeout"
    assert len(others) == 1 and activity.outcomes == {"completed": 1, "request_timeout": 1}


@pytest.mark.parametrize(("request_timeout_s", "patience_s"), [(1, 5), (30, 30), (600, 60)])
def test_patience_is_a_requests_time_within_bounds(request_timeout_s: float, patience_s: float) -> None:
    """Short limits must not make a busy engine look hung, nor long ones hide a hang for ten minutes."""
    assert responder.patience_s(settings.EngineSettings(request_timeout_s=request_timeout_s)) == patience_s
