"""The watcher on real folders: what wakes the loop, what it says was moved, and that it never stays deaf."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from watchdog.observers.api import BaseObserver

from config.settings import InboxSettings
from daemon import watch

LIMIT_S = 10.0


class Clock:
    """Monotonic seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    folder = tmp_path / "inbox"
    folder.mkdir()
    return folder


@pytest.fixture
def wake() -> threading.Event:
    return threading.Event()


@pytest.fixture
def watcher(inbox: Path, wake: threading.Event) -> Iterator[watch.Watcher]:
    made = watch.Watcher(inbox, "inotify", wake)
    made.start()
    assert made.mode == "inotify", made.reason
    _quiet(wake)
    yield made
    made.stop()


def _quiet(wake: threading.Event) -> None:
    """Clear the event once no more hints of what the test did before are under way."""
    wake.clear()
    end = time.monotonic() + LIMIT_S
    while wake.wait(0.2):
        wake.clear()
        assert time.monotonic() < end, "the watch never falls silent"


def _until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT_S
    while not is_so():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.01)


def _moved(watcher: watch.Watcher, count: int) -> set[str]:
    """Names that were moved, as soon as there are that many."""
    moved: set[str] = set()

    def is_enough() -> bool:
        moved.update(watcher.take_moved())
        return len(moved) >= count

    _until(is_enough)
    return moved


def _state(watcher: watch.Watcher) -> tuple[str, str]:
    return watcher.mode, watcher.reason


def _hears(inbox: Path, wake: threading.Event, name: str = "heard.jsonl") -> None:
    _quiet(wake)
    (inbox / name).write_text("{}\n")
    assert wake.wait(LIMIT_S)


def test_a_rename_within_the_inbox_wakes_and_is_reported(
    inbox: Path, wake: threading.Event, watcher: watch.Watcher
) -> None:
    """A drop that gets its final name by a rename need not settle, so its name is left for the loop."""
    (inbox / "a.tmp").write_text("{}\n")
    _quiet(wake)
    began = time.monotonic()
    os.rename(inbox / "a.tmp", inbox / "a.jsonl")
    assert wake.wait(1.0)
    moved = _moved(watcher, 1)
    assert time.monotonic() - began < 1.0
    assert moved == {"a.jsonl"}
    assert watcher.take_moved() == set()


def test_only_a_temporary_name_that_became_a_drops_name_counts_as_moved(
    inbox: Path, wake: threading.Event, watcher: watch.Watcher
) -> None:
    """Between two drops' names, or with its folder, half a file may have been renamed."""
    for name in ("one.jsonl", "two.part", "three.tmp"):
        (inbox / name).write_text("{}\n")
    for name in ("team", ".staging", ".later"):
        (inbox / name).mkdir()
    (inbox / "team" / "four.jsonl").write_text("{}\n")
    (inbox / ".staging" / "five.jsonl").write_text("{}\n")
    (inbox / "team" / os.fsdecode(b"six-\xff.jsonl.partial")).write_text("{}\n")
    (inbox / ".later" / "seven.jsonl").write_text("{}\n")
    _quiet(wake)
    os.rename(inbox / "one.jsonl", inbox / "uno.jsonl")
    os.rename(inbox / "two.part", inbox / "two.tmp")
    os.rename(inbox / "three.tmp", inbox / "team" / "three.jsonl")
    os.rename(inbox / ".staging" / "five.jsonl", inbox / "five.jsonl")
    os.rename(inbox / "team" / os.fsdecode(b"six-\xff.jsonl.partial"), inbox / os.fsdecode(b"six-\xff.jsonl"))
    os.rename(inbox / "team", inbox / "team-b")
    os.rename(inbox / ".later", inbox / "team-c")
    moved = _moved(watcher, 3)
    _quiet(wake)
    moved |= watcher.take_moved()
    assert moved == {"team/three.jsonl", "five.jsonl", os.fsdecode(b"six-\xff.jsonl")}


