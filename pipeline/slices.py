"""What a run has to do: shards with missing requests, where each goes, and which share a bundle and a task.

A slice is a shard of a batch in one run. A bundle is what a task of pipeline/data.py sends to engines at a
time: a slice, or as many small ones as make up one. A task works on a list of bundles, one after the other.
No ray here.
"""

from __future__ import annotations

import heapq
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from spool import parts, plan

# Most tasks of a run at a time. Each is a process of Ray's of 200 MB that mostly waits, and takes 1 to 4 s to
# start where no warm one is free.
MAX_TASKS = min(16, max(4, os.cpu_count() or 1))
# Requests in flight for each one that an engine computes: a task's requests end one by one, so on average
# only half of those that were sent are still there.
DEPTH = 2.0
# Fewest requests of a bundle that are answered at a time: those of a full shard (pipeline/shards.py).
LEAST_LINES = 128
# Enough for one task not to wait for another's bundle; fewer tasks with more each need fewer workers.
WANTED_LINES = 256
# Results of a bundle, of twins one each: they are in memory together. A shard alone may have more.
BUNDLE_RESULTS = 1024
# Bundles of one task: what Ray repeats if a worker dies, and what the others may have to wait for.
MAX_BUNDLES = 32


class Shape(NamedTuple):
    """How the work of a run is cut.

    Attributes:
        depth: requests in flight.
        tasks: at a time.
        lines: requests of a bundle that are answered at a time.
    """

    depth: float
    tasks: int
    lines: int


def shape(max_num_seqs: int, replicas: int) -> Shape:
    """The fewest tasks that keep enough requests in flight; two at least for each replica, and one more.

    With one, an engine would run dry at the end of each bundle, and with two while one of them waits for a
    long answer.

    Args:
        max_num_seqs: requests that an engine computes at once.
        replicas: engines.
    """
    depth = DEPTH * max_num_seqs * replicas
    tasks = min(MAX_TASKS, max(2 * replicas + 1, math.ceil(depth / WANTED_LINES)))
    return Shape(depth, tasks, max(LEAST_LINES, min(BUNDLE_RESULTS, round(depth / tasks))))


class Slice(NamedTuple):
    """A shard that is to be worked on in a run.

    Attributes:
        batch: the batch's folder.
        attempt: number of the run, from 1.
        missing: requests without a result, when this was made.
        home: index of the replica that it is sent to first.
        rank: how many requests of the run that replica gets before it, at most.
    """

    batch: Path
    attempt: int
    shard: plan.Shard
    missing: int
    home: int = 0
    rank: int = 0

    @property
    def load(self) -> int:
        """Requests that an engine has to answer for it, at most: of twins one."""
        distinct = self.shard.distinct
        return self.missing if distinct is None else min(self.missing, distinct)


Bundle = list[Slice]


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
    """Give each slice its home and rank, those of one group one home, and have the replicas take turns.

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
        queues[home].append((loads[home], home, each._replace(home=home, rank=loads[home])))
        loads[home] += each.load
    return [each for _, _, each in heapq.merge(*queues, key=lambda entry: entry[:2])]


def bundled(slices: Iterable[Slice], lines: int) -> Iterator[Bundle]:
    """Neighbours together, until there are so many to be answered, or too many to hold."""
    bundle: Bundle = []
    load = missing = 0
    for each in slices:
        bundle.append(each)
        load += each.load
        missing += each.missing
        if load >= lines or missing >= BUNDLE_RESULTS:
            yield bundle
            bundle, load, missing = [], 0, 0
    if bundle:
        yield bundle


def dealt(bundles: Sequence[Bundle], tasks: int) -> Iterator[list[Bundle]]:
    """What each task of a run works on, in the order in which the tasks begin.

    A task costs Ray Data tens of milliseconds, so a task gets many bundles; but with half of what is left
    dealt out in each round, those of the last rounds are short, and no task is left alone with much work.
    Bundles are dealt like cards, so that what stands first runs first, whichever task has it; after the first
    time in reverse, since whoever has the first ones, the longest, should get the fewest.

    Args:
        bundles: in the order in which they should run.
        tasks: how many tasks there are at a time.
    """
    begin = 0
    while begin < len(bundles):
        count = min(max(tasks, (len(bundles) - begin) // 2), tasks * MAX_BUNDLES)
        round_ = bundles[begin : begin + count]
        begin += count
        for task in range(min(tasks, len(round_))):
            yield [round_[task], *round_[2 * tasks - 1 - task :: tasks]]
