"""What an engine is to the rest of batchd.

An engine answers single requests of the OpenAI API, many at a time on one event loop; it does not batch
files, retry or time out. vllm_engine.py (the real one) and echo.py (for tests) keep this contract; neither
ever stands in for the other. Imports neither vllm nor torch.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from spool.parts import Usage

# What some model may answer; what this one model cannot is an Answer with status 404.
SUPPORTED_URLS = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/score",
        "/score",
        "/v1/rerank",
        "/rerank",
        "/v2/rerank",
    }
)


class Answer(NamedTuple):
    """What an engine says to one request.

    Attributes:
        status_code: the HTTP status that a server would have sent; 200 is success.
        body: a complete JSON document: the OpenAI response, or `{"error": {message, type, param, code}}`.
            `code` is a word where batchd itself refused, vLLM's own number (the status) where vLLM did.
        usage: tokens as the engine counted them; all 0 for a failure.
    """

    status_code: int
    body: bytes
    usage: Usage


class Engine(Protocol):
    """One loaded model. All methods run on one event loop; `answer` runs many times at once."""

    async def start(self) -> None:
        """Load the model; seconds to minutes, without blocking the event loop for long.

        Raises:
            EngineStartError: it cannot be loaded; nothing of it keeps running.
        """
        ...

    async def answer(self, url: str, body: dict[str, Any], request_id: str) -> Answer:
        """Answer one request. A bad request is an Answer too.

        When the caller is cancelled, the request stops in the engine and the CancelledError goes on.

        Args:
            url: path of the endpoint, such as `/v1/chat/completions`.
            body: the request; the engine may change it, and `stream` is refused.
            request_id: unique among the engine's requests; becomes part of the response's id.

        Raises:
            EngineDeadError: the engine died before it could answer; another one may.
        """
        ...

    async def check_health(self) -> None:
        """Return if the engine can answer.

        Raises:
            EngineDeadError: it cannot, and never will again.
        """
        ...

    async def stop(self) -> None:
        """Free everything the engine holds, its processes too. May be called twice, or before start."""
        ...
