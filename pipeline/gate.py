"""A gate: the places in one engine, how many there are, who gets them and in which order.

Pure asyncio on one event loop. Whoever waits may be cancelled; whoever got in gives the place back itself.

Limits: whoever has to be alone lets the engine run empty first.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import Counter

from config import settings

# What pipeline/engine_args.py says where the settings do not: vLLM's default for offline work. As it is used
# here, it would take 128 (0.32, arg_utils.py).
DEFAULT_MAX_NUM_SEQS = 256


class Gate:
    """The places in an engine, given to runs in turn, and within a run by rank.

    Tasks of one run arrive as they happen to be ready, but are let in as their run has ordered them, so that
    long work which is to begin first does. Each run that has somebody waiting gets as many in as another,
    whatever their sizes.

    A request says how many may be in the engine at a time while it is, itself included: all `places` of them,
    or fewer if it is suspected of killing engines.
    """

    def __init__(self, places: int) -> None:
        self.places = places
        self._taken: Counter[int] = Counter()  # places by the company that their holders bear
        self._inside = 0
        self._arrivals = itertools.count()
        # By run, the one whose turn it is first: heaps of rank, arrival, company, count and who is told.
        self._waiting: dict[str, list[tuple[int, int, int, int, asyncio.Future[None]]]] = {}

    def try_enter(self, company: int, count: int = 1) -> bool:
        """Take some places if that needs no wait; False, and nothing is taken, if it does."""
        assert 0 < count <= company <= self.places
        if self._waiting or not self._has_room(company, count):
            return False
        self._take(company, count)
        return True

    async def enter(self, company: int, count: int = 1, run: str = "", rank: int = 0) -> None:
        """Wait for some places at once; each is to be given back by `leave`.

        Args:
            company: most requests inside while these are.
            count: how many places.
            run: names the run; those without one are one together.
            rank: the lowest of a run is let in first, of equal ones who came first.
        """
        if self.try_enter(company, count):
            return
        admitted = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(run, [])
        heapq.heappush(waiting, (rank, next(self._arrivals), company, count, admitted))
        try:
            await admitted
        except asyncio.CancelledError:
            if admitted.done() and not admitted.cancelled():  # both in one turn of the loop
                self.leave(company, count)
            else:
                admitted.cancel()
                self._admit()
            raise

    def leave(self, company: int, count: int = 1) -> None:
        """Give places back."""
        self._inside -= count
        self._taken[company] -= count
        if not self._taken[company]:
            del self._taken[company]
        if self._waiting:
            self._admit()

    def _has_room(self, company: int, count: int) -> bool:
        return self._inside + count <= min(company, *self._taken, self.places)

    def _take(self, company: int, count: int) -> None:
        self._inside += count
        self._taken[company] += count

    def _admit(self) -> None:
        """Let in who is next; all others wait, so that nobody waits for ever."""
        while self._waiting:
            run, waiting = next(iter(self._waiting.items()))
            _, _, company, count, admitted = waiting[0]
            is_here = not admitted.done()
            if is_here:
                if not self._has_room(company, count):
                    return
                self._take(company, count)
                admitted.set_result(None)
            heapq.heappop(waiting)
            if is_here or not waiting:
                del self._waiting[run]
                if waiting:
                    self._waiting[run] = waiting  # as the last one


def slots(model: settings.ModelSettings) -> int:
    """Requests in the engine at a time: as many wait in it as it computes, so that no place stays empty.

    Where many answers end in the same step, the next ones are there already: with a quarter more than are
    computed, equal answers took 8 % more steps (measured 2026-11-30). All others wait here.
    """
    return max(8, 2 * max_num_seqs(model))


def max_num_seqs(model: settings.ModelSettings) -> int:
    """Requests that a replica's engine computes at once, or its servers together when none refuses any."""
    if isinstance(model, settings.OpenAIModel):
        return len(model.urls) * model.max_concurrency
    given = model.engine_args.get("max_num_seqs") if isinstance(model, settings.VllmModel) else None
    return given if isinstance(given, int) and given > 0 else DEFAULT_MAX_NUM_SEQS
