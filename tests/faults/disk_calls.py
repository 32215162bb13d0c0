"""Fail the N-th call, N = 1, 2, … until it succeeds: strace injects errors and kills into system calls.

strace counts calls per thread, so N means the N-th call of each thread that makes so many; the sweep ends
with the first N that no thread reaches. The process is attached to when it is warm: what it opens and writes
then is the spool's. Three kinds of fault: once, for a while (the N-th call and the next ones, as on a full
disk), and a kill at the call.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.faults import disk_rounds, oracle
from tests.faults.disk_rounds import DONE, REFUSED, Child, Nursery, Outcome, Wishes
from tests.faults.tally import Tally

# By the system calls that do them; `?` because architectures differ in which they have.
CALLS = {
    "open": "?open,openat",
    "write": "write",
    "fsync": "fsync",
    "rename": "?rename,?renameat,renameat2",
    "mkdir": "?mkdir,mkdirat",
    "close": "close",
    "unlink": "?unlink,unlinkat,?rmdir",
    "chmod": "?chmod,fchmod,fchmodat",
    "stat": "?stat,?lstat,?newfstatat,?statx",
    "list": "getdents64",
    "read": "read",
    "statfs": "?statfs,?fstatfs",
}
# ENOENT and ESTALE are a network filesystem's, which does not find for a while what is there.
ERRORS = {
    "stat": ("EIO", "ENOENT", "ESTALE"),  # the longest first
    "open": ("ENOSPC", "EIO", "EMFILE", "ENOENT", "ESTALE"),
    "write": ("ENOSPC", "EIO", "ESTALE"),
    "fsync": ("ENOSPC", "EIO", "ESTALE"),
    "rename": ("ENOSPC", "EIO", "ENOENT", "ESTALE"),
    "mkdir": ("ENOSPC", "EIO", "ENOENT", "ESTALE"),
    "close": ("ENOSPC", "EIO"),
    "unlink": ("EIO", "ENOENT", "ESTALE"),
    "chmod": ("EIO", "ENOENT", "ESTALE"),
    "list": ("EIO", "ESTALE"),  # the C library takes ENOENT for the end of a folder
    "read": ("EIO", "ESTALE"),
    "statfs": ("EIO", "ESTALE"),
}
KILLED = ("write", "fsync", "rename", "mkdir", "unlink", "open")
# How many calls in a row a fault for a while takes.
WHILE = 7
# More than any sweep was ever seen to need (open, main thread: 560); a loop without an end is a mistake.
LAST = 2000


@dataclass(frozen=True)
class Fault:
    """One fault of one round.

    Attributes:
        error: an errno's name, or KILL.
        first: number of the call.
        count: how many in a row.
        place: where the process is attached to, "loop" or "start".
    """

    call: str
    error: str
    first: int
    count: int = 1
    place: str = "loop"

    @property
    def row(self) -> str:
        """Its row in the table."""
        return f"{'kill -9' if self.is_kill else self.error} at the N-th {self.call}"

    def seed(self, *, adopts: bool) -> str:
        """Which of the row's faults it is."""
        how = "" if self.count == 1 else f", {self.count} in a row"
        where = "" if self.place == "loop" else ", from the start"
        return f"N={self.first}{how}{where}{', adopting' if adopts else ''}"

    @property
    def is_kill(self) -> bool:
        """Whether the process is meant to die of it."""
        return self.error == "KILL"

    def injection(self) -> str:
        """As strace wants it."""
        what = "signal=KILL" if self.is_kill else f"error={self.error}"
        return f"inject={CALLS[self.call]}:{what}:when={self.first}..{self.first + self.count - 1}"


def why_not() -> str | None:
    """Why these rounds cannot be run here; None if they can."""
    if not shutil.which("strace"):
        return "strace is not installed (apt-get install strace)"
    done = subprocess.run(
        ["strace", "-o", os.devnull, "-e", "inject=getppid:error=EIO:when=1..2", "true"], capture_output=True
    )
    return None if done.returncode == 0 else "strace may not trace here, or is too old to inject"


def run_round(nursery: Nursery, folder: Path, fault: Fault, *, adopts: bool = False) -> Outcome:
    """One round of a fault; with `adopts`, the process takes over from one that was killed in mid-batch."""
    spool, put = disk_rounds.prepare(folder)
    if adopts:
        disk_rounds.leave_something(nursery, folder)
    reader = oracle.Reader(spool)
    outcome = Outcome()
    wishes = Wishes(str(folder), str(folder / "first.log"), stops_before=fault.place)
    started = time.monotonic()
    child = nursery.fork(wishes)
    code, outcome.was_hit = _trace(child, fault, folder)
    if not fault.is_kill:
        outcome.recovery_s = time.monotonic() - started
    allowed = [DONE, -9] if fault.is_kill else [DONE]
    if fault.place == "start":
        allowed.append(REFUSED)  # a clear line instead of a start; a supervisor starts it again
    disk_rounds.note_code(outcome, code, child, allowed)
    disk_rounds.end_all(nursery, folder, outcome, put)
    outcome.verdict.wrong += reader.stop()
    return outcome


def _trace(child: Child, fault: Fault, folder: Path) -> tuple[int, bool]:
    """Let a stopped child go on under strace; its exit code, and whether anything was injected."""
    trace = folder / "trace"
    command = ["strace", "-f", "-p", str(child.pid), "-o", str(trace), "-e", "signal=none"]
    command += ["-e", f"trace={CALLS[fault.call]}", "-e", fault.injection()]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr
        line = strace.stderr.readline()
        assert "attached" in line, line
        child.go()
        code = child.wait()
        strace.communicate(timeout=30)
    if fault.is_kill:
        return code, code == -9
    return code, "(INJECTED)" in trace.read_text(errors="replace")


def sweeps(*, full: bool) -> Iterator[tuple[str, str, int, bool]]:
    """(call, error, how many in a row, whether it adopts) of each sweep."""
    for call, errors in ERRORS.items():
        for error in errors:
            for count in (1, WHILE):
                yield call, error, count, False
            if full:
                yield call, error, 1, True
    for call in KILLED:
        yield call, "KILL", 1, False
        if full:
            yield call, "KILL", 1, True


def sweep(
    nursery: Nursery,
    folder: Path,
    table: Tally,
    call: str,
    error: str,
    count: int,
    *,
    adopts: bool = False,
    step: int = 1,
    place: str = "loop",
) -> int:
    """Every step-th N until the fault is reached no more; the last N."""
    for first in itertools.count(1, step):
        assert first < LAST, "the sweep has no end"
        fault = Fault(call, error, first, count, place)
        outcome = run_round(nursery, folder, fault, adopts=adopts)
        if not outcome.was_hit:
            return first - step
        disk_rounds.note(table, fault.row, fault.seed(adopts=adopts), outcome)
    raise AssertionError


def sample(seed: int, rounds: int, most: int = 40) -> list[tuple[Fault, bool]]:
    """Rounds drawn by chance: each call and error about equally often."""
    chance = random.Random(seed)
    chosen = []
    for call, error, count, adopts in chance.choices(list(sweeps(full=True)), k=rounds):
        chosen.append((Fault(call, error, chance.randint(1, most), count), adopts))
    return chosen
