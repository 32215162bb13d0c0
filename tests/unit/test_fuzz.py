"""Anything at all, to the line reader, the validator and the sidecar reader: no crash, no hang.

tests/faults/fuzz.py goes on with these for long, guided by coverage.
"""

from __future__ import annotations

import io
import tempfile
import time
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from config.settings import LimitSettings
from pipeline import engine, validate, validate_lines, validate_size
from spool import plan
from tests.faults import fuzz

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))

# ------------------------------------------------------------------ what files may hold

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
KEYS = st.sampled_from(["type", "text", "image_url", "url", "content", "role", "uuid", "x"]) | st.text(
    max_size=4
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)
URLS = st.sampled_from(sorted(engine.SUPPORTED_URLS)) | st.text(max_size=4)
MODELS = st.sampled_from(["m", "m2", "other"])
# Fields that some guard or some request model knows, so that more than `extra` is met.
FIELDS = st.sampled_from(
    [
        *("messages", "prompt", "input", "query", "documents", "text_1", "text_2", "stream", "n", "logprobs"),
        *("top_logprobs", "tools", "tool_choice", "response_format", "structured_outputs", "stop", "seed"),
        *(
            "chat_template_kwargs",
            "vllm_xargs",
            "logit_bias",
            "max_tokens",
            "temperature",
            "bad_words",
            "user",
        ),
    ]
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "tool", "x"]), "content": VALUES}),
    max_size=3,
)
BODIES = st.builds(
    lambda known, more, model: {"model": model} | more | known,
    st.fixed_dictionaries(
        {},
        optional={
            "messages": MESSAGES,
            **dict.fromkeys(
                ("prompt", "input", "query", "documents", "text_1", "text_2"), st.text(max_size=5)
            ),
        },
    ),
    st.dictionaries(FIELDS, VALUES, max_size=4),
    MODELS,
)
REQUESTS = st.fixed_dictionaries(
    {},
    optional={
        "custom_id": st.text(max_size=4) | VALUES,
        "method": st.just("POST") | VALUES,
        "url": URLS | VALUES,
        "body": BODIES | VALUES,
    },
)


