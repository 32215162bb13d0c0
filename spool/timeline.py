"""The timeline of a batch: when its results became durable, and how long the engine took for each answer.

Both come of its parts' names and of their files' times. A part appears when its shard, up to 128 requests, is
done, so the timeline says nothing finer than that. The times are those of the volume, whose clock may differ
from the daemon's. What the validator refused is not in it: nothing worked on that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from spool import latency
from spool.parts import PartName, Result
from spool.record import Latency, Timeline

# In final.json, whatever the size of the batch.
MAX_INTERVALS = 200


class Pace:
    """Takes parts in, in any order, and makes their timeline."""

    def __init__(self) -> None:
        self._points: list[tuple[float, int, int, int]] = []
        self._times: Counter[int] = Counter()

    def add(self, name: PartName, at: float, fresh: Collection[Result] | None = None) -> None:
        """Take a part in.

        Args:
            name: of the part.
            at: when it became durable, Unix seconds.
            fresh: those of its results that no earlier part holds; None if that is all of them.
        """
        if name.attempt == 0:
            return
        self._times.update(latency.decode(name.latency))
        if fresh is None:
            self._points.append((at, name.completed, name.failed, name.tokens))
        elif fresh:
            completed = sum(result.ok for result in fresh)
            tokens = sum(result.usage.total_tokens for result in fresh)
            self._points.append((at, completed, len(fresh) - completed, tokens))

    def timeline(self, began: float | None) -> Timeline | None:
        """When its results came; None where there was no part.

        Args:
            began: when the work on the first of them began; None if unknown.
        """
        if not self._points:
            return None
        first = min(at for at, *_ in self._points)
        last = max(at for at, *_ in self._points)
        began = first if began is None else min(began, first)
        count = min(MAX_INTERVALS, len(self._points))
        interval_s = (last - began) / count
        sums = [[0] * count for _ in range(3)]
        for at, *numbers in self._points:
            index = min(int((at - began) / interval_s), count - 1) if interval_s else 0
            for column, number in zip(sums, numbers, strict=True):
                column[index] += number
        completed, failed, tokens = map(tuple, sums)
        return Timeline(began=began, interval_s=interval_s, completed=completed, failed=failed, tokens=tokens)

    def latency(self) -> Latency | None:
        """How long the engine took for its answers; None where no part knows."""
        if not any(self._times[each] for each in range(len(latency.BOUNDS_S) + 1)):
            return None
        counts = tuple(self._times[each] for each in range(len(latency.BOUNDS_S) + 1))
        return Latency(bounds_s=latency.BOUNDS_S, counts=counts)