def test_copy_append_move_in_and_link_wake(
    inbox: Path, wake: threading.Event, watcher: watch.Watcher, tmp_path: Path
) -> None:
    """Each way in which a drop comes sets the event; `mv` from outside and `ln` are just `created` ones."""
    outside = tmp_path / "outside.jsonl"
    outside.write_text("{}\n")

    def append() -> None:
        with (inbox / "copy.jsonl").open("a") as file:
            file.write("{}\n")

    team = inbox / "team"
    ways: list[Callable[[], object]] = [
        lambda: shutil.copyfile(outside, inbox / "copy.jsonl"),
        append,
        lambda: os.link(outside, inbox / "link.jsonl"),
        lambda: os.rename(outside, inbox / "moved.jsonl"),
        team.mkdir,
        lambda: (team / "deep.jsonl").write_text("{}\n"),
    ]
    for way in ways:
        _quiet(wake)
        way()
        assert wake.wait(1.0), way


def test_reading_and_claiming_drops_wakes_nobody(
    inbox: Path, wake: threading.Event, watcher: watch.Watcher, tmp_path: Path
) -> None:
    """The loop's own scans and claims are no hints, or each of them would cause the next one."""
    (inbox / "a.jsonl").write_text("{}\n")
    _quiet(wake)
    for _ in range(5):
        list(os.scandir(inbox))
        (inbox / "a.jsonl").read_bytes()
    os.rename(inbox / "a.jsonl", tmp_path / "claimed.jsonl")
    assert not wake.wait(1.0)  # watchdog holds back a file that was moved out for 0.5 s


def test_an_inbox_that_is_removed_and_made_again_is_watched_again(
    inbox: Path, wake: threading.Event, watcher: watch.Watcher
) -> None:
    """watchdog's observer stays alive and hears nothing; check() notices and builds anew."""
    shutil.rmtree(inbox)
    assert wake.wait(LIMIT_S)
    inbox.mkdir()

    def is_rebuilt() -> bool:
        watcher.check()
        return _state(watcher) != ("inotify", "start")

    _until(is_rebuilt)
    assert _state(watcher)[0] == "inotify"
    _hears(inbox, wake)


def test_an_absent_inbox_is_polled_for_until_it_is_back(
    inbox: Path, wake: threading.Event, watcher: watch.Watcher
) -> None:
    """No inbox is no error; when one stands there again it is watched at once, not after the retry time."""
    shutil.rmtree(inbox)
    watcher.check()
    assert _state(watcher)[0] == "polling"
    assert watcher.interval_s(InboxSettings(poll_s=2, rescan_s=30)) == 2
    watcher.check()
    assert "FileNotFoundError" in watcher.reason
    inbox.mkdir()
    watcher.check()
    assert _state(watcher)[0] == "inotify"
    assert watcher.interval_s(InboxSettings(poll_s=2, rescan_s=30)) == 30
    _hears(inbox, wake)


def test_an_inbox_that_is_moved_away_and_replaced_is_followed_by_path(
    inbox: Path, wake: threading.Event, watcher: watch.Watcher, tmp_path: Path
) -> None:
    """The kernel's watch goes on with the old folder under the old path: its names count no more."""
    (inbox / "b.tmp").write_text("{}\n")
    os.rename(inbox, tmp_path / "old")
    inbox.mkdir()
    os.rename(tmp_path / "old" / "b.tmp", tmp_path / "old" / "b.jsonl")
    watcher.check()
    assert _state(watcher) == ("inotify", "inbox replaced")
    assert wake.is_set()  # what was dropped between the two watches is for the scan
    _hears(inbox, wake)
    assert watcher.take_moved() == set()
    (tmp_path / "old" / "c.jsonl").write_text("{}\n")
    _quiet(wake)


def test_a_linked_inbox_is_heard_and_its_new_target_too(tmp_path: Path, wake: threading.Event) -> None:
    """watchdog would watch the link itself."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    link = tmp_path / "inbox"
    link.symlink_to("one")
    watcher = watch.Watcher(link, "inotify", wake)
    watcher.start()
    try:
        _hears(link, wake)
        link.unlink()
        link.symlink_to("two")
        watcher.check()
        _hears(link, wake)
    finally:
        watcher.stop()


def test_an_exception_in_the_handler_does_not_end_the_watch(inbox: Path) -> None:
    """One that gets out of a handler ends watchdog's thread for good, without a word."""

    class Fragile(threading.Event):
        failures = 0

        def set(self) -> None:
            if threading.current_thread() is not threading.main_thread() and not self.failures:
                self.failures += 1
                raise MemoryError
            super().set()

    wake = Fragile()
    watcher = watch.Watcher(inbox, "inotify", wake)
    watcher.start()
    try:
        wake.clear()
        (inbox / "a.jsonl").write_text("{}\n")
        _until(lambda: wake.failures == 1)
        _hears(inbox, wake, "b.jsonl")
        watcher.check()
        assert _state(watcher) == ("inotify", "start")
    finally:
        watcher.stop()


