"""Lengths in tokens, counted in memory that does not grow with how many there are."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from daemon.page import figures

# Below this each length is counted on its own; above, what differs by less than 0.2 % counts as one.
_EXACT_BITS = 10
# Of a histogram, besides one for the longest.
_MOST_BINS = 20
# Those beyond what so many do not exceed share a bin if they reach far: else the others would all be in one.
_SHOWN, _FAR = 0.99, 1.5


class Bin(NamedTuple):
    """A bar of a histogram: how many were from `low` to `high` tokens long, both included."""

    low: int
    high: int
    answers: int


class Lengths:
    """Counts of lengths.

    Attributes:
        count: how many there are.
        total: tokens of all of them.
        longest: the longest.
    """

    def __init__(self) -> None:
        self.count = 0
        self.total = 0
        self.longest = 0
        self._counts: Counter[int] = Counter()

    def add(self, tokens: int) -> None:
        """Count one."""
        self.count += 1
        self.total += tokens
        self.longest = max(self.longest, tokens)
        surplus = tokens.bit_length() - _EXACT_BITS
        self._counts[tokens if surplus <= 0 else tokens >> surplus << surplus] += 1

    def quantile(self, share: float) -> int:
        """The length that this share of them does not exceed; to 0.2 % above 1,023 tokens."""
        wanted = share * self.count
        seen = 0
        for length, count in sorted(self._counts.items()):
            seen += count
            if seen >= wanted:
                return length
        return self.longest

    def bins(self) -> list[Bin]:
        """A histogram of equal steps; its last bin is wider where few are much longer than the others."""
        edges = self._edges()
        counts = [0] * len(edges)
        index = 0
        for length, count in sorted(self._counts.items()):
            while index + 1 < len(edges) and length >= edges[index + 1]:
                index += 1
            counts[index] += count
        highs = [*(edge - 1 for edge in edges[1:]), self.longest]
        return [Bin(*each) for each in zip(edges, highs, counts, strict=True)]

    def _edges(self) -> list[int]:
        """Where bins begin."""
        shown = self.quantile(_SHOWN)
        last = self.longest if self.longest <= _FAR * shown else shown
        step = max(1, round(figures.nice_step(last + 1, _MOST_BINS)))
        edges = list(range(0, last + 1, step))
        return edges if last == self.longest else [*edges, edges[-1] + step]
