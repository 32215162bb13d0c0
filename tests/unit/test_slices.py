"""Slices: where each goes, what is sent together, and what the tasks of a run share out among themselves."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import slices
from spool import plan

BATCH = Path("batch_a~1")


def piece(
    index: int, missing: int = 128, group: int | None = None, distinct: int | None = None
) -> slices.Slice:
    return slices.Slice(BATCH, 1, plan.Shard(index, index * 128, 128, 0, 0, group, distinct), missing)


def homes(spread: list[slices.Slice]) -> dict[int, int]:
    return {each.shard.index: each.home for each in spread}


def test_without_groups_shards_take_turns() -> None:
    spread = slices.spread([piece(n) for n in range(7)], 3)
    assert [each.shard.index for each in spread] == list(range(7))
    assert [each.rank for each in spread] == [0, 0, 0, 128, 128, 128, 256]
    assert [each.home for each in spread] == [0, 1, 2, 0, 1, 2, 0]


def test_one_replica_gets_all_in_their_order() -> None:
    spread = slices.spread([piece(n, group=n // 3) for n in range(9)], 1)
    assert [(each.shard.index, each.home) for each in spread] == [(n, 0) for n in range(9)]


def test_the_shards_of_a_group_go_to_one_replica_while_others_get_other_groups() -> None:
    """Neither replica waits until the other has done a long group."""
    groups = [0, 0, 0, 0, 1, 2, 2, 2, 3, 4]
    spread = slices.spread([piece(n, group=group) for n, group in enumerate(groups)], 2)
    assert homes(spread) == {0: 0, 1: 0, 2: 0, 3: 0, 4: 1, 5: 1, 6: 1, 7: 1, 8: 0, 9: 1}
    assert [each.home for each in spread[:8]] == [0, 1] * 4


def test_twins_count_once() -> None:
    """A shard of 128 that differ in 2 is less work than one of 3."""
    spread = slices.spread([piece(0, distinct=2, group=0), piece(1, missing=3), piece(2)], 2)
    assert homes(spread) == {0: 0, 1: 1, 2: 0}
    assert piece(0, missing=1, distinct=2).load == 1


_PIECES = st.lists(st.tuples(st.integers(1, 128), st.integers(0, 3), st.booleans()), max_size=60)


@given(_PIECES, st.integers(1, 5))
def test_each_slice_goes_somewhere_and_no_replica_is_left_behind(
    drawn: list[tuple[int, int, bool]], replicas: int
) -> None:
    """At each moment no two replicas have been given more than a group apart, and each gets its in order."""
    group, pieces = 0, []
    for index, (missing, step, has_group) in enumerate(drawn):
        group += step
        pieces.append(piece(index, missing, group if has_group else None))
    spread = slices.spread(pieces, replicas)
    assert sorted(each.shard.index for each in spread) == list(range(len(pieces)))
    largest = max(Counter({None: 128} | _loads(pieces)).values())
    done: Counter[int] = Counter()
    for each in spread:
        done[each.home] += each.load
    if spread:
        assert max(done.values()) - min(done[home] for home in range(replicas)) <= largest
    for home in range(replicas):
        own = [each.shard.index for each in spread if each.home == home]
        assert own == sorted(own)
    last = None
    found = homes(spread)
    for each in pieces:
        if last is not None and each.shard.group is not None and each.shard.group == last.shard.group:
            assert found[each.shard.index] == found[last.shard.index]
        last = each


def _loads(pieces: list[slices.Slice]) -> dict[int | None, int]:
    loads: Counter[int | None] = Counter()
    for each in pieces:
        if each.shard.group is not None:
            loads[each.shard.group] += each.load
    return loads


def _bundles(count: int) -> list[slices.Bundle]:
    return [[piece(index)] for index in range(count)]


def test_full_shards_are_sent_alone_and_small_ones_together() -> None:
    """A bundle ends as soon as it has the wanted number of requests."""
    given_ = [piece(n, missing) for n, missing in enumerate([128, 10, 100, 30, 5])]
    sizes = [[each.shard.index for each in bundle] for bundle in slices.bundled(given_, 128)]
    assert sizes == [[0], [1, 2, 3], [4]]


def test_shards_of_nothing_but_twins_do_not_pile_up_in_one_bundle() -> None:
    """Each is one request to answer, but its results are all in memory; five shards once shared a bundle."""
    given_ = [piece(n, missing=1000, distinct=1) for n in range(5)]
    sizes = [[each.shard.index for each in bundle] for bundle in slices.bundled(given_, 128)]
    assert sizes == [[0, 1], [2, 3], [4]]


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


def test_whoever_has_the_first_gets_the_fewest() -> None:
    """They take longest, and whatever the same task has must wait for them."""
    dealt = list(slices.dealt(_bundles(20), 4))
    indices = [[bundle[0].shard.index for bundle in task] for task in dealt]
    assert indices[:4] == [[0, 7], [1, 6], [2, 5, 9], [3, 4, 8]]


def test_the_last_tasks_are_short() -> None:
    """Whoever is last is not left alone with much work."""
    dealt = list(slices.dealt(_bundles(1000), 4))
    assert [len(task) for task in dealt[-4:]] == [1, 1, 1, 1]
    assert len(dealt) < 100


@pytest.mark.parametrize(
    ("max_num_seqs", "replicas", "tasks", "lines"),
    [(256, 1, 3, 171), (32, 1, 3, 128), (8, 1, 3, 128), (512, 1, 4, 256), (256, 2, 4, 256), (256, 4, 4, 512)],
)
def test_a_run_has_few_tasks_and_enough_in_flight(
    monkeypatch: pytest.MonkeyPatch, max_num_seqs: int, replicas: int, tasks: int, lines: int
) -> None:
    """Two for each replica and one more: none runs dry between two bundles, or beside a long answer."""
    monkeypatch.setattr(slices, "MAX_TASKS", 4)
    shape = slices.shape(max_num_seqs, replicas)
    assert (shape.tasks, shape.lines) == (tasks, lines)
    assert shape.tasks * shape.lines >= shape.depth == 2 * max_num_seqs * replicas
