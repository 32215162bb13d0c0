"""The caret stands below the place that the message tells of."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.excerpt import excerpt
from spool.record import LineError


def _bad_json(line: bytes) -> list[str]:
    return excerpt(line, LineError(code="invalid_json_line", message="", line=1))


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b'{"a": 1,}\n', ['{"a": 1,}', "       ^"]),
        ('{"ä": tru}\r\n'.encode(), ['{"ä": tru}', "      ^"]),
        (b'{"a": "\xff"}', ['{"a": "�"}', "       ^"]),
        (b'{"a":\t1 2}', ['{"a":·1 2}', "        ^"]),
    ],
)
def test_json_that_ends_early_is_pointed_at(line: bytes, shown: list[str]) -> None:
    """By characters, not by bytes; what is not printable takes one place."""
    assert _bad_json(line) == shown


def test_of_a_long_line_a_piece_is_shown() -> None:
    """Around the place."""
    first, second = _bad_json(b'{"a": "' + b"x" * 1000 + b'" oops ' + b"y" * 1000)
    assert len(first) < 80
    assert first[second.index("^")] == "o"
    assert (first[0], first[-1]) == ("…", "…")


def test_a_field_is_pointed_at_by_its_name() -> None:
    """A missing one has no place."""
    line = b'{"custom_id": "a", "method": "GET", "body": {"model": 7}}'
    wrong = LineError(code="invalid_request", message="", param="body.model", line=1)
    shown, caret = excerpt(line, wrong)
    assert shown[caret.index("^") :].startswith('"model": 7')
    assert excerpt(line, LineError(code="missing_required_parameter", message="", param="url", line=1)) == []
    assert excerpt(line, LineError(code="line_too_long", message="", line=1)) == []


@given(st.binary(max_size=200))
def test_any_line_has_an_excerpt_or_none(line: bytes) -> None:
    """Nothing that a user can drop breaks it, and no control character gets out."""
    shown = _bad_json(line)
    assert len(shown) in (0, 2)
    assert all(text.isprintable() for text in shown)
