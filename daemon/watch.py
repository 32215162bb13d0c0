"""Hints that something changed in the inbox. The scan is the truth; a lost hint costs time, never a drop.

A handler leaves a renamed name in a bounded set and wakes the loop, nothing else. The loop calls check() on
each pass: watchdog goes deaf without a word when the inbox is re-created, moved away or mounted over, and
when one of its threads dies (measured, spool-notes 2.4), so check() looks at the threads and at what stands
at the inbox's path, and builds anew. Where inotify cannot work, the mode is `polling`: no watchdog observer,
just a scan every inbox.poll_s. That scan has to be made anyway and sees all that a PollingObserver would
(which lost 0 of 20,000 files where inotify lost 17,000, notes 2.3). Nothing here raises for the state of the
world.

Limits: the scan alone, every inbox.rescan_s, sees a filesystem that is unmounted and mounted again between
    two checks, a chmod, a folder that fills faster than its watch is set, and folders that are unreadable or
    over fs.inotify.max_user_watches.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers.api import BaseObserver
from watchdog.observers.inotify import InotifyObserver

from config.settings import InboxSettings
from daemon import logs
from spool import layout

Mode = Literal["inotify", "polling"]

# Names waiting for take_moved(); what does not fit has to settle like any other drop.
MAX_MOVED = 10_000
# How long polling lasts before inotify is tried again, and how many builds in that time are too many: a watch
# that keeps dying is worse than a scan every poll_s.
RETRY_S = 60.0
MAX_BUILDS = 5
STOP_S = 5.0

# Without this filter our own scans would wake us: has_writer() opens drops, which is `opened` and then
# `closed_no_write`. `modified` is left out since a copy of gigabytes makes thousands of them and `closed`
# follows; `attrib` comes only together with it (watchdog 7.1.0). FileCreatedEvent has to be in: watchdog
# reports a file moved in from outside as that, and as nothing if only `moved` is asked for (notes 2.2).
EVENTS: list[type[FileSystemEvent]] = [
    FileCreatedEvent,
    FileMovedEvent,
    FileClosedEvent,
    DirCreatedEvent,
    DirMovedEvent,
    DirDeletedEvent,  # the inbox itself
]

MOUNTINFO = Path("/proc/self/mountinfo")
# Other machines change these, and inotify sees only what this kernel does (notes 2.4; systemd.path(5)).
NETWORK_FILESYSTEMS = (
    frozenset({"9p", "acfs", "afs", "autofs", "beegfs", "ceph", "cifs", "coda", "fakeowner", "fuse", "gfs2"})
    | {"glusterfs", "gpfs", "grpcfuse", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "osxfs"}
    | {"panfs", "pvfs2", "smb2", "smb3", "smbfs", "vboxsf", "virtiofs", "wekafs"}
)

_log = logs.get()


class Watcher:
    """Watches the inbox and its subfolders. All methods belong to the loop's thread."""

    def __init__(
        self,
        inbox: Path,
        backend: Literal["auto", "inotify", "polling"],
        wake: threading.Event,
        *,
        make_observer: Callable[[], BaseObserver] | None = None,
        clock: Callable[[], float] = time.monotonic,
        mountinfo: Path = MOUNTINFO,
    ) -> None:
        """Prepare; start() begins.

        Args:
            inbox: the folder, which may come, go and be replaced.
            backend: the setting inbox.backend.
            wake: set after each hint and after each change of the watch.
            make_observer: for tests; may raise OSError.
            clock: monotonic seconds.
            mountinfo: file in the format of /proc/self/mountinfo.
        """
        self._inbox = inbox
        self._backend = backend
        self._wake = wake
        self._make_observer = make_observer or _Observer
        self._clock = clock
        self._mountinfo = mountinfo
        self._observer: BaseObserver | None = None
        self._handler = _Handler(wake)
        self._identity: tuple[int, int] | None = None  # of what was watched or tried last
        self._retry_at = 0.0
        self._built_at: deque[float] = deque(maxlen=MAX_BUILDS)
        self._reason = "not started"
        self._handler_errors_seen = 0

    @property
    def mode(self) -> Mode:
        """How changes are noticed now."""
        return "polling" if self._observer is None else "inotify"

    @property
    def reason(self) -> str:
        """Why the mode is what it is, in one line."""
        return self._reason

    def interval_s(self, settings: InboxSettings) -> float:
        """How long the loop may wait for a hint before it scans all the same."""
        return settings.poll_s if self._observer is None else settings.rescan_s

    def take_moved(self) -> set[str]:
        """Names, relative to the inbox, that were renamed within it to a drop's name since the last call.

        Call it before a scan: a rename that comes later wakes the loop again.
        """
        return self._handler.take_moved()

    def start(self) -> None:
        """Begin to watch, or to poll if that cannot be."""
        if self._backend == "polling":
            self._poll("inbox.backend is polling")
            _log.info("inbox_watch_changed", mode=self.mode, cause="start", reason=self._reason)
        else:
            self._build("start")

    def stop(self) -> None:
        """End the watch; waits at most STOP_S."""
        self._tear_down()
        self._reason = "stopped"

    def check(self) -> None:
        """Find out whether the watch still hears the inbox, and mend it if not."""
        if self._backend == "polling":
            return
        self._report_handler()
        identity = _identity(self._inbox)
        if self._observer is None:
            # A new folder at the path is tried at once, the same one only after a while.
            if identity != self._identity or self._clock() >= self._retry_at:
                self._build("inbox changed" if identity != self._identity else "retry")
            return
        fault = _fault(self._observer)
        if identity != self._identity:
            fault = "inbox replaced" if identity else "inbox gone"
        if fault:
            self._build(fault)

    def _build(self, cause: str) -> None:
        """Watch what stands at the inbox's path now, or poll."""
        was = self.mode
        self._tear_down()
        now = self._clock()
        self._identity = _identity(self._inbox)
        if len(self._built_at) == MAX_BUILDS and now - self._built_at[0] < RETRY_S:
            self._poll(f"the watch was rebuilt {MAX_BUILDS} times within {RETRY_S:g} s, last: {cause}")
        else:
            self._built_at.append(now)
            self._try_inotify(cause)
        if cause != "retry" or was != self.mode:
            _log.info("inbox_watch_changed", mode=self.mode, cause=cause, reason=self._reason)
        self._wake.set()  # what happened between the two watches is for the scan to find

    def _try_inotify(self, cause: str) -> None:
        try:
            # watchdog tells inotify not to follow a link: it would watch the link, not the inbox.
            root = self._inbox.resolve(strict=True)
            filesystem = filesystem_of(root, _read(self._mountinfo))
            if self._backend == "auto" and is_network(filesystem):
                self._poll(f"{filesystem} is a network filesystem")
                return
            with os.scandir(root):
                pass  # watchdog reports success for a folder that it may not read
            self._observe(root)
        except (OSError, RuntimeError) as error:  # RuntimeError: no more threads, or a loop of links
            self._poll(f"{type(error).__name__}: {error}")
            return
        self._reason = cause

    def _observe(self, root: Path) -> None:
        """Schedule and start an observer.

        Raises:
            OSError: out of inotify instances or watches, or the folder went away.
            RuntimeError: out of threads.
        """
        observer = self._make_observer()
        self._handler = _Handler(
            self._wake, str(root)
        )  # a new one: names from the folder before mean nothing now
        self._handler_errors_seen = 0
        try:
            observer.schedule(self._handler, str(root), recursive=True, event_filter=EVENTS)
            observer.start()
        except BaseException:
            _stop(observer)
            raise
        self._observer = observer

    def _poll(self, reason: str) -> None:
        self._reason = reason
        self._retry_at = self._clock() + RETRY_S

    def _tear_down(self) -> None:
        observer, self._observer = self._observer, None
        if observer is not None:
            _stop(observer)

    def _report_handler(self) -> None:
        if self._handler.errors > self._handler_errors_seen:
            self._handler_errors_seen = self._handler.errors
            _log.warning(
                "inbox_watch_handler_failed", times=self._handler.errors, error=repr(self._handler.error)
            )


