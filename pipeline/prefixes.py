"""What of a request decides its place in the order: how its prompt begins, and how long its answer may be.

The prompt's beginning is told by a ladder of hashes of the text that the engine will see first, each of a
beginning half as long or a third as long again as the one before. Where two prompts share a rung, they share
that many bytes; so their longest common prefix is known within a step, whatever it is made of: tools, a
system prompt, examples, a document, half a question. Nothing here is a promise: a hash that collides costs a
little speed.

Pure, and called for each request of a file while it is validated: see order_notes.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson

# A block of vLLM's KV cache is 16 tokens, some 64 bytes of text. What is shorter than three of them saves
# little and stays in the cache whatever the order is. Steps of 1.33 and 1.5: with steps of 4, 900 bytes in
# common, of which 300 are a system prompt that all requests have, would look like the system prompt alone.
RUNGS = tuple(size for power in range(7, 20) for size in (3 << power - 1, 2 << power))
# Longer than any length that a request can name.
UNBOUNDED = (1 << 32) - 1

_HASH_MASK = (1 << 32) - 1


class Endpoint(NamedTuple):
    """Where the requests of an endpoint say what is looked at.

    Attributes:
        prompt: fields in the order in which the engine renders them.
        length: fields that bound an answer; of two that are given the first wins, as in vLLM.
        default_length: vLLM's where nothing is said; 1 where answers have no length.
    """

    prompt: tuple[str, ...]
    length: tuple[str, ...] = ()
    default_length: int = 1


_ENDPOINTS = {
    "/v1/chat/completions": Endpoint(
        ("tools", "messages"), ("max_completion_tokens", "max_tokens"), UNBOUNDED
    ),
    "/v1/completions": Endpoint(("prompt",), ("max_tokens",), 16),
    "/v1/responses": Endpoint(("instructions", "tools", "input"), ("max_output_tokens",), UNBOUNDED),
    "/v1/embeddings": Endpoint(("messages", "input")),
}
_PAIRS = Endpoint(("query", "queries", "text_1", "data_1", "documents", "items", "text_2", "data_2"))


def endpoint(url: str) -> Endpoint:
    """What is looked at in the requests of an endpoint."""
    return _ENDPOINTS.get(url, _PAIRS)


def prompt_of(body: dict[str, Any], fields: tuple[str, ...]) -> bytes:
    """What the engine sees of a request, as JSON, in the order in which it sees it; b"" if it nests too deep.

    Never longer than the request's line.
    """
    text = b""
    try:
        for field in fields:
            if (value := body.get(field)) is not None:
                text += orjson.dumps(value)
    except orjson.JSONEncodeError:  # writing stops at a depth of 254
        return b""
    return text


def ladder(prompt: bytes) -> Iterator[int]:
    """A hash of 32 bits for each rung that a prompt reaches, the shortest first."""
    mark = start = 0
    size = len(prompt)
    for end in RUNGS:
        if size < end:
            break
        # Keyed anew in each process, so nobody can prepare collisions; each byte is hashed once.
        mark = hash((mark, prompt[start:end]))
        yield mark & _HASH_MASK
        start = end


def answer_length(body: dict[str, Any], fields: tuple[str, ...], default: int) -> int:
    """The most tokens that an answer may have, UNBOUNDED where nothing bounds it.

    What has no bound may take the longest, so it counts as that.
    """
    for field in fields:
        value = body.get(field)
        if type(value) is int and value > 0:
            return min(value, UNBOUNDED)
    return default
