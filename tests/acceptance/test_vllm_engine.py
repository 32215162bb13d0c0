"""The real vLLM behind the engine contract, on the tiny-adder of examples/: bodies, errors, tokens, aborts.

Two engines are started in all, one after the other: a generating one and an embedding one. Each lives on an
event loop in a thread of its own, as long as the class that uses it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any, TypeVar

import orjson
import pytest

from config import settings
from pipeline import engine, errors, kinds, vllm_engine
from spool.parts import Usage

MODEL = Path(__file__).parents[2] / "examples" / "tiny-adder"
CHAT = "/v1/chat/completions"

# vLLM and what it imports warn about themselves; that is not ours to fix.
pytestmark = [pytest.mark.engine, pytest.mark.timeout(150), pytest.mark.filterwarnings("default")]

T = TypeVar("T")


class Running:
    """An engine on an event loop of its own."""

    def __init__(self, **engine_args: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.engine = make(**engine_args)
        self.run(self.engine.start())

    def run(self, awaitable: Awaitable[T]) -> T:
        return self.begin(awaitable).result(timeout=120)

    def begin(self, awaitable: Awaitable[T]) -> futures.Future[T]:
        async def wait() -> T:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(wait(), self._loop)

    def ask(self, url: str, **body: Any) -> tuple[engine.Answer, Any]:
        answer = self.run(self.engine.answer(url, {"model": "tiny-adder", **body}, "r1"))
        return answer, orjson.loads(answer.body)

    def chat(self, text: str = "What is 17+25?", **body: Any) -> tuple[engine.Answer, Any]:
        return self.ask(CHAT, messages=[{"role": "user", "content": text}], **body)

    def unfinished(self) -> int:
        """Requests that vLLM still works on; no public interface says it."""
        client = self.engine._client  # type: ignore[attr-defined]
        return int(client.output_processor.get_num_unfinished_requests())

    def close(self) -> None:
        self.run(self.engine.stop())
        self.run(asyncio.sleep(0.1))  # what vLLM has cancelled or put off ends now
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def make(source: str = str(MODEL), **engine_args: Any) -> engine.Engine:
    model = settings.VllmModel(name="tiny-adder", kind="vllm", source=source, engine_args=engine_args)
    return kinds.make_engine(model)


def assert_refused(answer: engine.Answer, body: Any, status_code: int, says: str) -> None:
    """It is a failure in the form of the OpenAI API, and says this."""
    assert answer.status_code == status_code, body
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert says in body["error"]["message"]
    assert answer.usage == Usage()


class TestStart:
    """What is wrong with the settings is said in one line, before or instead of an engine."""

    @pytest.mark.parametrize(
        ("engine_args", "says"),
        [
            ({"source": "/nowhere/model"}, "source /nowhere/model does not exist"),
            ({"source": str(MODEL.parent)}, "holds no config.json"),
            ({"max_model_length": 512}, "engine_args.max_model_length: .* did you mean max_model_len"),
            ({"max_model_len": "long"}, "engine_args.max_model_len: .*'long'"),
            ({"enforce_eager": "yes"}, "engine_args.enforce_eager: must be true or false"),
            ({"served_model_name": "other"}, "engine_args.served_model_name is set by batchd"),
            (
                {"trust_request_chat_template": True},
                "engine_args.trust_request_chat_template is set by batchd",
            ),
            ({"enable_auto_tool_choice": True}, "needs engine_args.tool_call_parser"),
            ({"reasoning_parser": "none-such"}, "none-such"),
            ({"max_model_len": 10**7}, "max_model_len"),
        ],
    )
    def test_bad_settings_are_named(self, engine_args: dict[str, Any], says: str) -> None:
        """The key or the path stands in the message, which is one line."""
        with pytest.raises(errors.EngineStartError, match=says) as caught:
            asyncio.run(make(**engine_args).start())
        assert "\n" not in str(caught.value)

    def test_another_vllm_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The message says which versions work."""
        monkeypatch.setattr(vllm_engine, "VERSIONS", ("0.1",))
        with pytest.raises(errors.EngineStartError, match=r"works with vLLM 0\.1\.x"):
            asyncio.run(make().start())

    def test_an_engine_that_is_not_running_is_dead(self) -> None:
        """Nothing is answered before start; stop is harmless."""
        it = make()
        with pytest.raises(errors.EngineDeadError):
            asyncio.run(it.check_health())
        with pytest.raises(errors.EngineDeadError):
            asyncio.run(it.answer(CHAT, {}, "r"))
        asyncio.run(it.stop())