def test_moved_names_are_bounded(
    inbox: Path, wake: threading.Event, watcher: watch.Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not fit is left to the scan."""
    monkeypatch.setattr(watch, "MAX_MOVED", 3)
    for number in range(10):
        (inbox / f"{number}.tmp").write_text("")
        os.rename(inbox / f"{number}.tmp", inbox / f"{number}.jsonl")
    _quiet(wake)
    assert len(watcher.take_moved()) == 3


def test_without_inotify_the_watcher_polls_and_tries_again_later(inbox: Path, wake: threading.Event) -> None:
    """Out of inotify instances is no reason to stop, nor to try on each pass."""
    clock = Clock()
    made: list[BaseObserver] = []
    errors = [OSError(errno.EMFILE, "inotify instance limit reached"), OSError(errno.ENOSPC, "watch limit")]

    def make() -> BaseObserver:
        if errors:
            raise errors.pop(0)
        made.append(watch._Observer())
        return made[-1]

    watcher = watch.Watcher(inbox, "inotify", wake, make_observer=make, clock=clock)
    watcher.start()
    try:
        assert _state(watcher)[0] == "polling"
        assert "inotify instance limit reached" in watcher.reason
        watcher.check()
        assert len(errors) == 1
        clock.now += watch.RETRY_S
        watcher.check()
        assert "watch limit" in watcher.reason
        clock.now += watch.RETRY_S
        watcher.check()
        assert _state(watcher)[0] == "inotify"
        _hears(inbox, wake)
    finally:
        watcher.stop()
    assert not any(observer.is_alive() for observer in made)


def test_a_watch_that_keeps_dying_is_given_up_for_a_while(inbox: Path, wake: threading.Event) -> None:
    """A rebuild on each pass would be a busy loop."""
    clock = Clock()
    made: list[BaseObserver] = []

    def make() -> BaseObserver:
        made.append(watch._Observer())
        return made[-1]

    watcher = watch.Watcher(inbox, "inotify", wake, make_observer=make, clock=clock)
    watcher.start()
    try:
        for _ in range(20):
            clock.now += 1
            if watcher.mode == "inotify":
                made[-1].stop()
                made[-1].join(LIMIT_S)
            watcher.check()
        assert len(made) == watch.MAX_BUILDS
        assert _state(watcher)[0] == "polling"
        clock.now += watch.RETRY_S
        watcher.check()
        assert _state(watcher)[0] == "inotify"
    finally:
        watcher.stop()


def test_a_dead_reader_thread_is_noticed(inbox: Path, wake: threading.Event) -> None:
    """Observer and emitters wait for it for ever and stay alive."""
    made: list[watch._Observer] = []

    def make() -> BaseObserver:
        made.append(watch._Observer())
        return made[-1]

    watcher = watch.Watcher(inbox, "inotify", wake, make_observer=make)
    watcher.start()
    try:
        reader = made[0]._inotify_fd
        reader.stopped_event.set()  # its loop ends with the next event, as it does with an exception
        (inbox / "a.jsonl").write_text("{}\n")
        reader.join(LIMIT_S)
        assert made[0].is_alive()
        watcher.check()
        assert _state(watcher) == ("inotify", "reader died")
        _hears(inbox, wake)
    finally:
        watcher.stop()


def test_a_watcher_leaves_no_thread_and_no_descriptor(inbox: Path, wake: threading.Event) -> None:
    """Rebuilding for months must not use up inotify instances (128 for a user)."""

    def used() -> tuple[int, int]:
        return threading.active_count(), len(os.listdir("/proc/self/fd"))

    before = used()
    for _ in range(10):
        watcher = watch.Watcher(inbox, "inotify", wake)
        watcher.start()
        watcher.stop()
    _until(lambda: used() <= before)


def test_a_watch_that_does_not_end_is_left_behind(
    inbox: Path, wake: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread of watchdog's that walks a hung filesystem must not hang the daemon's end."""
    monkeypatch.setattr(watch, "STOP_S", 0.1)
    release = threading.Event()

    class Hung(watch._Observer):
        def stop(self) -> None:
            release.wait(LIMIT_S)
            super().stop()

    watcher = watch.Watcher(inbox, "inotify", wake, make_observer=Hung)
    watcher.start()
    began = time.monotonic()
    watcher.stop()
    assert time.monotonic() - began < 2
    release.set()


def test_the_setting_decides_and_auto_polls_on_network_filesystems(
    inbox: Path, wake: threading.Event, tmp_path: Path
) -> None:
    """Changes made on another machine never become events here."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"30 1 0:50 / {inbox.resolve()} rw - nfs4 server:/x rw\n")
    modes = {}
    for backend in ("auto", "inotify", "polling"):
        watcher = watch.Watcher(inbox, backend, wake, mountinfo=mounts)
        watcher.start()
        watcher.check()
        modes[backend] = _state(watcher)
        watcher.stop()
    assert modes == {
        "auto": ("polling", "nfs4 is a network filesystem"),
        "inotify": ("inotify", "start"),
        "polling": ("polling", "inbox.backend is polling"),
    }


def test_an_inbox_that_is_no_folder_is_polled(tmp_path: Path, wake: threading.Event) -> None:
    """The scan will say what is wrong with it; the watcher goes on."""
    (tmp_path / "inbox").write_text("")
    watcher = watch.Watcher(tmp_path / "inbox", "inotify", wake)
    watcher.start()
    watcher.check()
    assert _state(watcher)[0] == "polling"
    watcher.stop()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_an_unreadable_inbox_is_polled(inbox: Path, wake: threading.Event) -> None:
    """watchdog reports success for it and stays deaf."""
    inbox.chmod(0o311)
    watcher = watch.Watcher(inbox, "inotify", wake)
    watcher.start()
    assert _state(watcher)[0] == "polling"
    watcher.stop()
    inbox.chmod(0o755)


MOUNTINFO = """\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
23 22 0:21 / /proc rw - proc proc rw
40 22 0:44 / /mnt/shared\\040folder rw,relatime shared:7 master:2 - nfs4 server:/export rw,vers=4.2
41 40 0:45 / /mnt/shared\\040folder/local rw - xfs /dev/vdb rw
42 22 0:46 / /srv/s3 rw - fuse.s3fs s3fs rw
43 22 0:47 / /over rw - ext4 /dev/vdc rw
44 43 0:48 / /over rw - cifs //server/over rw
45 22 0:49 / /odd\\012na\\134me rw - tmpfs tmpfs rw
nonsense
46 22 0:50
"""


@pytest.mark.parametrize(
    ("path", "filesystem", "is_network"),
    [
        ("/data/inbox", "ext4", False),
        ("/mnt/shared folder/inbox", "nfs4", True),
        ("/mnt/shared folder", "nfs4", True),
        ("/mnt/shared folder/local/inbox", "xfs", False),
        ("/mnt/shared folder 2/inbox", "ext4", False),
        ("/srv/s3/inbox", "fuse.s3fs", True),
        ("/over/inbox", "cifs", True),
        ("/odd\nna\\me/inbox", "tmpfs", False),
    ],
)
def test_the_filesystem_of_a_path_is_read_from_mountinfo(
    path: str, filesystem: str, is_network: bool
) -> None:
    """The longest mount point decides, of two on one point the later; odd characters are octal escapes."""
    found = watch.filesystem_of(Path(path), MOUNTINFO)
    assert found == filesystem
    assert watch.is_network(found) is is_network


def test_an_unknown_filesystem_counts_as_local() -> None:
    """Without /proc inotify is tried: the scan goes on in any case."""
    assert watch.filesystem_of(Path("/data"), "") is None
    assert not watch.is_network(None)
