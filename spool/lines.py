"""The lines of output.jsonl and errors.jsonl, spliced from bytes so that an answer's body stays as it is.

Success: `{"id","custom_id","response":{"status_code","request_id","body"},"error":null}`. A failure with an
HTTP status has the same form with the error in its body; any other has `response: null` and
`error {code, message}`, with a code of spool/codes.py.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import orjson

_HEAD = b'{"id":"batch_req_%s","custom_id":%s,'
# Unescaped, this can only be a field: within a text its quotes are escaped.
_ID = re.compile(rb'("id": ?")([^"\\]*)"')


def response_line(request_key: str, custom_id: str | None, status_code: int, body: bytes) -> bytes:
    """A line for an answer that has an HTTP status.

    Args:
        request_key: unique in the spool; becomes `batch_req_…` and `req_…`.
        custom_id: of the request; None where it had none that could be read.
        status_code: 200, or what an HTTP server would have said.
        body: complete JSON, without a line end in it.
    """
    key = request_key.encode()
    head = _HEAD % (key, orjson.dumps(custom_id))
    response = b'{"status_code":%d,"request_id":"req_%s","body":%s}' % (status_code, key, body)
    return b'%s"response":%s,"error":null}' % (head, response)


def error_line(request_key: str, custom_id: str | None, code: str, message: str) -> bytes:
    """A line for a request that got no answer at all."""
    head = _HEAD % (request_key.encode(), orjson.dumps(custom_id))
    return b'%s"response":null,"error":%s}' % (head, orjson.dumps({"code": code, "message": message}))


class Address(NamedTuple):
    """What makes a line one request's own.

    Attributes:
        request_key: as in `response_line`.
    """

    request_key: str
    custom_id: str | None


def readdress(text: bytes, sender: Address, receiver: Address) -> bytes:
    """The same line for another request: its custom_id, its ids, and its key in the ids of the body.

    Args:
        text: a line that `response_line` or `error_line` made.
        sender: of the request that it was made for.
        receiver: of the one that gets it.

    Raises:
        ValueError: it was made for another request.
    """
    old, new = sender.request_key.encode(), receiver.request_key.encode()
    head = _HEAD % (old, orjson.dumps(sender.custom_id))
    if not text.startswith(head):
        raise ValueError(f"not a line of request {sender.request_key}")
    rest = text[len(head) :]
    request_id = b'"request_id":"req_%s",'
    rest = rest.replace(request_id % old, request_id % new, 1)

    def own(match: re.Match[bytes]) -> bytes:
        start, value = match.groups()
        return b'%s%s%s"' % (start, value.removesuffix(old), new) if value.endswith(old) else match[0]

    return _HEAD % (new, orjson.dumps(receiver.custom_id)) + _ID.sub(own, rest)


def error_body(message: str, kind: str, param: str | None, code: str | int | None) -> bytes:
    """OpenAI's body of an error: `{"error": {message, type, param, code}}`."""
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


def request_key(batch_id: str, line: int) -> str:
    """The key of a request: the same each time it is worked on, so that a repeated line is seen as one."""
    return f"{batch_id.removeprefix('batch_')}_{line}"
