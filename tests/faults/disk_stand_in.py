"""The process that faults are done to: the real loop on a spool, a stand-in for the run, no Ray.

Started once as a nursery, which imports everything, works through one batch to be warm, and then forks off
one process for each line of JSON on its standard input (`Wishes`). The child stops itself where it was told
to, so that a tracer can be attached or a limit set before the first call that counts; its exit code says how
it went. It logs with pwrite, so that a fault in `write` is one in the spool's files and never in the log.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TextIO, cast

from config.settings import LogSettings
from daemon import logs
from pipeline.run import Work
from spool import attempts, control, create, failpoints, files, plan
from spool.errors import SpoolError
from tests import loops

DONE, STUCK, REFUSED, DIED = 0, 3, 4, 1


@dataclass(frozen=True)
class Wishes:
    """What one child is to do.

    Attributes:
        folder: holds `spool`.
        log: the file for its log.
        limit_s: after which it says that it is stuck.
        stops_before: where it waits for SIGCONT.
        shard_s: how long a shard takes.
        speed: how fast its monotonic clock goes, so that its pauses after an I/O error are short.
        unix_offset_s: how wrong its wall clock is.
        jump_s: by how much its wall clock jumps when the first part is durable.
        ending: what happens to all batches when the first part is durable: their users cancel them, or their
            deadlines pass.
        is_late: from the start on, everything is cancelled by its user and past its deadline.
        failpoint: where it exits, as FAILPOINT says it.
        has_fsync: without, no fsync reaches the disk; the negative control.
        stays: go on looking for drops until SIGTERM.
    """

    folder: str
    log: str
    limit_s: float = 45.0
    stops_before: str = ""
    shard_s: float = 0.0
    speed: float = 10.0
    min_free_bytes: int = 0
    unix_offset_s: float = 0.0
    jump_s: float = 0.0
    ending: Literal["", "cancelled", "expired"] = ""
    is_late: bool = False
    failpoint: str = ""
    has_fsync: bool = True
    stays: bool = False


class SlowRun(loops.Run):
    """A run whose shards take their time, and that obeys a stop between two of them.

    An engine dies once under each shard, so that its requests are on record as suspects.
    """

    def __init__(self, shard_s: float) -> None:
        super().__init__()
        self._shard_s = shard_s

    def _shard(self, work: Work, shard: plan.Shard) -> None:
        if not attempts.read(work.folder, shard.index):
            attempts.write(work.folder, shard.index, {shard.first_line: attempts.Suspect(40, 0)})
        ends_at = time.perf_counter() + self._shard_s
        while time.perf_counter() < ends_at and not control.must_stop(work.folder):
            time.sleep(0.01)
        if not control.must_stop(work.folder):
            super()._shard(work, shard)


class _Log:
    """A stream whose lines go to a file by pwrite, which no fault here concerns."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write(self, text: str) -> int:
        os.pwrite(self._descriptor, text.encode(), 0)  # O_APPEND: at the end, whatever the offset says
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""


def _stop_before(place: str, wishes: Wishes) -> None:
    if wishes.stops_before == place:
        os.kill(os.getpid(), signal.SIGSTOP)


def work(wishes: Wishes) -> int:
    """Drive the loop until nothing is left to do; the exit code."""
    _bend_time_and_disk(wishes)
    _stop_before("start", wishes)
    try:
        daemon = loops.Daemon(
            Path(wishes.folder),
            spool={"min_free_bytes": wishes.min_free_bytes},
            scheduler={"pools": {"spot": {"capacity": 1}}},
        )
    except (SpoolError, OSError) as error:
        print(f"not started: {error!r}", file=sys.stderr)
        return REFUSED
    run = SlowRun(wishes.shard_s)
    daemon.run = run
    daemon.runs._execute = run
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    _stop_before("loop", wishes)
    ends_at = time.perf_counter() + wishes.limit_s
    is_done = False
    turn = _Turn(wishes)
    if wishes.is_late:
        turn.comes(daemon)
    failpoints.arm(wishes.failpoint)
    while not stop.is_set() and not is_done and time.perf_counter() < ends_at:
        wait_s = daemon.loop.step(time.monotonic() + turn.later_s, is_woken=True)
        daemon.wake.wait(min(wait_s, 0.05))
        daemon.wake.clear()
        if turn.is_awaited and any(daemon.home.work.glob("*/batch_*/parts/*.ok*")):
            turn.comes(daemon)
        is_done = not wishes.stays and _is_idle(daemon)
    if not is_done and not stop.is_set():
        return STUCK
    daemon.stop()
    return DONE


