"""Leases: how daemons on one spool tell that another has died.

A lease says only *when* to adopt another instance's batches, never who may publish: the rename of a batch's
folder decides that. filelock's SoftFileLease does the work; a contender watches on its own monotonic clock,
so clocks that differ between machines do no harm, and sees at once that an owner on the same host is dead.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from filelock import LeaseSettingsMismatch, SoftFileLease, Timeout

from spool import files, layout
from spool.errors import SpoolUnavailable

LEASE_FILE = "lease"
CLEAN_FILE = "clean"
# How often a start tries again when another daemon's recovery took its new, still empty folder away.
START_TRIES = 5
# In how many looks in a row our folder must be missing before it counts as taken away.
MAX_MISSES = 3
# As lease.expire_s is by default; a daemon that was killed seems alive for this long.
LIVE_S = 60.0


class Lease:
    """The lease of our own instance, held while the daemon runs."""

    def __init__(self, home: layout.Layout, *, heartbeat_s: float, expire_s: float) -> None:
        self._must_renew = False
        self._misses = 0
        for _ in range(START_TRIES):
            self.folder = home.work / layout.new_instance()
            self._lease = _lease(self.folder, heartbeat_s=heartbeat_s, expire_s=expire_s)
            try:
                files.make_folder(self.folder)
                self._lease.acquire(timeout=0)
                return
            except (Timeout, FileNotFoundError):
                # Another daemon's recovery came between and took the empty folder for a dead one's.
                _remove_if_empty(self.folder)
            except OSError as error:
                raise SpoolUnavailable(
                    f"cannot make {self.folder} with a lease: {error.strerror}: "
                    "batchd's user must be able to write there"
                ) from error
        raise SpoolUnavailable(f"other daemons tidied {home.work} while this one started: start again")

    @property
    def is_lost(self) -> bool:
        """Whether another daemon took us for dead: what we held is its own now, or soon will be.

        To be asked again and again: a network filesystem may not find our folder for a while.
        """
        with suppress(OSError):
            self._misses = 0 if self.folder.is_dir() else self._misses + 1
        lost = self._lease.compromise
        self._must_renew |= lost is not None and lost.reason == "refresh-failed"
        if not self._must_renew or self._misses:
            return lost is not None or self._misses >= MAX_MISSES
        # The disk let nobody refresh it for long, which says nothing of another daemon: take it anew.
        with suppress(Timeout, OSError):  # not yet: asked again at the next look
            self._lease.release()
            self._lease.acquire(timeout=0)
            self._must_renew = False
        return False

    def release(self) -> None:
        """End the instance in order; what it still holds is adopted by the next start, and is no crash."""
        files.touch(self.folder / CLEAN_FILE)  # a full disk must not keep the lease from being given back
        with suppress(OSError):  # the end of this process ends it as well
            self._lease.release()
        _remove_if_empty(self.folder)


class Others:
    """Watches the leases of all other instances; knows which of them are dead."""

    def __init__(self, home: layout.Layout, own: Path, *, heartbeat_s: float, expire_s: float) -> None:
        self._home = home
        self._own = own
        self._heartbeat_s = heartbeat_s
        self._expire_s = expire_s
        self._watched: dict[str, SoftFileLease] = {}
        self._blank: dict[str, tuple[int, int]] = {}

    def dead(self) -> Iterator[Path]:
        """Folders of instances whose owner is gone; the lease is held by us while the caller adopts."""
        with os.scandir(self._home.work) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        for gone in self._watched.keys() - set(names):
            del self._watched[gone]
            self._blank.pop(gone, None)
        for name in names:
            folder = self._home.work / name
            if folder == self._own or name.startswith("."):
                continue
            # The same object each time: its view of the lease's age grows from call to call.
            if name not in self._watched:
                self._watched[name] = self._watch(folder)
            lease = self._watched[name]
            try:
                lease.acquire(timeout=0)
            except (Timeout, LeaseSettingsMismatch, OSError):
                self._unlink_blank(folder)
                continue  # alive; or finished and removed meanwhile; or the disk is full: asked again later
            try:
                yield folder
            finally:
                lease.release()
                _remove_if_empty(folder)

    def _unlink_blank(self, folder: Path) -> None:
        """Unlink a lease that a power loss emptied, at the second look: filelock never breaks such a one."""
        with suppress(OSError):
            facts = os.lstat(folder / LEASE_FILE)
            seen = (facts.st_ino, facts.st_ctime_ns)
            if facts.st_size == 0 and self._blank.get(folder.name) == seen:
                os.unlink(folder / LEASE_FILE)
            self._blank[folder.name] = seen

    def _watch(self, folder: Path) -> SoftFileLease:
        """A contender for a lease, with the duration that its owner published, whatever ours is today."""
        expire_s, heartbeat_s = self._expire_s, self._heartbeat_s
        with suppress(OSError, ValueError):
            found = re.search(r"^duration=([\d.]+)$", (folder / LEASE_FILE).read_text(), re.MULTILINE)
            if found:
                expire_s = float(found[1])
                heartbeat_s = min(heartbeat_s, expire_s / 3)
        return _lease(folder, heartbeat_s=heartbeat_s, expire_s=expire_s)


def ended_cleanly(folder: Path) -> bool:
    """Whether the instance of this folder stopped in order."""
    return (folder / CLEAN_FILE).exists()


def any_live(home: layout.Layout, now: float) -> bool:
    """Whether a daemon seems to serve this spool: some lease was refreshed lately. A hint for people.

    Raises:
        PermissionError: work/ is not ours to read.
    """
    for name in os.listdir(home.work):
        try:
            if now - os.stat(home.work / name / LEASE_FILE).st_mtime < LIVE_S:
                return True
        except (FileNotFoundError, NotADirectoryError):
            continue
    return False


def _lease(folder: Path, *, heartbeat_s: float, expire_s: float) -> SoftFileLease:
    return SoftFileLease(
        folder / LEASE_FILE, lease_duration=expire_s, heartbeat_interval=heartbeat_s, thread_local=False
    )


def _remove_if_empty(folder: Path) -> None:
    """Remove an instance's folder when it holds no batch any more."""
    try:
        left = os.listdir(folder)
        if any(layout.parse_batch_folder(name) for name in left):
            return
        for name in left:
            os.unlink(folder / name)
        os.rmdir(folder)  # refuses if its owner has woken up and claimed something meanwhile
    except OSError:
        return
