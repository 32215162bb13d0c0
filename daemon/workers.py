"""Threads for what takes long: validating, running, merging, hooks. Results come back to the loop's thread.

Bounded by the number of batches held: each batch is in at most one call. A batch's files belong to the thread
that works on it until its result is collected.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

Kind = Literal["validate", "run", "finish", "hook"]


class Workers:
    """Thread pools whose results are handed over on the loop's thread."""

    def __init__(self, wake: threading.Event, *, runs: int) -> None:
        sizes: dict[Kind, int] = {"validate": 1, "run": runs, "finish": 2, "hook": 2}
        self._pools = {
            kind: ThreadPoolExecutor(size, thread_name_prefix=kind) for kind, size in sizes.items()
        }
        self._done: queue.SimpleQueue[tuple[Future[Any], Callable[[Future[Any]], None]]] = queue.SimpleQueue()
        self._wake = wake
        self._under_way = 0

    @property
    def under_way(self) -> int:
        """Calls that were submitted and not collected."""
        return self._under_way

    def submit(
        self, kind: Kind, call: Callable[..., Any], *args: Any, then: Callable[[Future[Any]], None]
    ) -> None:
        """Run a call in a thread; `then` gets its future, on the thread that calls `collect`."""
        self._under_way += 1
        future = self._pools[kind].submit(call, *args)
        future.add_done_callback(lambda done: self._hand_over(done, then))

    def _hand_over(self, done: Future[Any], then: Callable[[Future[Any]], None]) -> None:
        self._done.put((done, then))
        self._wake.set()

    def collect(self) -> None:
        """Hand over what has ended."""
        while True:
            try:
                done, then = self._done.get_nowait()
            except queue.Empty:
                return
            self._under_way -= 1
            then(done)

    def stop(self) -> None:
        """Begin nothing more; threads that are at work end with what they do."""
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)
