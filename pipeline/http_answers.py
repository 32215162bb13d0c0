"""What the HTTP response of an OpenAI-compatible server means: an answer, a refusal or a failure. Pure.

An answer's body is passed on as the server sent it. 4xx but 408 and 429 are answers: they belong to the
request. A server that sends nothing of use may do better the next time, or another one may: where none does,
the last error that came as JSON is the answer after all.
"""

from __future__ import annotations

import email.utils
from datetime import UTC, datetime
from enum import Enum, auto
from http import HTTPStatus
from typing import Any, NamedTuple

import orjson

from pipeline import answers
from pipeline.engine import Answer
from spool.parts import Usage

# Longest wait that a server may ask for, seconds.
MAX_RETRY_AFTER_S = 300.0
# Characters of a useless body that a message shows.
SHOWN_CHARS = 60
# What a proxy says where its server cannot be reached.
_BAD_GATEWAY = 502
_REFUSALS = (429, 503)
_TIMEOUT = 408


class Meaning(Enum):
    """What a response says, or that there is none: nothing connected, or the connection broke."""

    ANSWER = auto()
    REFUSAL = auto()
    USELESS = auto()
    BROKE = auto()
    UNREACHABLE = auto()


class Verdict(NamedTuple):
    """What is made of a response.

    Attributes:
        answer: what the request is answered with; of a failure, if nothing better comes: its own error.
        reason: of a failure, such as `answered 500`; it may stand in the log.
        excerpt: how a useless body begins; it may be an answer's, and stands in its request's own line alone.
        retry_after_s: how long the server wants to be left alone; None where it does not say.
    """

    meaning: Meaning
    answer: Answer | None = None
    reason: str = ""
    excerpt: str = ""
    retry_after_s: float | None = None


def judge(status: int, body: bytes, url: str) -> Verdict:
    """Say what a whole response means.

    Args:
        status: of HTTP.
        body: as it came, uncompressed.
        url: path of the endpoint that was asked.
    """
    if status in _REFUSALS:
        return Verdict(Meaning.REFUSAL, reason=f"answered {_named(status)}")
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return _without_json(status, body)
    if status == HTTPStatus.OK:
        return _judge_success(document, body, url)
    if status < HTTPStatus.BAD_REQUEST:
        return Verdict(Meaning.USELESS, reason=f"answered {_named(status)}")
    answer = Answer(status, body, Usage())
    if status == _BAD_GATEWAY:
        return Verdict(Meaning.BROKE, answer, f"answered {_named(status)}")
    if status == _TIMEOUT or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return Verdict(Meaning.USELESS, answer, f"answered {_named(status)}")
    return Verdict(Meaning.ANSWER, answer)


def _without_json(status: int, body: bytes) -> Verdict:
    meaning = Meaning.BROKE if status == _BAD_GATEWAY else Meaning.USELESS
    if 300 <= status < 400:
        return Verdict(meaning, reason=f"answered {_named(status)}; redirects are not followed")
    text = ascii(body[:SHOWN_CHARS].decode("utf-8", "replace"))
    return Verdict(meaning, reason=f"answered {_named(status)} with no JSON", excerpt=text)


def _judge_success(document: Any, body: bytes, url: str) -> Verdict:
    if not isinstance(document, dict):
        return Verdict(Meaning.USELESS, reason="answered 200 with JSON that is no object")
    # A response of /v1/responses says so itself when it failed; of all others this is no success.
    if document.get("error") and url != "/v1/responses":
        return Verdict(Meaning.USELESS, reason="answered 200 with an error in it")
    return Verdict(Meaning.ANSWER, Answer(200, body, _usage(document.get("usage"))))


def _usage(given: Any) -> Usage:
    """Tokens, as far as the server tells them in the form of the API."""
    if not isinstance(given, dict):
        return Usage()
    try:
        usage = answers.read_usage(given)
    except AttributeError:  # details that are no object
        return Usage()
    return usage if all(type(count) is int and count >= 0 for count in usage) else Usage()


def _named(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def retry_after_s(header: str | None, now: datetime) -> float | None:
    """Seconds for which a server wants to be left alone; None where it does not say.

    Args:
        header: `Retry-After`: seconds, or a date.
        now: with a time zone.
    """
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.replace(".", "", 1).isdigit():
        seconds = float(text)
    else:
        try:
            at = email.utils.parsedate_to_datetime(text)
        except ValueError:
            return None
        seconds = (at.replace(tzinfo=at.tzinfo or UTC) - now).total_seconds()
    return min(max(0.0, seconds), MAX_RETRY_AFTER_S)


def model_problem(status: int, body: bytes, model: str) -> str | None:
    """What a server's list of models says against it; None if it has this one.

    Args:
        status: of the response to GET /v1/models.
        body: of it.
        model: as requests name it.
    """
    if status != HTTPStatus.OK:
        return f"GET /v1/models answered {_named(status)}"
    try:
        listed = [each["id"] for each in orjson.loads(body)["data"]]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return "GET /v1/models answered with no list of models"
    if model in listed:
        return None
    known = ", ".join(repr(str(each)[:100]) for each in listed[:5]) or "none"
    return f"has no model {model!r}, it lists {known}"
