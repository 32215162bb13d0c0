"""Find drops in the inbox and tell when one is complete.

A scan is the truth, events are hints. What looks like a drop but is no regular file is never opened; it is
left where it is and reported. A drop is complete when its stat (and its sidecar's) has stood still for
settle_s on our monotonic clock and no writer has it open, as far as the filesystem can tell (F_SETLEASE). A
drop that was renamed to its name within the inbox is complete at once.

Limits: a file cut off exactly at a line end looks complete; a writer on another machine is invisible to
    F_SETLEASE.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator, Set
from pathlib import Path
from typing import NamedTuple

from spool import files, layout

# Deeper folders than this are a mistake (a loop of bind mounts, say), not a team's.
MAX_DEPTH = 16

Key = tuple[tuple[int, int, int, int], tuple[int, int, int, int] | None]


class Candidate(NamedTuple):
    """A drop as a scan saw it.

    Attributes:
        relative: path relative to inbox/.
        key: what must stand still: (inode, size, mtime, ctime) of the drop and of its sidecar.
    """

    relative: Path
    key: Key


class Ignored(NamedTuple):
    """Something that looks like a drop and is none. `reason`: symlink, folder, fifo, socket or device."""

    relative: Path
    reason: str


class Scan(NamedTuple):
    """What one look at the inbox found.

    Attributes:
        is_complete: whether every folder could be read; if not, absence means nothing.
    """

    candidates: list[Candidate]
    ignored: list[Ignored]
    is_complete: bool
    error: OSError | None


def scan(inbox: Path) -> Scan:
    """Look at the inbox and its subfolders, without opening anything in them."""
    candidates: list[Candidate] = []
    ignored: list[Ignored] = []
    first_error: OSError | None = None
    pending: list[tuple[Path, int]] = [(Path(), 0)]
    while pending:
        relative, depth = pending.pop()
        try:
            for found in _look(inbox, relative):
                if isinstance(found, Candidate):
                    candidates.append(found)
                elif isinstance(found, Ignored):
                    ignored.append(found)
                elif depth < MAX_DEPTH:
                    pending.append((found, depth + 1))
        except OSError as error:
            # A subfolder that went away between its parent's listing and ours is no error.
            if depth == 0 or error.errno not in (errno.ENOENT, errno.ENOTDIR):
                first_error = first_error or error
    return Scan(candidates, ignored, first_error is None, first_error)


def _look(inbox: Path, relative: Path) -> Iterator[Candidate | Ignored | Path]:
    """The entries of one folder: drops, what looks like one, and subfolders to look into."""
    with os.scandir(inbox / relative) as entries:
        for entry in entries:
            path = relative / entry.name
            if layout.is_drop_name(entry.name):
                try:
                    facts = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # claimed by another daemon, or withdrawn, since the listing
                if stat.S_ISREG(facts.st_mode):
                    yield Candidate(path, (_key(facts), _sidecar_key(inbox / path)))
                else:
                    yield Ignored(path, files.kind_of(facts.st_mode))
            elif not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                yield path


def _key(facts: os.stat_result) -> tuple[int, int, int, int]:
    return (facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)


def _sidecar_key(drop: Path) -> tuple[int, int, int, int] | None:
    try:
        return _key(os.lstat(layout.sidecar_of(drop)))
    except OSError:  # none there; or the drop's name is so long that none can be
        return None


def key_of(drop: Path) -> Key | None:
    """What must stand still, now; None where the drop is gone."""
    try:
        return (_key(os.lstat(drop)), _sidecar_key(drop))
    except OSError:
        return None


class Settling:
    """Remembers when each waiting drop will have stood still. Bounded by what stands in the inbox."""

    def __init__(self, settle_s: float) -> None:
        self._settle_s = settle_s
        # The instant itself, not a start to which settle_s is added again: sums of floats need not agree, and
        # a drop that was one rounding short of ready once waited for the next rescan.
        self._ready_at: dict[Path, tuple[Key, float]] = {}

    def observe(self, found: Scan, moved: Set[str], monotonic: float) -> list[Candidate]:
        """The drops that have stood still, oldest first.

        Args:
            found: a scan just made.
            moved: names, relative to inbox/, that were renamed within the inbox to a drop's name.
            monotonic: seconds of the monotonic clock.
        """
        ready: list[tuple[float, str, Candidate]] = []
        seen: dict[Path, tuple[Key, float]] = {} if found.is_complete else dict(self._ready_at)
        for candidate in found.candidates:
            key, ready_at = self._ready_at.get(candidate.relative, (None, 0.0))
            if key != candidate.key:
                ready_at = monotonic + self._settle_s
            if str(candidate.relative) in moved:
                ready_at = min(ready_at, monotonic)
            seen[candidate.relative] = (candidate.key, ready_at)
            if monotonic >= ready_at:
                ready.append((ready_at, str(candidate.relative), candidate))
        self._ready_at = seen
        return [candidate for _, _, candidate in sorted(ready)]

    def forget(self, relative: Path) -> None:
        """Drop what is known of a file that was claimed; the next one of its name starts anew."""
        self._ready_at.pop(relative, None)

    def next_in_s(self, monotonic: float) -> float | None:
        """Seconds until the next drop will have stood still long enough; None if none is waiting for that."""
        waits = [ready_at - monotonic for _, ready_at in self._ready_at.values()]
        return min((wait for wait in waits if wait > 0), default=None)


def has_writer(path: Path) -> bool:
    """Whether someone has the file open for writing, as far as the filesystem can tell.

    The lease is taken for an instant; whoever opens the file in it sends us SIGIO, which the daemon ignores.
    """
    try:
        descriptor = os.open(path, files.READ_FLAGS)
    except OSError:
        return False  # gone, or unreadable: the claim will say so
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN  # any other error: this filesystem cannot tell
    finally:
        os.close(descriptor)
    return False
