"""The timeline of a batch: sums that equal its parts', bounded whatever its size."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from spool import latency, timeline
from spool.parts import PartName, Result, Usage
from spool.timeline import Pace

_PARTS = st.tuples(st.floats(1000, 2000), st.integers(0, 128), st.integers(0, 128), st.integers(0, 9999))


@given(st.lists(_PARTS, min_size=1, max_size=500), st.none() | st.floats(0, 3000))
def test_no_result_is_lost_between_the_intervals(
    held: list[tuple[float, int, int, int]], began: float | None
) -> None:
    """Each part counts once, in the interval in which it came."""
    pace = Pace()
    for shard, (at, completed, failed, tokens) in enumerate(held):
        pace.add(PartName(shard, 1, completed, failed, tokens), at)
    found = pace.timeline(began)
    assert found is not None
    assert len(found.completed) == len(found.failed) == len(found.tokens) <= timeline.MAX_INTERVALS
    sums = [sum(column) for column in (found.completed, found.failed, found.tokens)]
    assert sums == [sum(each[column] for each in held) for column in (1, 2, 3)]
    times = [at for at, *_ in held]
    assert found.began <= min(times)
    assert found.began + found.interval_s * len(found.completed) >= max(times) - 1e-6


def test_a_pause_shows() -> None:
    """Intervals are of equal length, so nothing done is a zero."""
    pace = Pace()
    for shard, at in enumerate((1010.0, 1020.0, 1090.0, 1100.0)):
        pace.add(PartName(shard, 1, 128, 0, 10), at)
    found = pace.timeline(1000.0)
    assert found is not None
    assert (found.began, found.interval_s) == (1000.0, 25.0)
    assert found.completed == (256, 0, 0, 256)


def test_results_that_another_part_holds_do_not_count_again() -> None:
    pace = Pace()
    pace.add(PartName(0, 1, 2, 0, 8), 1000.0)
    pace.add(PartName(0, 2, 2, 1, 8), 1001.0, [Result(2, True, Usage(3, 0, 1, 0), b"{}")])
    pace.add(PartName(0, 3, 1, 0, 4), 1009.0, [])
    found = pace.timeline(None)
    assert found is not None
    assert (sum(found.completed), sum(found.failed), sum(found.tokens)) == (3, 0, 12)
    assert found.began + found.interval_s * 2 == 1001.0


def test_what_the_validator_refused_was_worked_on_by_nobody() -> None:
    pace = Pace()
    pace.add(PartName(0, 0, 0, 5, 0), 900.0)
    assert pace.timeline(None) is None


def test_latencies_add_up_and_say_their_bounds() -> None:
    pace = Pace()
    assert pace.latency() is None
    pace.add(PartName(0, 1, 3, 0, 9, latency="2-1-2"), 1000.0)
    pace.add(PartName(1, 1, 3, 0, 9, latency="3-3"), 1001.0)
    found = pace.latency()
    assert found is not None
    assert found.counts[:5] == (0, 0, 1, 5, 0) and sum(found.counts) == 6
    assert found.bounds_s == latency.BOUNDS_S and len(found.counts) == len(found.bounds_s) + 1
