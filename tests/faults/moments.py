"""When a fault strikes: in a phase of a file's life, some time after it began, or at any time at all."""

from __future__ import annotations

import time
from typing import Any

from tests.faults.nodes import Node
from tests.faults.scene import Scene

PHASES = ("claimed", "validating", "queued", "running", "merging")


def pause(here: Scene, longest_s: float | None = None) -> None:
    """A random moment while something is under way: in a phase, or some time after it began."""
    phase = here.rng.choice(["claimed", "validating", "queued", "running", "running", "running", "any"])
    if longest_s is None and phase != "any":
        until_phase(here, phase)
        longest_s = here.rng.choice([0.01, 0.2])
    time.sleep(here.rng.uniform(0, longest_s or 0.3))


def until_phase(here: Scene, phase: str) -> None:
    """Wait until a file of the round is in a phase; where all went through it unseen, until more are held."""
    if phase == "claimed":
        here.until(lambda: next(here.held(), None) or all_over(here), 5)
    else:
        here.until(lambda: any(phase_of(here, file) == phase for file in here.files) or all_over(here), 5)
    if all_over(here):
        here.drop(2)
        here.until(lambda: next(here.held(), None), 5)


def all_over(here: Scene) -> bool:
    return all(map(here.is_over, here.files))


def phase_of(here: Scene, file: Any) -> str:
    status = here.status_of(file)
    return status["batchd"]["phase"] if status else ""


def holds(node: Node) -> bool:
    """Whether a daemon's folder in work/ has a batch."""
    instance = node.events("starting")[-1]["instance"]
    return any((node.spool / "work" / instance).glob("batch_*"))
