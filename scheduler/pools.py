"""The pools, spot and dedicated: how many runs each may carry, and which runs are pre-empted when.

Pre-emption is a simulation: at take() each spot run draws how long it will live, so the same seed and the
same takes give the same pre-emptions. A pool of real nodes is closed while no engine of it is ready, and its
runs are pre-empted when its nodes are gone. A pre-empted run keeps its slot until release(): whoever runs on
it may still be stopping. Raises OutOfStep for a slot that is not free or a run it does not know.
"""

from __future__ import annotations

import random
from collections.abc import Collection
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
        self._preempted_at: dict[str, float] = {}  # spot runs, and when
        self._open: Collection[str] = self._capacity
        self._preempted: set[str] = set()

    def open_only(self, pools: Collection[str]) -> None:
        """Have these pools take runs, and no others."""
        self._open = pools

    def capacity(self, pool: PoolName) -> int:
        return self._capacity[pool] if pool in self._open else 0

    def free(self, pool: PoolName) -> int:
        return max(0, self.capacity(pool) - sum(run.pool == pool for run in self._runs.values()))

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
        self._preempted.discard(run_id)

    def preempt(self, now: float, lost: Collection[str] = ()) -> list[str]:
        """Runs that were pre-empted by now, in that order; each is named once and is still to be released.

        Args:
            now: Unix seconds.
            lost: pools of which no node is left.
        """
        due = [
            run_id for at, run_id in sorted((at, run) for run, at in self._preempted_at.items()) if at <= now
        ]
        due += [run_id for run_id, run in self._runs.items() if run.pool in lost and run_id not in due]
        fresh = [run_id for run_id in due if run_id not in self._preempted]
        self._preempted.update(fresh)
        return fresh
