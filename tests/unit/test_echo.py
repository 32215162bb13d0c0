"""The echo engine: deterministic, marked as such, failing only where asked to. No real engine runs here."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import pytest

from config import settings
from pipeline import echo, engine, errors, kinds
from spool.parts import Usage

CHAT = {
    "model": "echo",
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a b"}],
}


def make(**fields: Any) -> engine.Engine:
    model = settings.EchoModel(name="echo", kind="echo", **fields)
    return kinds.make_engine(model)


def ask(url: str, body: dict[str, Any], **fields: Any) -> tuple[engine.Answer, Any]:
    async def run() -> engine.Answer:
        it = make(**fields)
        await it.start()
        return await it.answer(url, dict(body), "r1")

    answer = asyncio.run(run())
    return answer, orjson.loads(answer.body)


def test_chat_gives_the_last_user_message_back() -> None:
    """The content is the last user message and usage counts words."""
    answer, body = ask("/v1/chat/completions", CHAT)
    assert answer.status_code == 200
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "a b"}
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["model"] == "echo" and body["id"] == "echo-r1"
    assert body["usage"] == {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}
    assert answer.usage == Usage(4, 0, 2, 0)


def test_chat_reads_text_parts() -> None:
    """Content in parts gives its text parts, joined."""
    parts = [
        {"type": "text", "text": "a "},
        {"type": "image_url", "image_url": {}},
        {"type": "text", "text": "b"},
    ]
    _, body = ask("/v1/chat/completions", {"messages": [{"role": "user", "content": parts}]})
    assert body["choices"][0]["message"]["content"] == "a b"


def test_completions_give_each_prompt_back() -> None:
    """A list of prompts gives as many choices."""
    _, body = ask("/v1/completions", {"model": "echo", "prompt": ["one", "two three"]})
    assert [choice["text"] for choice in body["choices"]] == ["one", "two three"]
    assert body["usage"]["prompt_tokens"] == 3


def test_embeddings_differ_by_text_and_repeat() -> None:
    """Equal texts have equal vectors, others do not."""
    _, body = ask("/v1/embeddings", {"model": "echo", "input": ["x", "y", "x"]})
    x, y, again = (item["embedding"] for item in body["data"])
    assert x == again != y
    assert len(x) == echo.EMBEDDING_SIZE and all(-1 <= value <= 1 for value in x)


@pytest.mark.parametrize("given", ["hi there", [{"role": "user", "content": "hi there"}]])
def test_responses_give_the_input_back(given: Any) -> None:
    """Input as text and as messages gives one output message."""
    answer, body = ask("/v1/responses", {"model": "echo", "input": given})
    assert body["output"][0]["content"][0]["text"] == "hi there"
    assert answer.usage == Usage(2, 0, 2, 0)


@pytest.mark.parametrize(
    ("url", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/embeddings", {"input": "x"}),
        ("/v1/responses", {"input": "x"}),
        ("/v1/chat/completions", {"messages": []}),
        ("/v1/score", {}),
    ],
)
def test_every_answer_says_that_it_is_an_echo(url: str, body: dict[str, Any]) -> None:
    """No echo can pass for a real answer, failures included."""
    assert ask(url, body)[1]["system_fingerprint"] == "echo"


@pytest.mark.parametrize(
    ("url", "body", "status_code", "code", "param"),
    [
        ("/v1/chat/completions", {"messages": "hello"}, 400, "invalid_request", "messages"),
        ("/v1/chat/completions", {"messages": [3]}, 400, "invalid_request", "messages"),
        ("/v1/completions", {"prompt": [1, 2]}, 400, "invalid_request", "prompt"),
        ("/v1/embeddings", {}, 400, "invalid_request", "input"),
        ("/v1/responses", {"input": 7}, 400, "invalid_request", "input"),
        ("/v1/chat/completions", {**CHAT, "stream": True}, 400, "invalid_request", "stream"),
        ("/v1/chat/completions", {**CHAT, "model": "other"}, 404, "model_not_found", "model"),
        ("/v1/rerank", {}, 404, "unsupported_endpoint", None),
    ],
)
def test_a_bad_request_is_an_answer(
    url: str, body: dict[str, Any], status_code: int, code: str, param: str | None
) -> None:
    """Nothing about a request raises; the error has OpenAI's four fields."""
    answer, failure = ask(url, body)
    assert answer.status_code == status_code
    assert failure["error"].keys() == {"message", "type", "param", "code"}
    assert failure["error"]["code"] == code and failure["error"]["param"] == param
    assert answer.usage == Usage()


