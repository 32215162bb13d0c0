"""The lines of output.jsonl and errors.jsonl, spliced from bytes so that an answer's body stays as it is.

Success: `{"id","custom_id","response":{"status_code","request_id","body"},"error":null}`. A failure with an
HTTP status has the same form with the error in its body; any other has `response: null` and
`error {code, message}`.
"""

from __future__ import annotations

from enum import StrEnum

import orjson


class Code(StrEnum):
    """Codes of failures that have no HTTP status."""

    EXPIRED = "batch_expired"
    CANCELLED = "batch_cancelled"
    TIMEOUT = "request_timeout"
    ENGINE = "engine_error"


def response_line(request_key: str, custom_id: str | None, status_code: int, body: bytes) -> bytes:
    """A line for an answer that has an HTTP status.

    Args:
        request_key: unique in the spool; becomes `batch_req_…` and `req_…`.
        custom_id: of the request; None where it had none that could be read.
        status_code: 200, or what an HTTP server would have said.
        body: complete JSON, without a line end in it.
    """
    key = request_key.encode()
    return b'{"id":"batch_req_%s","custom_id":%s,"response":%s,"error":null}' % (
        key,
        orjson.dumps(custom_id),
        b'{"status_code":%d,"request_id":"req_%s","body":%s}' % (status_code, key, body),
    )


def error_line(request_key: str, custom_id: str | None, code: str, message: str) -> bytes:
    """A line for a request that got no answer at all."""
    return b'{"id":"batch_req_%s","custom_id":%s,"response":null,"error":%s}' % (
        request_key.encode(),
        orjson.dumps(custom_id),
        orjson.dumps({"code": code, "message": message}),
    )


def error_body(message: str, kind: str, param: str | None, code: str | int | None) -> bytes:
    """OpenAI's body of an error: `{"error": {message, type, param, code}}`."""
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


def request_key(batch_id: str, line: int) -> str:
    """The key of a request: the same each time it is worked on, so that a repeated line is seen as one."""
    return f"{batch_id.removeprefix('batch_')}_{line}"
