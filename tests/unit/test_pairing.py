"""Each request of a batch file finds its one result, and whatever does not fit is named with its line."""

from __future__ import annotations

import itertools

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import pairing


def _request(custom_id: object) -> bytes:
    return orjson.dumps({"custom_id": custom_id}) + b"\n"


def _result(custom_id: str | None, status_code: int = 200) -> bytes:
    response = {"status_code": status_code, "body": {}}
    row = {"id": "batch_req_x", "custom_id": custom_id, "response": response, "error": None}
    return orjson.dumps(row) + b"\n"


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=12))
def test_what_belongs_together_is_paired(rows: list[tuple[str, bool]]) -> None:
    """In the input's order, each from the file that it stands in."""
    names = [f"{name}{number}" for number, (name, _) in enumerate(rows)]
    answered = [ok for _, ok in rows]
    output = [_result(name) for name, ok in zip(names, answered, strict=True) if ok]
    errors = [_result(name, 400) for name, ok in zip(names, answered, strict=True) if not ok]
    pairs = list(pairing.pair(map(_request, names), output, errors))
    assert [pair.result["custom_id"] for pair in pairs] == names
    assert [pair.is_answered for pair in pairs] == answered


def test_lines_are_counted_as_in_an_editor() -> None:
    """A BOM, blank lines and CRLF are no part of a request."""
    drop = [b"\xef\xbb\xbf" + _request("a"), b"\n", b"  \r\n", _request("b").replace(b"\n", b"\r\n")]
    pairs = list(pairing.pair(drop, [_result("a"), _result("b")], []))
    assert [(pair.line, pair.request) for pair in pairs] == [(1, _request("a")[:-1]), (4, _request("b")[:-1])]


@pytest.mark.parametrize("line", [b"{no json\n", b"[1]\n", _request(7), _request(None)])
def test_a_refused_line_without_a_custom_id_is_paired_too(line: bytes) -> None:
    """With the error line that has none either."""
    pairs = list(pairing.pair([line, _request("a")], [_result("a")], [_result(None, 400)]))
    assert [pair.is_answered for pair in pairs] == [False, True]


@pytest.mark.parametrize(
    ("drop", "output", "errors", "message"),
    [
        ("ab", "a", "", "line 2 of the input, custom_id 'b', has no result: output.jsonl ends after line 1"),
        ("ab", "ba", "", "line 1 of the input, custom_id 'a', has no result: line 1 of output.jsonl"),
        ("a", "aa", "", "every request of the input has its result, but line 2 of output.jsonl"),
        ("a", "a", "b", "every request of the input has its result, but line 1 of errors.jsonl"),
    ],
)
def test_what_does_not_fit_is_named(drop: str, output: str, errors: str, message: str) -> None:
    """A line lost, two exchanged, one doubled, one too many."""
    pairs = pairing.pair(map(_request, drop), map(_result, output), map(_result, errors))
    with pytest.raises(pairing.Mismatch, match=message):
        list(pairs)


@pytest.mark.parametrize("line", [b"{", b"[]", b'{"custom_id": "a"}'])
def test_what_is_no_result_is_named(line: bytes) -> None:
    """A torn line, and one of something else."""
    with pytest.raises(pairing.Mismatch, match=r"line 2 of output\.jsonl is no"):
        list(pairing.pair(map(_request, "ab"), [_result("a"), line], []))


def test_files_are_read_a_line_at_a_time() -> None:
    """A million results are never in memory together."""
    endless = (_result(f"a{number}") for number in itertools.count())
    pairs = pairing.pair((_request(f"a{number}") for number in itertools.count()), endless, [])
    assert [pair.line for pair in itertools.islice(pairs, 3)] == [1, 2, 3]
