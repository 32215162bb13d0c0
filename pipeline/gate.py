"""A gate: the places in one engine, how many there are and who gets them, in order of arrival.

Pure asyncio on one event loop. Whoever waits may be cancelled; whoever got in gives the place back itself.

Limits: two runs of one model share an engine fairly only by shard, not by request; whoever has to be alone
lets the engine run empty first.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque

from config import settings

# vLLM runs 128 requests at a time where nothing else is said, 256 in its offline mode (0.32, arg_utils.py).
DEFAULT_MAX_NUM_SEQS = 256


class Gate:
    """The places in an engine, given in order of arrival.

    A request says how many may be in the engine at a time while it is, itself included: all `places` of them,
    or fewer if it is suspected of killing engines.
    """

    def __init__(self, places: int) -> None:
        self.places = places
        self._taken: Counter[int] = Counter()  # places by the company that their holders bear
        self._inside = 0
        self._queue: deque[tuple[int, int, asyncio.Future[None]]] = deque()

    def try_enter(self, company: int, count: int = 1) -> bool:
        """Take some places if that needs no wait; False, and nothing is taken, if it does."""
        assert 0 < count <= company <= self.places
        if self._queue or not self._has_room(company, count):
            return False
        self._take(company, count)
        return True

    async def enter(self, company: int, count: int = 1) -> None:
        """Wait for some places at once; each is to be given back by `leave`."""
        if self.try_enter(company, count):
            return
        admitted = asyncio.get_running_loop().create_future()
        self._queue.append((company, count, admitted))
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
        if self._queue:
            self._admit()

    def _has_room(self, company: int, count: int) -> bool:
        return self._inside + count <= min(company, *self._taken, self.places)

    def _take(self, company: int, count: int) -> None:
        self._inside += count
        self._taken[company] += count

    def _admit(self) -> None:
        """Let in who is next; those behind wait, so that nobody waits for ever."""
        while self._queue:
            company, count, admitted = self._queue[0]
            if not admitted.done():
                if not self._has_room(company, count):
                    return
                self._take(company, count)
                admitted.set_result(None)
            self._queue.popleft()


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
