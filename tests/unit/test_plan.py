"""Plans: shards that come back as they were, in the file's order and in any other."""

from __future__ import annotations

from pathlib import Path

import pytest

from spool import plan
from spool.plan import ENTRY, Shard

LINES = [b'{"a":1}', b"", b'{"b":22}', b'{"c":333}']
OFFSETS = [0, 8, 9, 18]


def make(batch: Path, shards: list[Shard], order: list[int] | None = None) -> None:
    (batch / plan.FOLDER).mkdir()
    (batch / plan.INPUT_FILE).write_bytes(b"\n".join(LINES) + b"\n")
    (batch / plan.FOLDER / plan.SHARDS_FILE).write_bytes(b"".join(map(plan.render, shards)))
    if order:
        entries = b"".join(ENTRY.pack(OFFSETS[line], line, len(LINES[line]) + 1) for line in order)
        (batch / plan.FOLDER / plan.ORDER_FILE).write_bytes(entries)


def test_a_plan_in_the_order_of_the_file(tmp_path: Path) -> None:
    shards = [Shard(0, 0, 3, 0, 18), Shard(1, 3, 1, 18, 10)]
    make(tmp_path, shards)
    assert plan.read(tmp_path) == shards
    assert list(plan.read_requests(tmp_path, shards[0])) == list(enumerate(LINES[:3]))
    assert list(plan.read_lines(tmp_path, shards[1])) == [3]


def test_a_plan_of_another_order(tmp_path: Path) -> None:
    """Requests keep their index in the file, wherever they run; a refused one stands empty."""
    shards = [Shard(0, 0, 2, 0, 17, 0), Shard(1, 2, 2, 2 * ENTRY.size, 11, 0, 1)]
    make(tmp_path, shards, [3, 0, 2, 1])
    assert plan.read(tmp_path) == shards
    assert [list(plan.read_requests(tmp_path, shard)) for shard in shards] == [
        [(3, LINES[3]), (0, LINES[0])],
        [(2, LINES[2]), (1, LINES[1])],
    ]
    assert [list(plan.read_lines(tmp_path, shard)) for shard in shards] == [[3, 0], [2, 1]]


def test_a_plan_of_before_there_was_an_order_is_read(tmp_path: Path) -> None:
    """And one in the file's order is written as it was then."""
    written = b'{"index":0,"first_line":0,"lines":4,"offset":0,"size_bytes":28}\n'
    make(tmp_path, [])
    (tmp_path / plan.FOLDER / plan.SHARDS_FILE).write_bytes(written)
    (shard,) = plan.read(tmp_path)
    assert (shard.group, shard.distinct) == (None, None)
    assert [request for _, request in plan.read_requests(tmp_path, shard)] == LINES
    assert plan.render(shard) == written


@pytest.mark.parametrize("order", [None, [3, 0]])
def test_a_shorter_input_than_planned_is_damage(tmp_path: Path, order: list[int] | None) -> None:
    shard = Shard(0, 0, 4, 0, 28) if order is None else Shard(0, 0, 2, 0, 18, 0)
    make(tmp_path, [shard], order)
    (tmp_path / plan.INPUT_FILE).write_bytes(b'{"a":1}\n\n')
    with pytest.raises(ValueError, match=r"input\.jsonl holds . requests of shard 0, its plan says"):
        list(plan.read_requests(tmp_path, shard))


def test_an_order_that_points_between_lines_is_damage(tmp_path: Path) -> None:
    make(tmp_path, [shard := Shard(0, 0, 1, 0, 9, 0)], [2])
    (tmp_path / plan.FOLDER / plan.ORDER_FILE).write_bytes(ENTRY.pack(1, 0, 8))
    with pytest.raises(ValueError, match="holds 0 requests of shard 0"):
        list(plan.read_requests(tmp_path, shard))


def test_an_order_that_is_too_short_is_damage(tmp_path: Path) -> None:
    make(tmp_path, [shard := Shard(0, 0, 4, 0, 28, 0)], [2, 1])
    for read in (plan.read_lines, plan.read_requests):
        with pytest.raises(ValueError, match=r"order\.bin ends before shard 0"):
            list(read(tmp_path, shard))
