"""What is looked at of a request: how its prompt begins, and how long its answer may be."""

from __future__ import annotations

import itertools
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import prefixes
from pipeline.prefixes import RUNGS, UNBOUNDED

NO_LENGTHS: list[Any] = [0, -1, True, "5", 5.0, None, [], 1 << 40]
CHAT, COMPLETION, RESPONSE = "/v1/chat/completions", "/v1/completions", "/v1/responses"


def prompt(url: str, body: dict[str, Any]) -> bytes:
    return prefixes.prompt_of(body, prefixes.endpoint(url).prompt)


def length(url: str, **body: Any) -> int:
    return prefixes.answer_length(body, *prefixes.endpoint(url)[1:])


@pytest.mark.parametrize(
    ("url", "body", "expected"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "a"}]}, b'[{"role":"user","content":"a"}]'),
        (CHAT, {"messages": [1], "tools": [2], "model": "m"}, b"[2][1]"),
        (COMPLETION, {"prompt": "a", "messages": [1]}, b'"a"'),
        (COMPLETION, {"prompt": [1, 2]}, b"[1,2]"),
        (RESPONSE, {"input": "a", "tools": [1], "instructions": "b"}, b'"b"[1]"a"'),
        ("/v1/embeddings", {"input": ["a"]}, b'["a"]'),
        ("/v1/rerank", {"documents": ["a"], "query": "q"}, b'"q"["a"]'),
        ("/score", {"text_2": "b", "text_1": "a"}, b'"a""b"'),
        (CHAT, {"messages": None}, b""),
    ],
)
def test_a_prompt_is_what_the_engine_sees_first_to_last(
    url: str, body: dict[str, Any], expected: bytes
) -> None:
    assert prompt(url, body) == expected


def test_what_nests_too_deep_has_no_prompt() -> None:
    """orjson reads deeper than it writes."""
    assert prompt(CHAT, {"messages": orjson.loads(b"[" * 300 + b"]" * 300)}) == b""


@given(st.binary(max_size=400), st.binary(max_size=2000), st.binary(max_size=2000))
def test_prompts_share_the_rungs_within_their_common_prefix(common: bytes, one: bytes, other: bytes) -> None:
    left, right = common * 3 + one, common * 3 + other
    shared = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False))))
    marks = [list(prefixes.ladder(each)) for each in (left, right)]
    assert [len(each) for each in marks] == [sum(r <= len(each) for r in RUNGS) for each in (left, right)]
    agreeing = sum(a == b for a, b in zip(*marks, strict=False))
    assert agreeing == sum(rung <= shared for rung in RUNGS)


def test_the_ladder_has_no_large_steps() -> None:
    """A common prefix is known within a third of its length, up to a megabyte and more."""
    assert all(b / a <= 1.5 for a, b in itertools.pairwise(RUNGS))
    assert (RUNGS[0], RUNGS[-1]) == (192, 1 << 20)


@pytest.mark.parametrize(
    ("url", "body", "expected"),
    [
        (CHAT, {}, UNBOUNDED),
        (CHAT, {"max_tokens": 5}, 5),
        (CHAT, {"max_tokens": 5, "max_completion_tokens": 7}, 7),
        (CHAT, {"max_tokens": 5, "max_completion_tokens": None}, 5),
        (CHAT, {"max_output_tokens": 5}, UNBOUNDED),
        (RESPONSE, {"max_output_tokens": 5}, 5),
        (COMPLETION, {}, 16),
        (COMPLETION, {"max_tokens": 500}, 500),
        ("/v1/embeddings", {"max_tokens": 5}, 1),
        *[(CHAT, {"max_tokens": bad}, UNBOUNDED) for bad in NO_LENGTHS],
    ],
)
def test_the_length_of_an_answer_is_what_bounds_it(url: str, body: dict[str, Any], expected: int) -> None:
    """What is no positive integer bounds nothing: the engine will say what is wrong with it."""
    assert length(url, **body) == expected
