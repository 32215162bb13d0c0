"""What a network filesystem does now and then: for a while it does not find what is there, or calls it stale.

Injected at single paths of a batch, in the loop on real folders. tests/faults/disk_calls.py sweeps the same
errors over every call, and docs/shared-volumes.md says what else such a volume may do.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon import intake, obstacles
from daemon.held import Stage
from pipeline.errors import RunError
from spool import control, layout, plan
from tests.loops import Daemon, Paced

_CALLS = ("open", "stat", "lstat", "rename", "unlink", "mkdir", "listdir", "scandir")


class Volume:
    """Makes calls on chosen paths fail so many times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hits = 0
        self._left = 0
        self._error = 0
        self._is_meant: Callable[[str, Path], bool] = lambda call, path: False
        for call in _CALLS:
            monkeypatch.setattr(os, call, self._failing(call, getattr(os, call)))

    def hide(self, is_meant: Callable[[str, Path], bool], times: int = 1, error: int = errno.ENOENT) -> None:
        """From now on fail the calls for which `is_meant(name of the call, last path given)`."""
        self._is_meant, self._left, self._error = is_meant, times, error

    def show(self) -> None:
        """Fail no more."""
        self._left = 0

    def _failing(self, call: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            paths = [argument for argument in arguments if isinstance(argument, str | bytes | os.PathLike)]
            if self._left and paths and self._is_meant(call, Path(os.fsdecode(paths[-1]))):
                self._left -= 1
                self.hits += 1
                raise OSError(self._error, os.strerror(self._error), str(paths[-1]))
            return plain(*arguments, **options)

        return wrapped


@pytest.fixture
def volume(monkeypatch: pytest.MonkeyPatch) -> Volume:
    """The filesystem under the spool."""
    return Volume(monkeypatch)


@pytest.fixture
def daemon(tmp_path: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """A loop on it, which looks again soon."""
    monkeypatch.setattr(intake, "FAILED_RETRY_S", 0.1)
    monkeypatch.setattr(intake, "ADOPT_EVERY_S", 0.2)
    made = Daemon(tmp_path)
    yield made
    volume.show()
    made.stop()


def _ends_right(daemon: Daemon, count: int = 3) -> None:
    """One answer for each request, in one folder; nothing left anywhere."""
    shown = daemon.until(daemon.is_at("completed"), later_s=20)
    daemon.until(lambda: not daemon.lifecycle.held, later_s=20)
    assert (shown.request_counts.completed, shown.request_counts.failed) == (count, 0)
    assert [row["custom_id"] for row in daemon.lines("output.jsonl")] == [f"a{n}" for n in range(count)]
    assert os.listdir(daemon.home.outbox) == ["jan"]
    assert os.listdir(daemon.home.inbox) == []
    kept = ["drop.jsonl", "final.json", "published", "record.json"]
    assert sorted(os.listdir(daemon.home.archive / shown.id)) == kept
    own = daemon.lease.folder
    daemon.until(lambda: not any(map(layout.parse_batch_folder, os.listdir(own))), later_s=20)


@pytest.mark.parametrize("error", [errno.ENOENT, errno.ESTALE])
@pytest.mark.parametrize(
    ("call", "name"),
    [
        ("lstat", "jan.jsonl"),  # the scan and the claim
        ("rename", "drop.jsonl"),  # the claim
        ("mkdir", "out"),  # the outbox folder
        ("rename", "jan"),
        ("rename", "status.json"),
        ("open", "drop.jsonl"),  # validation
        ("rename", "input.jsonl"),
        ("rename", "shards.bin"),
        ("rename", "record.json"),
        ("listdir", "parts"),
        ("scandir", "parts"),  # the count of what is done
        ("mkdir", "merged"),  # the merge
        ("rename", "output.jsonl"),  # the merge, and publishing
        ("rename", "final.json"),  # the commit
        ("unlink", "input.jsonl"),  # cleaning up
    ],
)
def test_what_is_not_found_for_a_while_costs_time_alone(
    daemon: Daemon, volume: Volume, call: str, name: str, error: int
) -> None:
    """Each step is tried again; once a batch was forgotten, or its files were called damaged."""
    volume.hide(lambda done, path: (done, path.name) == (call, name), 3, error)
    daemon.drop(sidecar="pool: dedicated\n")
    _ends_right(daemon)
    assert volume.hits == 3 or (call, name) in _SELDOM


# These calls happen less than three times, or not in every order of things.
_SELDOM = {("listdir", "parts"), ("rename", "shards.bin")}


def test_a_claim_whose_drop_cannot_be_seen_keeps_its_record(daemon: Daemon, volume: Volume) -> None:
    """The rename was done and reported as failed, its target is not found; once the record was removed."""

    def is_meant(call: str, path: Path) -> bool:
        if call == "rename" and path.name == "drop.jsonl":
            os.replace(daemon.home.inbox / "jan.jsonl", path)
            return True
        return call == "lstat" and path.name == "drop.jsonl"

    daemon.drop()
    volume.hide(is_meant, times=3)
    daemon.until(lambda: volume.hits == 3)
    assert not daemon.lifecycle.held
    _ends_right(daemon)


def test_a_batch_whose_folder_cannot_be_seen_is_found_again(daemon: Daemon, volume: Volume) -> None:
    """It looks as if another daemon had adopted it; the next look into our own folder takes it up."""
    daemon.run.may_go_on.clear()
    daemon.drop()
    daemon.until(daemon.phase("running"))
    (held,) = daemon.lifecycle.held.values()
    volume.hide(lambda call, path: held.batch.folder in (path, *path.parents), times=10_000)
    daemon.run.may_go_on.set()
    daemon.until(lambda: not daemon.lifecycle.held)
    volume.show()
    _ends_right(daemon)


def test_a_status_that_cannot_be_read_beside_a_cancel_ends_nothing(daemon: Daemon, volume: Volume) -> None:
    """It ended the daemon, and its next start as well."""
    daemon.run.may_go_on.clear()
    daemon.drop()
    daemon.until(daemon.phase("running"))
    control.request_cancel(daemon.home.outbox / "jan")
    volume.hide(lambda call, path: path.name == "status.json" and call == "open", times=3, error=errno.EIO)
    daemon.until(daemon.is_at("cancelled"), later_s=20)
    assert volume.hits == 3


def test_counts_do_not_fall_while_a_batch_that_was_found_again_cannot_be_counted(
    tmp_path: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "ADOPT_EVERY_S", 0.2)
    daemon = Daemon(tmp_path, run=Paced(128))
    daemon.drop(count=300)
    daemon.until(lambda: daemon.is_at("in_progress")() and daemon.status().request_counts.completed == 128)
    (held,) = daemon.lifecycle.held.values()
    volume.hide(lambda call, path: held.batch.folder in (path, *path.parents), times=10_000)
    daemon.run.may_go_on.set()
    daemon.until(lambda: not daemon.lifecycle.held)
    volume.hide(lambda call, path: (call, path.name) == ("scandir", "parts"), times=5)
    volume.hits = 0

    def is_found() -> bool:
        assert daemon.status().request_counts.completed >= 128
        return volume.hits == 5

    daemon.until(is_found, later_s=20)
    _ends_right(daemon, 300)
    daemon.stop()


def test_an_adoption_that_was_cut_off_by_an_error_goes_on(
    daemon: Daemon, volume: Volume, tmp_path: Path
) -> None:
    """The batch stood in our folder already, and nobody looked there before the next start."""
    dead = daemon
    dead.run.may_go_on.clear()
    dead.drop()
    dead.until(dead.phase("running"))
    (held,) = dead.lifecycle.held.values()
    new = Daemon(tmp_path)
    folder = new.lease.folder / held.batch.folder.name
    held.batch.folder.rename(folder)  # as an adoption does, and what came of it was lost
    dead.run.may_go_on.set()
    dead.until(lambda: not dead.lifecycle.held)
    _ends_right(new)
    new.stop()


def test_an_outbox_folder_that_cannot_be_seen_is_not_made_twice(daemon: Daemon, volume: Volume) -> None:
    """It once got a second one, and the first showed a batch in progress for ever."""
    daemon.run.may_go_on.clear()
    daemon.drop()
    daemon.until(daemon.phase("running"))
    (held,) = daemon.lifecycle.held.values()
    seen: list[str] = []

    def is_meant(call: str, path: Path) -> bool:
        # Up to the rename that finds the name taken, and the look after it.
        is_it = path in (daemon.home.outbox / "jan", daemon.home.outbox / "jan/status.json")
        if is_it and call == "rename":
            seen.append(call)
        return is_it and call != "rename" and not seen

    volume.hide(is_meant, times=10_000)
    held.is_dirty = True  # as news is, such as a warning
    daemon.until(lambda: seen, later_s=5)
    volume.show()
    daemon.run.may_go_on.set()
    _ends_right(daemon)


def test_a_file_that_is_really_gone_needs_a_person(daemon: Daemon) -> None:
    """It is looked for for longer than such a volume errs; then status.json says what is missing."""
    daemon.run.error = RunError("the disk")
    daemon.run.error.__cause__ = OSError(errno.EIO, "Input/output error")
    daemon.drop()
    daemon.until(lambda: daemon.run.calls)
    (held,) = daemon.lifecycle.held.values()
    (held.batch.folder / plan.INPUT_FILE).unlink()
    daemon.until(lambda: held.stage is Stage.DAMAGED, later_s=20)
    warnings = daemon.until(lambda: daemon.extra()["warnings"], later_s=20)
    assert "held, its files need a person" in warnings[0]
    assert "input.jsonl" in warnings[0]
    assert held.misses == obstacles.MAX_MISSES


def test_our_own_folder_is_looked_for_more_than_once(daemon: Daemon, volume: Volume) -> None:
    """A daemon ends when it was taken for dead; its folder is gone then at every look."""
    own = daemon.lease.folder
    volume.hide(lambda call, path: path == own, times=2)
    assert [daemon.lease.is_lost for _ in range(4)] == [False] * 4
    volume.hide(lambda call, path: path == own, times=3)
    assert [daemon.lease.is_lost for _ in range(3)] == [False, False, True]
