"""An engine of servers elsewhere, against servers that misbehave on real sockets of this machine. No Ray."""

from __future__ import annotations

import asyncio
import itertools
import resource
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from pydantic import SecretStr

from config import settings
from pipeline import errors, http_client, openai_engine, servers
from pipeline.engine import Answer
from pipeline.openai_engine import OpenAIEngine
from pipeline.responder import Responder
from spool.parts import Usage
from tests.http_server import Act, HttpServer, Request, answer_to, echo

COMPLETIONS = "/v1/completions"
LIMIT_S = 20.0
KEY = "sk-never-to-be-seen"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """All waits a tenth and less of what they are."""
    monkeypatch.setattr(servers, "EJECTION_S", (0.05, 0.2))
    monkeypatch.setattr(servers, "REFUSAL_S", (0.02, 0.1))
    monkeypatch.setattr(servers, "USELESS_S", (0.01, 0.05))
    monkeypatch.setattr(openai_engine, "RETRY_S", (0.01, 0.05))
    monkeypatch.setattr(openai_engine, "TICK_S", 0.01)


def play(scene: Coroutine[Any, Any, None]) -> None:
    """Run a scene within a time limit."""
    asyncio.run(asyncio.wait_for(scene, LIMIT_S))


@asynccontextmanager
async def engine(
    *there: HttpServer, key: str | None = None, time_s: float = 10.0, **changes: Any
) -> AsyncIterator[OpenAIEngine]:
    """An engine of these servers, started."""
    it = make(*(server.url for server in there), key=key, time_s=time_s, **changes)
    await it.start()
    try:
        yield it
    finally:
        await it.stop()


def make(*urls: str, key: str | None = None, time_s: float = 10.0, **changes: Any) -> OpenAIEngine:
    model = settings.OpenAIModel(name="m", kind="openai", urls=urls, **changes)
    return OpenAIEngine(model, SecretStr(key) if key else None, time_s)


async def ask(it: OpenAIEngine, prompt: str = "hi", **body: Any) -> Answer:
    return await it.answer(COMPLETIONS, {"model": "m", "prompt": prompt, **body}, f"key_{prompt}")


async def text(it: OpenAIEngine, prompt: str = "hi") -> Any:
    """What a request is answered; it must be."""
    answer = await ask(it, prompt)
    assert answer.status_code == 200, answer
    return orjson.loads(answer.body)["text"]


async def until(look: Callable[[], object]) -> None:
    """Wait for something to be the case."""
    async with asyncio.timeout(LIMIT_S / 2):
        while not look():
            await asyncio.sleep(0.005)


async def until_well(it: OpenAIEngine) -> None:
    async with asyncio.timeout(LIMIT_S / 2):
        while True:
            try:
                return await it.check_health()
            except errors.EngineAwayError:
                await asyncio.sleep(0.005)


def status(code: int, body: object, headers: dict[str, str] | None = None) -> Act:
    """A server that answers everything so."""

    async def act(request: Request) -> None:
        await request.reply(code, body, headers)

    return act


async def hang_up(request: Request) -> None:
    request.hang_up()


async def hold(request: Request) -> None:
    """Answer nothing, ever."""
    await request.until_gone()


