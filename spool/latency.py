"""Latency: how long an engine took for each answer, as counts of buckets that are the same everywhere.

Bucket i counts what took more than BOUNDS_S[i - 1] and at most BOUNDS_S[i] seconds; the last has no end.
Counts of parts add up; where a shard ran twice, the answers of both count. In the name of a part stand the
first bucket that counts anything and the counts from there on: `12-3-100-25` is 3, 100 and 25 answers in
buckets 12, 13 and 14.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping

# Five a decade, from 1 ms to 1,000 s: a part of 128 answers needs 95 characters of its name at most.
BOUNDS_S = tuple(
    float(f"{step}e{decade}")
    for decade in range(-3, 4)
    for step in (1, 1.6, 2.5, 4, 6.3)
    if decade < 3 or step == 1
)


def bucket(seconds: float) -> int:
    """The bucket of a duration."""
    return bisect.bisect_left(BOUNDS_S, seconds)


def encode(counts: Mapping[int, int]) -> str:
    """Counts by bucket, as they stand in a part's name; empty if there are none."""
    if not counts:
        return ""
    first = min(counts)
    return "-".join(map(str, [first, *(counts.get(each, 0) for each in range(first, max(counts) + 1))]))


def decode(text: str) -> dict[int, int]:
    """What `encode` was given."""
    if not text:
        return {}
    first, *counts = map(int, text.split("-"))
    return {each: count for each, count in enumerate(counts, first) if count}
