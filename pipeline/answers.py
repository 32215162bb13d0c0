"""Answers in the form of the OpenAI API: failures, what batchd itself refuses, and the tokens of a success.

Knows no engine. Successes are the engine's own bodies and are not made here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from pipeline import errors
from pipeline.engine import Answer
from spool.parts import Usage


def refuse(body: dict[str, Any]) -> Answer | None:
    """Refuse what vLLM would answer with something else than one JSON document."""
    for param in ("stream", "background"):
        if body.get(param):
            message = f"`{param}` is not possible in a batch"
            return error(400, message, "BadRequestError", param, "invalid_request")
    if body.get("encoding_format") in ("bytes", "bytes_only"):
        message = "`encoding_format` must be float or base64 in a batch"
        return error(400, message, "BadRequestError", "encoding_format", "invalid_request")
    return None


def unsupported(model: str, url: str, supported: Iterable[str]) -> Answer:
    """Refuse what this model cannot do."""
    message = f"the model `{model}` does not support {url}; it supports {', '.join(sorted(supported))}"
    return error(404, message, "NotFoundError", None, "unsupported_endpoint")


def error(status_code: int, message: str, kind: str, param: str | None, code: str | int) -> Answer:
    """A failure in the form of the OpenAI API; a long message is cut."""
    if len(message) > errors.MAX_MESSAGE_CHARS:
        message = message[: errors.MAX_MESSAGE_CHARS] + "..."
    told = {"message": message, "type": kind, "param": param, "code": code}
    return Answer(status_code, json.dumps({"error": told}).encode(), Usage())


def read_usage(usage: dict[str, Any]) -> Usage:
    """Tokens from the usage of any endpoint: responses say input_tokens, all others prompt_tokens."""
    inputs = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    outputs = usage.get("completion_tokens_details") or usage.get("output_tokens_details") or {}
    return Usage(
        input_tokens=usage.get("prompt_tokens") or usage.get("input_tokens") or 0,
        cached_tokens=inputs.get("cached_tokens") or 0,
        output_tokens=usage.get("completion_tokens") or usage.get("output_tokens") or 0,
        reasoning_tokens=outputs.get("reasoning_tokens") or 0,
    )
