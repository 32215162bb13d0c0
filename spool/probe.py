"""Finds out by trial what a folder's filesystem gives of what the spool's protocol rests on.

Each check works in a scratch folder that is made for it and removed, and says what it found and what to do
about it. FAIL means that batches could be lost, doubled or never run there; WARN that something works less
well and what to set. Two processes race where two daemons would (probe_race.py). Raises nothing for what a
filesystem does: an error that is not foreseen is a FAIL with its text.
Limits: this machine's view only. What another client sees late, or a server's crash loses, no trial here can
show; docs/shared-volumes.md says what is known of it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from spool import files, probe_race

Level = Literal["ok", "WARN", "FAIL"]

SCRATCH_PREFIX = ".batchd-doctor-"
# Times that two processes race.
RACES = 200
# Free space below which a spool would soon stand still: as spool.min_free_bytes is by default.
LOW_BYTES = 1 << 30
# A batch has about 12 files and folders while it runs.
LOW_INODES = 10_000
# Clocks that differ by more make `batchd status` guess wrongly whether a daemon is alive (spool/lease.py).
CLOCK_S = 2.0
LISTING_LIMIT_S = 5.0
_NOT_SUPPORTED = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EMLINK)


class Finding(NamedTuple):
    """What one check found.

    Attributes:
        advice: what to set or do; "" where there is nothing.
    """

    level: Level
    name: str
    found: str
    advice: str = ""


Check = Callable[[Path], Finding]


def probe(folder: Path) -> Iterator[Finding]:
    """Check a folder, one finding after the other; the scratch folder is gone afterwards."""
    scratch = folder / f"{SCRATCH_PREFIX}{secrets.token_hex(4)}"
    try:
        os.mkdir(scratch, 0o700)
    except OSError as error:
        advice = "batchd's user must be able to write here"
        yield Finding("FAIL", "writing", f"nothing can be made here: {error.strerror}", advice)
        return
    try:
        for name, check in CHECKS.items():
            here = scratch / name.replace(" ", "-")
            try:
                os.mkdir(here)
                yield check(here)
            except OSError as error:
                yield Finding("FAIL", name, f"{error.strerror} ({error.errno})", "batchd cannot work here")
    finally:
        shutil.rmtree(os.fsencode(scratch), ignore_errors=True)  # as bytes: some names in it are no text


# ------------------------------------------------------------------ renames


def _check_rename(here: Path) -> Finding:
    """A file and a folder, from one folder to another: what the claim, adoption and archiving do."""
    name = "rename"
    source, target = _pair(here)
    (source / "file").write_bytes(b"x")
    (source / "folder").mkdir()
    (source / "folder" / "inner").write_bytes(b"y")
    before = os.lstat(source / "file")
    for each in ("file", "folder"):
        os.rename(source / each, target / each)
        if os.path.lexists(source / each) or not os.path.lexists(target / each):
            return Finding("FAIL", name, f"a renamed {each} stands at its old place, or at none")
    after = os.lstat(target / "file")
    if (target / "file").read_bytes() != b"x" or (target / "folder/inner").read_bytes() != b"y":
        return Finding("FAIL", name, "a renamed file has other content")
    if (before.st_ino, before.st_size, before.st_mtime_ns) != (
        after.st_ino,
        after.st_size,
        after.st_mtime_ns,
    ):
        found = "a rename changes a file's inode number, size or mtime"
        return Finding(
            "FAIL", name, found, "every drop would fail as input_modified; mount with stable inodes"
        )
    return Finding("ok", name, "files and folders move between folders and stay what they are")


def _check_rename_race(here: Path) -> Finding:
    """Two processes rename each of RACES files to targets of their own: as two daemons claim a drop."""
    name = "rename race"
    source, target = _pair(here)
    for number in range(RACES):
        (source / str(number)).touch()
    said = probe_race.race("rename", source, target, RACES)
    there = os.listdir(target)
    double = sum(a == b == "won" for a, b in said)
    lost = RACES - len({entry.split(".")[0] for entry in there})
    if double or lost or len(there) != RACES or os.listdir(source):
        found = f"of {RACES} files {double} were won twice and {lost} lost, {len(there)} arrived"
        return Finding("FAIL", name, found, "one daemon only, and no shared inbox, or another filesystem")
    if odd := sum("won" not in pair for pair in said):
        found = f"{odd} of {RACES} renames were reported as failed and had happened"
        return Finding("WARN", name, found, "batchd looks for its own target then; use a `hard` mount")
    return Finding("ok", name, f"two processes raced for {RACES} files: each was won once")


def _check_folder_rename(here: Path) -> Finding:
    """A folder onto one that holds something: how a batch takes its name in the outbox."""
    name = "folder rename"
    source, target = _pair(here)
    (target / "theirs").touch()
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return Finding("ok", name, "a folder that holds something is never replaced")
        raise
    return Finding(
        "FAIL", name, "renaming a folder replaced one that held something", "do not use it: results"
    )


def _check_open_rename(here: Path) -> Finding:
    """A file that someone reads, and a folder in which one is open."""
    name = "rename of open files"
    (here / "folder").mkdir()
    (here / "folder" / "file").write_bytes(b"x")
    try:
        with open(here / "folder" / "file", "rb") as reader:
            os.rename(here / "folder" / "file", here / "folder" / "moved")
            os.rename(here / "folder", here / "elsewhere")
            is_readable = reader.read() == b"x"
    except OSError as error:
        advice = (
            "who holds a drop open keeps it from being claimed, and a hung daemon's batches from adoption"
        )
        return Finding("WARN", name, f"refused: {error.strerror}", advice)
    if not is_readable:
        return Finding(
            "WARN", name, "an open file is lost when it is renamed", "readers of results may see errors"
        )
    return Finding("ok", name, "what is open can be renamed")


def _check_listing(here: Path) -> Finding:
    """How soon a listing shows a rename."""
    name = "listing"
    source, target = _pair(here)
    (source / "file").touch()
    os.listdir(source), os.listdir(target)  # into whatever cache there is
    os.rename(source / "file", target / "file")
    renamed_at = time.monotonic()
    while "file" in os.listdir(source) or "file" not in os.listdir(target):
        if time.monotonic() - renamed_at > LISTING_LIMIT_S:
            found = f"a rename is not in the listing after {LISTING_LIMIT_S:g} s"
            return Finding("FAIL", name, found, "mount with a shorter cache of names, such as actimeo=1")
        time.sleep(0.02)
    delay_s = time.monotonic() - renamed_at
    if delay_s > 0.1:
        return Finding(
            "WARN", name, f"a rename is listed after {delay_s:.1f} s", f"inbox.settle_s: {10 * delay_s:.0f}"
        )
    return Finding("ok", name, "a rename is listed at once")


# ------------------------------------------------------------------ creating


def _check_exclusive(here: Path) -> Finding:
    """O_EXCL from two processes: leases and temporary files."""
    name = "exclusive create"
    said = probe_race.race("create", here, here, RACES)
    double = sum(a == b == "won" for a, b in said)
    if double or any("won" not in pair for pair in said):
        found = f"of {RACES} files {double} were made by both of two processes"
        return Finding("FAIL", name, found, "one daemon only: it could not tell that another is alive")
    return Finding("ok", name, f"two processes raced to make {RACES} files: each was made once")


def _check_link(here: Path) -> Finding:
    """link() onto a name that is taken: how `batchd submit` enters."""
    name = "link"
    advice = "`batchd submit` does not work here: copy under a hidden name (.jan.jsonl.tmp), then rename"
    source, target = here / "source", here / "target"
    source.write_bytes(b"mine")
    target.write_bytes(b"theirs")
    try:
        os.link(source, here / "free")
    except OSError as error:
        if error.errno in _NOT_SUPPORTED:
            return Finding("WARN", name, f"not supported: {error.strerror}", advice)
        raise
    with suppress(FileExistsError):
        os.link(source, target)
    if target.read_bytes() != b"theirs":
        return Finding("FAIL", name, "link() replaced a file", advice)
    said = probe_race.race("link", source, here, RACES)
    if any(pair.count("won") != 1 for pair in said):
        return Finding("FAIL", name, "two processes linked the same name", advice)
    return Finding("ok", name, "a name that is taken stays")


def _check_no_follow(here: Path) -> Finding:
    """O_NOFOLLOW: links among the drops are not followed."""
    name = "links"
    (here / "file").write_bytes(b"x")
    try:
        os.symlink("file", here / "link")
    except OSError as error:
        return Finding("ok", name, f"there are none here ({error.strerror})")
    if not stat.S_ISLNK(os.lstat(here / "link").st_mode):
        return Finding("WARN", name, "links look like files", "let only trusted users write to the inbox")
    try:
        os.close(os.open(here / "link", os.O_RDONLY | os.O_NOFOLLOW))
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            return Finding("ok", name, "never followed")
        raise
    return Finding("FAIL", name, "O_NOFOLLOW follows a link", "let only trusted users write to the inbox")


def _check_fsync(here: Path) -> Finding:
    """fsync of a file and of a folder: nothing is reported before."""
    name = "fsync"
    started = time.monotonic()
    try:
        for number in range(10):
            files.write_durable(here / str(number), b"x" * 4096)
    except OSError as error:
        found = f"a file or a folder cannot be made durable: {error.strerror}"
        return Finding("FAIL", name, found, "batchd cannot work here: each of its steps does that")
    each_ms = (time.monotonic() - started) * 100
    found = f"files and folders, {each_ms:.1f} ms for both"
    if each_ms > 100:
        return Finding(
            "WARN", name, found, "a batch takes about 30 of them: put many small batches into one file"
        )
    return Finding("ok", name, found)


# ------------------------------------------------------------------ completeness


def _check_lease(here: Path) -> Finding:
    """F_SETLEASE: whether someone has a drop open for writing."""
    name = "open writers"
    path = here / "file"
    advice = "inbox.settle_s: 10 (60 on a network share), or drop by rename"
    path.touch()
    with open(path, "wb"):
        is_noticed = _lease_error(path)
    if is_noticed is None:
        return Finding("WARN", name, "a lease is given although someone writes", advice)
    if is_noticed != errno.EAGAIN or _lease_error(path) is not None:
        return Finding("WARN", name, f"cannot be seen here ({os.strerror(is_noticed)})", advice)
    return Finding("ok", name, "can be seen (F_SETLEASE): those of this machine")


def _lease_error(path: Path) -> int | None:
    """The error number of a read lease on a file; None if it is given, and then it is given back."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return error.errno
    finally:
        os.close(descriptor)
    return None


