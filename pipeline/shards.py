"""Cuts a file's requests, in the order in which they run, into shards.

A shard closes at SHARD_LINES requests that differ, or at SHARD_BYTES. In an order of prefixes it closes
earlier, down to half of that, where neighbours share less; so twins, and groups that are small enough, stand
in one shard. Shards that go on with a group of the shard before carry the same group number, GROUP_SHARDS of
them at most.

Imported only inside functions, because it imports numpy at the top.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.order import TWIN, Order
from spool import plan

SHARD_LINES = 128
SHARD_BYTES = 4 << 20
# With their twins: each has an answer of its own in memory when it is written.
MOST_LINES = 4096
# A group's prefix is computed once on each replica that has shards of it, so a group may have several; and
# all replicas must have something to do, which takes some groups for each.
GROUP_SHARDS = 8
_LEAST_GROUPS = 32

_Sizes = npt.NDArray[np.unsignedinteger[Any]]
ENTRY = np.dtype([("offset", "<u8"), ("line", "<u4"), ("size_bytes", "<u4")])
_ENTRIES = 1 << 16


def cut(sizes: _Sizes, order: Order | None) -> Iterator[plan.Shard]:
    """The shards of a file.

    Args:
        sizes: (n,) bytes of each request, in the file's order.
        order: None for the file's own.
    """
    limit = max(1, min(GROUP_SHARDS, len(sizes) // SHARD_LINES // _LEAST_GROUPS))
    index = first = offset = group = length = 0
    while first < len(sizes):
        lines = order.lines[first : first + MOST_LINES] if order else slice(first, first + SHARD_LINES)
        ends = np.cumsum(sizes[lines], dtype=np.int64)
        count = max(1, int(np.searchsorted(ends, SHARD_BYTES, "right")))
        distinct = None
        if order:
            differs = order.shared[first : first + len(ends)] != TWIN
            differs[0] = True
            different = np.cumsum(differs)
            count = min(count, int(np.searchsorted(different, SHARD_LINES, "right")))
            if first + count < len(sizes):
                count = _best_cut(order.shared[first : first + count + 1])
            distinct = int(different[count - 1])
            goes_on = order.shared[first] > 0 and length < limit
            group, length = (group, length + 1) if goes_on or not index else (group + 1, 1)
        size = int(ends[count - 1])
        if order:
            yield plan.Shard(index, first, count, first * plan.ENTRY.size, size, group, distinct)
        else:
            yield plan.Shard(index, first, count, offset, size)
        index, first, offset = index + 1, first + count, offset + size


def _best_cut(shared: npt.NDArray[np.uint8]) -> int:
    """How many requests a shard gets.

    Args:
        shared: what each request shares with the one before it: those that fit, and the one behind them.
    """
    least = len(shared) // 2
    best = _last_least(shared, least)
    return best if shared[best] != TWIN else _last_least(shared, 1)


def _last_least(values: npt.NDArray[np.uint8], start: int) -> int:
    """Where the smallest value from a start on stands last."""
    return len(values) - 1 - int(np.argmin(values[start:][::-1]))


def addresses(sizes: _Sizes, order: Order) -> Iterator[bytes]:
    """Where each request stands in input.jsonl, in the order in which they run, as plan.ENTRY has it."""
    offsets = np.cumsum(sizes, dtype=np.uint64)
    offsets -= sizes
    for start in range(0, len(sizes), _ENTRIES):
        lines = order.lines[start : start + _ENTRIES]
        entries = np.empty(len(lines), ENTRY)
        entries["offset"], entries["line"], entries["size_bytes"] = offsets[lines], lines, sizes[lines]
        yield entries.tobytes()
