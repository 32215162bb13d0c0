"""Engines on demand as real processes, on a real Ray: they go when they are idle, and come again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.exits import Exit
from tests import daemons
from tests.faults import processes

pytestmark = pytest.mark.timeout(300)

IDLE_S = 3.0
# More than one replica has places for.
MANY = 500


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[daemons.Daemon]:
    replicas = {"min": 0, "max": 2}
    model = {"name": "tiny-adder", "kind": "echo", "latency_s": 0.2, "replicas": replicas}
    made = daemons.Daemon(tmp_path, {"models": [model], "engine": {"idle_s": IDLE_S}})
    yield made.start()
    if made.process.poll() is None:
        processes.kill_tree(made.process.pid)
        made.process.wait()


def _replicas(daemon: daemons.Daemon) -> int:
    below = processes.descendants(daemon.process.pid)
    return sum("ray::Replica" in process.title for process in below)


def _gone(daemon: daemons.Daemon) -> bool:
    return _replicas(daemon) == 0


def test_engines_come_with_a_batch_and_go_when_idle(daemon: daemons.Daemon) -> None:
    """None at first, one for a small batch, two for a larger one; each request is answered by them."""
    assert _gone(daemon)
    for name, lines, replicas in (("jan", 10, 1), ("feb", MANY, 2)):
        daemon.drop(
            f"{name}.jsonl",
            daemons.jsonl([daemons.request(f"a{n}", f"{name} {n}") for n in range(lines)]),
        )
        assert daemon.ended(name).status == "completed"
        assert daemons.answers(daemon.lines(name)) == {f"a{n}": f"{name} {n}" for n in range(lines)}
        assert daemon.events("engine_starting")[-1]["replicas"] == replicas
        daemons.until(lambda: _gone(daemon), 60, "the end of idle engines")
        stopped = daemon.events("engine_stopped")[-1]
        assert (stopped["reason"], stopped["replicas"]) == ("idle", 0)
        daemons.until(lambda: 'batchd_engine_up{model="tiny-adder"} 0.0' in daemon.get("/metrics")[1])
        assert daemon.get("/readyz")[0] == 200
    assert not [
        line
        for line in daemon.log.read_text().splitlines()
        if '"level": "error"' in line or '"level":"error"' in line
    ]
    assert not daemon.events("engine_down") + daemon.events("requests_lost") + daemon.events("run_failed")
    assert daemon.stop() == Exit.DONE