def _check_times(here: Path) -> Finding:
    """How fine mtimes are: what tells that a drop still changes."""
    name = "modification times"
    path = here / "file"
    seen = set()
    for number in range(20):
        with open(path, "ab") as file:
            file.write(b"x")
        facts = os.stat(path)
        seen.add(facts.st_mtime_ns)
        if facts.st_size != number + 1:
            return Finding("WARN", name, "a file's size is known late", "inbox.settle_s: 60")
        time.sleep(0.01)
    if all(at % 1_000_000_000 == 0 for at in seen):
        return Finding("WARN", name, "whole seconds only", "inbox.settle_s: 5, and drop by rename")
    if len(seen) < 10:
        return Finding(
            "WARN", name, f"{len(seen)} of 20 changes show", "inbox.settle_s: 10, or drop by rename"
        )
    return Finding("ok", name, "each change shows")


def _check_clock(here: Path) -> Finding:
    """The filesystem's clock against ours."""
    name = "clock"
    before = time.time()
    (here / "file").write_bytes(b"x")
    after = time.time()
    at = os.stat(here / "file").st_mtime
    # mtimes may be as coarse as 2 s (FAT), and a kernel's tick behind.
    ahead_s = at - after if at > after else min(0.0, at - before)
    if abs(ahead_s) <= CLOCK_S:
        return Finding("ok", name, f"files are stamped with our time (within {CLOCK_S:g} s)")
    found = f"files are stamped {abs(ahead_s):.1f} s {'ahead of' if ahead_s > 0 else 'behind'} our clock"
    advice = "nothing is lost by it, but `batchd status` may say that no daemon is there: run NTP on both"
    return Finding("WARN", name, found, advice)


