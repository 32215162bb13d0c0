"""Finding processes of ours in /proc, and signalling them by their number alone."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import NamedTuple

# In the environment of all that a harness starts, so that nothing of it can be left behind.
MARK = "FAULT_ROUNDS"


class Process(NamedTuple):
    """A process that lives."""

    pid: int
    parent: int
    title: str


def all_processes() -> dict[int, Process]:
    """Every process of this machine that is no zombie."""
    found = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError, ValueError):
            stat = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
            title = Path(entry.path, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if stat[0] != "Z":
                found[int(entry.name)] = Process(int(entry.name), int(stat[1]), title.strip())
    return found


def descendants(pid: int) -> list[Process]:
    """The children of a process, their children and so on."""
    known = all_processes()
    found: list[Process] = []
    parents = {pid}
    while parents:
        children = [process for process in known.values() if process.parent in parents]
        found += children
        parents = {process.pid for process in children}
    return found


def marked(mark: str) -> list[int]:
    """Processes that carry a mark in the environment they were started with."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in os.scandir("/proc"):
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and wanted in Path(entry.path, "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return [pid for pid in found if pid != os.getpid()]


def send(pid: int, number: int) -> bool:
    """Signal one process; False if it is gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def kill_tree(pid: int) -> int:
    """SIGKILL a process and all below it at once; how many."""
    pids = [pid, *(process.pid for process in descendants(pid))]
    return sum(send(each, signal.SIGKILL) for each in pids)
