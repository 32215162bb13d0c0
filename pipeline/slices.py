"""What a run has to do: shards with missing requests, where each goes, which share a task. No ray here.

A slice is a shard of a batch in one run; some slices together are one task of pipeline/data.py.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from spool import parts, plan

# Tasks of a run at a time, and workers that are kept warm for them. Each is a process of Ray's of 200 MB that
# mostly waits, and takes 1 to 4 s to start.
MAX_TASKS = min(16, max(4, os.cpu_count() or 1))


class Slice(NamedTuple):
    """A shard that is to be worked on in a run.

    Attributes:
        batch: the batch's folder.
        attempt: number of the run, from 1.
        missing: requests without a result, when this was made.
        home: index of the replica that it is sent to first.
    """

    batch: Path
    attempt: int
    shard: plan.Shard
    missing: int
    home: int = 0

    @property
    def load(self) -> int:
        """Requests that an engine has to answer for it, at most: of twins one."""
        distinct = self.shard.distinct
        return self.missing if distinct is None else min(self.missing, distinct)


def pending(batch: Path, attempt: int) -> list[Slice]:
    """The shards of a batch that are not done, in the order in which they should run.

    Raises:
        FileNotFoundError: the batch was adopted by another daemon.
    """
    done = parts.tally(batch)
    slices = (
        Slice(batch, attempt, shard, shard.lines - (done[shard.index].results if shard.index in done else 0))
        for shard in plan.read(batch)
    )
    return [each for each in slices if each.missing > 0]


def spread(slices: Iterable[Slice], replicas: int) -> list[Slice]:
    """Give each slice its home, those of one group the same, and have the replicas take turns.

    Each replica gets its slices in their order, and however far a run is, all have had about as much to do.
    """
    loads = [0] * replicas
    queues: list[list[tuple[int, int, Slice]]] = [[] for _ in loads]
    home, last = 0, None
    for each in slices:
        group = None if each.shard.group is None else (each.batch, each.shard.group)
        if group is None or group != last:
            home = loads.index(min(loads))
        last = group
        queues[home].append((loads[home], home, each._replace(home=home)))
        loads[home] += each.load
    return [each for _, _, each in heapq.merge(*queues, key=lambda entry: entry[:2])]


def grouped(slices: Iterable[Slice], lines: int) -> Iterator[list[Slice]]:
    """Neighbours together, until so many requests are to be answered; a large shard is alone."""
    group: list[Slice] = []
    load = 0
    for each in slices:
        group.append(each)
        load += each.load
        if load >= lines:
            yield group
            group, load = [], 0
    if group:
        yield group
