"""The daemon's clock: Unix time at its start plus the monotonic clock. A clock that jumps expires nothing."""

from __future__ import annotations

import time


class Clock:
    """Turns monotonic seconds into Unix seconds."""

    def __init__(self, unix: float | None = None, monotonic: float | None = None) -> None:
        self._offset = (time.time() if unix is None else unix) - (
            time.monotonic() if monotonic is None else monotonic
        )

    def now(self, monotonic: float | None = None) -> float:
        """Unix seconds at a monotonic time, now if None."""
        return self._offset + (time.monotonic() if monotonic is None else monotonic)

    @staticmethod
    def monotonic() -> float:
        """Seconds of the monotonic clock."""
        return time.monotonic()
