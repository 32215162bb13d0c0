"""Twins: requests whose answers must be identical, so that one of them is sent and its answer is all theirs.

Only what cannot differ is shared: a greedy or seeded answer, and what embeds, scores or ranks. Two such
requests are twins if the whole of their bodies is the same, byte for byte as JSON, whatever the order of the
body's own fields. The order of keys further in counts, because a template renders a tool's schema as it
stands. `user` is left out where vLLM takes it and never reads it; /v1/responses gives it back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from spool import lines
from spool.parts import Result

# Of the endpoints that generate; all others compute the same from the same.
_SAMPLING = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses"})
_USER_IS_SHOWN = "/v1/responses"
# What vLLM takes for none: SamplingParams.__post_init__, 0.32.
_NO_SEED = -1
_ONE = (None, 1)
_MARK_MASK = (1 << 64) - 1


def identity(url: str, body: dict[str, Any]) -> bytes | None:
    """What a request's twins have in common with it; None for a request that cannot have any."""
    if url in _SAMPLING and not _is_determined(body):
        return None
    fields = sorted(_without_user(url, body).items())
    try:
        return orjson.dumps(dict(fields))
    except orjson.JSONEncodeError:  # writing stops at a depth of 254
        return None


def mark(url: str, body: dict[str, Any]) -> int:
    """A number that is equal for twins and cheaper than their identity; 0 for a request that has none.

    Differs from process to process. Requests that are no twins may have the same: compare identities.
    """
    if url in _SAMPLING and not _is_determined(body):
        return 0
    try:
        text = orjson.dumps(_without_user(url, body), option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError:
        return 0
    return hash(text) & _MARK_MASK or 1


def leaders(requests: Sequence[tuple[int, bytes]]) -> list[int]:
    """For each request the one whose answer it takes: the first of its twins, or itself.

    Args:
        requests: index among the file's requests, and the line of input.jsonl.
    """
    first: dict[bytes, int] = {}
    found = []
    for line, request in requests:
        try:
            document = orjson.loads(request)
            same = identity(document["url"], document["body"])
        except (orjson.JSONDecodeError, KeyError, TypeError):  # the engine's answer will say what is wrong
            same = None
        found.append(line if same is None else first.setdefault(same, line))
    return found


def share(
    result: Result, batch_id: str, request: bytes, followers: Sequence[tuple[int, bytes]]
) -> Iterator[Result]:
    """A leader's result, whatever it is, for each of its twins.

    Args:
        result: of the leader.
        batch_id: names the requests in the answers.
        request: the leader's.
        followers: its twins.
    """
    sender = _address(batch_id, result.line, request)
    for line, follower in followers:
        text = lines.readdress(result.text, sender, _address(batch_id, line, follower))
        yield result._replace(line=line, text=text, shared=True, latency=None)


def _address(batch_id: str, line: int, request: bytes) -> lines.Address:
    return lines.Address(lines.request_key(batch_id, line), orjson.loads(request)["custom_id"])


def _without_user(url: str, body: dict[str, Any]) -> dict[str, Any]:
    if "user" not in body or url == _USER_IS_SHOWN:
        return body
    return {field: value for field, value in body.items() if field != "user"}


def _is_determined(body: dict[str, Any]) -> bool:
    temperature, seed = body.get("temperature"), body.get("seed")
    if temperature is None and seed is None:
        return False
    is_greedy = temperature == 0 and type(temperature) is not bool
    if not is_greedy and (type(seed) is not int or seed == _NO_SEED):
        return False
    return body.get("n") in _ONE and body.get("best_of") in _ONE