# ------------------------------------------------------------------ names, modes, room


def _check_own_names(here: Path) -> Finding:
    """The longest and oddest names that batchd itself gives."""
    name = "batchd's names"
    given = [b"batch_0123456789abcdef~1", b"%0A%2F~team.2", b"x" * 210, b".input.jsonl.1-a.tmp"]
    for each in given:
        (here / os.fsdecode(each)).mkdir()
    if sorted(os.listdir(os.fsencode(here))) != sorted(given):
        return Finding("FAIL", name, "are changed by the filesystem", "batchd cannot work here")
    return Finding("ok", name, "all possible")


def _check_user_names(here: Path) -> Finding:
    """Names that users may give their drops, byte for byte."""
    name = "users' names"
    odd = {"255 bytes": b"x" * 255, "invalid UTF-8": b"caf\xe9", "line ends": b"a\nb", "trailing dots": b"a."}
    refused = []
    for what, each in odd.items():
        try:
            with open(os.path.join(os.fsencode(here), each), "wb"):
                pass
            if each not in os.listdir(os.fsencode(here)):
                refused.append(f"{what} come back changed")
        except OSError as error:
            refused.append(f"{what}: {error.strerror}")
    if refused:
        return Finding(
            "WARN", name, "not all possible: " + ", ".join(refused), "keep to letters, digits, - and _"
        )
    return Finding("ok", name, "any bytes, up to 255")


