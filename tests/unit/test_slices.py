"""What a run sends together, and what its tasks share out among themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import slices
from pipeline.validate_copy import SHARD_LINES
from spool import plan


def _slice(index: int, missing: int) -> slices.Slice:
    return slices.Slice(Path("batch"), 1, plan.Shard(index, index * SHARD_LINES, missing, 0, 0), missing)


def _bundles(count: int) -> list[slices.Bundle]:
    return [[_slice(index, SHARD_LINES)] for index in range(count)]


def test_full_shards_are_sent_alone_and_small_ones_together() -> None:
    """A bundle ends as soon as it has the requests of a full shard."""
    given_ = [_slice(n, missing) for n, missing in enumerate([SHARD_LINES, 10, 100, 30, 5])]
    sizes = [[each.shard.index for each in bundle] for bundle in slices.bundled(given_)]
    assert sizes == [[0], [1, 2, 3], [4]]


@given(count=st.integers(0, 3000), tasks=st.integers(1, 16))
def test_every_bundle_is_dealt_once(count: int, tasks: int) -> None:
    """To as few tasks as it takes, none of which has more than it may hold."""
    dealt = list(slices.dealt(_bundles(count), tasks))
    indices = [bundle[0].shard.index for task in dealt for bundle in task]
    assert sorted(indices) == list(range(count))
    assert all(0 < len(task) <= slices.MAX_BUNDLES for task in dealt)


@pytest.mark.parametrize("tasks", [1, 4, 16])
def test_what_stands_first_runs_first(tasks: int) -> None:
    """The first bundles of the first tasks are the first of all, and no task begins with an earlier one."""
    dealt = list(slices.dealt(_bundles(1000), tasks))
    assert [task[0][0].shard.index for task in dealt[:tasks]] == list(range(tasks))
    firsts = [task[0][0].shard.index for task in dealt]
    assert firsts == sorted(firsts)


def test_the_last_tasks_are_short() -> None:
    """Whoever is last is not left alone with much work."""
    dealt = list(slices.dealt(_bundles(1000), 4))
    assert [len(task) for task in dealt[-4:]] == [1, 1, 1, 1]
    assert len(dealt) < 100
