"""Watches the processes without which Ray is lost: this machine's raylet, and the GCS of a Ray of ours.

Ray ends a driver that has lost them by itself, from C++, with exit code 1 and no word of why: 13 s after its
raylet died, 60 s after its GCS (2.60, 2026-11-24). The watch is there before.

Limits: on a cluster a raylet in another container cannot be seen; Ray's own end is then all there is.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

POLL_S = 0.25


class Watched(NamedTuple):
    """A process of Ray's.

    Attributes:
        name: `raylet` or `gcs_server`.
        started: its start time, as the kernel counts it: a number that is used again is another process.
    """

    name: str
    pid: int
    started: str


class RayWatch:
    """A thread that looks after Ray's processes until it is stopped."""

    def __init__(self, on_lost: Callable[[Watched], None]) -> None:
        """Watch what Ray runs on now.

        Args:
            on_lost: called once, on the watch's thread, with a process that has ended.
        """
        self._on_lost = on_lost
        self._watched = _processes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ray-watch", daemon=True)

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more: Ray's processes may end now."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(POLL_S):
            for watched in self._watched:
                if _started(watched.pid) != watched.started:
                    self._on_lost(watched)
                    return


def _processes() -> list[Watched]:
    """The GCS where it is ours, then the raylet, which dies without it: so the cause is named."""
    from ray._private import worker

    node = worker._global_node
    own = [(name, each[0].process.pid) for name, each in node.all_processes.items() if each]
    pids = {name: pid for name, pid in own if name in ("gcs_server", "raylet")}
    if "raylet" not in pids and (pid := _serving(node.raylet_socket_name)):
        pids["raylet"] = pid
    return [Watched(name, pid, started) for name, pid in sorted(pids.items()) if (started := _started(pid))]


def _serving(socket_name: str) -> int | None:
    """The raylet on this machine that somebody else started with this socket."""
    wanted = f"--raylet_socket_name={socket_name}".encode()
    for name in os.listdir("/proc"):
        try:
            arguments = Path("/proc", name, "cmdline").read_bytes().split(b"\0") if name.isdigit() else []
        except OSError:
            continue
        if wanted in arguments and arguments[0].endswith(b"/raylet"):
            return int(name)
    return None


def _started(pid: int) -> str | None:
    """When a process was started; None for one that has ended, also if nobody has waited for it yet."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
