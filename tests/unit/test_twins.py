"""Twins: only requests whose answers must be the same share one."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import twins
from spool import codes, lines
from spool.parts import Result, Usage

CHAT, COMPLETION, RESPONSE = "/v1/chat/completions", "/v1/completions", "/v1/responses"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize("url", [CHAT, COMPLETION, RESPONSE])
@pytest.mark.parametrize(
    ("fields", "is_shared"),
    [
        ({}, False),
        ({"temperature": 1}, False),
        ({"temperature": 0.0001}, False),
        ({"temperature": None}, False),
        ({"temperature": "0"}, False),
        ({"temperature": False}, False),
        ({"temperature": 0}, True),
        ({"temperature": 0.0}, True),
        ({"seed": 0}, True),
        ({"seed": 7, "temperature": 1}, True),
        ({"seed": True}, False),
        ({"seed": "7"}, False),
        ({"seed": None}, False),
        ({"seed": -1}, False),  # vLLM's word for none
        ({"temperature": 0, "seed": -1}, True),
        ({"temperature": 0, "n": 1, "best_of": None}, True),
        ({"temperature": 0, "n": 2}, False),
        ({"seed": 7, "best_of": 2}, False),
    ],
)
def test_only_a_determined_answer_is_shared(url: str, fields: dict[str, Any], is_shared: bool) -> None:
    body = BODY | fields
    assert (twins.identity(url, body) is not None) == is_shared
    assert (twins.mark(url, body) != 0) == is_shared


@pytest.mark.parametrize("url", ["/v1/embeddings", "/score", "/v1/rerank"])
def test_what_samples_nothing_is_always_determined(url: str) -> None:
    assert twins.identity(url, {"model": "m", "input": "a"}) is not None


def test_the_order_of_a_body_s_fields_does_not_matter() -> None:
    body = BODY | {"temperature": 0}
    turned = dict(reversed(body.items()))
    assert twins.identity(CHAT, body) == twins.identity(CHAT, turned)
    assert twins.mark(CHAT, body) == twins.mark(CHAT, turned)


def test_the_order_within_a_field_matters() -> None:
    """A template renders a tool's schema as it stands, and a grammar is made of it in its order."""
    one = BODY | {"temperature": 0, "tools": [{"a": 1, "b": 2}]}
    other = BODY | {"temperature": 0, "tools": [{"b": 2, "a": 1}]}
    assert twins.identity(CHAT, one) != twins.identity(CHAT, other)


@pytest.mark.parametrize(("url", "is_ignored"), [(CHAT, True), (COMPLETION, True), (RESPONSE, False)])
def test_the_user_is_ignored_where_no_answer_shows_it(url: str, is_ignored: bool) -> None:
    """Other fields are not, whatever they are for: metadata may come back too."""
    one, other = (BODY | {"temperature": 0, "user": name} for name in "ab")
    assert (twins.identity(url, one) == twins.identity(url, other)) == is_ignored
    assert (twins.mark(url, one) == twins.mark(url, other)) == is_ignored
    one, other = (BODY | {"temperature": 0, "metadata": {"a": name}} for name in "ab")
    assert twins.identity(url, one) != twins.identity(url, other)


def test_what_nests_too_deep_has_no_twins() -> None:
    body = BODY | {"temperature": 0, "x": orjson.loads(b"[" * 300 + b"]" * 300)}
    assert (twins.identity(CHAT, body), twins.mark(CHAT, body)) == (None, 0)


_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from([0.0, 1.0, "", "a", "0"])),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.sampled_from("ab"), inner)),
    max_leaves=4,
)
_BODIES = st.dictionaries(
    st.sampled_from(["temperature", "seed", "n", "messages", "stop", "user"]), _VALUES, max_size=5
)


@given(_BODIES, _BODIES, st.sampled_from([CHAT, RESPONSE, "/v1/embeddings"]))
def test_bodies_that_differ_are_never_twins(one: dict[str, Any], other: dict[str, Any], url: str) -> None:
    """Not even by what Python calls equal: 0, 0.0 and false."""
    identities = twins.identity(url, one), twins.identity(url, other)
    if None in identities:
        return
    ignored = set() if url == RESPONSE else {"user"}
    written = [
        {field: orjson.dumps(value) for field, value in body.items() if field not in ignored}
        for body in (one, other)
    ]
    assert (identities[0] == identities[1]) == (written[0] == written[1])
    if identities[0] == identities[1]:
        assert twins.mark(url, one) == twins.mark(url, other)


def request(custom_id: str, **body: Any) -> bytes:
    line = {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": BODY | body}
    return orjson.dumps(line)


def test_each_request_follows_the_first_of_its_twins() -> None:
    texts = [request("a", seed=1), request("b"), request("c", seed=1), request("d", seed=2), request("e")]
    assert twins.leaders([(7 * n, text) for n, text in enumerate(texts)]) == [0, 7, 0, 21, 28]


@pytest.mark.parametrize("bad", [b"", b"{", b"[]", b"{}", b'{"url":1}', b'{"url":"/score","body":3}'])
def test_what_cannot_be_read_follows_nobody(bad: bytes) -> None:
    assert twins.leaders([(0, bad), (1, bad)]) == [0, 1]


def test_a_result_is_shared_whatever_it_is() -> None:
    """Each twin gets a line of its own: its index, its custom_id, its ids, and the answer's usage."""
    followers = [(12, request('"é')), (13, request("b"))]
    ok = lines.response_line("x_1", "a", 200, b'{"id":"chatcmpl-x_1","usage":{"total_tokens":3}}')
    failed = lines.error_line("x_1", "a", codes.Failure.TIMEOUT, "no answer within 5 s")
    for result in (Result(1, True, Usage(2, 0, 1, 0), ok), Result(1, False, Usage(), failed)):
        shared = list(twins.share(result, "batch_x", request("a"), followers))
        assert [(each.line, each.ok, each.usage, each.shared) for each in shared] == [
            (line, result.ok, result.usage, True) for line in (12, 13)
        ]
        first = orjson.loads(shared[0].text)
        assert (first["id"], first["custom_id"]) == ("batch_req_x_12", '"é')
        before = orjson.loads(result.text)
        assert first["error"] == before["error"]
        if result.ok:
            body = {"id": "chatcmpl-x_12", "usage": {"total_tokens": 3}}
            assert first["response"] == {"status_code": 200, "request_id": "req_x_12", "body": body}
