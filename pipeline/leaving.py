"""Replicas that are to end: each engine is asked to stop, which takes seconds, then its process is killed.

Nobody waits for it but `end_all`. Until a replica is gone it has what it holds: a GPU, and the memory of it.
Ray is imported inside functions only.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

# For an engine to stop, seconds; one that still runs then is killed.
STOP_S = 10.0


@dataclass(frozen=True, slots=True, eq=False)
class _Leaver:
    """A replica that is to end.

    Attributes:
        handle: of its actor.
        stopped: comes when its engine has stopped.
        kill_at: by the monotonic clock.
    """

    handle: Any
    stopped: Any
    kill_at: float


class Leaving:
    """The replicas of one model that are to end."""

    def __init__(self) -> None:
        self._leavers: list[_Leaver] = []

    def __len__(self) -> int:
        return len(self._leavers)

    def dismiss(self, handles: Iterable[Any]) -> None:
        """Have these end."""
        kill_at = time.monotonic() + STOP_S
        self._leavers += [_Leaver(handle, handle.stop.remote(), kill_at) for handle in handles]

    def look(self) -> None:
        """Kill those whose engine has stopped, or had its time to."""
        now, left = time.monotonic(), []
        for leaver in self._leavers:
            if now >= leaver.kill_at or _has_come(leaver.stopped):
                _kill(leaver)
            else:
                left.append(leaver)
        self._leavers = left

    def end_all(self) -> None:
        """Wait until all have stopped, at most until it is time to kill them, and do so."""
        import ray

        for leaver in self._leavers:
            ray.wait([leaver.stopped], timeout=max(0.0, leaver.kill_at - time.monotonic()))
            _kill(leaver)
        self._leavers = []


def _has_come(reference: Any) -> bool:
    import ray

    return bool(ray.wait([reference], timeout=0)[0])


def _kill(leaver: _Leaver) -> None:
    import ray

    ray.kill(leaver.handle, no_restart=True)