def test_failures_depend_on_the_body_alone() -> None:
    """The same bodies fail each time, and about the share that was asked for."""

    def failed() -> list[int]:
        async def run() -> list[int]:
            it = make(failure_rate=0.25)
            await it.start()
            bodies = [{"messages": [{"role": "user", "content": str(n)}]} for n in range(1000)]
            answers = [await it.answer("/v1/chat/completions", body, "r") for body in bodies]
            assert all(
                orjson.loads(a.body)["error"]["code"] == "echo_failure"
                for a in answers
                if a.status_code != 200
            )
            return [n for n, answer in enumerate(answers) if answer.status_code == 500]

        return asyncio.run(run())

    first = failed()
    assert first == failed()
    assert 200 < len(first) < 300
    assert ask("/v1/chat/completions", CHAT, failure_rate=1.0)[0].status_code == 500


def test_latency_is_slept_and_cancellation_goes_on() -> None:
    """A request in its latency can be cancelled."""

    async def run() -> None:
        it = make(latency_s=60)
        await it.start()
        task = asyncio.ensure_future(it.answer("/v1/chat/completions", CHAT, "r"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())


def test_an_engine_that_is_not_running_is_dead() -> None:
    """Before start and after stop every call raises; stopping twice is fine."""

    async def run() -> None:
        it = make()
        with pytest.raises(errors.EngineDeadError):
            await it.check_health()
        await it.start()
        await it.check_health()
        await it.stop()
        await it.stop()
        with pytest.raises(errors.EngineDeadError):
            await it.answer("/v1/chat/completions", CHAT, "r")

    asyncio.run(run())


def test_echo_imports_nothing_heavy() -> None:
    """Tests and the daemon can use it where no engine is installed."""
    heavy = "{'ray', 'vllm', 'torch', 'transformers'}"
    code = f"import sys, pipeline.echo; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_echo_is_cheap() -> None:
    """At least 5,000 answers a second (measured in 2026-11 on 2 cores: 280,000), so no test waits for it."""

    async def run() -> float:
        it = make(failure_rate=0.001)
        await it.start()
        started = time.perf_counter()
        for _ in range(2000):
            await it.answer("/v1/chat/completions", CHAT, "r")
        return time.perf_counter() - started

    assert asyncio.run(run()) < 0.4


def wish(text: str) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": text}]}


def test_misbehaviour_is_asked_for_exactly() -> None:
    """A message that only holds the words is answered, and marked, like any other."""
    for text in ("echo:dies", "please echo:die", "echo:", "echo:hang "):
        answer, body = ask("/v1/chat/completions", wish(text))
        assert answer.status_code == 200 and body["system_fingerprint"] == "echo"
        assert body["choices"][0]["message"]["content"] == text


def test_a_request_can_end_the_process() -> None:
    code = (
        "import asyncio; from tests.unit import test_echo as t; "
        "t.ask('/v1/chat/completions', t.wish('echo:die')); print('survived')"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert (done.returncode, done.stdout) == (1, b"")


def test_a_request_can_end_or_stall_the_engine() -> None:
    """echo:crash leaves a dead engine behind, echo:stall one that answers nothing more."""

    async def run() -> None:
        it = make()
        await it.start()
        with pytest.raises(errors.EngineDeadError):
            await it.answer("/v1/chat/completions", wish("echo:crash"), "r1")
        with pytest.raises(errors.EngineDeadError):
            await it.check_health()
        it = make()
        await it.start()
        for text in ("echo:stall", "a"):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(it.answer("/v1/chat/completions", wish(text), "r2"), 0.01)

    asyncio.run(run())


def test_the_log_names_what_was_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(echo.LOG_VARIABLE, str(tmp_path / "log"))
    ask("/v1/chat/completions", CHAT)
    assert (tmp_path / "log").read_text().split()[0] == "r1"
