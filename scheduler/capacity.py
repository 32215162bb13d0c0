"""Capacity: how many engines each model should have now, and why a model has none.

A model's engines follow its work: up at once, down only after it had nothing to do for `idle_s`. Where the
engines of all models do not fit together, models take turns. A model with work keeps its engines for a turn,
a multiple of what they take to start; after it they are another's that waits: of those that wait, the one
whose next job is first in the queue, except that a model that gave up its engines goes behind all that waited
by then. So nobody waits for more turns than there are other models.

Like the pools, it keeps what it must remember and is told the time; nothing is started or stopped here.

Limits: GPUs are counted over all nodes, so what fits by number may still wait for a node.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from scheduler.engines import Absence, Decision, Demand, Model, Team

# A model with work keeps its engines for so many times what they took to start, and at least for so long, in
# seconds. So starts take at most a sixth of the time, however short the jobs are.
TURN_STARTS = 5.0
LEAST_TURN_S = 30.0
# A start that takes longer, such as one that waits for a node, keeps its room only while nobody else waits.
START_LIMIT_S = 1800.0
# After a start that failed, seconds: doubled from the first to the second.
RETRY_S = (5.0, 600.0)


@dataclass(slots=True)
class _Past:
    """What is remembered of a model.

    Attributes:
        busy_at: when it last had something to do.
        replicas, up: that it had when it was last looked at.
        begun_at: when it last got more replicas.
        up_before: those that took requests then.
        up_at: when its turn began: one of the new ones took requests; None before.
        left_at: when it last gave up all engines.
        waits_since: since when it has something to do and no engine; None where it does not wait.
        failures: starts in a row that failed.
        retry_at: not to be started before.
        problem: of the last of them.
    """

    busy_at: float
    replicas: int = 0
    up: int = 0
    begun_at: float = 0.0
    up_before: int = 0
    up_at: float | None = None
    left_at: float = float("-inf")
    waits_since: float | None = None
    failures: int = 0
    retry_at: float = float("-inf")
    problem: str = ""


@dataclass(slots=True)
class _Allotment:
    """Replicas by model, given one claim after the other until the room is gone."""

    room: float
    sizes: Mapping[str, float]
    given: dict[str, int] = field(default_factory=dict)

    def leave(self, model: str, count: int) -> None:
        """Let a model keep so many, also where room was lost since, as with a node."""
        self.room -= (count - self.given.get(model, 0)) * self.sizes[model]
        self.given[model] = count

    def give(self, model: str, count: int) -> bool:
        """Let a model have so many in all, or as many as fit; whether they did."""
        size, has = self.sizes[model], self.given.get(model, 0)
        more = max(0, count - has)
        fitting = min(more, max(0, int(self.room / size + 1e-9))) if size else more
        self.given[model] = has + fitting
        self.room -= fitting * size
        return fitting == more


class Capacity:
    """Decides again and again, from what there is to do and what engines there are."""

    def __init__(self, models: Sequence[Model], idle_s: float, now: float) -> None:
        """Begin to remember.

        Args:
            models: in the order of the settings.
            idle_s: after so long without anything to do a model goes down to `idle`; 0 is never.
            now: seconds of the monotonic clock, as everywhere here.
        """
        self.models = {model.name: model for model in models}
        self._idle_s = idle_s
        self._sizes = {model.name: model.size for model in models}
        self._past = {model.name: _Past(now) for model in models}

    def first(self, room: float) -> dict[str, int]:
        """Replicas at the start: of all models, or of the first ones in the settings that fit."""
        allotment = _Allotment(room, self._sizes)
        for model in self.models.values():
            allotment.give(model.name, model.first)
        return allotment.given

    def failed(self, model: str, problem: str, now: float) -> float:
        """Note that a start failed.

        Returns:
            Seconds until the next try.
        """
        past = self._past[model]
        first_s, longest_s = RETRY_S
        wait_s = min(longest_s, first_s * 2.0 ** min(past.failures, 20))
        past.failures, past.retry_at, past.problem = past.failures + 1, now + wait_s, problem
        past.up_at = now if past.up_at is None else past.up_at  # its turn, if others of its engines go on
        return wait_s

    def decide(
        self, demands: Mapping[str, Demand], teams: Mapping[str, Team], room: float, now: float
    ) -> Decision:
        """Say how many replicas each model should have.

        Args:
            demands: by model; a model that is not named has nothing to do.
            teams: of every model.
            room: GPUs of all replicas together; infinite where all fit.
            now: when.
        """
        demands = {name: demands.get(name, Demand()) for name in self.models}
        for name in self.models:
            self._remember(self._past[name], demands[name], teams[name], now)
        wanted = {name: self._wanted(name, demands[name], teams[name], now) for name in self.models}
        allotment = _Allotment(room, self._sizes)
        if sum(count * self._sizes[name] for name, count in wanted.items()) <= room:
            allotment.given = wanted
        else:
            self._share_out(allotment, wanted, demands, teams, now)
        targets = allotment.given
        swapped = {name for name in targets if targets[name] < min(wanted[name], teams[name].replicas)}
        absent = {
            name: self._absence(name, targets, teams, room, now)
            for name in self.models
            if demands[name].is_there and (not teams[name].up or not targets[name])
        }
        return Decision(targets, frozenset(swapped), absent)

    def _remember(self, past: _Past, demand: Demand, team: Team, now: float) -> None:
        if demand.is_there:
            past.busy_at = now
        if team.replicas > past.replicas:
            past.begun_at, past.up_before, past.up_at = now, past.up, None
        elif past.replicas and not team.replicas:
            past.left_at = now
        past.replicas, past.up = team.replicas, team.up
        if past.up_at is None and team.up > past.up_before:
            past.up_at, past.failures, past.retry_at = now, 0, float("-inf")
            past.busy_at = now  # idle from then on, however long its start took
        if team.replicas or not demand.is_there:
            past.waits_since = None
        elif past.waits_since is None:
            past.waits_since = now

    def _wanted(self, name: str, demand: Demand, team: Team, now: float) -> int:
        """Replicas, if there were room for all."""
        model, past = self.models[name], self._past[name]
        if demand.is_there:
            wanted = max(team.replicas, model.needed(max(1, demand.requests)))
        elif self._idle_s and now - past.busy_at >= self._idle_s:
            wanted = model.idle
        else:
            wanted = max(team.replicas, model.idle)
        return min(wanted, team.replicas) if now < past.retry_at else wanted

    def _share_out(
        self,
        allotment: _Allotment,
        wanted: Mapping[str, int],
        demands: Mapping[str, Demand],
        teams: Mapping[str, Team],
        now: float,
    ) -> None:
        """Serve the claims in order: turns, those that wait, those that go on, growth, those without work."""
        has = {name: min(team.replicas, wanted[name]) for name, team in teams.items()}
        busy = [name for name in self._in_turn(demands) if demands[name].is_there]
        idle = [name for name in self.models if name not in busy]
        waiting = list(self._by_right(busy, teams, wanted, allotment.room))
        for name in busy:
            if has[name] and not self._is_over(name, teams[name], now):
                allotment.leave(name, has[name])
        # Nobody is let past the first that waits, or one that needs much would wait for ever.
        served = list(itertools.takewhile(lambda name: allotment.give(name, 1), waiting))
        is_blocked = len(served) < len(waiting)
        for name in busy:
            if has[name] and not served:
                allotment.leave(name, has[name])
            else:
                allotment.give(name, has[name])
        for name in () if is_blocked else busy:
            allotment.give(name, wanted[name] if allotment.given[name] else 0)
        for name in idle:
            allotment.give(name, has[name])
        for name in idle:
            allotment.give(name, 0 if is_blocked else wanted[name])

    def _in_turn(self, demands: Mapping[str, Demand]) -> list[str]:
        """Models by their first job in the queue; then those that have none there."""
        ranked = {name: demand.rank for name, demand in demands.items() if demand.rank is not None}
        return sorted(self.models, key=lambda name: ranked.get(name, math.inf))

    def _is_over(self, name: str, team: Team, now: float) -> bool:
        """Whether a model's turn is over; it does not begin before an engine of it is up."""
        past = self._past[name]
        if past.up_at is None:
            return now - past.begun_at >= START_LIMIT_S
        return now - past.up_at >= max(LEAST_TURN_S, TURN_STARTS * (team.start_s or 0.0))

    def _by_right(
        self, busy: Sequence[str], teams: Mapping[str, Team], wanted: Mapping[str, int], room: float
    ) -> Iterator[str]:
        """Models that wait for their first engine; who gave theirs up goes behind those that waited then.

        One that can never have room, such as after a node was lost, is left out: it would hold up the others.
        """
        waiting = [name for name in busy if not teams[name].replicas and wanted[name]]
        waiting = [name for name in waiting if self._sizes[name] <= room]
        while waiting:
            name = next(name for name in waiting if not self._must_yield(name, waiting))
            waiting.remove(name)
            yield name

    def _must_yield(self, name: str, waiting: Sequence[str]) -> bool:
        # Never true of all: not of the one that gave up its engines first.
        left_at = self._past[name].left_at
        return any((self._past[other].waits_since or 0.0) < left_at for other in waiting if other != name)

    def _absence(
        self, name: str, targets: Mapping[str, int], teams: Mapping[str, Team], room: float, now: float
    ) -> tuple[Absence, str]:
        size = self._sizes[name]
        if targets[name]:
            return Absence.STARTING, f"the engine of {name} is starting"
        if now < self._past[name].retry_at:
            return Absence.FAILED, f"the engine of {name} did not start: {self._past[name].problem}"
        others = [other for other in targets if other != name and self._sizes[other]]
        holders = [other for other in others if teams[other].replicas or targets[other]]
        if size > room:
            return Absence.FAILED, f"the engine of {name} needs {size:g} GPUs, Ray has {room:g}"
        return Absence.NO_ROOM, f"the engine of {name} waits for the GPUs of {', '.join(holders) or 'others'}"
