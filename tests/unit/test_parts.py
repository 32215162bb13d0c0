"""Parts: names that count, rows that come back, damage that is seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from spool import parts
from spool.parts import PartName, Result, Usage


def test_results_come_back_as_they_were(tmp_path: Path) -> None:
    """Tabs in the JSON text do no harm; the name counts results and tokens."""
    (tmp_path / parts.FOLDER).mkdir()
    rows = [
        Result(5, True, Usage(3, 1, 2, 0), b'{"a":"x\\ty\t"}'),
        Result(6, False, Usage(), b'{"error":1}'),
    ]
    name = parts.write(tmp_path, 12, 1, rows)
    assert str(name) == "00000012.1.ok1.err1.tok5"
    assert parts.list_parts(tmp_path) == [name]
    assert list(parts.read(tmp_path, name)) == rows


def test_foreign_names_are_no_parts(tmp_path: Path) -> None:
    """A temporary left by a killed writer does not count."""
    (tmp_path / parts.FOLDER).mkdir()
    (tmp_path / parts.FOLDER / "00000012.1.ok1.err1.tok5.1-ab.tmp").touch()
    assert parts.list_parts(tmp_path) == []


@pytest.mark.parametrize("content", [b"0\t1\t0\t0\t0\t0\t{}\n0\t1\n", b"0\t1\t0\t0\t0\t0\t{}", b""])
def test_a_damaged_part_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    """A torn row, a missing line end or a missing row is never taken for results."""
    (tmp_path / parts.FOLDER).mkdir()
    name = PartName(0, 1, 1, 0, 0)
    (tmp_path / parts.FOLDER / str(name)).write_bytes(content)
    with pytest.raises(ValueError, match=str(name)):
        list(parts.read(tmp_path, name))


def test_a_line_in_two_parts_counts_once(tmp_path: Path) -> None:
    """A task that outlives its failed run may write what the next run answered as well."""
    (tmp_path / parts.FOLDER).mkdir()
    first = [Result(line, True, Usage(1, 0, 1, 0), b"{}") for line in range(3)]
    again = [Result(line, False, Usage(), b"{}") for line in (2, 3)]
    parts.write(tmp_path, 0, 1, first)
    parts.write(tmp_path, 0, 2, again)
    parts.write(tmp_path, 1, 1, [Result(4, True, Usage(1, 0, 1, 0), b"{}")])
    tallies = parts.tally(tmp_path)
    assert (tallies[0].completed, tallies[0].failed, tallies[0].tokens) == (3, 1, 6)
    assert (tallies[1].results, tallies[1].tokens) == (1, 2)
    assert parts.tally(tmp_path, tallies)[0] is tallies[0]