def _check_folding(here: Path) -> Finding:
    """Names that differ to a user and not to the filesystem: one drop would replace another."""
    name = "similar names"
    same = []
    for what, one, other in (
        ("case", "Jan", "jAN"),
        ("Unicode form", "J\u00e1n", "Ja\u0301n"),
    ):
        try:
            (here / one).touch()
            if os.path.lexists(here / other):
                same.append(what)
        except OSError:
            same.append(f"{what} (no such names)")
    if same:
        found = f"names that differ in {' or '.join(same)} are one"
        return Finding("WARN", name, found, "a drop replaces a waiting one of such a name: give unique names")
    return Finding("ok", name, "case and Unicode forms are kept apart")


def _check_modes(here: Path) -> Finding:
    """Permissions: what keeps others out of work/ and archive/."""
    name = "modes"
    folder, file = here / "folder", here / "file"
    folder.mkdir()
    file.touch()
    private = True
    for path, mode in ((folder, 0o700), (file, 0o600)):
        os.chmod(path, mode)
        private = private and not stat.S_IMODE(os.stat(path).st_mode) & 0o077
    if not private:
        advice = "`batchd run` refuses to start: mount with dir_mode=0700,file_mode=0600 and the daemon's uid"
        return Finding("FAIL", name, "chmod does not keep others out", advice)
    os.chmod(file, 0o644)
    if stat.S_IMODE(os.stat(file).st_mode) != 0o644:
        found = "all files have the same mode"
        return Finding(
            "WARN", name, found, "spool.mode has no effect: who may read results is the mount's choice"
        )
    if os.stat(file).st_uid != os.geteuid():
        return Finding(
            "WARN", name, "files belong to another user than the one who makes them", "check the mount's uid"
        )
    return Finding("ok", name, "are kept")


def _check_room(here: Path) -> Finding:
    """Free bytes and inodes."""
    name = "room"
    facts = os.statvfs(here)
    free_bytes = facts.f_bavail * facts.f_frsize
    inodes = f"{facts.f_favail} inodes" if facts.f_files else "inodes without a limit"
    found = f"{free_bytes / (1 << 30):.1f} GiB and {inodes} free"
    if free_bytes < LOW_BYTES:
        return Finding(
            "WARN", name, found, "below spool.min_free_bytes nothing is claimed: make room, or set it"
        )
    if facts.f_files and facts.f_favail < LOW_INODES:
        return Finding(
            "WARN", name, found, "a batch takes about 12 while it runs, and 5 in archive/: make room"
        )
    return Finding("ok", name, found)


def _pair(here: Path) -> tuple[Path, Path]:
    source, target = here / "source", here / "target"
    source.mkdir()
    target.mkdir()
    return source, target


CHECKS: dict[str, Check] = {
    "rename": _check_rename,
    "rename race": _check_rename_race,
    "folder rename": _check_folder_rename,
    "rename of open files": _check_open_rename,
    "listing": _check_listing,
    "exclusive create": _check_exclusive,
    "link": _check_link,
    "links": _check_no_follow,
    "fsync": _check_fsync,
    "open writers": _check_lease,
    "modification times": _check_times,
    "clock": _check_clock,
    "batchd's names": _check_own_names,
    "users' names": _check_user_names,
    "similar names": _check_folding,
    "modes": _check_modes,
    "room": _check_room,
}