def dumps(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:  # integers of more than 64 bits, lone surrogates
        return repr(value).encode("utf-8", "surrogatepass")


LINES = REQUESTS.map(dumps) | st.binary(max_size=40).map(lambda raw: raw.replace(b"\n", b""))
FILES = st.lists(LINES, max_size=12).map(b"\n".join)


@QUICK
@given(st.binary(max_size=400) | FILES, st.integers(1, 60), st.integers(1, 40))
def test_any_bytes_are_lines(content: bytes, chunk: int, limit: int) -> None:
    """However they come in chunks: the same lines, their right offsets, none over the limit."""
    before, validate_lines.CHUNK_BYTES = validate_lines.CHUNK_BYTES, chunk
    try:
        fuzz.check_lines(content, limit)
    finally:
        validate_lines.CHUNK_BYTES = before


@QUICK
@given(FILES | st.binary(max_size=400))
def test_any_file_has_a_verdict(content: bytes) -> None:
    """Bounded, printable, the same whether it fails or skips, and nothing is accepted that is no request."""
    fuzz.check_file(content)


@QUICK
@given(FILES, st.sampled_from(["fail", "skip"]))
def test_the_copy_holds_what_was_accepted(content: bytes, on_invalid: Any) -> None:
    """The dry run and the real one agree, and each line of the copy is a request that passes by itself."""
    rules = validate.Rules(frozenset({"m", "m2"}), LimitSettings(), on_invalid=on_invalid)
    with tempfile.TemporaryDirectory() as folder:
        verdict = validate.check_and_copy(io.BytesIO(content), Path(folder), "batch_x", rules)
        dry = validate.check(io.BytesIO(content), rules)
        copied = Path(folder, plan.INPUT_FILE)
        assert copied.exists() == verdict.is_valid
        lines = copied.read_bytes().split(b"\n")[:-1] if verdict.is_valid else []
    assert (verdict.errors, verdict.codes, verdict.requests) == (dry.errors, dry.codes, dry.requests)
    assert len(lines) == (verdict.requests if verdict.is_valid else 0)
    assert sum(not line for line in lines) == verdict.rejected
    for line in filter(None, lines):
        fuzz.check_request(line, verdict.endpoint, verdict.model)


@QUICK
@given(st.binary(max_size=300), st.integers(0, 3))
def test_counting_never_counts_too_little(content: bytes, most: int) -> None:
    """A line that is counted as small enough really parses to no more than that."""
    bounds = validate_size.MAX_CONTAINERS, validate_size.MAX_VALUES
    validate_size.MAX_CONTAINERS = validate_size.MAX_VALUES = most
    try:
        excess = validate_size.find_excess(content)
    finally:
        validate_size.MAX_CONTAINERS, validate_size.MAX_VALUES = bounds
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError:
        return
    if excess is None:
        assert containers(value) <= most


def containers(value: Any) -> int:
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + sum(map(containers, inner))


YAML = st.lists(
    st.sampled_from(
        [
            *(
                "completion_window",
                "endpoint",
                "metadata",
                "pool",
                "on_invalid",
                "submission",
                "a",
                "<<",
                "=",
                "?",
            ),
            *(
                ": ",
                ":",
                "\n",
                "\n  ",
                "- ",
                "{",
                "}",
                "[",
                "]",
                ", ",
                "&a ",
                "*a",
                "!!",
                "!!int ",
                "!!binary ",
            ),
            *(
                "!!float ",
                "!!timestamp ",
                "!!set ",
                "!!omap ",
                "!!bool ",
                "!!null ",
                "|",
                ">-",
                "'",
                '"',
                "\\x1b",
            ),
            *(
                "spot",
                "24h",
                "1:1:1",
                "1e999",
                ".inf",
                ".nan",
                "0x",
                "0b1",
                "1_0",
                "~",
                "true",
                "2020-01-01",
                "-",
            ),
            *(
                "\\ud800",
                "\u202e",
                "\x85",
                "\ufeff",
                "\x00",
                "%YAML 1.1",
                "---",
                "...",
                "#",
                "@",
                "`",
                "9" * 400,
            ),
        ]
    )
    | st.text(max_size=3),
    max_size=25,
).map(lambda parts: "".join(parts).encode("utf-8", "surrogatepass"))


@QUICK
@given(YAML | st.binary(max_size=200))
def test_any_sidecar_is_wishes_or_an_error(content: bytes) -> None:
    """No other exception, and whatever is read can be written into a record."""
    fuzz.check_sidecar(content)


@pytest.mark.parametrize(
    "unit", [b"[", b"{", b"- ", b"? ", b"a: ", b"&a ", b"!a ", b'"', b"{a: [", b"a,", b"<<: ", b"|\n"]
)
def test_a_sidecar_takes_bounded_time(unit: bytes) -> None:
    """It is read by the loop: as large as allowed, and as bad as it gets."""
    started = time.process_time()
    fuzz.check_sidecar(unit * ((64 << 10) // len(unit)))
    assert time.process_time() - started < 3


@pytest.mark.engine
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(URLS.filter(engine.SUPPORTED_URLS.__contains__), BODIES)
def test_what_is_accepted_is_a_request_for_vllm_or_a_line_error(url: str, body: dict[str, Any]) -> None:
    """vLLM's own request models take it, or what they say makes a complete answer that is an error."""
    from pydantic import TypeAdapter
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
    from vllm.entrypoints.pooling.embed.protocol import EmbeddingRequest
    from vllm.entrypoints.pooling.scoring.protocol import RerankRequest, ScoreRequest

    from pipeline import vllm_engine

    models: dict[str, Any] = {
        "/v1/chat/completions": ChatCompletionRequest,
        "/v1/completions": CompletionRequest,
        "/v1/responses": ResponsesRequest,
        "/v1/embeddings": EmbeddingRequest,
        "/v1/score": ScoreRequest,
        "/score": ScoreRequest,
    }
    content = dumps({"custom_id": "a", "method": "POST", "url": url, "body": body})
    rules = validate.Rules(frozenset({"m", "m2"}), LimitSettings())
    if not validate.check(io.BytesIO(content), rules).is_valid:
        return
    parsed = orjson.loads(content)["body"]
    try:
        TypeAdapter(models.get(url, RerankRequest)).validate_python({**parsed, "request_id": "x"})
    except Exception as error:  # noqa: BLE001 (as the engine does: vLLM's validators raise types of their own)
        answer = vllm_engine._invalid(error)
        assert 400 <= answer.status_code < 500
        told = orjson.loads(answer.body)["error"]
        assert told["message"] and len(answer.body) < 20_000


@pytest.mark.engine
def test_what_vllms_validators_stumble_over_is_a_bad_request() -> None:
    """`structured_outputs: []` makes one of them raise AttributeError; the request is bad, not the server."""
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    from pipeline import vllm_engine

    try:
        CompletionRequest.model_validate({"model": "m", "prompt": "0", "structured_outputs": []})
    except Exception as error:  # noqa: BLE001 (any type of theirs)
        answer = vllm_engine._invalid(error)
    assert answer.status_code == 400
