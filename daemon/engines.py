"""The engines as the loop sees them: which models are ready, and what went wrong at the start.

A thread starts them, then polls, so that the loop never waits for an engine. It wakes the loop when readiness
changes or a start has failed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from daemon import logs
from pipeline import errors
from pipeline.fleet import ModelState
from pipeline.placement import Pools

POLL_EVERY_S = 1.0
# In a row that find the engines idle, before workers for several runs at a time are started, once: on 2 cores
# that takes 5 s, by which the first batch after a start would end later (measured 2026-11-24).
QUIET_LOOKS = 3
_log = logs.get()


class Fleet(Protocol):
    """What is needed of pipeline.fleet.Fleet."""

    def start_engines(self) -> None:
        """Start every model; blocks."""

    def warm_up(self, is_over: Callable[[], bool]) -> None:
        """Make ready for several runs at a time; blocks."""

    def poll(self) -> list[ModelState]:
        """What every model did since the last poll."""

    def pools(self) -> Pools:
        """How the pools are since then."""


class Engines:
    """Starts the fleet's engines in a thread and remembers what they last said."""

    def __init__(
        self,
        fleet: Fleet,
        models: tuple[str, ...],
        wake: threading.Event,
        observe: Callable[[ModelState], None],
    ) -> None:
        self._fleet = fleet
        self._wake = wake
        self._observe = observe
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="engines", daemon=True)
        self.models = models
        self.ready: frozenset[str] = frozenset()
        self.pools = Pools()
        self.error: errors.EngineStartError | None = None

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End the polling; does not wait for an engine that is still loading."""
        self._stop.set()
        self._thread.join(timeout_s)

    @property
    def is_at_work(self) -> bool:
        """Whether its thread still uses Ray, such as for an engine that is still loading."""
        return self._thread.is_alive()

    @property
    def starting(self) -> list[str]:
        """Models that take no requests now."""
        return [model for model in self.models if model not in self.ready]

    def _serve(self) -> None:
        try:
            self._fleet.start_engines()
            self._look()
            quiet_looks = 0
            while not self._stop.wait(POLL_EVERY_S):
                is_busy = self._look()
                if quiet_looks < QUIET_LOOKS:
                    quiet_looks = 0 if is_busy else quiet_looks + 1
                    if quiet_looks == QUIET_LOOKS:
                        self._fleet.warm_up(self._stop.is_set)
        except errors.EngineStartError as error:
            self.error = error
        except Exception as error:  # noqa: BLE001 (a thread that ends unseen would leave the daemon waiting for ever)
            if not self._stop.is_set():
                _log.exception("engines_lost")
            self.error = errors.EngineStartError(
                f"engines cannot be served any more: {error!r}: start the daemon again"
            )
        self._wake.set()

    def _look(self) -> bool:
        """Take in what the models say of themselves; whether any of them has something to do."""
        states = self._fleet.poll()
        for state in states:
            self._observe(state)
        ready = frozenset(state.model for state in states if state.up)
        if ready != self.ready:
            for model in sorted(ready ^ self.ready):
                if model in ready:
                    seconds = next(state.start_seconds for state in states if state.model == model)
                    _log.info("engine_ready", model=model, start_seconds=seconds)
                else:
                    _log.warning("engine_down", model=model)
            self.ready = ready
            self._wake.set()
        pools = self._fleet.pools()
        if pools != self.pools:
            for pool in sorted(pools.lost - self.pools.lost):
                _log.warning("pool_lost", pool=pool)
            for pool in sorted(pools.ready - self.pools.ready):
                _log.info("pool_ready", pool=pool)
            self.pools = pools
            self._wake.set()
        return any(state.inflight for state in states)
