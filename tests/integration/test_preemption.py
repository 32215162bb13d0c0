"""Pre-emption again and again, at chosen lines, on the real loop; and where a batch at risk goes then."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.loops import Daemon, Paced

LINES, SHARD_LINES = 300, 128
# Lines at which the spot pool takes the run back: before the first, on each shard boundary, within each shard
# and twice at the same one.
STOPS = [0, 1, 127, 128, 128, 129, 200, 255, 256, 257, 299]
EVERY_S = 10.0
# A run's life is drawn from an exponential distribution; e**-50 of them last longer.
LONG_S = 50 * EVERY_S


def _pools(spot: int = 1, dedicated: int = 1) -> dict[str, Any]:
    return {
        "pools": {
            "spot": {"capacity": spot, "preempt_every_s": EVERY_S},
            "dedicated": {"capacity": dedicated},
        }
    }


def _has_begun(daemon: Daemon, attempt: int) -> bool:
    return bool(daemon.status()) and daemon.extra()["attempt"] >= attempt


def _has_answered(run: Paced, lines: int) -> bool:
    return run.answered == lines


def _ids(daemon: Daemon) -> list[str]:
    return [row["custom_id"] for row in daemon.lines("output.jsonl")]


@pytest.mark.parametrize("stops", [STOPS, range(0, LINES, 9)], ids=["boundaries", "every nine lines"])
def test_a_batch_pre_empted_again_and_again_is_answered_once(tmp_path: Path, stops: list[int]) -> None:
    """On every shard boundary and within each shard: no line runs twice, none is lost, the order is kept."""
    run = Paced(*stops, LINES)
    daemon = Daemon(tmp_path, run=run, scheduler=_pools(dedicated=0))
    daemon.drop(count=LINES, sidecar="completion_window: 7d\npool: spot\n")
    for number, stop in enumerate(stops):
        daemon.until(partial(_has_begun, daemon, number + 1), number * LONG_S)
        daemon.until(partial(_has_answered, run, stop), number * LONG_S)
        daemon.until(partial(_has_begun, daemon, number + 2), (number + 1) * LONG_S)
        [held] = daemon.lifecycle.held.values()
        assert held.done == stop
    daemon.until(daemon.is_at("completed"), len(stops) * LONG_S)
    assert _ids(daemon) == [f"a{n}" for n in range(LINES)]
    assert daemon.extra()["attempt"] == len(stops) + 1
    assert run.answered == LINES
    daemon.stop()


@pytest.mark.parametrize(
    ("left_s", "pool", "reason"), [(300.0, "dedicated", "deadline_at_risk"), (3000.0, "spot", "spot_first")]
)
def test_a_pre_empted_batch_at_risk_moves_to_dedicated(
    tmp_path: Path, left_s: float, pool: str, reason: str
) -> None:
    """One whose deadline is near leaves the pool that takes runs back; one that has time returns to it."""
    run = Paced(5)
    daemon = Daemon(tmp_path, run=run, scheduler=_pools())
    daemon.drop(count=20, sidecar="completion_window: 1h\n")
    daemon.until(daemon.phase("running"))
    assert daemon.extra()["pool"] == "spot"
    later_s = 3600.0 - left_s
    daemon.until(partial(_has_begun, daemon, 2), later_s)
    assert daemon.extra()["pool"] == pool
    assert f"assigned to {pool}: {reason}" in [event["reason"] for event in daemon.extra()["history"]]
    assert "preempted" in [event["phase"] for event in daemon.extra()["history"]]
    run.may_go_on.set()
    daemon.until(daemon.is_at("completed"), later_s)
    assert _ids(daemon) == [f"a{n}" for n in range(20)]
    daemon.stop()


def test_a_run_on_dedicated_is_not_pre_empted(tmp_path: Path) -> None:
    """Whatever time passes, and however often runs beside it are."""
    daemon = Daemon(tmp_path, run=Paced(5), scheduler=_pools())
    daemon.drop("safe", count=20, sidecar="completion_window: 7d\npool: dedicated\n")
    daemon.until(daemon.phase("running", "safe"))
    daemon.drop(count=20, sidecar="completion_window: 7d\npool: spot\n")
    daemon.until(daemon.phase("running"), later_s=2)
    for n in range(1, 6):
        daemon.until(partial(_has_begun, daemon, n + 1), later_s=n * LONG_S)
    assert daemon.extra("safe")["attempt"] == 1
    daemon.stop()
