"""How much memory a process and all below it took at most.

PSS divides what processes share among them, so that a sum counts each page once; it is sampled, because the
kernel keeps no peak of a sum. Of a single process it does: VmHWM, resident pages, shared ones in full.
"""

from __future__ import annotations

import contextlib
import re
import threading
from pathlib import Path
from types import TracebackType

from tests.faults import processes

# A look at a tree of twenty processes takes some 20 ms of one core.
EVERY_S = 2.0
_PSS = re.compile(r"^Pss:\s+(\d+) kB", re.MULTILINE)
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB", re.MULTILINE)


class Peak:
    """The most that a process tree took while this is entered."""

    def __init__(self, pid: int) -> None:
        self.tree_mib = 0.0
        self._pid = pid
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self.look()

    def look(self) -> None:
        """Take one sample."""
        self.tree_mib = max(self.tree_mib, tree_mib(self._pid))

    def _sample(self) -> None:
        while not self._done.wait(EVERY_S):
            self.look()


def tree_mib(pid: int) -> float:
    """PSS of a process and all below it, now."""
    pids = [pid, *(each.pid for each in processes.descendants(pid))]
    return sum(_kib(each, "smaps_rollup", _PSS) for each in pids) / 1024


def peak_mib(pid: int) -> float:
    """The most that one process ever had resident."""
    return _kib(pid, "status", _PEAK) / 1024


def _kib(pid: int, file: str, field: re.Pattern[str]) -> int:
    with contextlib.suppress(OSError):  # it ended meanwhile
        found = field.search(Path(f"/proc/{pid}/{file}").read_text())
        return int(found[1]) if found else 0
    return 0