class TestGenerating:
    """Chat, completions and responses."""

    @pytest.fixture(scope="class")
    @classmethod
    def it(cls) -> Iterator[Running]:
        running = Running(
            max_model_len=1024,
            enforce_eager=True,  # compiling takes longer than all of these tests
            enable_auto_tool_choice=True,
            tool_call_parser="hermes",
            # Bound to a schema, a model that knows nothing but sums would write white space for ever.
            structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
        )
        yield running
        running.close()

    def test_chat_adds(self, it: Running) -> None:
        """The model's answer comes as a complete OpenAI body, and usage is what the body says."""
        answer, body = it.chat(temperature=0)
        assert answer.status_code == 200
        assert body["id"] == "chatcmpl-r1" and body["model"] == "tiny-adder"
        assert body["object"] == "chat.completion"
        (choice,) = body["choices"]
        assert choice["message"]["role"] == "assistant" and choice["message"]["content"] == "42"
        assert choice["finish_reason"] == "stop"
        usage = body["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert answer.usage.input_tokens == usage["prompt_tokens"] > 0
        assert answer.usage.output_tokens == usage["completion_tokens"] > 0

    def test_cached_tokens_are_counted(self, it: Running) -> None:
        """A prompt that was seen before comes out of the prefix cache, and both usages say so."""
        text = "Remember: " + "abc " * 40
        it.chat(text, max_tokens=1)
        answer, body = it.chat(text, max_tokens=1)
        assert answer.usage.cached_tokens == body["usage"]["prompt_tokens_details"]["cached_tokens"] > 0

    def test_logprobs_are_complete(self, it: Running) -> None:
        """One entry for each token, with as many alternatives as asked for."""
        _, body = it.chat(temperature=0, logprobs=True, top_logprobs=3)
        content = body["choices"][0]["logprobs"]["content"]
        assert "".join(entry["token"] for entry in content).startswith("42")
        assert all(len(entry["top_logprobs"]) == 3 and entry["logprob"] <= 0 for entry in content)

    def test_n_gives_n_choices(self, it: Running) -> None:
        """Each choice has its index."""
        _, body = it.chat(n=2, temperature=1.0, max_tokens=4)
        assert [choice["index"] for choice in body["choices"]] == [0, 1]

    @pytest.mark.parametrize("tool_choice", ["none", "auto"])
    def test_tools_are_accepted(self, it: Running, tool_choice: str) -> None:
        """A request may offer tools that the model does not call."""
        answer, body = it.chat("1+1", tools=[TOOL], tool_choice=tool_choice, max_tokens=4)
        assert answer.status_code == 200, body

    def test_a_named_tool_is_called(self, it: Running) -> None:
        """The call's arguments obey the tool's schema, whatever the model would rather say.

        Tool calls allow white space all the same; at this temperature the model does not stay in it.
        """
        named = {"type": "function", "function": {"name": "add"}}
        _, body = it.chat("1+1", tools=[TOOL], tool_choice=named, max_tokens=600, temperature=2, seed=1)
        (call,) = body["choices"][0]["message"]["tool_calls"]
        assert call["function"]["name"] == "add"
        assert orjson.loads(call["function"]["arguments"])["sign"] in ("plus", "minus")

    def test_structured_output_is_obeyed(self, it: Running) -> None:
        """A JSON schema, a regex and a choice each bind a model that knows only digits."""
        schema = {"name": "sum", "schema": TOOL["function"]["parameters"]}
        wanted = {"type": "json_schema", "json_schema": schema}
        _, body = it.chat(response_format=wanted, max_tokens=100, temperature=0)
        assert orjson.loads(body["choices"][0]["message"]["content"])["sign"] in ("plus", "minus")
        _, body = it.chat(structured_outputs={"regex": "[a-c]{5}"}, temperature=0)
        assert set(body["choices"][0]["message"]["content"]) <= set("abc")
        _, body = it.chat(structured_outputs={"choice": ["yes", "no"]}, temperature=0)
        assert body["choices"][0]["message"]["content"] in ("yes", "no")

    def test_completions_answer(self, it: Running) -> None:
        """Text goes on after the prompt, with logprobs in the older form."""
        answer, body = it.ask("/v1/completions", prompt="1+1=", max_tokens=3, logprobs=2, temperature=0)
        assert body["object"] == "text_completion" and body["choices"][0]["finish_reason"]
        assert len(body["choices"][0]["logprobs"]["token_logprobs"]) == answer.usage.output_tokens
        assert answer.usage.input_tokens == body["usage"]["prompt_tokens"] == 4

    def test_responses_answer(self, it: Running) -> None:
        """The newer API works too, and its usage has other names."""
        answer, body = it.ask("/v1/responses", input="What is 17+25?", temperature=0)
        assert body["object"] == "response" and body["status"] == "completed" and body["id"] == "resp_r1"
        assert body["output"][-1]["content"][0]["text"] == "42"
        assert answer.usage.input_tokens == body["usage"]["input_tokens"] > 0
        assert answer.usage.output_tokens == body["usage"]["output_tokens"] > 0

    @pytest.mark.parametrize(
        ("fields", "says", "param"),
        [
            ({"temperature": -1}, "temperature must be non-negative", "temperature"),
            ({"top_p": 3}, "top_p must be in (0, 1]", "top_p"),
            ({"max_tokens": "many"}, "max_tokens: Input should be a valid integer", "max_tokens"),
            ({"messages": "hello"}, "messages: Input should be a valid list", "messages"),
            ({"structured_outputs": {"regex": "(["}}, "regex", None),
            ({"chat_template": "{{ 1 }}"}, "untrusted chat template", None),
            ({"stream": True}, "`stream` is not possible in a batch", "stream"),
        ],
    )
    def test_a_bad_request_says_what_is_wrong(
        self, it: Running, fields: dict[str, Any], says: str, param: str | None
    ) -> None:
        """Status 400 in the words of vLLM, with the field's name."""
        answer, body = it.ask(CHAT, **{"messages": [{"role": "user", "content": "1+1"}], **fields})
        assert_refused(answer, body, 400, says)
        assert body["error"]["param"] == param

    @pytest.mark.parametrize(
        ("url", "field"), [(CHAT, "messages"), ("/v1/completions", "prompt"), ("/v1/responses", "input")]
    )
    def test_a_prompt_that_is_too_long_is_refused(self, it: Running, url: str, field: str) -> None:
        """The message names the model's length."""
        text = "1" * 1100
        value = [{"role": "user", "content": text}] if field == "messages" else text
        answer, body = it.ask(url, **{field: value})
        assert_refused(answer, body, 400, "maximum context length is 1024 tokens")

    def test_another_model_is_refused(self, it: Running) -> None:
        """A model name inside the body is checked as well."""
        answer, body = it.ask(CHAT, model="other", messages=[{"role": "user", "content": "1+1"}])
        assert_refused(answer, body, 404, "The model `other` does not exist")

    @pytest.mark.parametrize("url", ["/v1/embeddings", "/v1/score", "/v1/rerank", "/v1/none-such"])
    def test_an_unsupported_endpoint_is_refused(self, it: Running, url: str) -> None:
        """The message says what this model supports instead."""
        answer, body = it.ask(url, input="1+1")
        assert_refused(answer, body, 404, "it supports /v1/chat/completions, /v1/completions, /v1/responses")
        assert body["error"]["code"] == "unsupported_endpoint"

    def test_what_it_computes_is_seen_before_a_request_is_finished(self, it: Running) -> None:
        """By that an engine that is full of slow requests is told from one that stands still."""
        before = time.monotonic()
        body = {"model": "tiny-adder", "prompt": "1+1", "max_tokens": 100, "ignore_eos": True}
        running = it.begin(it.engine.answer("/v1/completions", body, "slow"))
        it.run(wait_until(lambda: running.done() or it.engine.computed_at() > before))
        assert not running.done()
        running.result(timeout=120)

    @pytest.mark.parametrize("url", [CHAT, "/v1/completions", "/v1/responses"])
    def test_cancellation_aborts(self, it: Running, url: str) -> None:
        """A cancelled caller frees the engine at once, and does not get an answer.

        vLLM's own handlers swallow the CancelledError and answer "Client disconnected".
        """
        fields: dict[str, dict[str, Any]] = {
            CHAT: {"messages": [{"role": "user", "content": "1+1"}], "max_tokens": 400, "n": 2},
            "/v1/completions": {"prompt": "1+1", "max_tokens": 400, "n": 2},
            "/v1/responses": {"input": "1+1", "max_output_tokens": 400},
        }
        body = {"model": "tiny-adder", **fields[url], "structured_outputs": {"regex": "a{500}"}}
        asked = it.begin(it.engine.answer(url, body, "cancelled"))
        it.run(wait_until(lambda: it.unfinished() > 0))
        asked.cancel()
        it.run(wait_until(lambda: it.unfinished() == 0, timeout_s=0.1))
        with pytest.raises(futures.CancelledError):
            asked.result(timeout=1)

    def test_many_at_once_are_all_answered(self, it: Running) -> None:
        """Neighbours do not disturb each other: good and bad requests each get their own answer."""

        async def ask_all() -> list[engine.Answer]:
            bodies = [
                {
                    "model": "tiny-adder",
                    "messages": [{"role": "user", "content": f"What is {n}+{n}?"}],
                    "temperature": -1 if n % 5 == 0 else 0,
                }
                for n in range(50)
            ]
            return await asyncio.gather(*(it.engine.answer(CHAT, b, f"m{n}") for n, b in enumerate(bodies)))

        answers = it.run(ask_all())
        for n, answer in enumerate(answers):
            assert answer.status_code == (400 if n % 5 == 0 else 200)
            if n % 5:
                assert orjson.loads(answer.body)["choices"][0]["message"]["content"] == str(2 * n)

    def test_stopping_fails_what_is_running(self, it: Running) -> None:
        """After all of the above the engine is healthy; stopped, it leaves no caller waiting."""
        it.run(it.engine.check_health())
        body = {"model": "tiny-adder", "prompt": "1+1", "max_tokens": 900, "ignore_eos": True}
        asked = it.begin(it.engine.answer("/v1/completions", body, "stopped"))
        it.run(wait_until(lambda: it.unfinished() > 0))
        it.run(it.engine.stop())
        with pytest.raises(errors.EngineDeadError):
            asked.result(timeout=1)
        with pytest.raises(errors.EngineDeadError):
            it.run(it.engine.check_health())


class TestPooling:
    """Embeddings, scores and rerankings by the same model as an embedding one."""

    @pytest.fixture(scope="class")
    @classmethod
    def it(cls) -> Iterator[Running]:
        running = Running(max_model_len=1024, enforce_eager=True, runner="pooling", convert="embed")
        yield running
        running.close()

    def test_a_short_first_prompt_is_answered(self, it: Running) -> None:
        """The first request may be a single token.

        Without the engine's own warm-up, vLLM's worker dies of it on a CPU with AMX: SIGILL in the attention.
        """
        answer, _ = it.ask("/v1/embeddings", input="1")
        assert answer.usage == Usage(input_tokens=1)

    def test_embeddings_answer(self, it: Running) -> None:
        """A vector for each input, and its tokens are counted."""
        answer, body = it.ask("/v1/embeddings", input=["1+1", "2+2", "1+1"])
        vectors = [item["embedding"] for item in body["data"]]
        assert [len(vector) for vector in vectors] == [128] * 3
        assert vectors[0] == pytest.approx(vectors[2], abs=1e-2)
        assert answer.usage == Usage(input_tokens=9) and body["usage"]["prompt_tokens"] == 9

    def test_embeddings_come_as_base64(self, it: Running) -> None:
        """encoding_format works where the answer is JSON, and is refused where it is not."""
        _, body = it.ask("/v1/embeddings", input="1+1", encoding_format="base64")
        assert isinstance(body["data"][0]["embedding"], str)
        answer, body = it.ask("/v1/embeddings", input="1+1", encoding_format="bytes")
        assert_refused(answer, body, 400, "encoding_format")

    @pytest.mark.parametrize("url", ["/v1/score", "/score"])
    def test_scores_answer(self, it: Running, url: str) -> None:
        """Equal texts score higher than others."""
        answer, body = it.ask(url, text_1="1+1", text_2=["zzz", "1+1"])
        other, same = (item["score"] for item in body["data"])
        assert same > other and same == pytest.approx(1, abs=1e-3)
        assert answer.usage.input_tokens == body["usage"]["prompt_tokens"] > 0

    @pytest.mark.parametrize("url", ["/v1/rerank", "/rerank", "/v2/rerank"])
    def test_rerank_answers(self, it: Running, url: str) -> None:
        """The best document comes first."""
        answer, body = it.ask(url, query="1+1", documents=["zzz", "1+1"], top_n=1)
        assert [item["index"] for item in body["results"]] == [1]
        assert answer.usage.input_tokens > 0

    @pytest.mark.parametrize(
        ("url", "fields", "status_code", "says"),
        [
            ("/v1/embeddings", {"input": "1" * 1100}, 400, "maximum context length is 1024 tokens"),
            ("/v1/embeddings", {}, 400, "input: Field required"),
            ("/v1/embeddings", {"input": "1", "model": "other"}, 404, "The model `other` does not exist"),
            ("/v1/rerank", {"query": "1"}, 400, "documents: Field required"),
            (CHAT, {"messages": [{"role": "user", "content": "1+1"}]}, 404, "does not support"),
        ],
    )
    def test_a_bad_request_says_what_is_wrong(
        self, it: Running, url: str, fields: dict[str, Any], status_code: int, says: str
    ) -> None:
        """Failures look the same on every endpoint."""
        answer, body = it.ask(url, **fields)
        assert_refused(answer, body, status_code, says)


TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add",
        "strict": True,  # else any JSON will do as arguments
        "parameters": {
            "type": "object",
            "properties": {"sign": {"enum": ["plus", "minus"]}},
            "required": ["sign"],
            "additionalProperties": False,
        },
    },
}


async def wait_until(holds: Any, timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():
            await asyncio.sleep(0.001)
