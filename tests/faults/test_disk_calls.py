"""I/O errors and kills at the N-th system call: a sample of what `python -m tests.faults.disk` sweeps."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon import lifecycle
from spool import lease, publish
from spool.batch import Batch
from spool.record import Final, Status
from tests import daemons, loops, spools
from tests.faults import disk_calls, disk_rounds

# About a second a round.
SEED, ROUNDS = 20261123, 34

needs_strace = pytest.mark.skipif(disk_calls.why_not() is not None, reason=str(disk_calls.why_not()))


@pytest.fixture(scope="module")
def nursery() -> Iterator[disk_rounds.Nursery]:
    with disk_rounds.open_nursery() as nursery:
        yield nursery


def _name(value: object) -> str:
    if isinstance(value, disk_calls.Fault):
        return f"{value.error}-{value.call}-{value.first}x{value.count}"
    return "adopting" if value else "fresh"


@needs_strace
@pytest.mark.parametrize(("fault", "adopts"), disk_calls.sample(SEED, ROUNDS), ids=_name)
def test_a_call_that_fails_or_kills_loses_and_doubles_nothing(
    nursery: disk_rounds.Nursery, tmp_path: Path, fault: disk_calls.Fault, adopts: bool
) -> None:
    """The process survives an error and goes on by itself; after a kill the next one does."""
    outcome = disk_calls.run_round(nursery, tmp_path / "round", fault, adopts=adopts)
    assert outcome.verdict.is_right, f"{outcome.verdict}\n{outcome.log[-3000:]}"


@needs_strace
def test_a_line_that_is_taken_away_is_seen_as_lost(nursery: disk_rounds.Nursery, tmp_path: Path) -> None:
    """The control of these rounds: a spool without one of its lines is not called right."""
    outcome = disk_calls.run_round(nursery, tmp_path / "round", disk_calls.Fault("fsync", "EIO", 3))
    assert outcome.was_hit
    assert outcome.verdict.is_right, outcome.verdict
    output = tmp_path / "round" / "spool" / "outbox" / "big" / "output.jsonl"
    output.write_bytes(b"".join(output.read_bytes().splitlines(keepends=True)[1:]))
    disk_rounds.judge(tmp_path / "round" / "spool", outcome, disk_rounds.drops())
    assert outcome.verdict.lost == ["big: a0"]


def test_a_removal_that_fails_is_tried_again_before_a_batch_is_archived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but the drop, the record, the outcome and the mark of its end comes into archive/.

    The sweep's ENOSPC at an open left plan/, parts/ or merged/ there for ever: rmtree's errors were ignored.
    """
    batch = _committed(tmp_path)
    real, left = shutil.rmtree, [1]

    def rmtree(path: Path) -> None:
        if left and left.pop():
            raise OSError(errno.EMFILE, "Too many open files", str(path))
        real(path)

    publish.publish(batch)
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    with pytest.raises(OSError, match="Too many"):
        publish.archive(batch)
    publish.archive(batch)
    kept = {path.name for path in (batch.home.archive / batch.id).iterdir()}
    assert kept == {"drop.jsonl", "record.json", "final.json", "published"}


def test_a_lease_that_a_power_loss_emptied_is_no_life_sign(tmp_path: Path) -> None:
    """The batches of its instance are adopted at the third look.

    filelock never breaks an empty marker, so after a power loss nobody took up what the daemon had held.
    """
    home, own = spools.make(tmp_path)
    _, theirs = spools.make(tmp_path)
    (theirs / lease.LEASE_FILE).touch()
    others = lease.Others(home, own, heartbeat_s=5, expire_s=60)
    assert [list(others.dead()) for _ in range(3)] == [[], [], [theirs]]


def test_a_lease_that_could_not_be_refreshed_for_long_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is read-only for longer than a lease lasts does not end the daemon.

    It ended with "another daemon took this one for dead", and there was none.
    """
    home, _ = spools.make(tmp_path)
    own = lease.Lease(home, heartbeat_s=0.05, expire_s=0.2)
    real = os.utime

    def utime(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "utime", utime)
    daemons.until(lambda: own._lease.compromise, what="the end of the heartbeat")
    assert not own.is_lost
    monkeypatch.setattr(os, "utime", real)
    daemons.until(lambda: not own.is_lost and own._lease.token is not None, what="a new lease")
    refreshed_at = os.stat(own.folder / lease.LEASE_FILE).st_mtime_ns
    daemons.until(lambda: os.stat(own.folder / lease.LEASE_FILE).st_mtime_ns > refreshed_at, what="a refresh")
    assert not own.is_lost
    own.release()


def test_no_line_fails_because_the_disk_takes_no_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs that end with an I/O error are tried again for as long as it takes.

    Seven full disks in a row made 300 good lines end as engine_error: "5 runs in a row brought nothing".
    """
    monkeypatch.setattr(lifecycle, "RETRY_S", 0.01)
    daemon = loops.Daemon(tmp_path)
    daemon.drop(count=3)
    daemon.run.error = OSError(errno.ENOSPC, "No space left on device")
    daemon.until(lambda: len(daemon.run.calls) > 2 * lifecycle.MAX_FAILURES)
    daemon.run.error = None
    assert daemon.until(daemon.is_at("completed")).request_counts.completed == 3
    daemon.stop()


def _committed(tmp_path: Path) -> Batch:
    home, own = spools.make(tmp_path)
    batch = spools.planned(spools.claimed(home, own))
    publish.commit(batch, Final(batch_id=batch.id, outcome=Status.CANCELLED, reason="cancelled", at=1002.0))
    return batch
