"""What an HTTP response means: an answer, a refusal or a failure."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from pipeline import http_answers
from pipeline.http_answers import Meaning, Verdict, judge
from spool.parts import Usage

CHAT = "/v1/chat/completions"
NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)


def test_an_answer_keeps_its_bytes_and_tells_its_tokens() -> None:
    body = b'{ "a":1.0e0,\n"usage":{"prompt_tokens":7,"completion_tokens":2,"prompt_tokens_details":null} }'
    verdict = judge(200, body, CHAT)
    assert verdict.meaning is Meaning.ANSWER and verdict.answer is not None
    assert verdict.answer == (200, body, Usage(7, 0, 2, 0))


@pytest.mark.parametrize(
    "usage",
    [
        *("null", "[]", "7", '{"prompt_tokens":"7"}', '{"prompt_tokens":-7}', '{"prompt_tokens":1.5}'),
        *('{"prompt_tokens_details":[1]}', '{"prompt_tokens":true}'),
    ],
)
def test_usage_of_another_form_counts_nothing(usage: str) -> None:
    """The answer is good all the same."""
    verdict = judge(200, b'{"usage":%s}' % usage.encode(), CHAT)
    assert verdict.answer is not None and verdict.answer.usage == Usage()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_an_error_of_the_request_is_its_answer(status: int) -> None:
    verdict = judge(status, b'{"error":{"message":"no"}}', CHAT)
    assert verdict.meaning is Meaning.ANSWER
    assert verdict.answer == (status, b'{"error":{"message":"no"}}', Usage())


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("body", [b"", b'{"error":1}', b"<html>"])
def test_too_much_to_do_is_a_refusal(status: int, body: bytes) -> None:
    assert judge(status, body, CHAT).meaning is Meaning.REFUSAL


@pytest.mark.parametrize("status", [408, 500, 504, 599])
def test_an_error_of_the_server_may_be_the_last_word(status: int) -> None:
    verdict = judge(status, b'{"error":{"message":"sorry"}}', CHAT)
    assert verdict.meaning is Meaning.USELESS
    assert verdict.answer == (status, b'{"error":{"message":"sorry"}}', Usage())


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (200, b"", "answered 200 OK with no JSON: ''"),
        (200, b'{"a":1', "answered 200 OK with no JSON: '{\"a\":1'"),
        (200, b"<html>\xff", r"answered 200 OK with no JSON: '<html>\ufffd'"),
        (200, b'{"a":NaN}', "answered 200 OK with no JSON: '{\"a\":NaN}'"),
        (200, b'{"a":"\xff"}', 'answered 200 OK with no JSON: \'{"a":"\\ufffd"}\''),
        (200, b"[]", "answered 200 with JSON that is no object"),
        (200, b'{"error":{"message":"no"}}', "answered 200 with an error in it"),
        (202, b"{}", "answered 202 Accepted"),
        (307, b"", "answered 307 Temporary Redirect; redirects are not followed"),
        (404, b"<html>", "answered 404 Not Found with no JSON: '<html>'"),
        (500, b"oops", "answered 500 Internal Server Error with no JSON: 'oops'"),
        (799, b"\x1b[2J", r"answered 799 with no JSON: '\x1b[2J'"),
    ],
)
def test_what_is_of_no_use_says_why(status: int, body: bytes, reason: str) -> None:
    """In one printable line, however long or strange it is."""
    verdict = judge(status, body, CHAT)
    said, _, excerpt = reason.partition(": ")
    assert verdict == Verdict(Meaning.USELESS, None, said, excerpt)


def test_a_failed_response_of_the_responses_endpoint_is_its_answer() -> None:
    """There the error is a part of it, and null where there is none."""
    body = b'{"status":"failed","error":{"code":"x"}}'
    assert judge(200, body, "/v1/responses").meaning is Meaning.ANSWER
    assert judge(200, b'{"error":null}', CHAT).meaning is Meaning.ANSWER


def test_a_proxy_that_cannot_reach_its_server_is_a_broken_connection() -> None:
    assert judge(502, b"<html>", CHAT).meaning is Meaning.BROKE
    assert judge(502, b"{}", CHAT).meaning is Meaning.BROKE


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("7", 7.0),
        (" 0.5 ", 0.5),
        ("-1", None),
        ("soon", None),
        ("", None),
        ("99999999999", 300.0),
        ("Tue, 24 Nov 2026 12:00:30 GMT", 30.0),
        ("Tue, 24 Nov 2026 11:00:00 GMT", 0.0),
        ("Tue, 24 Nov 2036 11:00:00 GMT", 300.0),
        ("Tue, 24 Nov 2026 12:00:30", 30.0),
        ("Tue, 99 Nov 2026 12:00:30 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str | None, seconds: float | None) -> None:
    assert http_answers.retry_after_s(header, NOW) == seconds


@pytest.mark.parametrize(
    ("status", "body", "problem"),
    [
        (200, b'{"data":[{"id":"other"},{"id":"m"}]}', None),
        (200, b'{"data":[{"id":"other"}]}', "has no model 'm', it lists 'other'"),
        (200, b'{"data":[]}', "has no model 'm', it lists none"),
        (200, b"<html>", "GET /v1/models answered with no list of models"),
        (200, b"[]", "GET /v1/models answered with no list of models"),
        (200, b'{"data":7}', "GET /v1/models answered with no list of models"),
        (401, b"{}", "GET /v1/models answered 401 Unauthorized"),
        (307, b"", "GET /v1/models answered 307 Temporary Redirect"),
    ],
)
def test_a_list_of_models_has_this_one_or_a_problem(status: int, body: bytes, problem: str | None) -> None:
    assert http_answers.model_problem(status, body, "m") == problem
