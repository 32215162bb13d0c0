"""Groups: neighbouring shards whose parts are read into one buffer, end to end.

Imported only inside functions, because it imports numpy at the top.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from pipeline.part_rows import Piece
from pipeline.spans import Bytes, Numbers
from spool import plan
from spool.parts import Located

# About what a request without a result gets.
ERROR_BYTES = 200


class Group(NamedTuple):
    """Neighbours in the order in which requests run, and where their parts lie in the buffer.

    Attributes:
        size_bytes: of the parts.
        times: when each part became durable, Unix seconds.
    """

    shards: list[plan.Shard]
    located: list[Located]
    pieces: list[Piece]
    times: list[float]
    size_bytes: int

    @property
    def is_ordered(self) -> bool:
        """Whether the requests are in another order than the file's."""
        return self.shards[0].group is not None

    @property
    def first_line(self) -> int:
        """Place of its first request in the order."""
        return self.shards[0].first_line

    @property
    def requests(self) -> int:
        """Requests of all its shards."""
        return self.shards[-1].first_line + self.shards[-1].lines - self.first_line

    def owners(self) -> Numbers:
        """(n,) the shard of each row of the parts."""
        counts = np.array([piece.name.results for piece in self.pieces], np.int64)
        return np.repeat(np.array([piece.name.shard for piece in self.pieces], np.int64), counts)


def grouped(
    shards: Iterable[plan.Shard], located: Mapping[int, list[Located]], group_bytes: int
) -> Iterator[Group]:
    """As many shards as fit into so many bytes together, or one that is larger.

    Args:
        shards: in the order in which they are wanted.
        located: the parts of each shard, by attempt.
        group_bytes: the most for one group; a request without a result counts ERROR_BYTES.
    """
    group = Group([], [], [], [], 0)
    size = weight = 0
    for shard in shards:
        own = located.get(shard.index, [])
        stats = [os.stat(each.path) for each in own]
        own_weight = sum(each.st_size for each in stats)
        own_weight += max(0, shard.lines - sum(each.name.results for each in own)) * ERROR_BYTES
        if group.shards and weight + own_weight > group_bytes:
            yield group._replace(size_bytes=size)
            group = Group([], [], [], [], 0)
            size = weight = 0
        group.shards.append(shard)
        weight += own_weight
        for each, stat in zip(own, stats, strict=True):
            group.located.append(each)
            group.pieces.append(Piece(each.name, size, size + stat.st_size))
            size += stat.st_size
            group.times.append(stat.st_mtime)
    if group.shards:
        yield group._replace(size_bytes=size)


def read_into(path: str, target: Bytes) -> None:
    """Fill a buffer with a part.

    Raises:
        ValueError: the part is shorter than the buffer.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        view = target.data
        while view:
            count = os.readv(descriptor, [view])
            if not count:
                raise ValueError(f"{path} is shorter than it was")
            view = view[count:]
    finally:
        os.close(descriptor)
