"""Latencies as counts: each duration in one bucket, and names that say the same again."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from spool import latency
from spool.parts import PartName


def test_a_bucket_holds_what_is_above_the_bound_before_and_at_most_its_own() -> None:
    """Both ends are open: nothing is too short, nothing too long."""
    assert [latency.bucket(seconds) for seconds in (0.0, 0.001, 0.0011, 1000.0, 1e9)] == [0, 0, 1, 30, 31]
    assert list(latency.BOUNDS_S) == sorted(set(latency.BOUNDS_S))
    for index, bound in enumerate(latency.BOUNDS_S):
        assert latency.bucket(bound) == index


@given(st.lists(st.floats(0, 2000), max_size=200))
def test_the_name_of_a_part_says_all_counts(durations: list[float]) -> None:
    """And is read as what was written."""
    counts = Counter(map(latency.bucket, durations))
    name = PartName(12, 3, len(durations), 0, 5120, 9, latency.encode(counts))
    assert PartName.parse(str(name)) == name
    assert latency.decode(name.latency) == counts


def test_the_longest_name_of_a_full_shard_is_a_name_for_any_filesystem() -> None:
    """128 answers spread over all buckets, as evenly as can be: the worst there is."""
    counts = Counter(number % (len(latency.BOUNDS_S) + 1) for number in range(128))
    wide = counts | Counter({0: 97})
    for each in (counts, wide):
        name = PartName(99_999_999, 10**9, 10**6, 10**6, 10**12, 10**6, latency.encode(each))
        assert len(str(name)) < 200


def test_names_of_older_versions_say_nothing_of_it() -> None:
    assert PartName.parse("00000012.1.ok1.err1.tok5") == PartName(12, 1, 1, 1, 5)
    assert PartName.parse("00000012.1.ok1.err1.tok5.shr3") == PartName(12, 1, 1, 1, 5, 3)
    assert latency.decode("") == {}
    assert PartName.parse("00000012.1.ok1.err1.tok5.lat3") is None
