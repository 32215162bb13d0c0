"""batchd as users run it: the real daemon on a spool of its own, files dropped by rename, results read back.

Every wait has a limit. What was started is ended, by its number; the daemon's log stays where the caller
wants it, whatever happens to the spool.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from benchmarks import workloads
from benchmarks.served import Served
from spool import create, layout
from tests.daemons import TERMINAL, Daemon
from tests.faults import processes

READY_LIMIT_S = 900.0
STOP_LIMIT_S = 60.0
WORK_LIMIT_S = 3600.0
# Between two looks at a status: one of them takes 10 us.
LOOK_EVERY_S = 0.005
WARM_UP_LINES = 256
# Processors that an idle daemon's processes take at most: vLLM's worker on a CPU polls, so 0.2 are usual.
SETTLED = 0.5
# These start when nothing was to be done for 3 s, see daemon/engines.py.
QUIET_S = 5
SETTLE_LIMIT_S = 40.0
# What a batch has done when it enters a phase of its history.
STEPS = {
    "queued": "validation and plan",
    "running": "wait for a run",
    "merging": "run",
    "done": "merge",
}


class Run(NamedTuple):
    """One file that was answered.

    Attributes:
        seconds: from the file's arrival to its results, of an engine that had started.
        whole_s: from the start of the process to the results, or to its end where it ends by itself.
        results: the file with the answers.
    """

    seconds: float
    whole_s: float
    results: Path


def settings(served: Served, **sections: Any) -> dict[str, Any]:
    """Settings that serve one model; all files are dropped by rename, so nothing has to settle."""
    return {"models": [served.settings()], "inbox": {"settle_s": 0}, **sections}


def claimed_at(status: dict[str, Any]) -> float:
    """When a batch was claimed, Unix seconds."""
    at: float = status["batchd"]["sla"]["submitted_at"]
    return at


def steps(status: dict[str, Any], seen_at: float) -> dict[str, float]:
    """Where the seconds from a batch's claim to its end went, by its own history.

    Args:
        status: of a batch that ran in one go.
        seen_at: when its terminal status was seen, Unix seconds.
    """
    found = {}
    before = claimed_at(status)
    for event in status["batchd"]["history"]:
        if step := STEPS.get(event["phase"]):
            found[step] = event["at"] - before
            before = event["at"]
    return {**found, "commit and publish": seen_at - before}


class Batchd:
    """A daemon; `start`, then drop files, then `stop`."""

    def __init__(self, folder: Path, log: Path, configured: dict[str, Any]) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._home = layout.Layout(folder / "spool")
        self._daemon = Daemon(folder, configured)
        self._daemon.log = log
        self._began = 0.0
        self.start_s = 0.0

    @property
    def pid(self) -> int:
        """Of the daemon itself; the engines are below it."""
        return self._daemon.process.pid

    def begin(self) -> None:
        """Start it and do not wait until it is ready."""
        self._began = time.monotonic()
        self._daemon.start(wait_ready=False)

    def start(self, model: str) -> None:
        """Start it, wait until it is ready and have it answer something, so that all of it is warm."""
        self.begin()
        ends_at = time.monotonic() + READY_LIMIT_S
        while not self._is_ready():
            self._check(ends_at, "ready")
            time.sleep(0.05)
        self.start_s = time.monotonic() - self._began
        warm_up = workloads.write(self._folder / "warm-up", workloads.sums(model, WARM_UP_LINES, seed=0))
        self.answer(warm_up, "warm-up")
        self._settle()

    def _settle(self) -> None:
        """Wait for what still starts beside it, such as workers that only a second run needs."""
        ends_at = time.monotonic() + SETTLE_LIMIT_S
        used_s = self._processor_s()
        quiet_s = 0
        while quiet_s < QUIET_S and time.monotonic() < ends_at:
            time.sleep(1)
            before, used_s = used_s, self._processor_s()
            quiet_s = quiet_s + 1 if used_s - before < SETTLED else 0

    def _processor_s(self) -> float:
        """Seconds of processor time of all its processes."""
        ticks = 0
        for each in processes.descendants(self.pid):
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{each.pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def _is_ready(self) -> bool:
        with contextlib.suppress(OSError):  # too busy to answer in time
            return self._daemon.get("/readyz")[0] == 200
        return False

    def lay(self, file: Path, name: str) -> None:
        """Put a file into the inbox of a daemon that has not been started."""
        create.create(self._home.root)
        shutil.copyfile(file, self._home.inbox / f"{name}.jsonl")

    def drop(self, files: dict[str, Path]) -> float:
        """Drop files at once, under these names, by rename within the inbox; when, Unix seconds."""
        inbox = self._home.inbox
        for name, file in files.items():
            shutil.copyfile(file, inbox / f".{name}.tmp")
        dropped_at = time.time()
        for name in files:
            (inbox / f".{name}.tmp").rename(inbox / f"{name}.jsonl")
        return dropped_at

    def ended(self, name: str) -> tuple[float, dict[str, Any]]:
        """Wait for the end of a batch: when it was seen, Unix seconds, and its status.

        Raises:
            RuntimeError: it did not complete.
        """
        path = self._home.outbox / name / layout.STATUS_FILE
        ends_at = time.monotonic() + WORK_LIMIT_S
        seen = b""
        while True:
            try:
                now = path.read_bytes()
            except FileNotFoundError:
                now = b""
            if now != seen:
                seen_at, seen = time.time(), now
                status: dict[str, Any] = orjson.loads(now)
                if status["status"] in TERMINAL:
                    break
            self._check(ends_at, f"done with {name}")
            time.sleep(LOOK_EVERY_S)
        if status["status"] != "completed":
            raise RuntimeError(f"{name} ended as {status['status']}: {str(status)[:1000]}")
        return seen_at, status

    def answer(self, file: Path, name: str) -> Run:
        """Drop a file and wait for its results."""
        dropped_at = self.drop({name: file})
        ended_at, _ = self.ended(name)
        seconds = ended_at - dropped_at
        return Run(seconds, self.start_s + seconds, self.results(name))

    def since_begin_s(self) -> float:
        """Seconds since the start of its process."""
        return time.monotonic() - self._began

    def results(self, name: str) -> Path:
        """The answers to a file."""
        return self._home.outbox / name / layout.OUTPUT_FILE

    def stop(self) -> None:
        """End it and all below it, in order if it can."""
        below = processes.descendants(self.pid)
        try:
            self._daemon.stop(signal.SIGTERM, STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            processes.kill_tree(self.pid)
            self._daemon.process.wait(STOP_LIMIT_S)
        left = processes.all_processes()
        for each in below:  # a number may belong to another program by now
            if each.pid in left and left[each.pid].title == each.title:
                processes.send(each.pid, signal.SIGKILL)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _check(self, ends_at: float, what: str) -> None:
        code = self._daemon.process.poll()
        if code is not None:
            raise RuntimeError(f"batchd ended with {code} before it was {what}, see {self._daemon.log}")
        if time.monotonic() > ends_at:
            raise RuntimeError(f"batchd was not {what} in time, see {self._daemon.log}")
