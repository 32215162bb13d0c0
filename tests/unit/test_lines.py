"""Lines: what they hold, and how one becomes another request's."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spool import codes, lines
from spool.lines import Address

BODIES = [
    {"id": "chatcmpl-x_1", "object": "chat.completion", "choices": []},
    {"object": "x", "id": "echo-x_1"},
    {"id": "resp_x_1", "output": [{"type": "message", "id": "msg_12", "content": [{"text": "a"}]}]},
    {"id": "other", "choices": [{"message": {"tool_calls": [{"id": "chatcmpl-tool-ab"}]}}]},
    {"choices": [{"message": {"content": 'say "id":"chatcmpl-x_1" and x_1'}}]},
    {"error": {"message": "bad", "type": "BadRequestError", "param": None, "code": 400}},
]


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize(
    ("key", "custom_id"), [("x_12", "b"), ("x_1", "b"), ("y_1", '"\n\u2028'), ("x_2", None)]
)
def test_a_line_becomes_that_of_another_request(
    body: dict[str, Any], key: str, custom_id: str | None
) -> None:
    """As if it had been made for that one; texts stay as they are, whatever they say."""
    for option in (0, orjson.OPT_INDENT_2):
        text = orjson.dumps(body, option=option).replace(b"\n", b"")
        line = lines.response_line("x_1", "a", 200, text)
        found = lines.readdress(line, Address("x_1", "a"), Address(key, custom_id))
        own = body | ({"id": body["id"].replace("x_1", key)} if "id" in body else {})
        assert orjson.loads(found) == orjson.loads(
            lines.response_line(key, custom_id, 200, orjson.dumps(own))
        )
        assert lines.readdress(found, Address(key, custom_id), Address("x_1", "a")) == line


def test_a_failure_without_a_body_becomes_another_s() -> None:
    line = lines.error_line("x_1", "a", codes.Failure.TIMEOUT, "no answer")
    found = lines.readdress(line, Address("x_1", "a"), Address("x_7", "b"))
    assert found == lines.error_line("x_7", "b", codes.Failure.TIMEOUT, "no answer")


@pytest.mark.parametrize("sender", [Address("x_2", "a"), Address("x_1", "b"), Address("x_1", None)])
def test_a_line_of_another_request_is_not_taken(sender: Address) -> None:
    line = lines.response_line("x_1", "a", 200, b"{}")
    with pytest.raises(ValueError, match=f"not a line of request {sender.request_key}"):
        lines.readdress(line, sender, Address("x_3", "c"))


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=40))
def test_no_text_is_touched(one: str, other: str, content: str) -> None:
    body = orjson.dumps(
        {"id": "cmpl-x_1", "choices": [{"text": content + "x_1", "logprobs": {content: 0.5}}]}
    )
    line = lines.response_line("x_1", one, 200, body)
    found = orjson.loads(lines.readdress(line, Address("x_1", one), Address("x_9", other)))
    assert found["custom_id"] == other
    assert found["response"]["body"] == orjson.loads(body) | {"id": "cmpl-x_9"}
