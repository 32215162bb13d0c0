"""Rows that are parsed as arrays are those that spool/parts.py parses one by one."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline import part_rows
from pipeline.part_rows import Piece
from spool import parts
from spool.parts import PartName

_NUMBERS = st.one_of(st.integers(0, 99), st.integers(0, 10**12), st.sampled_from([99_999_999, 10**8, 10**7]))
_TEXTS = st.binary(max_size=90).filter(lambda text: b"\n" not in text)
_ROWS = st.lists(
    st.tuples(_NUMBERS, st.integers(0, 3), _NUMBERS, _NUMBERS, _NUMBERS, _NUMBERS, _TEXTS),
    min_size=1,
    max_size=9,
)


def render(rows: list[tuple]) -> bytes:
    return b"".join(b"%d\t%d\t%d\t%d\t%d\t%d\t%s\n" % row for row in rows)


def name_of(shard: int, results: int) -> PartName:
    return PartName(shard, 1, results, 0, 0)


def parse(contents: list[tuple[PartName, bytes]]) -> tuple[part_rows.Rows, bytes]:
    """Parts end to end, behind which a buffer holds what an earlier group left there."""
    whole = b"".join(content for _, content in contents)
    buffer = np.frombuffer(whole + b"7\t1\t7\t7\t7\t7\t{}\n7\t1\t7\t7\t7", np.uint8)
    pieces, begin = [], 0
    for name, content in contents:
        pieces.append(Piece(name, begin, begin + len(content)))
        begin += len(content)
    return part_rows.parse(buffer, pieces, part_rows.line_ends(buffer, 0, len(whole))), whole


def same_as_one_by_one(contents: list[tuple[PartName, bytes]]) -> None:
    rows, whole = parse(contents)
    expected = [result for name, content in contents for result in parts.parse(content, name)]
    assert rows.lines.tolist() == [result.line for result in expected]
    assert rows.ok.tolist() == [result.ok for result in expected]
    assert rows.shared.tolist() == [result.shared for result in expected]
    assert rows.usage.T.tolist() == [list(result.usage) for result in expected]
    texts = [whole[begin:end] for begin, end in zip(rows.begins, rows.ends, strict=True)]
    assert texts == [result.text + b"\n" for result in expected]


@settings(max_examples=300, deadline=None)
@given(st.lists(_ROWS, min_size=1, max_size=4))
@example([[(5, 1, 9, 0, 1, 0, b'{"t":"a\tb"}')]])
@example([[(0, 3, 0, 0, 0, 0, b"")]])
def test_arrays_hold_what_is_parsed_one_by_one(parts_rows: list[list[tuple]]) -> None:
    """Tabs in a text, texts without anything, and numbers of more digits than a word has."""
    same_as_one_by_one([(name_of(shard, len(rows)), render(rows)) for shard, rows in enumerate(parts_rows)])


@pytest.mark.parametrize("digits", [1, 2, 7, 8, 9, 10, 12])
def test_numbers_of_any_width_are_read(digits: int) -> None:
    number = int("123456789012"[:digits])
    same_as_one_by_one([(name_of(0, 2), render([(number, 1, number, 0, 1, number, b"{}")] * 2))])


@pytest.mark.parametrize("digits", [1, 4, 8])
def test_usual_rows_are_not_parsed_one_by_one(digits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a merge would be right and slow, and nobody would see it."""
    monkeypatch.setattr(part_rows, "_parse_any", None)
    line = 10**digits - 1
    rows, _ = parse([(name_of(0, 3), render([(line, 1, 57, 0, 12, 0, b'{"id":"a\tb"}')] * 3))])
    assert rows.lines.tolist() == [line] * 3


@settings(max_examples=300, deadline=None)
@given(_ROWS, st.data())
def test_a_damaged_part_is_refused_as_one_by_one(rows: list[tuple], data: st.DataObject) -> None:
    """Whatever byte is changed or cut off: the same rows, or the same complaint."""
    content = bytearray(render(rows))
    if data.draw(st.booleans()):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.sampled_from(b"\t\n-+_ 019x\xff"))
    else:
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    damaged = (name_of(1, len(rows)), bytes(content))
    if complaint := complaint_about(damaged):
        with pytest.raises(ValueError, match=re.escape(complaint)):
            parse([(name_of(0, 1), render([(0, 1, 0, 0, 0, 0, b"{}")])), damaged])
    else:
        same_as_one_by_one([damaged])


def complaint_about(part: tuple[PartName, bytes]) -> str | None:
    """What spool/parts.py says of it."""
    try:
        list(parts.parse(part[1], part[0]))
    except ValueError as error:
        return str(error)
    return None
