"""Places at the servers of a model: who waits for one gets it in order of arrival, as far as servers allow.

Pure asyncio on one event loop; servers.py decides. To wait costs a request none of its time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from typing import NamedTuple

from pipeline import errors
from pipeline.servers import Attempt, Server, Servers


class _Waiter(NamedTuple):
    """A request that has no place yet."""

    avoid: Collection[Server]
    place: asyncio.Future[Attempt]


class Places:
    """The places at all servers of one model."""

    def __init__(self, model: str, servers: Servers) -> None:
        self._model = model
        self._servers = servers
        self._waiting: list[_Waiter] = []
        self._timer: asyncio.TimerHandle | None = None

    def check(self) -> None:
        """Return if a request can be answered, now or after a wait.

        Raises:
            EngineAwayError: no server can be reached.
        """
        if absence := self._servers.absence():
            raise self._away(absence)

    async def enter(self, avoid: Collection[Server]) -> Attempt:
        """Wait for a place; whoever gets one tells `Servers` what came of it, and then calls `changed`.

        Raises:
            EngineAwayError: no server can be reached.
        """
        self.check()
        now = time.monotonic()
        if not self._waiting and (server := self._servers.choose(now, avoid)):
            return self._servers.begin(server, now)
        waiter = _Waiter(avoid, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        self.changed()
        try:
            return await waiter.place
        except asyncio.CancelledError:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            elif not waiter.place.cancelled() and waiter.place.exception() is None:  # both in one turn
                self._servers.left(waiter.place.result())
                self.changed()
            raise

    def changed(self) -> None:
        """Something became of a server or a request: let in who can be, send away who waits in vain."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if absence := self._servers.absence():
            for waiter in self._waiting:
                if not waiter.place.done():
                    waiter.place.set_exception(self._away(absence))
            self._waiting.clear()
        now = time.monotonic()
        for waiter in list(self._waiting):
            if not self._servers.has_room(now):
                break
            if waiter.place.done():  # cancelled, and removes itself
                continue
            if server := self._servers.choose(now, waiter.avoid):
                waiter.place.set_result(self._servers.begin(server, now))
                self._waiting.remove(waiter)
        wait_s = self._servers.changes_at(now) - now
        if self._waiting and wait_s < float("inf"):
            self._timer = asyncio.get_running_loop().call_later(wait_s, self.changed)

    def close(self) -> None:
        """Send everybody away."""
        if self._timer:
            self._timer.cancel()
        for waiter in self._waiting:
            if not waiter.place.done():
                waiter.place.set_exception(
                    errors.EngineDeadError(f"model {self._model!r}: the engine is not running")
                )
        self._waiting.clear()

    def _away(self, absence: str) -> errors.EngineAwayError:
        return errors.EngineAwayError(f"model {self._model!r}: no server can be reached: {absence}")
