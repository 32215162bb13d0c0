"""An engine without a model, for tests only: it must be asked for by name, as `kind: echo`.

It gives requests back: chats their last user message, completions their prompt, embeddings a vector made
from a hash. The same body always gets the same answer, and every answer carries
`"system_fingerprint": "echo"`. Keeps the contract of pipeline/engine.py; imports no ray, vllm or torch.

For tests of what becomes of a request that kills its engine, a chat whose last user message is exactly one of
    echo:die     ends the whole process, as the kernel does when memory runs out
    echo:crash   ends the engine alone, as when vLLM's engine process dies
    echo:hang    blocks the process for an hour
    echo:stall   has the engine answer nothing any more, as when vLLM's engine process is stopped
With ECHO_LOG=FILE in the environment, every request is appended to it as it is reached, a line each:
`<request id> <seconds since the epoch>`.

Limits: no sampling, tools, logprobs or scoring; `n` is 1; usage counts words.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Callable
from typing import Any

import orjson

from config import settings
from pipeline import errors
from pipeline.engine import Answer
from spool.parts import Usage

FINGERPRINT = "echo"
EMBEDDING_SIZE = 8
LOG_VARIABLE = "ECHO_LOG"

# A fixed time, so that answers to equal requests are equal.
_CREATED = 1_700_000_000

_HANG_S = 3600.0

_Made = tuple[dict[str, Any], Usage]


class _BadRequest(Exception):
    """The request lacks what its endpoint needs."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


class EchoEngine:
    """Answers by giving the request back."""

    def __init__(self, model: settings.EchoModel) -> None:
        self._name = model.name
        self._latency_s = model.latency_s
        # Hashes are 8 bytes: a body fails when its hash lies below this share of their range.
        self._fail_below = int(model.failure_rate * 2**64)
        self._running = False
        self._stalled: asyncio.Event | None = None
        self._log = os.environ.get(LOG_VARIABLE)

    async def start(self) -> None:
        """See Engine."""
        self._running = True

    async def answer(self, url: str, body: dict[str, Any], request_id: str) -> Answer:
        """See Engine."""
        if not self._running:
            raise self._death()
        if self._latency_s:
            await asyncio.sleep(self._latency_s)
        wish = _wish(body)
        if wish or self._log or self._stalled:
            await self._obey(wish, request_id)
        make = _ENDPOINTS.get(url)
        if make is None:
            message = f"the echo engine has no {url}"
            return _failure(404, "NotFoundError", message, None, "unsupported_endpoint")
        if body.get("stream"):
            message = "`stream` is not possible in a batch"
            return _failure(400, "BadRequestError", message, "stream", "invalid_request")
        if (model := body.get("model")) is not None and model != self._name:
            message = f"The model `{model}` does not exist."
            return _failure(404, "NotFoundError", message, "model", "model_not_found")
        if self._fail_below and _hash(body) < self._fail_below:
            message = "the echo engine fails on purpose"
            return _failure(500, "InternalServerError", message, None, "echo_failure")
        try:
            answer, usage = make(body)
        except _BadRequest as error:
            return _failure(400, "BadRequestError", str(error), error.param, "invalid_request")
        answer["id"] = f"echo-{request_id}"
        answer["model"] = self._name
        answer["system_fingerprint"] = FINGERPRINT
        return Answer(200, orjson.dumps(answer), usage)

    async def check_health(self) -> None:
        """See Engine."""
        if not self._running:
            raise self._death()

    def _death(self) -> errors.EngineDeadError:
        return errors.EngineDeadError(f"model {self._name!r}: the echo engine is not running")

    def computed_at(self) -> float:
        """See Engine."""
        return float("-inf")

    async def stop(self) -> None:
        """See Engine."""
        self._running = False

    async def _obey(self, wish: str, request_id: str) -> None:
        """Misbehave where a request asks for it."""
        if self._log:
            with open(self._log, "a") as file:
                file.write(f"{request_id} {time.time():.3f}\n")
        if wish == "echo:stall":
            self._stalled = self._stalled or asyncio.Event()
        if self._stalled:
            await self._stalled.wait()
        if wish == "echo:die":
            os._exit(1)
        if wish == "echo:crash":
            self._running = False
            raise self._death()
        if wish == "echo:hang":
            time.sleep(_HANG_S)


