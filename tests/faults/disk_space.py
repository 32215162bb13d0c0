"""A small tmpfs as the spool's filesystem: full of bytes or inodes, read-only, away; and no descriptors left.

Each fault begins at a random moment in the middle of the work and ends again; the very process that met it
has to go on by itself. Mounting needs root.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, get_args

from spool import create
from tests import daemons
from tests.faults import disk_rounds, oracle
from tests.faults.disk_rounds import DONE, REFUSED, Child, Nursery, Outcome, Wishes
from tests.faults.tally import Tally

Fault = Literal["blocks", "inodes", "guarded blocks", "read-only", "unmounted", "renamed away", "descriptors"]
FAULTS: tuple[Fault, ...] = get_args(Fault)
_SIZE, _INODES = 4 << 20, 300
# With this in spool.min_free_bytes the daemon stops before the disk is full.
GUARD_BYTES = 1 << 20
_SHARD_S = 0.15
# An undisturbed round takes 0.6 s.
_LAST_MOMENT_S = 0.5
# For a process to have opened the spool.
_BEGIN_S = 20.0


def why_not() -> str | None:
    """Why these rounds cannot be run here; None if they can."""
    if os.geteuid() != 0:
        return "mounting needs root"
    done = subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True)
    return None if done.returncode == 0 else "mounting is not allowed here"


@contextlib.contextmanager
def open_tmpfs(place: Path, size: int = _SIZE, inodes: int = _INODES) -> Iterator[Path]:
    """A small filesystem for as long as the block lasts."""
    place.mkdir(parents=True, exist_ok=True)
    _call("mount", "-t", "tmpfs", "-o", f"size={size},nr_inodes={inodes}", "none", str(place))
    try:
        yield place
    finally:
        _call("umount", "--lazy", str(place))


def _fails(*command: str) -> str:
    """What it says if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    return f"{command}: {done.stderr}" if done.returncode else ""


def _call(*command: str) -> None:
    problem = _fails(*command)
    assert not problem, problem


# The faults: context managers that end what they began.


@contextlib.contextmanager
def full(disk: Path) -> Iterator[None]:
    """A file takes all the space that there is."""
    filler = disk / "filler"
    with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    yield
    filler.unlink()


@contextlib.contextmanager
def _no_inodes(disk: Path) -> Iterator[None]:
    folder = disk / "fillers"
    with contextlib.suppress(OSError):
        folder.mkdir()
        for number in range(_INODES):
            (folder / str(number)).touch()
    yield
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _read_only(disk: Path) -> Iterator[None]:
    """A read-only view of the spool on top of it.

    A real remount is refused while the lease stands open for writing, and one forced by an error of the
    filesystem cannot be taken back.
    """
    spool = str(disk / "spool")
    _call("mount", "--bind", spool, spool)
    daemons.until(lambda: not _fails("mount", "-o", "remount,ro,bind", spool), what="a quiet moment")
    yield
    _call("umount", "--lazy", spool)


@contextlib.contextmanager
def _unmounted(disk: Path) -> Iterator[None]:
    """The spool is a mount of its own (a bind mount, whose content stays) on a bare folder."""
    spool = disk / "spool"
    _call("umount", "--lazy", str(spool))
    yield
    found = sorted(os.listdir(spool))
    _call("mount", "--bind", str(disk / "store"), str(spool))
    assert not found, f"made in the bare mount point: {found}"


@contextlib.contextmanager
def _renamed_away(disk: Path) -> Iterator[None]:
    spool, away = disk / "spool", disk / "away"
    # A daemon makes a spool where there is nothing at all; what is tried here is one that has found its own.
    ends_at = time.monotonic() + _BEGIN_S
    while not any((spool / "work").iterdir()) and time.monotonic() < ends_at:
        time.sleep(0.005)
    spool.rename(away)
    yield
    assert not spool.exists(), "made where the spool had been"
    away.rename(spool)


@contextlib.contextmanager
def _no_descriptors(pid: int, spare: int) -> Iterator[None]:
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir(f"/proc/{pid}/fd"))) + 1
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + spare, before[1]))
    yield
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def _begin(fault: Fault, disk: Path, child: Child, chance: random.Random) -> AbstractContextManager[None]:
    if fault == "descriptors":
        return _no_descriptors(child.pid, chance.randint(0, 3))
    faults: dict[Fault, Callable[[Path], AbstractContextManager[None]]] = {
        "blocks": full,
        "guarded blocks": full,
        "inodes": _no_inodes,
        "read-only": _read_only,
        "unmounted": _unmounted,
        "renamed away": _renamed_away,
    }
    return faults[fault](disk)


def run_round(nursery: Nursery, folder: Path, fault: Fault, chance: random.Random) -> Outcome:
    """The fault comes at a random moment, stays for a while and goes; then everything is judged."""
    outcome = Outcome()
    with open_tmpfs(folder / "disk") as disk, spool_on(disk, is_mounted=fault == "unmounted"):
        put = disk_rounds.put_drops(disk / "spool")
        guard_bytes = GUARD_BYTES if fault == "guarded blocks" else 0
        wishes = Wishes(str(disk), str(folder / "first.log"), shard_s=_SHARD_S, min_free_bytes=guard_bytes)
        reader = oracle.Reader(disk / "spool")
        child = nursery.fork(wishes)
        time.sleep(chance.uniform(0.0, _LAST_MOMENT_S))
        outcome.verdict.wrong += reader.stop()
        outcome.was_hit = child.is_running()
        try:
            with _begin(fault, disk, child, chance):
                time.sleep(chance.uniform(0.1, 1.2))
        except (AssertionError, ProcessLookupError, FileNotFoundError) as error:
            if isinstance(error, AssertionError):
                outcome.blame(str(error))
            outcome.was_hit = False  # it ended meanwhile
        after = oracle.Reader(disk / "spool")
        after._last.update(reader._last)
        started = time.monotonic()
        # A start on a full disk ends with a clear line; whoever supervises it starts it again.
        disk_rounds.note_code(outcome, child.wait(), child, [DONE, REFUSED])
        outcome.recovery_s = time.monotonic() - started
        disk_rounds.end_all(nursery, disk, outcome, put, logs=folder)
        outcome.verdict.wrong += after.stop()
    return outcome


@contextlib.contextmanager
def spool_on(disk: Path, *, is_mounted: bool = False) -> Iterator[None]:
    """Make the spool; where it is to be unmounted, as a bind mount of `store`."""
    if not is_mounted:
        create.create(disk / "spool")
        yield
        return
    create.create(disk / "store")
    (disk / "spool").mkdir()
    _call("mount", "--bind", str(disk / "store"), str(disk / "spool"))
    try:
        yield
    finally:
        _call("umount", "--lazy", str(disk / "spool"))


def run_rounds(nursery: Nursery, folder: Path, fault: Fault, rounds: int, seed: int, table: Tally) -> None:
    """Many rounds of one fault; those in which everything had ended before it came are not counted."""
    name = "EMFILE" if fault == "descriptors" else f"disk: {fault}"
    for number in range(rounds):
        outcome = run_round(nursery, folder, fault, random.Random(f"{seed}/{fault}/{number}"))
        if outcome.was_hit or not outcome.verdict.is_right:
            disk_rounds.note(table, name, f"seed {seed}, round {number}", outcome)
