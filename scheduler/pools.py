"""The mock pools, spot and dedicated: how many runs each may carry, and which spot runs are pre-empted when.

Pre-emption is a simulation: at take() each spot run draws how long it will live, so the same seed and the
same takes give the same pre-emptions. A pre-empted run keeps its slot until release(): whoever runs on it may
still be stopping. Raises OutOfStep for a slot that is not free or a run it does not know.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from config.settings import PoolsSettings
from scheduler.errors import OutOfStep
from scheduler.job import PoolName


@dataclass(frozen=True, slots=True)
class Run:
    """One use of one slot of a pool.

    Attributes:
        run_id: unique among the runs that are going.
        started_at: Unix seconds; the lifetime of a spot run counts from here.
    """

    run_id: str
    pool: PoolName
    started_at: float


class Pools:
    """Slots of both pools: taken before a run begins, released when it has ended."""

    def __init__(self, settings: PoolsSettings, seed: int = 0) -> None:
        self.preempt_every_s: float = settings.spot.preempt_every_s
        self._capacity: dict[PoolName, int] = {
            "spot": settings.spot.capacity,
            "dedicated": settings.dedicated.capacity,
        }
        self._random = random.Random(seed)  # noqa: S311 (a simulation, no key)
        self._runs: dict[str, Run] = {}
        self._preempted_at: dict[str, float] = {}  # spot runs that are still to be pre-empted, and when

    def capacity(self, pool: PoolName) -> int:
        return self._capacity[pool]

    def free(self, pool: PoolName) -> int:
        return self._capacity[pool] - sum(run.pool == pool for run in self._runs.values())

    def take(self, run: Run) -> None:
        """Take a slot for a run.

        Raises:
            OutOfStep: the pool has no free slot, or the run has one.
        """
        if run.run_id in self._runs:
            raise OutOfStep(f"run {run.run_id} has a slot already")
        if self.free(run.pool) <= 0:
            raise OutOfStep(f"no free slot in {run.pool} for run {run.run_id}")
        self._runs[run.run_id] = run
        if run.pool == "spot" and self.preempt_every_s > 0:
            lifetime_s = self._random.expovariate(1 / self.preempt_every_s)
            self._preempted_at[run.run_id] = run.started_at + lifetime_s

    def release(self, run_id: str) -> None:
        """Give the slot of a run back.

        Raises:
            OutOfStep: it has none.
        """
        if run_id not in self._runs:
            raise OutOfStep(f"run {run_id} has no slot")
        del self._runs[run_id]
        self._preempted_at.pop(run_id, None)

    def preempt(self, now: float) -> list[str]:
        """Runs that were pre-empted by now, in that order; each is named once and is still to be released."""
        due = sorted((at, run_id) for run_id, at in self._preempted_at.items() if at <= now)
        for _, run_id in due:
            del self._preempted_at[run_id]
        return [run_id for _, run_id in due]
