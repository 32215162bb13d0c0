"""Leases: who is dead, and what a daemon does that was taken for dead."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from filelock import SoftFileLease

from spool import create, files, layout, lease
from tests.daemons import REPOSITORY


def _home(tmp_path: Path) -> layout.Layout:
    return create.create(tmp_path / "spool")


def _killed_owner(home: layout.Layout, expire_s: float = 60.0) -> Path:
    """The folder of an instance whose process ended without releasing its lease."""
    code = (
        "import os, sys; from pathlib import Path; from spool import layout, lease\n"
        f"held = lease.Lease(layout.Layout(Path({str(home.root)!r})), heartbeat_s=1, expire_s={expire_s})\n"
        "print(held.folder, flush=True); os._exit(9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    return Path(done.stdout.strip())


def _others(home: layout.Layout, own: lease.Lease) -> lease.Others:
    return lease.Others(home, own.folder, heartbeat_s=5, expire_s=60)


def test_a_live_owner_is_not_dead_and_one_that_was_killed_is_at_once(tmp_path: Path) -> None:
    """On the same host nobody waits for the lease to expire."""
    home = _home(tmp_path)
    own = lease.Lease(home, heartbeat_s=5, expire_s=60)
    live = lease.Lease(home, heartbeat_s=5, expire_s=60)
    dead = _killed_owner(home)
    assert list(_others(home, own).dead()) == [dead]
    assert not dead.exists()
    assert live.folder.exists()
    live.release()
    own.release()
    assert list(home.work.iterdir()) == []


def test_an_owner_with_other_settings_is_judged_by_its_own(tmp_path: Path) -> None:
    """A lease of another duration, from before lease.expire_s was changed, once ended every start."""
    home = _home(tmp_path)
    own = lease.Lease(home, heartbeat_s=5, expire_s=60)
    dead = _killed_owner(home, expire_s=30.0)
    assert list(_others(home, own).dead()) == [dead]
    own.release()


def test_a_folder_that_holds_something_after_all_is_not_removed(tmp_path: Path) -> None:
    """What stands there may be a drop: only empty folders are removed."""
    home = _home(tmp_path)
    own = lease.Lease(home, heartbeat_s=5, expire_s=60)
    dead = _killed_owner(home)
    layout.batch_folder(dead, layout.new_batch_id(1.0), 1).mkdir()
    list(_others(home, own).dead())
    assert dead.exists()
    own.release()


def test_a_daemon_whose_folder_is_gone_knows_that_it_is_lost(tmp_path: Path) -> None:
    """It slept through its own adoption."""
    home = _home(tmp_path)
    own = lease.Lease(home, heartbeat_s=5, expire_s=60)
    assert not own.is_lost
    own.folder.rename(home.work / "elsewhere")
    assert [own.is_lost for _ in range(lease.MAX_MISSES)][-1]
    own.release()


def test_liveness_is_a_hint_that_ages(tmp_path: Path) -> None:
    """A lease that was refreshed lately means that somebody serves the spool."""
    home = _home(tmp_path)
    assert not lease.any_live(home, 0.0)
    own = lease.Lease(home, heartbeat_s=5, expire_s=60)
    refreshed = (own.folder / "lease").stat().st_mtime
    assert lease.any_live(home, refreshed + 10)
    assert not lease.any_live(home, refreshed + 100)
    own.release()


def test_a_start_whose_empty_folder_was_tidied_away_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another daemon's recovery may come between the folder and its lease; that once ended the start."""
    home = _home(tmp_path)
    made: list[Path] = []
    plain = files.make_folder

    tidiers: list[SoftFileLease] = []

    def make_and_be_tidied(folder: Path, mode: int = 0o700) -> None:
        plain(folder, mode)
        made.append(folder)
        if len(made) == 1:
            tidiers.append(SoftFileLease(folder / "lease", lease_duration=60, thread_local=False))
            tidiers[0].acquire(timeout=0)

    monkeypatch.setattr(files, "make_folder", make_and_be_tidied)
    own = lease.Lease(home, heartbeat_s=5, expire_s=60)
    assert own.folder == made[1]
    tidiers[0].release()
    own.release()
