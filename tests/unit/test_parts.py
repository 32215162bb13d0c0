"""Parts: names that count, rows that come back, damage that is seen."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

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


def test_shared_results_are_counted_by_name(tmp_path: Path) -> None:
    """A name without the count is one of no shared result, as all were before there were any."""
    (tmp_path / parts.FOLDER).mkdir()
    rows = [
        Result(5, True, Usage(3, 0, 2, 0), b"{}"),
        Result(6, True, Usage(3, 0, 2, 0), b"{}", shared=True),
        Result(7, False, Usage(), b"{}", shared=True),
    ]
    name = parts.write(tmp_path, 0, 1, rows)
    assert str(name) == "00000000.1.ok2.err1.tok10.shr2"
    assert list(parts.read(tmp_path, name)) == rows
    assert parts.tally(tmp_path)[0].shared == 2
    parts.write(tmp_path, 0, 2, [rows[1], Result(8, True, Usage(), b"{}", shared=True)])
    assert parts.tally(tmp_path)[0].shared == 3
    assert PartName.parse("00000012.1.ok1.err1.tok5") == PartName(12, 1, 1, 1, 5, 0)


def test_a_name_says_how_long_the_engine_took(tmp_path: Path) -> None:
    """Of what it answered itself; rows say nothing of it, and keep their form."""
    (tmp_path / parts.FOLDER).mkdir()
    answered = [Result(line, True, Usage(), b"{}", latency=took) for line, took in enumerate((13, 12, 13))]
    others = [Result(3, True, Usage(), b"{}", shared=True), Result(4, False, Usage(), b"{}")]
    name = parts.write(tmp_path, 0, 1, answered + others)
    assert str(name) == "00000000.1.ok4.err1.tok0.shr1.lat12-1-2"
    assert parts.list_parts(tmp_path) == [name]
    assert [result.latency for result in parts.read(tmp_path, name)] == [None] * 5
    assert parts.path_of(tmp_path, name).read_bytes().splitlines()[0] == b"0\t1\t0\t0\t0\t0\t{}"


def test_foreign_names_are_no_parts(tmp_path: Path) -> None:
    """A temporary left by a killed writer does not count."""
    (tmp_path / parts.FOLDER).mkdir()
    (tmp_path / parts.FOLDER / "00000012.1.ok1.err1.tok5.1-ab.tmp").touch()
    assert parts.list_parts(tmp_path) == []


@pytest.mark.parametrize(
    "content", [b"0\t1\t0\t0\t0\t0\t{}\n0\t1\n", b"0\t4\t0\t0\t0\t0\t{}\n", b"0\t1\t0\t0\t0\t0\t{}", b""]
)
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


FAR = 12 * parts.FOLDER_SHARDS + 7


def test_shards_beyond_the_first_have_folders_of_their_own(tmp_path: Path) -> None:
    """Nobody lists all parts of a large batch to find those of one shard; counting sees them all."""
    (tmp_path / parts.FOLDER).mkdir()
    names = [
        parts.write(tmp_path, shard, attempt, [Result(shard, True, Usage(1, 0, 1, 0), b"{}")])
        for shard, attempt in ((3, 1), (FAR, 1), (FAR, 2), (FAR + 1, 1), (FAR + 300, 1))
    ]
    assert (tmp_path / parts.FOLDER / "0012" / str(names[1])).exists()
    assert parts.list_parts(tmp_path) == names
    assert parts.list_shard(tmp_path, 3) == names[:1]
    assert parts.list_shard(tmp_path, FAR) == names[1:3]
    assert parts.list_shard(tmp_path, FAR + 2) == []
    assert [row.line for row in parts.read(tmp_path, names[2])] == [FAR]
    assert {shard: tally.results for shard, tally in parts.tally(tmp_path).items()} == {
        3: 1,
        FAR: 1,
        FAR + 1: 1,
        FAR + 300: 1,
    }


def test_reading_a_shard_lists_no_folder_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / parts.FOLDER).mkdir()
    for shard in (3, FAR, FAR + 300):
        parts.write(tmp_path, shard, 1, [Result(shard, True, Usage(), b"{}")])
    listed: list[str] = []
    plain = os.scandir

    def scandir(folder: Path) -> Any:
        listed.append(folder.name)
        return plain(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    assert len(parts.list_shard(tmp_path, FAR)) == 1
    assert listed == [parts.FOLDER, "0012"]


def test_parts_of_before_there_were_folders_count(tmp_path: Path) -> None:
    """A batch that an older batchd began: all its parts stand in parts/ itself."""
    (tmp_path / parts.FOLDER).mkdir()
    name = parts.write(tmp_path, FAR, 1, [Result(5, True, Usage(), b"{}")])
    parts.path_of(tmp_path, name).rename(tmp_path / parts.FOLDER / str(name))
    assert parts.list_shard(tmp_path, FAR) == [name] == parts.list_parts(tmp_path)
    assert [row.line for row in parts.read(tmp_path, name)] == [5]


@pytest.mark.parametrize("shard", [0, FAR])
def test_a_part_of_an_adopted_batch_has_nowhere_to_go(tmp_path: Path, shard: int) -> None:
    """The fence: the batch's folder was renamed, and is never made anew."""
    batch = tmp_path / "batch_abc~1"
    (batch / parts.FOLDER).mkdir(parents=True)
    batch.rename(tmp_path / "batch_abc~2")
    with pytest.raises(FileNotFoundError):
        parts.write(batch, shard, 1, [Result(0, True, Usage(), b"{}")])
    with pytest.raises(FileNotFoundError):
        parts.list_parts(batch)
    with pytest.raises(FileNotFoundError):
        parts.list_shard(batch, shard)
    assert not batch.exists()
