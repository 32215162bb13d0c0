"""What capacity is decided from and what comes of it: models, what they have to do, the engines they have.

Frozen values; the decision itself is capacity.py's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Absence(StrEnum):
    """Why no engine of a model takes requests."""

    STARTING = "engine_starting"
    NO_ROOM = "engine_no_room"
    FAILED = "engine_failed"


@dataclass(frozen=True, slots=True)
class Model:
    """What is fixed of a model.

    Attributes:
        first: replicas at the start of the daemon.
        idle: replicas that it keeps when it had nothing to do for `idle_s`.
        least: replicas that it is to have as soon as there is something to do.
        most: replicas that it may have.
        places: requests that a replica computes at a time.
        size: GPUs of a replica; 0 takes no room.
    """

    name: str
    first: int = 1
    idle: int = 1
    least: int = 1
    most: int = 1
    places: int = 8
    size: float = 0.0

    def needed(self, requests: int) -> int:
        """Replicas for so many requests at once."""
        return min(self.most, max(self.least, math.ceil(requests / self.places))) if requests else 0


@dataclass(frozen=True, slots=True)
class Demand:
    """What a model has to do.

    Attributes:
        requests: queued and running.
        runs: that are going.
        rank: place in the queue of its first job there, from 0; None where none waits.
    """

    requests: int = 0
    runs: int = 0
    rank: int | None = None

    @property
    def is_there(self) -> bool:
        """Whether there is anything to do."""
        return self.requests > 0 or self.runs > 0


@dataclass(frozen=True, slots=True)
class Team:
    """The engines of a model as they are.

    Attributes:
        replicas: there or starting.
        up: of them, those that take requests.
        start_s: what the latest start took; None before the first.
    """

    replicas: int = 0
    up: int = 0
    start_s: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What should be.

    Attributes:
        targets: replicas by model.
        swapped: models that are to give engines up because others need the room.
        absent: why a model has no engine that takes requests, in a class and in words; only of models that
            have something to do.
    """

    targets: Mapping[str, int]
    swapped: frozenset[str]
    absent: Mapping[str, tuple[Absence, str]]