class _Handler(FileSystemEventHandler):
    """Runs in watchdog's thread, under its lock: quick, and nothing gets out of it."""

    def __init__(self, wake: threading.Event, root: str = "") -> None:
        self._wake = wake
        self._root = root
        self._lock = threading.Lock()
        self._moved: set[str] = set()
        self.errors = 0
        self.error: BaseException | None = None

    def dispatch(self, event: FileSystemEvent) -> None:
        """Take any event."""
        try:
            # Synthetic events come of a walk through a renamed folder: what is in there may be half a file.
            if isinstance(event, FileMovedEvent) and not event.is_synthetic:
                self._note(os.fsdecode(event.src_path), os.fsdecode(event.dest_path))
            self._wake.set()
        except BaseException as error:  # noqa: BLE001 (would end the observer's thread; check() reports it)
            self.errors += 1
            self.error = error

    def _note(self, source: str, target: str) -> None:
        # From one drop's name to another says nothing about being complete.
        if not self._is_drop(source) and self._is_drop(target):
            with self._lock:
                if len(self._moved) < MAX_MOVED:
                    self._moved.add(os.path.relpath(target, self._root))

    def _is_drop(self, path: str) -> bool:
        *folders, name = os.path.relpath(path, self._root).split(os.sep)
        return layout.is_drop_name(name) and not any(folder.startswith(".") for folder in folders)

    def take_moved(self) -> set[str]:
        with self._lock:
            moved, self._moved = self._moved, set()
        return moved


