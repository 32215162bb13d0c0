"""The decision: which jobs begin now, packed into which runs, in which pool, and why the others wait.

Nothing is changed here: the caller takes the jobs out of the queue and the slots out of the pools. One walk
in the queue's order gives dedicated slots to those who asked for them or would be late on spot; a second one
gives the rest spot first, and dedicated as overflow. No slot stays free while a job that may use it waits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from scheduler import sla
from scheduler.engines import Absence
from scheduler.job import Job, PoolChoice, PoolName
from scheduler.pools import Pools
from scheduler.queue import Queue

# Estimates. Starting an execution costs 0.05-0.11 s (design, section 5: 2 cores), which counts only beside
# little work: 2,000 lines took 5.9 s there. So small batches share runs, and a shared run stays short.
SMALL_REQUESTS = 2_000  # a job with fewer requests left than this may share a run
RUN_REQUESTS = 4_000  # requests that a shared run may hold
RUN_JOBS = 256  # jobs that a shared run may hold
# And no more than it answers within so many seconds. At 1 request/s the other bounds alone let it last for 67
# minutes, and a sixth of the short windows were missed (benchmarks/README.md, "Scale, simulated").
RUN_S = 600.0


class Reason(StrEnum):
    """Why a run goes to its pool."""

    ASKED_FOR = "asked_for"
    SPOT_FIRST = "spot_first"
    SPOT_FULL = "spot_full"
    DEADLINE_AT_RISK = "deadline_at_risk"


class WaitReason(StrEnum):
    """Why a job is given no slot."""

    NO_CAPACITY = "no_capacity"
    ENGINE_STARTING = "engine_starting"
    ENGINE_NO_ROOM = "engine_no_room"
    ENGINE_FAILED = "engine_failed"
    DEADLINE_PASSED = "deadline_passed"


@dataclass(frozen=True, slots=True)
class Assignment:
    """A run to begin: one large job, or small jobs of one model in the queue's order."""

    jobs: tuple[Job, ...]
    model: str
    pool: PoolName
    reason: Reason


@dataclass(frozen=True, slots=True)
class Waiting:
    """All jobs that wait for one reason, in the queue's order."""

    jobs: tuple[Job, ...]
    reason: WaitReason


# What a walk may offer a job, by what its user asked for: the first pool with a free slot is taken.
_Offers = Mapping[PoolChoice, tuple[tuple[PoolName, Reason], ...]]
_AHEAD: _Offers = {
    "auto": (("dedicated", Reason.DEADLINE_AT_RISK),),
    "spot": (),
    "dedicated": (("dedicated", Reason.ASKED_FOR),),
}
_IN_TURN: _Offers = {
    "auto": (("spot", Reason.SPOT_FIRST), ("dedicated", Reason.SPOT_FULL)),
    "spot": (("spot", Reason.ASKED_FOR),),
    "dedicated": (("dedicated", Reason.ASKED_FOR),),
}


_WAITS = {
    Absence.STARTING: WaitReason.ENGINE_STARTING,
    Absence.NO_ROOM: WaitReason.ENGINE_NO_ROOM,
    Absence.FAILED: WaitReason.ENGINE_FAILED,
}


