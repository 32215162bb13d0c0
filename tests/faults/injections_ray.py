"""Faults of Ray's processes, by the contract of injections.py."""

from __future__ import annotations

import signal
import time

from tests.faults import moments, processes
from tests.faults.scene import Scene


def _workers(here: Scene, title: str) -> list[int]:
    """Processes of Ray's that do this; of our Ray alone."""
    roots = [host.raylet for host in here.hosts] or [here.nodes[0].process.pid]
    below = [process for root in roots for process in processes.descendants(root)]
    return [process.pid for process in below if process.title.startswith("ray::") and title in process.title]


def _kill_ray(here: Scene, title: str) -> float:
    moments.pause(here)
    pids: list[int] = []
    for _ in range(3):
        here.until(lambda: _workers(here, title) or moments.all_over(here), 5)
        pids = _workers(here, title)
        if pids:
            break
        here.drop(2)  # it was over before we came
    if not pids:
        here.notes.append(f"no {title} was there to be killed")
    else:
        here.strike()
        processes.send(here.rng.choice(pids), signal.SIGKILL)
    return time.monotonic()


def kill_worker(here: Scene) -> float:
    """kill -9 of a Ray worker in the middle of its task."""
    return _kill_ray(here, "ReadShardSource")


def kill_replica(here: Scene) -> float:
    """kill -9 of the process of an engine."""
    return _kill_ray(here, "Replica")


def kill_raylet(here: Scene) -> float:
    """kill -9 of the raylet of the daemon's own Ray."""
    node = here.nodes[0]
    moments.pause(here)
    raylets = [each.pid for each in processes.descendants(node.process.pid) if "/raylet " in each.title]
    here.strike()
    for pid in raylets:
        processes.send(pid, signal.SIGKILL)
    at = time.monotonic()
    if not here.until(lambda: not node.is_alive, 30):
        here.notes.append("the daemon lived on without its raylet")
        if here.until(lambda: moments.all_over(here), 30):
            return at
        here.problems.append(
            f"30 s after its raylet died the daemon neither ended nor went on: {node.said[-300:]}"
        )
        processes.kill_tree(node.process.pid)
        node.process.wait()
    else:
        here.notes.append(f"the daemon ended with {node.process.returncode}")
    node.start()
    return at


def power(here: Scene) -> float:
    """kill -9 of the daemon and of everything below it, at once."""
    node = here.nodes[0]
    moments.pause(here)
    here.strike()
    processes.kill_tree(node.process.pid)
    node.process.wait()
    at = time.monotonic()
    node.start()
    return at


def outlive(here: Scene) -> float:
    """The daemon dies, but its Ray does not notice: workers go on writing while another daemon adopts.

    The raylet sleeps, so that it cannot end the dead daemon's workers; the other daemon has a Ray of its own.
    """
    first, second = here.nodes
    host = here.hosts[0]
    here.until(lambda: moments.holds(first) or moments.all_over(here), 10)
    moments.pause(here)
    here.strike()
    processes.send(host.raylet, signal.SIGSTOP)
    try:
        first.kill()
        at = time.monotonic()
        if not second.is_alive:
            second.start()
        time.sleep(here.rng.uniform(1.0, 6.0))
    finally:
        processes.send(host.raylet, signal.SIGCONT)
    first.start()
    return at
