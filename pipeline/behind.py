"""Work that goes on in threads while the next of it is prepared, one piece at a time: memory is bounded."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future, wait
from typing import Any

# Handing less over takes longer than doing it: a small batch would merge in twice the time.
LEAST_BYTES = 1 << 18


class Behind:
    """Calls that are under way; what they raise is raised by this or the next `do`, or by `finish`.

    Where the interpreter ends meanwhile, `do` raises RuntimeError.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._futures: list[Future[Any]] = []

    def do(self, size_bytes: int, *calls: Callable[[], Any]) -> None:
        """Begin these calls, side by side, once those before them have ended.

        Args:
            size_bytes: what they work on; where it is little, they are over when this returns.
            calls: what is to be done.
        """
        self.finish()
        if size_bytes >= LEAST_BYTES:
            self._futures = [self._executor.submit(call) for call in calls]
            return
        for call in calls:
            call()

    def finish(self) -> None:
        """Wait until nothing is under way."""
        if not self._futures:
            return
        wait(self._futures)
        futures, self._futures = self._futures, []
        for future in futures:
            future.result()