def assign(
    queue: Queue,
    pools: Pools,
    now: float,
    ready_models: Collection[str],
    rates: Mapping[str, float],
    absent: Mapping[str, Absence] = MappingProxyType({}),
) -> tuple[list[Assignment], list[Waiting]]:
    """Decide on every job in the queue.

    Args:
        queue: the jobs, in the order of its policy.
        pools: the slots.
        now: Unix seconds.
        ready_models: models whose engine takes requests.
        rates: measured requests per second of a run by model; absent is unknown.
        absent: why no engine of a model takes requests; one that is not named starts.

    Returns:
        The runs to begin, none over what is free, and the jobs that wait, by reason. Every job of the
        queue is in exactly one of them. With no slot left the others are not looked at: they wait for
        capacity, also those that could not begin with one, unless their model is absent.
    """
    slots: dict[PoolName, int] = {"spot": 0, "dedicated": pools.free("dedicated")}
    ahead = (
        job
        for job in queue
        if job.pool == "dedicated"
        or (job.pool == "auto" and sla.at_risk(job, now, rates.get(job.model), pools.preempt_every_s))
    )
    runs, _ = _pack(_ready(ahead, now, ready_models, absent, _nobody()), slots, _AHEAD, rates)
    begun = {job.batch_id for run in runs for job in run.jobs}

    slots["spot"] = pools.free("spot")
    waiting = _nobody()
    others = iter([job for job in queue if job.batch_id not in begun] if begun else queue)
    ready = _ready(others, now, ready_models, absent, waiting)
    in_turn, waiting[WaitReason.NO_CAPACITY] = _pack(ready, slots, _IN_TURN, rates)
    for job in others:  # whom the walk did not come to before the slots were gone
        reason = _WAITS[absent[job.model]] if job.model in absent else WaitReason.NO_CAPACITY
        waiting[reason].append(job)
    return runs + in_turn, [Waiting(tuple(jobs), reason) for reason, jobs in waiting.items() if jobs]


def _nobody() -> dict[WaitReason, list[Job]]:
    return {reason: [] for reason in WaitReason}


def _ready(
    jobs: Iterator[Job],
    now: float,
    ready_models: Collection[str],
    absent: Mapping[str, Absence],
    waiting: Mapping[WaitReason, list[Job]],
) -> Iterator[Job]:
    """Pass on the jobs that could begin, and note why the others could not even with a slot."""
    for job in jobs:
        if sla.is_expired(job, now):
            waiting[WaitReason.DEADLINE_PASSED].append(job)
        elif job.model not in ready_models:
            waiting[_WAITS[absent.get(job.model, Absence.STARTING)]].append(job)
        else:
            yield job


class _OpenRun:
    """A run that is being packed."""

    def __init__(self, job: Job, pool: PoolName, reason: Reason, rate: float | None) -> None:
        self.jobs = [job]
        self.limit = min(RUN_REQUESTS, RUN_S * rate) if rate else RUN_REQUESTS
        self.requests = job.requests_left
        self.pool = pool
        self.reason = reason

    def takes(self, job: Job) -> bool:
        """Add a job if it is small and there is room for it."""
        fits = (
            job.requests_left < SMALL_REQUESTS
            and self.requests + job.requests_left <= self.limit
            and len(self.jobs) < RUN_JOBS
        )
        if fits:
            self.jobs.append(job)
            self.requests += job.requests_left
        return fits

    def closed(self) -> Assignment:
        """The run as a decision, to which nothing can be added."""
        return Assignment(tuple(self.jobs), self.jobs[0].model, self.pool, self.reason)


def _pack(
    jobs: Iterable[Job], slots: dict[PoolName, int], offers: _Offers, rates: Mapping[str, float]
) -> tuple[list[Assignment], list[Job]]:
    """Walk once: each job joins the open run of its lane, begins a run, or is left over.

    A lane is a model and what was asked for. The first job that its lane's run has no room for ends that
    run, so nobody behind it gets ahead of it. Slots are taken off `slots`; with none left and no run open
    the walk ends there, and `jobs` has the rest: with 10,000 jobs waiting few are looked at.
    """
    if not any(slots.values()):
        return [], []
    runs: list[_OpenRun] = []
    lanes: dict[tuple[str, PoolChoice], _OpenRun] = {}
    left: list[Job] = []
    for job in jobs:
        lane = job.model, job.pool
        if lane in lanes and lanes[lane].takes(job):
            continue
        lanes.pop(lane, None)
        for pool, reason in offers[job.pool]:
            if slots[pool]:
                slots[pool] -= 1
                runs.append(_OpenRun(job, pool, reason, rates.get(job.model)))
                if job.requests_left < SMALL_REQUESTS:
                    lanes[lane] = runs[-1]
                break
        else:
            left.append(job)
        if not lanes and not any(slots.values()):
            break
    return [run.closed() for run in runs], left
