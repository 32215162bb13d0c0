"""Real power loss: a loop-mounted ext4 or xfs is shut down under the running process, then mounted again.

FS_IOC_SHUTDOWN stops a filesystem at once: what was not made durable is gone after the next mount, which
replays the journal. With the journal flushed first, names may be there whose data is not: the harder case.
The negative control works without fsync: it must lose, or these rounds prove nothing. Needs root, loop
devices and the mkfs of the filesystem.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from tests.faults import disk_rounds, oracle
from tests.faults.disk_rounds import REFUSED, Nursery, Outcome, Wishes
from tests.faults.tally import Tally

Kind = Literal["ext4", "xfs"]
KINDS: tuple[Kind, ...] = ("ext4", "xfs")
# include/uapi/linux/fs.h: FS_IOC_SHUTDOWN = _IOR('X', 125, __u32) and its flags.
_SHUTDOWN = 0x8004587D
JOURNAL_FLUSHED, JOURNAL_LOST = 1, 2
# mkfs.xfs makes nothing smaller than 300 MB; the file is sparse.
_SIZES = {"ext4": 96 << 20, "xfs": 320 << 20}
_MAKE = {"ext4": ["mkfs.ext4", "-q", "-F"], "xfs": ["mkfs.xfs", "-q", "-f"]}
# An undisturbed round takes 0.4 s; later moments find everything ended, which counts as well.
_LAST_MOMENT_S = 0.7
_SHARD_S = 0.06


def why_not(kind: Kind) -> str | None:
    """Why these rounds cannot be run here; None if they can."""
    if os.geteuid() != 0:
        return "mounting needs root"
    if not shutil.which(_MAKE[kind][0]):
        return f"{_MAKE[kind][0]} is not installed"
    if subprocess.run(["losetup", "--find"], capture_output=True).returncode:
        return "there are no loop devices here"
    if kind not in Path("/proc/filesystems").read_text().split() and not shutil.which("modprobe"):
        return f"this kernel has no {kind}"
    return None


class Disk:
    """A filesystem in a file, mounted at `place`."""

    def __init__(self, folder: Path, kind: Kind) -> None:
        self.place = folder / "disk"
        self._image = folder / f"{kind}.image"
        self._kind = kind
        self.place.mkdir(parents=True, exist_ok=True)
        with open(self._image, "wb") as file:
            file.truncate(_SIZES[kind])
        _call(*_MAKE[kind], str(self._image))
        self.mount()

    def mount(self) -> None:
        """Mount it, which replays its journal."""
        _call("mount", "-t", self._kind, "-o", "loop", str(self._image), str(self.place))

    def shut_down(self, flags: int) -> None:
        """Cut its power."""
        descriptor = os.open(self.place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", flags))
        finally:
            os.close(descriptor)

    def unmount(self) -> None:
        """Unmount it; whoever still looks at it is given a moment."""
        for _ in range(100):
            done = subprocess.run(["umount", str(self.place)], capture_output=True, text=True)
            if done.returncode == 0:
                return
            time.sleep(0.05)
        raise AssertionError(f"cannot unmount: {done.stderr}")


def _call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"


@contextlib.contextmanager
def open_disk(folder: Path, kind: Kind) -> Iterator[Disk]:
    """A new filesystem for as long as the block lasts."""
    disk = Disk(folder, kind)
    try:
        yield disk
    finally:
        disk.unmount()


def run_round(nursery: Nursery, disk: Disk, chance: random.Random, *, has_fsync: bool = True) -> Outcome:
    """One power loss at a random moment; now and then a second one in the recovery from the first."""
    folder = disk.place / "round"
    spool, put = disk_rounds.prepare(folder)
    outcome = Outcome()
    shown: dict[str, dict[str, Any]] = {}
    for _ in range(chance.choice((1, 1, 2))):
        _lose_power(nursery, disk, chance, shown, outcome, has_fsync=has_fsync)
    reader = oracle.Reader(spool)
    # What the control lost never comes: no use in waiting for it.
    limit_s = 45.0 if has_fsync else 5.0
    disk_rounds.end_all(nursery, folder, outcome, put, logs=disk.place.parent, limit_s=limit_s)
    outcome.verdict.wrong += reader.stop()
    _judge_promises(spool, shown, outcome)
    return outcome


def _lose_power(
    nursery: Nursery,
    disk: Disk,
    chance: random.Random,
    shown: dict[str, dict[str, Any]],
    outcome: Outcome,
    *,
    has_fsync: bool,
) -> None:
    folder = disk.place / "round"
    reader = oracle.Reader(folder / "spool")
    log = str(disk.place.parent / "first.log")
    child = nursery.fork(Wishes(str(folder), log, shard_s=_SHARD_S, has_fsync=has_fsync, stays=True))
    time.sleep(chance.uniform(0.0, _LAST_MOMENT_S))
    outcome.verdict.wrong += reader.stop()
    # What a reader saw as ended must end so after the power is back.
    shown.update({key: status for key, status in reader._last.items() if status["status"] in oracle.TERMINAL})
    disk.shut_down(chance.choice((JOURNAL_FLUSHED, JOURNAL_LOST)) if has_fsync else JOURNAL_FLUSHED)
    child.signal(signal.SIGKILL)
    disk_rounds.note_code(outcome, child.wait(), child, [-signal.SIGKILL, REFUSED])
    disk.unmount()
    disk.mount()


def _judge_promises(spool: Path, shown: dict[str, dict[str, Any]], outcome: Outcome) -> None:
    """Whoever read a terminal status before the power loss must not find another one after it."""
    for path in (spool / "outbox").glob("*/status.json"):
        with contextlib.suppress(ValueError):
            status = json.loads(path.read_bytes())
            before = shown.pop(status["id"], None)
            if before and before["status"] != status["status"]:
                outcome.blame(f"{path.parent.name} was {before['status']} and is {status['status']}")
    outcome.verdict.lost += [
        f"{status['input_file_id']} was shown as ended and is gone" for status in shown.values()
    ]


def run_rounds(
    nursery: Nursery,
    folder: Path,
    kind: Kind,
    rounds: int,
    seed: int,
    table: Tally,
    *,
    has_fsync: bool = True,
    until_lost: bool = False,
) -> int:
    """Many rounds on one filesystem; how many were run. `until_lost` ends with the first that went wrong."""
    with open_disk(folder, kind) as disk:
        for number in range(rounds):
            chance = random.Random(f"{seed}/{number}")
            outcome = run_round(nursery, disk, chance, has_fsync=has_fsync)
            fault = f"power loss, {kind}" if has_fsync else f"power loss, {kind}, WITHOUT FSYNC (control)"
            disk_rounds.note(table, fault, f"seed {seed}, round {number}", outcome)
            if until_lost and not outcome.verdict.is_right:
                return number + 1
    return rounds