def _wish(body: dict[str, Any]) -> str:
    """What the last message asks for; "" for nothing."""
    messages = body.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    content = last.get("content") if isinstance(last, dict) and last.get("role") == "user" else None
    return content if isinstance(content, str) and content.startswith("echo:") else ""


def _chat(body: dict[str, Any]) -> _Made:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _BadRequest("messages", "messages must be a list of at least one message")
    text, words = _last_user_text(messages, "messages")
    output = len(text.split())
    return {
        "object": "chat.completion",
        "created": _CREATED,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": _chat_usage(words, output),
    }, Usage(words, 0, output, 0)


def _completion(body: dict[str, Any]) -> _Made:
    prompts = _strings(body.get("prompt"), "prompt")
    words = sum(len(prompt.split()) for prompt in prompts)
    return {
        "object": "text_completion",
        "created": _CREATED,
        "choices": [
            {"index": index, "text": prompt, "logprobs": None, "finish_reason": "stop"}
            for index, prompt in enumerate(prompts)
        ],
        "usage": _chat_usage(words, words),
    }, Usage(words, 0, words, 0)


def _embedding(body: dict[str, Any]) -> _Made:
    inputs = _strings(body.get("input"), "input")
    words = sum(len(text.split()) for text in inputs)
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _vector(text)}
            for index, text in enumerate(inputs)
        ],
        "usage": {"prompt_tokens": words, "total_tokens": words},
    }, Usage(words, 0, 0, 0)


def _response(body: dict[str, Any]) -> _Made:
    given = body.get("input")
    if isinstance(given, list) and given:
        text, words = _last_user_text(given, "input")
    elif isinstance(given, str):
        text, words = given, len(given.split())
    else:
        raise _BadRequest("input", "input must be a string or a list of messages")
    output = len(text.split())
    content = [{"type": "output_text", "text": text, "annotations": []}]
    return {
        "object": "response",
        "created_at": _CREATED,
        "status": "completed",
        "output": [
            {
                "type": "message",
                "id": "msg_echo",
                "role": "assistant",
                "status": "completed",
                "content": content,
            }
        ],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": words,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": output,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": words + output,
        },
    }, Usage(words, 0, output, 0)


_ENDPOINTS: dict[str, Callable[[dict[str, Any]], _Made]] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completion,
    "/v1/embeddings": _embedding,
    "/v1/responses": _response,
}


def _last_user_text(messages: list[Any], param: str) -> tuple[str, int]:
    """The last user message's text ("" where there is none) and the words of all messages."""
    last, words = "", 0
    for message in messages:
        if not isinstance(message, dict):
            raise _BadRequest(param, f"{param} must hold objects")
        text = _text(message.get("content"))
        words += len(text.split())
        if message.get("role") == "user":
            last = text
    return last, words


def _text(content: Any) -> str:
    """The text of a message's content: a string, or parts of which some are text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = (part.get("text") for part in content if isinstance(part, dict))
    return "".join(text for text in texts if isinstance(text, str))


def _strings(value: Any, param: str) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value and all(isinstance(text, str) for text in value):
        return value
    raise _BadRequest(param, f"{param} must be a string or a list of strings")


def _vector(text: str) -> list[float]:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=EMBEDDING_SIZE).digest()
    return [byte / 127.5 - 1 for byte in digest]


def _hash(body: dict[str, Any]) -> int:
    data = orjson.dumps(body, option=orjson.OPT_SORT_KEYS)
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def _chat_usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def _failure(status_code: int, kind: str, message: str, param: str | None, code: str) -> Answer:
    error = {"message": message, "type": kind, "param": param, "code": code}
    body = {"error": error, "system_fingerprint": FINGERPRINT}
    return Answer(status_code, orjson.dumps(body), Usage())
