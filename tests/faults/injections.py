"""Faults of the daemon's process: each breaks something while a scene works, and mends what a person would.

Each returns the monotonic time of the (last) fault. A kill is followed by a restart at once, which is what a
supervisor does. Files are dropped before; a fault may drop more.
"""

from __future__ import annotations

import signal
import subprocess
import time
from typing import get_args

from spool import failpoints
from tests.faults import moments
from tests.faults.nodes import Node
from tests.faults.scene import Scene

# For a daemon to stop in order; shutdown.grace_s is 30.
STOP_LIMIT_S = 60.0
# What a daemon says that ends because others took it for dead.
LEASE_LOST = "took this one for dead"


def kill_daemon(here: Scene) -> float:
    """kill -9 of the daemon; sometimes again while it recovers."""
    node = here.nodes[0]
    moments.pause(here)
    here.strike()
    node.kill()
    at = time.monotonic()
    node.start()
    while here.rng.random() < 0.3:
        moments.pause(here, 3.0)
        if not moments.all_over(here):
            node.kill()
            at = time.monotonic()
            node.start()
    return at


def failpoint(here: Scene) -> float:
    """The daemon exits at a named point when it comes there for the n-th time; so does the next one."""
    node = here.nodes[0]
    points = [f"{step}.{side}" for step in get_args(failpoints.Step) for side in ("before", "after")]
    # Reached in a Ray worker; attempts only where an engine dies, too.
    unreached = ("attempts.",) if here.engine == "light" else ("attempts.", "part.")
    points = [point for point in points if not point.startswith(unreached)]
    at = time.monotonic()
    for _ in range(2):
        # Points of the claim need a drop that stands in the inbox, those of adoption a batch that does not.
        node.kill()
        here.drop(1, longest=300)
        point = f"{here.rng.choice(points)}:{here.rng.choice([1, 1, 1, 2, 3, 4])}"
        node.start(environ={failpoints.VARIABLE: point})
        here.until(lambda: not node.is_alive or moments.all_over(here), 30)
        if node.is_alive:
            here.notes.append(f"{point} was not reached")
            node.kill()
        elif node.process.returncode != failpoints.EXIT_CODE:
            here.problems.append(f"exit code {node.process.returncode} at {point}: {node.said[-300:]}")
        else:
            here.has_struck = True
        at = time.monotonic()
    node.start()
    return at


def terminate(here: Scene) -> float:
    """SIGTERM in a phase, sometimes twice; the daemon must end by itself with 0."""
    node = here.nodes[0]
    phase = here.rng.choice([*moments.PHASES, "any"])
    if phase == "any":
        moments.pause(here)
    else:
        moments.until_phase(here, phase)
    return _stop(here, node)


def _stop(here: Scene, node: Node) -> float:
    node.until_logged("starting")
    here.strike()
    node.signal(signal.SIGTERM)
    at = time.monotonic()
    allowed = {0}
    if here.rng.random() < 0.2:
        time.sleep(here.rng.uniform(0, 0.3))
        node.signal(signal.SIGTERM)  # ends it at once, as a kill would
        allowed |= {128 + signal.SIGTERM, -signal.SIGTERM}  # the latter when Python itself is ending
    try:
        code = node.process.wait(STOP_LIMIT_S)
        if code not in allowed:
            here.problems.append(f"exit code {code} after SIGTERM: {node.said[-300:]}")
    except subprocess.TimeoutExpired:
        here.problems.append(f"no end {STOP_LIMIT_S:g} s after SIGTERM: {node.said[-300:]}")
        node.kill()
    node.start()
    return at


def zombie(here: Scene) -> float:
    """SIGSTOP of one daemon for longer than its lease while another serves the spool, then SIGCONT."""
    sleeper, other = here.nodes
    here.until(lambda: moments.holds(sleeper) or moments.all_over(here), 5)
    time.sleep(here.rng.uniform(0, 0.15))
    here.strike()
    sleeper.signal(signal.SIGSTOP)
    # Beyond expire_s; adopted at some time after it, as the other daemon comes to look.
    time.sleep(here.rng.uniform(3.2, 6.0))
    here.until(lambda: not moments.holds(sleeper), here.rng.uniform(0, 8))
    sleeper.signal(signal.SIGCONT)
    at = time.monotonic()
    here.excused = {LEASE_LOST}
    here.drop(here.rng.randint(1, 4), longest=200)
    if here.rng.random() < 0.3:
        other.kill()  # what is dropped now is left to the sleeper, or to the one that is started in its place
        at = time.monotonic()
        here.drop(1, longest=200)
        here.until(lambda: moments.all_over(here), 20)
        other.start()
    return at


def preempt(here: Scene) -> float:
    """The spot pool takes runs back all the time (settings); in half of the rounds the daemon is killed."""
    moments.pause(here)
    here.strike()
    return kill_daemon(here) if here.rng.random() < 0.5 else time.monotonic()


def cancel(here: Scene) -> float:
    """Cancels at random times, twice, and with a kill before or after."""
    node = here.nodes[0]
    at = time.monotonic()
    for _ in range(here.rng.randint(1, 4)):
        moments.pause(here, here.rng.choice([0.1, 0.5, 1.5]))
        here.strike()
        here.cancel(here.rng.choice(here.files))
    if here.rng.random() < 0.5:
        moments.pause(here, here.rng.choice([0.02, 0.5, 1.2]))
        node.kill()
        at = time.monotonic()
        if here.rng.random() < 0.3:
            here.cancel(here.rng.choice(here.files))
        node.start()
    return at


def clock(here: Scene) -> float:
    """The wall clock jumps an hour either way while the daemon runs, and it is restarted with that time."""
    node = here.nodes[0]
    moments.pause(here)
    here.strike()
    for _ in range(here.rng.randint(1, 2)):
        here.clock.write_text(str(here.rng.choice([3600, -3600, 0])))
        time.sleep(here.rng.uniform(0, 0.3))
    if here.rng.random() < 0.5:
        return kill_daemon(here)
    return _stop(here, node)


def crowd(here: Scene) -> float:
    """Several daemons on one inbox; some are killed, some sleep past their lease."""
    at = time.monotonic()
    asleep: list[tuple[float, Node]] = []
    for _ in range(here.rng.randint(3, 6)):
        time.sleep(here.rng.uniform(0.2, 2.0))
        here.strike()
        node = here.rng.choice([node for node in here.nodes if node not in [each for _, each in asleep]])
        if len(asleep) < 2 and here.rng.random() < 0.5:
            node.signal(signal.SIGSTOP)
            asleep.append((time.monotonic() + here.rng.uniform(0.5, 9.0), node))
        else:
            node.kill()
            node.start()
        at = time.monotonic()
    here.excused = {LEASE_LOST}
    for wakes_at, node in sorted(asleep, key=lambda each: each[0]):
        time.sleep(max(0.0, wakes_at - time.monotonic()))
        node.signal(signal.SIGCONT)
        at = time.monotonic()
    return at
