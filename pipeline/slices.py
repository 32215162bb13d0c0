"""What a run has to do: the shards with missing requests, and which of them share a task. No ray here.

A slice is a shard of a batch in one run; a group of slices is one task of pipeline/data.py.
"""

from __future__ import annotations

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
    """

    batch: Path
    attempt: int
    shard: plan.Shard
    missing: int


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


def grouped(slices: Iterable[Slice], lines: int) -> Iterator[list[Slice]]:
    """Neighbours together, until a group has this many missing requests; a large shard is its own group."""
    group: list[Slice] = []
    missing = 0
    for each in slices:
        group.append(each)
        missing += each.missing
        if missing >= lines:
            yield group
            group, missing = [], 0
    if group:
        yield group
