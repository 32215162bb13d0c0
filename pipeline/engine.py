"""What an engine is to the rest of batchd.

An engine answers single requests of the OpenAI API, many at a time on one event loop; it does not batch
files, and does not time out unless it is Remote. vllm_engine.py (in this process), openai_engine.py (servers
elsewhere) and echo.py (for tests) keep this contract; none ever stands in for another. Imports neither vllm
nor torch.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

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
            EngineAwayError: it cannot answer now, and will by itself; the request is not to blame.
            NoAnswerError: it tried as often as makes sense, and has nothing for this request.
        """
        ...

    async def check_health(self) -> None:
        """Return if the engine can answer.

        Raises:
            EngineDeadError: it cannot, and never will again.
            EngineAwayError: it cannot now, and will by itself.
        """
        ...

    def computed_at(self) -> float:
        """When it last computed something, monotonic seconds; -inf where only its answers tell."""
        ...

    async def stop(self) -> None:
        """Free everything the engine holds, its processes too. May be called twice, or before start."""
        ...


@runtime_checkable
class Remote(Protocol):
    """What an engine that asks servers elsewhere has beside the rest.

    It keeps the time limit itself, since only time at a server counts, not the wait for one: `answer` raises
    TimeoutError. A silence of it is the servers', which no new process mends.
    """

    def outages(self) -> dict[str, str]:
        """Why servers get no requests now, by URL; empty if all do."""
        ...
