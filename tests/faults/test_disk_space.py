"""A spool on a disk that is full, read-only or away for a while: the daemon waits and goes on by itself."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import daemons
from tests.faults import disk_rounds, disk_space
from tests.faults.disk_rounds import Wishes

SEED, ROUNDS = 20261123, 2

pytestmark = [
    pytest.mark.skipif(disk_space.why_not() is not None, reason=str(disk_space.why_not())),
    pytest.mark.slow,  # mounts filesystems of its own; `make test-all` runs it
]


@pytest.fixture(scope="module")
def nursery() -> Iterator[disk_rounds.Nursery]:
    with disk_rounds.open_nursery() as nursery:
        yield nursery


@pytest.mark.parametrize("number", range(ROUNDS))
@pytest.mark.parametrize("fault", disk_space.FAULTS)
def test_a_filesystem_that_fails_for_a_while_loses_and_doubles_nothing(
    nursery: disk_rounds.Nursery, tmp_path: Path, fault: disk_space.Fault, number: int
) -> None:
    """The process that met it survives, makes nothing where the spool was, and ends the work afterwards."""
    chance = random.Random(f"{SEED}/{fault}/{number}")
    outcome = disk_space.run_round(nursery, tmp_path, fault, chance)
    assert outcome.verdict.is_right, f"{outcome.verdict}\n{outcome.log[-3000:]}"


def test_status_json_tells_of_the_wait_for_disk_space(nursery: disk_rounds.Nursery, tmp_path: Path) -> None:
    """A batch that waited for spool.min_free_bytes says so in its warnings when it is over."""
    with disk_space.open_tmpfs(tmp_path / "disk") as disk, disk_space.spool_on(disk):
        disk_rounds.put_drops(disk / "spool")
        wishes = Wishes(str(disk), str(tmp_path / "log"), shard_s=0.5, min_free_bytes=disk_space.GUARD_BYTES)
        child = nursery.fork(wishes)
        daemons.until(lambda: list(disk.glob("spool/work/*/batch_*/parts/*.1.*")), what="a part")
        with disk_space.full(disk):
            time.sleep(1.0)  # ten seconds of the daemon's
        assert child.wait() == disk_rounds.DONE, child.log()
        status = json.loads((disk / "spool" / "outbox" / "big" / "status.json").read_bytes())
    assert status["status"] == "completed"
    assert any("for disk space" in warning for warning in status["batchd"]["warnings"]), status["batchd"]
