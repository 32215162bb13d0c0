"""Progress: what durable parts hold, counted once for memory, metrics and the throughput estimate."""

from __future__ import annotations

from collections import Counter

from daemon import metrics
from daemon.held import Held


class Progress:
    """Counts the parts of batches; every new result is told to the metrics exactly once."""

    def __init__(self, count: metrics.Metrics) -> None:
        self._metrics = count
        self._fresh: Counter[str] = Counter()

    def recount(self, held: Held, monotonic: float) -> None:
        """Count what a batch's parts hold now.

        Raises:
            BatchGone: the batch was adopted by another daemon.
            ValueError: a part is damaged.
        """
        completed, failed, shared = held.completed, held.failed, held.shared
        held.recount()
        fresh = held.completed - completed, held.failed - failed
        if not any(fresh):
            return
        held.is_dirty = True
        held.samples.append((monotonic, held.done, held.tokens))
        self._fresh[held.model] += sum(fresh)
        self._metrics.requests_ended(held.model, metrics.Outcome.COMPLETED, max(0, fresh[0]))
        self._metrics.requests_ended(held.model, metrics.Outcome.FAILED, max(0, fresh[1]))
        self._metrics.requests_shared(held.model, max(0, held.shared - shared))

    def take(self) -> Counter[str]:
        """Results by model that were found since the last call."""
        fresh, self._fresh = self._fresh, Counter()
        return fresh
