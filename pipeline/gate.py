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

# vLLM runs 128 requests at a time where nothing else is said, 256 in its offline mode (0.32, arg_utils.py).
DEFAULT_MAX_NUM_SEQS = 256
# Runs whose beginning is remembered; one that is forgotten begins anew.
MOST_RUNS = 256


class Gate:
    """The places in an engine, given by turns.

    Tasks of one run arrive as they happen to be ready, but are let in as their run has ordered them, so that
    long work which is to begin first does. Between runs that is fair (start-time fair queueing, Goyal et al.,
    SIGCOMM 1996): a run begins where the others are by then, and each gets as many requests in as another.

    A request says how many may be in the engine at a time while it is, itself included: all `places` of them,
    or fewer if it is suspected of killing engines.
    """

    def __init__(self, places: int) -> None:
        self.places = places
        self._taken: Counter[int] = Counter()  # places by the company that their holders bear
        self._inside = 0
        self._now = 0  # the turn of whoever was let in last
        self._begins: dict[str, int] = {}
        self._arrivals = itertools.count()
        self._queue: list[
            tuple[int, int, int, int, asyncio.Future[None]]
        ] = []  # a heap: turn and arrival first

    def turn(self, run: str, rank: int) -> int:
        """The turn of a request.

        Args:
            run: names its run.
            rank: how many of the run's requests to this engine come before it.
        """
        if run not in self._begins:
            if len(self._begins) >= MOST_RUNS:
                del self._begins[next(iter(self._begins))]
            self._begins[run] = self._now - rank
        return self._begins[run] + rank

    def try_enter(self, company: int, count: int = 1, turn: int | None = None) -> bool:
        """Take some places if that needs no wait; False, and nothing is taken, if it does."""
        assert 0 < count <= company <= self.places
        if self._queue or not self._has_room(company, count):
            return False
        self._take(company, count, self._now if turn is None else turn)
        return True

    async def enter(self, company: int, count: int = 1, turn: int | None = None) -> None:
        """Wait for some places at once; each is to be given back by `leave`. Without a turn, it is now."""
        if self.try_enter(company, count, turn):
            return
        admitted = asyncio.get_running_loop().create_future()
        turn = self._now if turn is None else turn
        heapq.heappush(self._queue, (turn, next(self._arrivals), company, count, admitted))
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

    def _take(self, company: int, count: int, turn: int) -> None:
        self._now = max(self._now, turn)
        self._inside += count
        self._taken[company] += count

    def _admit(self) -> None:
        """Let in who is next; those behind wait, so that nobody waits for ever."""
        while self._queue:
            turn, _, company, count, admitted = self._queue[0]
            if not admitted.done():
                if not self._has_room(company, count):
                    return
                self._take(company, count, turn)
                admitted.set_result(None)
            heapq.heappop(self._queue)


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