def _is_idle(daemon: loops.Daemon) -> bool:
    """Whether nothing is held, nothing waits in the inbox, and no dead daemon's batch is left."""
    own = daemon.lease.folder.name
    try:
        create.check(daemon.home)
        drops = list(daemon.home.inbox.rglob("*.jsonl"))
        others = [path for path in daemon.home.work.glob("*/batch_*") if path.parent.name != own]
    except (OSError, SpoolError):
        return False  # cannot be seen now
    return not (daemon.lifecycle.held or drops or others)


class _Turn:
    """What happens once, in mid-batch or to a process that comes late.

    Attributes:
        later_s: by how much the daemon's time is ahead of the clock's.
    """

    def __init__(self, wishes: Wishes) -> None:
        self._wishes = wishes
        # Nothing is looked for where nothing is to come: a look that meets the fault would end the process.
        self.is_awaited = bool(wishes.jump_s or wishes.ending)
        self.later_s = 0.0

    def comes(self, daemon: loops.Daemon) -> None:
        self.is_awaited = False
        if self._wishes.jump_s:
            _shift_time(self._wishes.jump_s)
        if self._wishes.ending == "cancelled" or self._wishes.is_late:
            for folder in daemon.home.outbox.iterdir():
                control.request_cancel(folder)
        if self._wishes.ending == "expired" or self._wishes.is_late:
            self.later_s = float(daemon.settings.batches.completion_window)


def _shift_time(seconds: float) -> None:
    real = time.time
    time.time = lambda: real() + seconds


def _bend_time_and_disk(wishes: Wishes) -> None:
    real = time.monotonic
    time.monotonic = lambda: real() * wishes.speed
    if wishes.unix_offset_s:
        _shift_time(wishes.unix_offset_s)
    if not wishes.has_fsync:
        os.fsync = lambda descriptor: None  # type: ignore[assignment]


def _child(wishes: Wishes) -> int:
    sys.stdin.close()
    stream = cast(TextIO, _Log(wishes.log))
    sys.stdout = sys.stderr = stream
    logs.configure(LogSettings(format="json", level="debug"), stream)
    try:
        return work(wishes)
    except BaseException:  # noqa: BLE001 - told in the log; a daemon that dies is what is looked for
        traceback.print_exc(file=stream)
        return DIED


def _warm_up() -> None:
    """Import and cache whatever the first batch needs, so that children open nothing but the spool."""
    real, log = time.monotonic, os.devnull
    with tempfile.TemporaryDirectory() as folder:
        home = create.create(Path(folder) / "spool")
        row = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions"}
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        files.write_durable(home.inbox / "w.batch.yaml", b"on_invalid: skip\n")
        content = json.dumps({**row, "body": body}) + "\n{}\n"
        files.write_durable(home.inbox / "w.jsonl", content.encode())
        code = work(Wishes(folder, log))
        assert code == DONE, "the warm-up did not end"
    time.monotonic = real
    ends_at = time.perf_counter() + 10
    while threading.active_count() > 1 and time.perf_counter() < ends_at:
        time.sleep(0.01)
    assert threading.active_count() == 1, "a fork needs a process of one thread"


def nursery() -> None:
    """Fork off a child for each line of wishes; say its pid, then its exit status."""
    _warm_up()
    say: Callable[[object], None] = lambda what: print(what, flush=True)  # noqa: E731
    say("ready")
    for line in sys.stdin:
        wishes = Wishes(**json.loads(line))
        pid = os.fork()
        if not pid:
            code = _child(wishes)
            os._exit(code)  # threads that are stuck in a fault must not hold it up
        if wishes.stops_before:
            os.waitpid(pid, os.WUNTRACED)
        say(pid)
        say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


if __name__ == "__main__":
    nursery()
