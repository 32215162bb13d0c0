"""Failures in the form of the OpenAI API, what batchd refuses itself, and the tokens of a success."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from pipeline import answers, errors
from spool.parts import Usage


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"stream": True}, "stream"),
        ({"background": True}, "background"),
        ({"encoding_format": "bytes"}, "encoding_format"),
        ({"encoding_format": "bytes_only"}, "encoding_format"),
        ({"stream": False, "background": None, "encoding_format": "base64"}, None),
    ],
)
def test_what_would_be_no_json_document_is_refused(body: dict[str, Any], param: str | None) -> None:
    """The refusal names the field, and fields that ask for nothing of the kind are let through."""
    answer = answers.refuse(body)
    if param is None:
        assert answer is None
        return
    assert answer is not None and answer.status_code == 400
    told = orjson.loads(answer.body)["error"]
    assert (told["param"], told["code"]) == (param, "invalid_request") and f"`{param}`" in told["message"]


def test_an_unsupported_endpoint_says_what_is_supported() -> None:
    answer = answers.unsupported("m", "/score", ["/v1/responses", "/v1/completions"])
    assert (answer.status_code, answer.usage) == (404, Usage())
    assert orjson.loads(answer.body) == {
        "error": {
            "message": "the model `m` does not support /score; it supports /v1/completions, /v1/responses",
            "type": "NotFoundError",
            "param": None,
            "code": "unsupported_endpoint",
        }
    }


def test_a_long_message_is_cut() -> None:
    """A failure may quote a whole prompt."""
    told = orjson.loads(answers.error(400, "a" * 10_000, "BadRequestError", None, 400).body)["error"]
    assert told["message"] == "a" * errors.MAX_MESSAGE_CHARS + "..."


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({}, Usage()),
        ({"prompt_tokens": 5, "completion_tokens": None, "prompt_tokens_details": None}, Usage(5)),
        (
            {
                "prompt_tokens": 5,
                "completion_tokens": 7,
                "prompt_tokens_details": {"cached_tokens": 2},
                "completion_tokens_details": {"reasoning_tokens": 3},
            },
            Usage(5, 2, 7, 3),
        ),
        (
            {
                "input_tokens": 5,
                "output_tokens": 7,
                "input_tokens_details": {"cached_tokens": 2},
                "output_tokens_details": {"reasoning_tokens": 3},
            },
            Usage(5, 2, 7, 3),
        ),
    ],
)
def test_tokens_are_read_from_either_kind_of_usage(usage: dict[str, Any], tokens: Usage) -> None:
    """Responses name them differently; what is absent or null counts nothing."""
    assert answers.read_usage(usage) == tokens
