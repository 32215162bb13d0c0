"""Records whose times lie in the future, as a machine leaves them whose clock is ahead, on the real loop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import orjson
import pytest

from spool import layout
from tests.loops import Daemon, Fleet

HOUR_S = 3600.0
TIMES = ("submitted_at", "deadline_at", "in_progress_at", "finalizing_at", "cancel_requested_at")


@pytest.fixture
def left(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Leaves batches to a daemon, of which one is ahead by an hour: `left(jan="2h", feb="30m")`, windows."""
    made: list[Daemon] = []

    def build(fleet: Fleet | None = None, **windows: str) -> Daemon:
        first = Daemon(tmp_path, scheduler={"pools": {"spot": {"capacity": 2}}})
        made.append(first)
        first.run.may_go_on.clear()
        first.run.answers_before_wait = 1
        for name, window in windows.items():
            first.drop(name, sidecar=f"completion_window: {window}\n")
            first.until(first.phase("running", name))
        first.loop.shut_down()
        first.lease.release()
        [ahead] = [
            path
            for path in first.home.work.glob(f"*/batch_*/{layout.RECORD_FILE}")
            if orjson.loads(path.read_bytes())["drop"] == "jan.jsonl"
        ]
        record = orjson.loads(ahead.read_bytes())
        record |= {name: record[name] + HOUR_S for name in TIMES if record[name] is not None}
        for event in record["history"]:
            event["at"] += HOUR_S
        ahead.write_bytes(orjson.dumps(record))
        made.append(Daemon(tmp_path, fleet=fleet))
        return made[-1]

    yield build
    for daemon in made:
        daemon.stop()


class LateFleet(Fleet):
    """A fleet whose engines start when they are told to."""

    def __init__(self) -> None:
        super().__init__()
        self.may_start = threading.Event()

    def start_engines(self, counts: Mapping[str, int]) -> None:
        self.may_start.wait(30)


def _times(daemon: Daemon) -> list[float]:
    return [event["at"] for event in daemon.extra()["history"]]


def test_a_record_from_the_future_moves_no_other_deadline(left: Callable[..., Daemon]) -> None:
    """The clock of the whole daemon went forward with it, and batches expired whose window was open."""
    daemon = left(jan="24h", feb="30m")
    daemon.until(daemon.is_at("completed", "expired", name="feb"))
    assert daemon.status("feb").status == "completed"
    daemon.until(daemon.is_at("completed"))


def test_a_record_from_the_future_dates_nothing_that_is_dropped_meanwhile(
    left: Callable[..., Daemon],
) -> None:
    """A batch claimed beside it has the right time."""
    daemon = left(jan="24h")
    daemon.run.may_go_on.clear()
    daemon.until(daemon.phase("running"))
    daemon.drop("feb")
    daemon.until(daemon.is_at("validating", "in_progress", name="feb"))
    assert abs(daemon.status("feb").created_at - time.time()) < 60


def test_a_batch_from_the_future_never_goes_back_in_time(left: Callable[..., Daemon]) -> None:
    """Its history goes on from the last time in it, and so does its end."""
    daemon = left(jan="24h")
    shown = daemon.until(daemon.is_at("completed"))
    times = _times(daemon)
    assert times == sorted(times)
    assert times[-1] > time.time() + HOUR_S / 2
    assert shown.created_at <= shown.in_progress_at <= shown.finalizing_at <= shown.completed_at
    assert daemon.extra()["sla"]["met"]


@pytest.mark.parametrize(("later_s", "phase"), [(2 * HOUR_S - 60, "running"), (2 * HOUR_S + 1, "done")])
def test_a_batch_from_the_future_has_its_whole_window_and_no_more(
    left: Callable[..., Daemon], later_s: float, phase: str
) -> None:
    """Two hours from the claim on, by the clock by which it was claimed."""
    daemon = left(jan="2h")
    daemon.run.may_go_on.clear()
    daemon.until(daemon.phase("running"))
    daemon.until(daemon.phase(phase), later_s=later_s)
    assert daemon.status().status == ("expired" if phase == "done" else "in_progress")


def test_a_batch_from_the_future_is_at_risk_by_its_own_time(left: Callable[..., Daemon]) -> None:
    """The scheduler has one clock, so it is told the deadline as that clock will show it."""
    fleet = LateFleet()
    daemon = left(fleet, jan="1h")
    daemon.run.may_go_on.clear()
    daemon.until(daemon.phase("queued"))
    fleet.may_start.set()
    daemon.until(daemon.phase("running"), later_s=HOUR_S - 200)
    assert daemon.extra()["pool"] == "dedicated"
    assert "deadline_at_risk" in daemon.extra()["history"][-1]["reason"]