class _Observer(InotifyObserver):
    """watchdog's observer, started with what it needs, and able to tell whether its reader lives."""

    def is_reading(self) -> bool:
        """Whether the thread that reads from the kernel lives; without it both others wait for ever."""
        return self._inotify_fd.is_alive()  # pyproject pins watchdog to the version that has this name


def _fault(observer: BaseObserver) -> str | None:
    """What is wrong with an observer, or None."""
    if not observer.is_alive():
        return "observer died"
    emitters = list(observer.emitters)
    if not emitters or not all(emitter.is_alive() for emitter in emitters):
        return "emitter died"
    if isinstance(observer, _Observer) and not observer.is_reading():
        return "reader died"
    return None


def _stop(observer: BaseObserver) -> None:
    """Stop an observer without waiting for ever: watchdog joins its threads with no limit, and one that walks
    a hung filesystem never ends. What is left over is a daemon thread.
    """

    def end() -> None:
        try:
            observer.stop()
            if observer.ident is not None:
                observer.join(STOP_S)
        except Exception as error:  # noqa: BLE001 (a broken observer is being thrown away; no more to do)
            _log.warning("inbox_watch_stop_failed", error=repr(error))

    thread = threading.Thread(target=end, name="watch-stop", daemon=True)
    thread.start()
    thread.join(STOP_S)


def _identity(folder: Path) -> tuple[int, int] | None:
    """(device, inode) of what stands at the path, links followed; None if that cannot be told."""
    try:
        facts = os.stat(folder)
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def _read(path: Path) -> str:
    try:
        return os.fsdecode(path.read_bytes())
    except OSError:
        return ""  # no /proc: the filesystem stays unknown, and inotify is tried


def filesystem_of(path: Path, mountinfo: str) -> str | None:
    """The type of the filesystem that holds a path, such as `ext4`.

    Args:
        path: absolute, links resolved.
        mountinfo: text of /proc/self/mountinfo, see proc(5).

    Returns:
        None if no mount point fits.
    """
    best, found = -1, None
    for line in mountinfo.split("\n"):  # not splitlines(): a mount point may hold other separators, unescaped
        before, separator, after = line.partition(" - ")
        fields = before.split(" ")
        if not separator or len(fields) < 5:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
        depth = len(Path(point).parts)
        # >=: of two mounts on one point the later one lies on top.
        if depth >= best and path.is_relative_to(point):
            best, found = depth, after.split(" ")[0]
    return found


def is_network(filesystem: str | None) -> bool:
    """Whether others may change a filesystem of this type unseen by this kernel; unknown counts as no."""
    return filesystem is not None and (filesystem in NETWORK_FILESYSTEMS or filesystem.startswith("fuse."))
