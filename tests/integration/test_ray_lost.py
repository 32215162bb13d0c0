"""The real daemon on a Ray of its own, which ends under it or is still at work when the daemon is to stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.exits import Exit
from tests import daemons
from tests.faults import processes

LINES = 1500
# Ray's own end of a driver comes 13 s after its raylet's; of ours, most is the machine's load.
END_S = 10.0

pytestmark = pytest.mark.timeout(300)  # a Ray takes 10 s to start, and a minute on a busy machine


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., daemons.Daemon]]:
    """Makes a daemon that is not started."""
    made: list[daemons.Daemon] = []

    def build(**sections: Any) -> daemons.Daemon:
        model = {"name": "tiny-adder", "kind": "echo", "latency_s": 1.0}
        made.append(daemons.Daemon(tmp_path, {"models": [model], **sections}))
        return made[-1]

    yield build
    for daemon in made:
        if daemon.process.poll() is None:
            processes.kill_tree(daemon.process.pid)
            daemon.process.wait()


def _work(daemon: daemons.Daemon) -> None:
    """Have it in the midst of a batch."""
    daemon.start()
    daemon.drop("jan.jsonl", daemons.jsonl([daemons.request(f"a{n}", f"text {n}") for n in range(LINES)]))
    daemons.until(lambda: daemon.status("jan") and daemon.extra("jan")["progress"]["done"], what="progress")


def _below(daemon: daemons.Daemon, title: str = "") -> list[int]:
    found = processes.descendants(daemon.process.pid)
    return [process.pid for process in found if title in process.title]


def _parent(pid: int) -> int | None:
    found = processes.all_processes().get(pid)
    return found.parent if found else None


def _check_answers(daemon: daemons.Daemon) -> None:
    assert daemon.ended("jan").status == "completed"
    expected = {f"a{n}": f"text {n}" for n in range(LINES)}
    assert daemons.answers(daemon.lines("jan")) == expected


@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_a_daemon_that_loses_its_ray_says_so_and_the_next_start_goes_on(
    make: Callable[..., daemons.Daemon], name: str
) -> None:
    """Ray's C++ ended the process with code 1, 13 or 60 s later, and nothing said why."""
    daemon = make()
    _work(daemon)
    # What the daemon has started itself: a raylet that starts a worker is there twice for an instant.
    [pid] = [pid for pid in _below(daemon, f"/{name} ") if _parent(pid) == daemon.process.pid]
    os.kill(pid, signal.SIGKILL)
    assert daemon.process.wait(END_S) == Exit.NOT_STARTED
    [event] = daemon.events("ray_lost")
    assert (event["level"], event["process"], event["pid"]) == ("error", name, pid)
    [line] = [line for line in daemon.log.read_text().splitlines() if line.startswith("batchd: ")]
    assert f"its {name} (process {pid}) has ended; start the daemon again" in line
    daemon.start()
    _check_answers(daemon)
    assert daemon.events("batch_adopted")[-1]["crashes"] == 1
    assert daemon.stop() == Exit.DONE


def test_a_stop_of_the_whole_service_is_no_loss(make: Callable[..., daemons.Daemon]) -> None:
    """SIGTERM to every process at once, as systemd does it: the daemon hung until it was killed."""
    daemon = make()
    _work(daemon)
    for pid in [*_below(daemon), daemon.process.pid]:
        processes.send(pid, signal.SIGTERM)
    assert daemon.process.wait(30) == Exit.DONE
    assert daemon.events("ray_lost") == [] or daemon.events("ray_lost")[0]["while_stopping"]
    daemon.start()
    _check_answers(daemon)
    assert daemon.events("batch_adopted")[-1]["crashes"] == 0


@pytest.mark.parametrize("when", ["its engine is hung", "its engine is loading"])
def test_a_stop_that_cannot_wait_for_ray_ends_in_order_all_the_same(
    make: Callable[..., daemons.Daemon], when: str
) -> None:
    """Ray was shut down under the thread that used it: another Ray was started then, or the code was 1."""
    daemon = make(shutdown={"grace_s": 1})
    if when == "its engine is hung":
        _work(daemon)
        for pid in _below(daemon, "ray::Replica"):
            os.kill(pid, signal.SIGSTOP)
    else:
        daemon.start(wait_ready=False)
        daemons.until(lambda: daemon.events("inbox_watch_changed"), 60, "the loop")
    # Two agents of Ray's look for its GCS for a minute, as after a kill of the daemon.
    below = set(_below(daemon)) - set(_below(daemon, "Agent"))
    assert daemon.stop() == Exit.DONE
    assert len(daemon.events("stopped")) == 1
    assert "Started a local Ray instance" not in daemon.log.read_text()
    daemons.until(lambda: not below & set(processes.all_processes()), 10, "the end of Ray's processes")
    assert all((instance / "clean").exists() for instance in (daemon.spool / "work").iterdir())