async def cut_off(request: Request) -> None:
    await request.send(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"id":')
    request.writer.close()


async def half_close(request: Request) -> None:
    """End what is sent, without a word, and leave the connection open."""
    request.writer.write_eof()
    await hold(request)


async def babble(request: Request) -> None:
    await request.send(b"HELO\r\n\r\n")


async def send_too_much(request: Request) -> None:
    await request.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(100):
        await request.send(b"400\r\n" + b" " * 1024 + b"\r\n")


# What is done to a request or its answer, and sent


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_a_request_arrives_as_it_is_and_its_answer_comes_as_it_is(suffix: str) -> None:
    """Whichever way the base URL is written."""
    sent = {"model": "m", "prompt": "ä\u2028", "seed": 1.5, "max_tokens": 7, "vllm_xargs": {"b": [None]}}
    body = b'{ "id" :"1", "text":"\\u00e4\\n",\r\n "x":1.0E-2,"usage":{"prompt_tokens":3} }'

    async def scene() -> None:
        async with HttpServer(status(200, body)) as server:
            it = make(server.url + suffix)
            await it.start()
            try:
                assert await it.answer(COMPLETIONS, dict(sent), "key_7") == Answer(200, body, Usage(3))
                await it.answer("/score", {"model": "m"}, "key_8")
            finally:
                await it.stop()
            first, second = server.asked
            assert (first.method, first.path, second.path) == ("POST", "/v1/completions", "/score")
            assert first.json == sent
            assert first.headers["content-type"] == "application/json"
            assert "authorization" not in first.headers
            assert "x-request-id" not in first.headers  # llama-cpp-python refuses any that is no UUID
            assert [look.path for look in server.looks] == ["/v1/models"]

    play(scene())


def test_the_lines_ends_of_an_answer_are_all_that_changes() -> None:
    """Its numbers, escapes and blanks stand in the result as the server sent them."""
    body = b'{"text":"\\u00e4\\r\\n",\r\n  "x":1.0E-2,\n"y":123456789012345678901234567890}\n'

    async def scene() -> None:
        async with HttpServer(status(200, body)) as server, engine(server) as it:
            result = await Responder("m", it, settings.EngineSettings(), 8).answer("batch_b", 3, line("hi"))
            assert result.ok
            assert (
                b'"body":{"text":"\\u00e4\\r\\n",  "x":1.0E-2,"y":123456789012345678901234567890}}'
                in result.text
            )

    play(scene())


def line(prompt: str) -> bytes:
    body = {"model": "m", "prompt": prompt}
    return orjson.dumps({"custom_id": prompt, "method": "POST", "url": COMPLETIONS, "body": body})


def test_the_key_is_sent_and_shown_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    """Not even where a server quotes it in an error, or nothing answers at all."""
    caplog.set_level(0)
    said: list[str] = []

    async def scene() -> None:
        async with (
            HttpServer(status(401, {"error": f"bad key {KEY}"})) as server,
            engine(server, key=KEY) as it,
        ):
            said.append(str(await ask(it)))
            server.act = status(500, {"error": f"bad key {KEY}"})
            said.append(str(await ask(it)))
            for code in (200, 401, 500):
                server.act = status(code, f"{'x' * 45} {KEY}".encode())
                with pytest.raises(errors.NoAnswerError, match=r"xxx \*\*\*'") as failed:
                    await ask(it)
                said.append(repr(failed.value) + repr(it.outages()))
                assert "xxx" not in repr(it.outages())  # the log shows no answer, not even a broken one
            assert {each.headers["authorization"] for each in server.asked + server.looks} == {
                f"Bearer {KEY}"
            }
            await server.stop()
            with pytest.raises(errors.EngineAwayError) as away:
                await ask(it)
            said.append(repr(away.value) + repr(vars(it)))
            with pytest.raises(errors.EngineStartError) as start:
                await make(server.url, key=KEY).start()
            said.append(repr(start.value))

    play(scene())
    assert "bad key ***" in said[0] and "bad key ***" in said[1]
    assert KEY not in "".join(said) + caplog.text


def test_a_stream_is_refused_without_asking_anybody() -> None:
    async def scene() -> None:
        async with HttpServer() as server, engine(server) as it:
            answer = await ask(it, stream=True)
            assert answer.status_code == 400 and b"stream" in answer.body
            assert server.asked == []

    play(scene())


@pytest.mark.parametrize("code", [400, 401, 404, 422])
def test_an_error_of_the_request_is_passed_on_at_once(code: int) -> None:
    """It says nothing against the server."""

    async def scene() -> None:
        async with HttpServer(status(code, {"error": {"code": code}})) as server, engine(server) as it:
            for _ in range(10):
                answer = await ask(it)
                assert (answer.status_code, orjson.loads(answer.body)) == (code, {"error": {"code": code}})
            assert len(server.asked) == 10 and it.outages() == {}

    play(scene())


# Servers that fail


@pytest.mark.parametrize("code", [408, 500, 504])
def test_a_servers_own_error_is_the_last_word_after_three_tries(code: int) -> None:
    async def scene() -> None:
        async with HttpServer(status(code, {"error": {"message": "sorry"}})) as server, engine(server) as it:
            answer = await ask(it)
            assert (answer.status_code, orjson.loads(answer.body)) == (code, {"error": {"message": "sorry"}})
            assert len(server.asked) == 3

    play(scene())


USELESS: dict[str, tuple[Act, str]] = {
    "html": (status(200, b"<html>"), "answered 200 OK with no JSON: '<html>'"),
    "list": (status(200, []), "answered 200 with JSON that is no object"),
    "error": (status(200, {"error": "no"}), "answered 200 with an error in it"),
    "empty": (status(200, b""), "answered 200 OK with no JSON: ''"),
    "500": (status(500, b"oops"), "answered 500 Internal Server Error with no JSON: 'oops'"),
    "cut off": (cut_off, "sent a broken answer: ClientPayloadError"),
    "babble": (babble, "sent a broken answer: ClientResponseError"),
    "too much": (send_too_much, "sent an answer of more than 50000 bytes"),
    "declared": (status(200, b" " * 50_001), "sent an answer of more than 50000 bytes"),
    "hang up": (hang_up, "broke the connection: "),
    "half-closed": (half_close, "broke the connection: ServerDisconnectedError"),
}


@pytest.mark.parametrize("name", USELESS)
def test_what_is_of_no_use_is_tried_again_and_fails_in_the_end(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a message that names the server and what it did, as the line's error."""
    monkeypatch.setattr(http_client, "MAX_ANSWER_BYTES", 50_000)
    act, reason = USELESS[name]

    async def scene() -> None:
        async with HttpServer(act) as server, engine(server) as it:
            result = await Responder("m", it, settings.EngineSettings(), 8).answer("batch_b", 3, line("hi"))
            assert len(server.asked) == 3
            found = orjson.loads(result.text)
            message = f"no usable answer in 3 tries; last: {server.url} {reason}"
            assert found["error"]["code"] == "engine_error"
            assert found["error"]["message"].startswith(message)
            assert found["response"] is None and not result.ok

    play(scene())


@pytest.mark.parametrize("name", USELESS)
def test_one_bad_server_of_two_costs_no_answer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is ejected, and gets requests again when it is well."""
    monkeypatch.setattr(http_client, "MAX_ANSWER_BYTES", 50_000)

    async def scene() -> None:
        async with HttpServer(USELESS[name][0]) as bad, HttpServer() as good, engine(bad, good) as it:
            prompts = [str(n) for n in range(60)]
            assert await asyncio.gather(*(text(it, prompt) for prompt in prompts)) == prompts
            assert list(it.outages()) in ([bad.url], [])  # it may be tried again just now
            assert len(bad.asked) < 60
            bad.act = echo
            before = len(bad.asked)
            async with asyncio.timeout(LIMIT_S / 2):
                while len(bad.asked) < before + 5:
                    await text(it)
            assert it.outages() == {}

    play(scene())


def test_a_redirect_is_not_followed() -> None:
    """The key and the request would go to who knows whom."""

    async def scene() -> None:
        async with HttpServer() as other, HttpServer() as server, engine(server, key=KEY) as it:
            server.act = status(307, b"", {"Location": f"{other.url}/v1/completions"})
            with pytest.raises(
                errors.NoAnswerError, match=r"307 Temporary Redirect; redirects are not followed"
            ):
                await ask(it)
            assert other.asked == [] and len(server.asked) == 3

    play(scene())


# Servers that have too much to do


def test_a_server_has_no_more_requests_than_the_settings_allow() -> None:
    async def slow(request: Request) -> None:
        await asyncio.sleep(0.02)
        await echo(request)

    async def scene() -> None:
        async with HttpServer(slow) as server, engine(server, max_concurrency=3) as it:
            await asyncio.gather(*(text(it, str(n)) for n in range(12)))
            assert server.most_inside == 3

    play(scene())


def test_a_server_is_left_alone_for_as_long_as_it_says() -> None:
    """And the requests that it refused are answered afterwards, as often as it takes."""
    asked_at: list[float] = []

    async def busy(request: Request) -> None:
        asked_at.append(time.monotonic())
        if len(asked_at) <= 4:
            await request.reply(429, {"error": "busy"}, {"Retry-After": "0.2"})
        else:
            await echo(request)

    async def scene() -> None:
        async with HttpServer(busy) as server, engine(server, time_s=0.15) as it:
            assert await text(it) == "hi"  # although its time is shorter than the wait
            gaps = [later - earlier for earlier, later in itertools.pairwise(asked_at)]
            assert len(gaps) == 4 and min(gaps) >= 0.2
            assert it.outages() == {}

    play(scene())


@pytest.mark.parametrize("code", [429, 503])
def test_the_limit_adapts_to_what_a_server_takes(code: int) -> None:
    """One that takes four at a time refuses a few of 200, and answers all."""
    refused = 0

    async def scene() -> None:
        async with HttpServer() as server, engine(server, max_concurrency=64) as it:

            async def takes_four(request: Request) -> None:
                nonlocal refused
                if server.inside > 4:
                    refused += 1
                    await request.reply(code, b"")
                    return
                await asyncio.sleep(0.005)
                await echo(request)

            server.act = takes_four
            prompts = [str(n) for n in range(200)]
            assert await asyncio.gather(*(text(it, prompt) for prompt in prompts)) == prompts
            assert 0 < refused < 150

    play(scene())


# Servers that are away


def test_a_server_that_goes_and_comes_back_loses_nothing() -> None:
    """Its requests leave the engine unanswered instead of failing, and are answered when it is back."""

    async def scene() -> None:
        async with HttpServer(hold) as server, engine(server) as it:
            asked = [asyncio.create_task(ask(it, str(n))) for n in range(20)]
            await until(lambda: len(server.asked) == 20)
            await server.stop()
            for outcome in await asyncio.gather(*asked, return_exceptions=True):
                assert isinstance(outcome, errors.EngineAwayError)
            with pytest.raises(errors.EngineAwayError, match=r"'m': no server can be reached: http://127"):
                await it.check_health()
            began = time.monotonic()
            with pytest.raises(errors.EngineAwayError):
                await ask(it)
            assert time.monotonic() - began < 1
            assert list(it.outages()) == [server.url]
            server.act = echo
            await server.start()
            await until_well(it)
            assert await asyncio.gather(*(text(it, str(n)) for n in range(20))) == [str(n) for n in range(20)]

    play(scene())


def test_requests_move_from_a_server_that_dies_to_one_that_lives() -> None:
    async def scene() -> None:
        async with HttpServer(hold) as first, HttpServer() as second, engine(first, second) as it:
            asked = [asyncio.create_task(text(it, str(n))) for n in range(40)]
            await until(lambda: len(first.asked) >= 20)
            await first.stop()
            assert await asyncio.gather(*asked) == [str(n) for n in range(40)]

    play(scene())


def test_a_server_that_comes_back_with_another_model_gets_nothing() -> None:
    async def scene() -> None:
        async with HttpServer() as server, engine(server) as it:
            await server.stop()
            with pytest.raises(errors.EngineAwayError):
                await ask(it)
            server.models = ("other",)
            await server.start()
            await until(lambda: "no model 'm', it lists 'other'" in it.outages()[server.url])
            with pytest.raises(errors.EngineAwayError, match="it lists 'other'"):
                await ask(it)
            server.models = ("m",)
            await until_well(it)

    play(scene())


def test_a_request_that_kills_its_server_fails_alone() -> None:
    """It is blamed for what broke while it alone was there, even when it was away in between."""
    kills = []

    async def scene() -> None:
        async with HttpServer() as server, engine(server) as it:

            async def mortal(request: Request) -> None:
                if request.json["prompt"] == "poison":
                    kills.append(server.inside)
                    await server.stop()
                else:
                    await asyncio.sleep(0.005)
                    await echo(request)

            server.act = mortal
            restarts = asyncio.create_task(supervise(server))
            prompts = ["poison", *(str(n) for n in range(30))]
            poison, *others = await asyncio.gather(*(text_in_the_end(it, prompt) for prompt in prompts))
            restarts.cancel()
            assert others == prompts[1:]
            assert poison.startswith("no usable answer in ")
            assert len(kills) <= openai_engine.MOST_BLAME

    play(scene())


async def supervise(server: HttpServer) -> None:
    """Start a server again whenever it is gone."""
    while True:
        await asyncio.sleep(0.02)
        if not server.is_up:
            await server.start()


async def text_in_the_end(it: OpenAIEngine, prompt: str) -> Any:
    """As whoever calls an engine does: ask again while it is away."""
    while True:
        try:
            return await text(it, prompt)
        except errors.EngineAwayError:
            await asyncio.sleep(0.01)
        except errors.NoAnswerError as error:
            return str(error)


# Time


def test_a_request_that_takes_too_long_fails_with_its_time() -> None:
    """No small request asks whether the engine stands still: a new process would not mend a server."""

    async def scene() -> None:
        async with HttpServer(hold) as server, engine(server, time_s=0.1) as it:
            limits = settings.EngineSettings(request_timeout_s=0.1)
            result = await Responder("m", it, limits, 8).answer("batch_b", 3, line("hi"))
            found = orjson.loads(result.text)
            assert found["error"] == {"code": "request_timeout", "message": "no answer within 0.1 s"}
            assert len(server.asked) == 1

    play(scene())


def test_the_wait_for_a_place_costs_no_time() -> None:
    """Twelve requests, one after the other, which take longer in all than each of them may."""

    async def slow(request: Request) -> None:
        await asyncio.sleep(0.1)
        await echo(request)

    async def scene() -> None:
        async with HttpServer(slow) as server, engine(server, time_s=0.5, max_concurrency=1) as it:
            await asyncio.gather(*(text(it, str(n)) for n in range(12)))

    play(scene())


def test_a_silent_server_loses_its_requests_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "STALL_SHARE", 0.02)

    async def scene() -> None:
        async with HttpServer(hold) as silent, HttpServer() as good, engine(silent, good) as it:
            prompts = [str(n) for n in range(10)]
            assert await asyncio.gather(*(text(it, prompt) for prompt in prompts)) == prompts
            assert len(silent.asked) == 5

    play(scene())


def test_a_cancelled_request_leaves_its_server() -> None:
    """The server sees the connection end, and its place is free."""
    ended: list[bool] = []

    async def watch(request: Request) -> None:
        if request.json["prompt"] == "long":
            await hold(request)
            ended.append(True)
        else:
            await request.reply(200, answer_to(request))

    async def scene() -> None:
        async with HttpServer(watch) as server, engine(server, max_concurrency=1) as it:
            long = asyncio.create_task(ask(it, "long"))
            waits = asyncio.create_task(ask(it, "waits"))
            short = asyncio.create_task(text(it, "short"))
            await until(lambda: server.asked)
            waits.cancel()
            long.cancel()
            assert await short == "short"
            await asyncio.wait([long, waits])
            assert long.cancelled() and waits.cancelled()
            await until(lambda: ended)

    play(scene())


# Start and stop


@pytest.mark.parametrize(
    ("models", "key", "reason"),
    [
        (("a", "b"), None, "has no model 'm', it lists 'a', 'b': start one, or correct urls, name"),
        (b"<html>", None, "GET /v1/models answered with no list of models"),
    ],
)
def test_a_start_without_the_model_says_what_to_do(
    models: tuple[str, ...] | bytes, key: str | None, reason: str
) -> None:
    async def scene() -> None:
        async with HttpServer(models=models) as server:
            with pytest.raises(errors.EngineStartError) as failed:
                await make(server.url, key=key).start()
            assert str(failed.value).startswith(f"model 'm': no server has it: {server.url}: {reason}")

    play(scene())


def test_a_start_without_any_server_says_so() -> None:
    async def scene() -> None:
        async with HttpServer() as server:
            url = server.url
        with pytest.raises(
            errors.EngineStartError, match=r"does not connect: Connect.*: start one, or correct urls"
        ):
            await make(url).start()

    play(scene())


def test_a_start_makes_room_for_all_connections() -> None:
    """A limit of open files that is too low would look like servers that do not connect."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def scene() -> None:
        async with HttpServer() as server, engine(server, max_concurrency=300):
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 300 + 512
        with pytest.raises(errors.EngineStartError, match=r"connections are more than this process may have"):
            await make("http://127.0.0.1:1", max_concurrency=2**40).start()

    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        play(scene())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_one_server_of_two_is_enough_for_a_start() -> None:
    """The other joins when it is there."""

    async def scene() -> None:
        async with HttpServer() as late, HttpServer() as server:
            await late.stop()
            async with engine(late, server) as it:
                assert list(it.outages()) == [late.url]
                assert await text(it) == "hi"
                await late.start()
                await until(lambda: not it.outages())
                await asyncio.gather(*(text(it, str(n)) for n in range(4)))
                assert late.asked

    play(scene())


def test_a_stopped_engine_answers_nothing() -> None:
    """It may be stopped twice, or before it starts; what is in it ends."""

    async def scene() -> None:
        it = make("http://127.0.0.1:1")
        with pytest.raises(errors.EngineDeadError):
            await ask(it)
        await it.stop()
        async with HttpServer(hold) as server, engine(server, max_concurrency=2) as it:
            asked = [asyncio.create_task(ask(it, str(n))) for n in range(4)]
            await until(lambda: len(server.asked) == 2)
            await it.stop()
            for outcome in await asyncio.gather(*asked, return_exceptions=True):
                assert isinstance(outcome, errors.EngineDeadError)
            await it.stop()
            with pytest.raises(errors.EngineDeadError):
                await it.check_health()

    play(scene())


def test_a_start_that_is_cancelled_leaves_nothing_behind() -> None:
    async def scene() -> None:
        def never(request: Request) -> Awaitable[None]:
            raise AssertionError

        async with HttpServer(never) as server:
            it = make(server.url)
            starting = asyncio.create_task(it.start())
            await asyncio.sleep(0)
            starting.cancel()
            await asyncio.wait([starting])
            assert starting.cancelled()
            with pytest.raises(errors.EngineDeadError):
                await it.check_health()

    play(scene())
