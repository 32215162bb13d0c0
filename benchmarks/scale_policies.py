"""The policies that are compared: the real scheduler, and rules that say for each job what it may be offered.

A rule only sets what the real `assign` takes for the user's wish (`Job.pool`), anew at each decision;
walking the queue, packing runs and giving out slots is the real code in all of them. "Can't Be Late" is: Wu
et al., Can't Be Late: Optimizing Spot Instance Savings under Deadlines, NSDI 2024; its words (changeover
delay, safety net, uniform progress, hysteresis) are used here, for a job with C(t) of work and R(t) of time
left.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple, Protocol

from scheduler.job import Job, PoolChoice
from scheduler.queue import Policy as Order
from scheduler.queue import Queue

# The paper's section A.8: with more time than this, a job waits for spot before uniform progress begins.
TIGHT_FRACTION = 0.7


class Rule(Protocol):
    """What a job may be offered now.

    Attributes:
        wish: what jobs ask for when they come.
    """

    wish: PoolChoice

    def choice(self, job: Job, now: float) -> PoolChoice: ...

    def is_ahead(self, job: Job, now: float) -> bool:
        """Whether a job on a dedicated node may go back to spot."""
        ...

    def forget(self, batch_id: str) -> None: ...


class Wish:
    """Every job asks for the same, once and for all."""

    def __init__(self, pool: PoolChoice) -> None:
        self.wish = pool

    def choice(self, job: Job, now: float) -> PoolChoice:
        return self.wish

    def is_ahead(self, job: Job, now: float) -> bool:
        return False

    def forget(self, batch_id: str) -> None:
        pass


class Greedy:
    """The paper's greedy policy: spot until R(t) < C(t) + 2d, dedicated from then on."""

    wish: PoolChoice = "spot"

    def __init__(self, node_rate: float, changeover_s: float) -> None:
        self._rate, self._changeover_s = node_rate, changeover_s

    def choice(self, job: Job, now: float) -> PoolChoice:
        is_safe = job.deadline_at - now >= job.requests_left / self._rate + 2 * self._changeover_s
        return "spot" if is_safe else "dedicated"

    def is_ahead(self, job: Job, now: float) -> bool:
        return False

    def forget(self, batch_id: str) -> None:
        pass


class UniformProgress:
    """The paper's policy: a job that is behind an even pace takes spot or, where there is none, dedicated.

    A job that is not behind waits for spot, and so does one that has much time (C/R below TIGHT_FRACTION):
    its even pace begins when it has not. On a dedicated node a job stays until it is ahead by two
    changeovers.
    """

    wish: PoolChoice = "spot"

    def __init__(self, node_rate: float, changeover_s: float) -> None:
        self._rate, self._changeover_s = node_rate, changeover_s
        self._began: dict[str, tuple[float, float, float]] = {}  # batch -> second, work and time then

    def choice(self, job: Job, now: float) -> PoolChoice:
        work_s, left_s = job.requests_left / self._rate, job.deadline_at - now
        if left_s < work_s + 2 * self._changeover_s:
            return "dedicated"
        if job.batch_id not in self._began:
            if work_s < TIGHT_FRACTION * left_s:
                return "spot"
            self._began[job.batch_id] = now, work_s, left_s
        return "auto" if self._ahead_s(job, now) < 0 else "spot"

    def is_ahead(self, job: Job, now: float) -> bool:
        return job.batch_id in self._began and self._ahead_s(job, now + 2 * self._changeover_s) >= 0

    def forget(self, batch_id: str) -> None:
        self._began.pop(batch_id, None)

    def _ahead_s(self, job: Job, at: float) -> float:
        """Seconds of work by which it is ahead of an even pace as of `at`; at its begin a hair behind."""
        began, work_s, time_s = self._began[job.batch_id]
        progress_s = work_s - job.requests_left / self._rate
        return progress_s - work_s * (at - began) / time_s - 1e-9


class RuledQueue(Queue):
    """The real queue, whose jobs ask for what a rule says; `judge` asks the rule, once for each decision."""

    def __init__(self, order: Order, limit: int, rule: Rule) -> None:
        super().__init__(order, limit)
        self._rule = rule
        self._is_fixed = isinstance(rule, Wish)  # then jobs come with their wish
        self._judged: list[Job] = []

    def judge(self, now: float, free: int) -> None:
        """Ask the rule about every job; about none if no slot is free anyway."""
        if not self._is_fixed:
            self._judged = []
        if not self._is_fixed and free:
            self._judged = [_asking(job, self._rule.choice(job, now)) for job in super().__iter__()]

    def __iter__(self) -> Iterator[Job]:
        """Jobs in the order in which they are to run, as of the last `judge`."""
        return super().__iter__() if self._is_fixed else iter(self._judged)


def _asking(job: Job, pool: PoolChoice) -> Job:
    """The job with another wish; that the rule has judged its deadline, the scheduler's own need not."""
    return job if job.pool == pool else dataclasses.replace(job, pool=pool, deadline_at=math.inf)


class Policy(NamedTuple):
    """What is compared.

    Attributes:
        pools: which nodes it has: those of both pools, or as many in one.
        knows_runs: whether the real estimate is told how many runs the answers come from. It was not before
            this simulation, and took the rate of all runs for that of one.
        moves_back: whether a job that is ahead leaves a dedicated node for a free spot one.
    """

    name: str
    text: str
    rule: Callable[[float, float], Rule]
    pools: Literal["both", "spot", "dedicated"] = "both"
    knows_runs: bool = True
    moves_back: bool = False


POLICIES = (
    Policy("dedicated", "always dedicated", lambda *_: Wish("dedicated"), pools="dedicated"),
    Policy("spot", "always spot", lambda *_: Wish("spot"), pools="spot"),
    Policy("before", "batchd as it was: the rate of all runs", lambda *_: Wish("auto"), knows_runs=False),
    Policy("batchd", "batchd: the rate of one run", lambda *_: Wish("auto")),
    Policy("greedy", "spot until the last moment", Greedy),
    Policy("uniform", "uniform progress", UniformProgress, moves_back=True),
)
