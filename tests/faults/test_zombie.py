"""A daemon that was taken for dead and wakes up: what it still tries fails, and it says so and ends."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from spool import claim
from spool.errors import BatchGone
from tests import loops
from tests.faults import injections
from tests.faults.scene import Scene


def test_a_daemon_that_lost_its_lease_ends_instead_of_serving_no_more(tmp_path: Path) -> None:
    """It went on for ever, ready and with each claim failing, because its folder in work/ was gone."""
    here = Scene(tmp_path / "scene", "light", random.Random(1), nodes=2)
    try:
        here.start_all()
        sleeper = here.nodes[0]
        instance = sleeper.events("starting")[-1]["instance"]
        sleeper.signal(signal.SIGSTOP)
        assert here.until(lambda: not (here.spool / "work" / instance).exists(), 30)
        sleeper.signal(signal.SIGCONT)
        assert here.until(lambda: not sleeper.is_alive, 10), sleeper.said
        assert sleeper.process.returncode == 3
        assert injections.LEASE_LOST in sleeper.said
    finally:
        here.close()


def test_a_claim_whose_folder_was_taken_meanwhile_does_not_end_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that slept between making the folder and writing the record into it once ended there."""
    daemon = loops.Daemon(tmp_path)
    daemon.drop()
    with monkeypatch.context() as patched:

        def gone(*args: object) -> None:
            raise BatchGone("adopted by another daemon")

        patched.setattr(claim, "write_record", gone)
        daemon.step()
    daemon.until(daemon.is_at("completed"))
    daemon.stop()
