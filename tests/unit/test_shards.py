"""Shards: how an order is cut, so that what belongs together runs together and no shard is too large."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import order, shards
from spool import plan

TWIN = order.TWIN


def ordered(shared: list[int]) -> order.Order:
    return order.Order(np.arange(len(shared), dtype=np.uint32), np.array(shared, np.uint8))


def cut(shared: list[int], size: int = 100) -> list[plan.Shard]:
    return list(shards.cut(np.full(len(shared), size, np.uint32), ordered(shared)))


def test_in_the_order_of_the_file_shards_are_full() -> None:
    sizes = np.array([100] * 300 + [3 << 20, 2 << 20, 5 << 20, 10], np.uint32)
    found = list(shards.cut(sizes, None))
    assert [shard.lines for shard in found] == [128, 128, 45, 1, 1, 1]
    assert [(shard.group, shard.distinct) for shard in found] == [(None, None)] * 6
    assert [shard.offset for shard in found] == [0, 12800, 25600, *np.cumsum(sizes)[300:303].tolist()]


def test_twins_do_not_fill_a_shard() -> None:
    """It closes at 128 requests that differ, with the twins of the last."""
    found = cut([0, TWIN, TWIN, TWIN] * 200)
    assert [(shard.lines, shard.distinct) for shard in found] == [(512, 128), (288, 72)]


def test_a_shard_of_twins_is_bounded_too() -> None:
    """Each has an answer of its own in memory; the next shard then has a leader of its own."""
    found = cut([0] + [TWIN] * 9999, 10)
    assert [(shard.lines, shard.distinct) for shard in found] == [(4096, 1), (4096, 1), (1808, 1)]
    assert [shard.lines for shard in cut([0] + [TWIN] * 9, 1 << 20)] == [4, 4, 2]


def test_small_groups_are_not_cut() -> None:
    """Each group of ten stands in one shard, which is then a replica's alone."""
    found = cut(([0] + [5] * 9) * 100)
    assert [shard.lines for shard in found] == [120] * 8 + [40]
    assert [shard.group for shard in found] == list(range(9))


def test_a_cut_is_where_neighbours_share_least() -> None:
    """Within a group of all, between the groups in it; and never earlier than after half a shard."""
    assert [shard.lines for shard in cut([0] + [9] * 19 + ([3] + [9] * 19) * 20)][:3] == [120] * 3
    assert cut([0] + [9] * 30 + [2] + [9] * 300)[0].lines == 128


def test_twins_are_not_torn_apart_where_they_fit() -> None:
    assert [shard.lines for shard in cut([0] * 20 + [0] + [TWIN] * 3, 200 << 10)] == [20, 4]


def test_shards_that_go_on_with_a_group_have_its_number() -> None:
    """At most eight of them, in a large file; in a small one each replica must have something to do."""
    large = cut([0] + [3] * (128 * 600 - 1))
    assert [shard.group for shard in large] == [number // 8 for number in range(600)]
    small = cut(([0] + [3] * 255) * 4)
    assert [shard.group for shard in small] == list(range(8))


@given(
    st.lists(st.tuples(st.sampled_from([0, 0, 1, 7, TWIN, TWIN]), st.integers(1, 200 << 10)), max_size=700),
    st.booleans(),
)
def test_shards_cover_each_place_once_within_their_bounds(
    drawn: list[tuple[int, int]], has_order: bool
) -> None:
    sizes = np.array([size for _, size in drawn], np.uint32)
    chosen = ordered([shared for shared, _ in drawn]) if has_order else None
    found = list(shards.cut(sizes, chosen))
    assert [shard.index for shard in found] == list(range(len(found)))
    assert sum(shard.lines for shard in found) == len(drawn)
    for shard, first in zip(found, itertools.accumulate((s.lines for s in found), initial=0), strict=False):
        assert shard.first_line == first
        held = drawn[first : first + shard.lines]
        assert shard.size_bytes == sum(size for _, size in held)
        assert shard.size_bytes <= shards.SHARD_BYTES
        differing = 1 + sum(shared != TWIN for shared, _ in held[1:])
        assert (shard.distinct or shard.lines) == (differing if has_order else shard.lines)
        assert differing <= shards.SHARD_LINES or not has_order


def test_addresses_lead_to_the_requests(tmp_path: Path) -> None:
    texts = [b"a", b"", b"bcd", b"ef"]
    sizes = np.array([len(text) + 1 for text in texts], np.uint32)
    chosen = order.Order(np.array([2, 0, 3, 1], np.uint32), np.zeros(4, np.uint8))
    (tmp_path / plan.FOLDER).mkdir()
    (tmp_path / plan.INPUT_FILE).write_bytes(b"\n".join(texts) + b"\n")
    entries = b"".join(shards.addresses(sizes, chosen))
    (tmp_path / plan.FOLDER / plan.ORDER_FILE).write_bytes(entries)
    (shard,) = shards.cut(sizes, chosen)
    assert list(plan.read_requests(tmp_path, shard)) == [(line, texts[line]) for line in (2, 0, 3, 1)]


def test_many_addresses_come_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_ENTRIES", 10)
    chosen = ordered([0] * 25)
    pieces = list(shards.addresses(np.full(25, 7, np.uint32), chosen))
    assert [len(piece) // plan.ENTRY.size for piece in pieces] == [10, 10, 5]
    assert list(plan.ENTRY.iter_unpack(b"".join(pieces))) == [(7 * n, n, 7) for n in range(25)]
