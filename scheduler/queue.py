"""The queue: a deque of jobs that always stands in the order of its policy.

fifo: as they came. edf: earliest deadline first, then earliest claim. A pre-empted job goes back to the
front; under edf that means before its equals, since its deadline still decides. Ordering happens on entry, so
a look costs no more than the walk. Raises QueueFull at its limit and OutOfStep for a job it already holds.
"""

from __future__ import annotations

import bisect
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import Literal

from scheduler import sla
from scheduler.errors import OutOfStep, QueueFull
from scheduler.job import Job

Policy = Literal["fifo", "edf"]


def _urgency(job: Job) -> tuple[float, float]:
    return job.deadline_at, job.submitted_at


class Queue:
    """Jobs that wait, at most `limit` of them.

    A pre-empted job is let in over the limit: it is already claimed, and refusing it would lose it.

    Attributes:
        requests: of the jobs here, by model; only models that have a job here are named.
    """

    def __init__(self, policy: Policy, limit: int) -> None:
        self.policy = policy
        self.limit = limit
        self._order: deque[Job] = deque()
        self._ids: set[str] = set()
        self.requests: Counter[str] = Counter()
        self._jobs: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Job]:
        """Jobs in the order in which they are to run."""
        return iter(self._order)

    def __contains__(self, batch_id: str) -> bool:
        return batch_id in self._ids

    def ranks(self) -> dict[str, int]:
        """The place of each model's first job, from 0."""
        found: dict[str, int] = {}
        for place, job in enumerate(self._order):
            if len(found) == len(self._jobs):
                break
            found.setdefault(job.model, place)
        return found

    def push(self, job: Job) -> None:
        """Let a new job in at its place.

        Raises:
            QueueFull: the limit is reached.
            OutOfStep: the batch already waits.
        """
        if len(self._order) >= self.limit:
            raise QueueFull(f"{self.limit} batches wait already (scheduler.max_claimed)")
        self._admit(job)
        if self.policy == "edf":
            bisect.insort_right(self._order, job, key=_urgency)
        else:
            self._order.append(job)

    def push_front(self, *jobs: Job) -> None:
        """Let the jobs of a pre-empted run back in, in the order given, ahead of all others.

        Raises:
            OutOfStep: one of them already waits; none was let in.
        """
        self._admit(*jobs)
        for job in reversed(jobs):
            if self.policy == "edf":
                bisect.insort_left(self._order, job, key=_urgency)
            else:
                self._order.appendleft(job)

    def remove(self, batch_id: str) -> Job | None:
        """Take one job out, wherever it stands; None if it does not wait here."""
        return next(iter(self._take_out({batch_id})), None) if batch_id in self._ids else None

    def take(self, jobs: Iterable[Job]) -> None:
        """Take the jobs of an assignment out, in one walk.

        Raises:
            OutOfStep: one of them does not wait here.
        """
        batch_ids = {job.batch_id for job in jobs}
        if not batch_ids <= self._ids:
            raise OutOfStep(f"not in the queue: {', '.join(sorted(batch_ids - self._ids))}")
        self._take_out(batch_ids)

    def expired(self, now: float) -> list[Job]:
        """Jobs whose deadline has come; they stay until they are removed."""
        return [job for job in self._order if sla.is_expired(job, now)]

    def _admit(self, *jobs: Job) -> None:
        batch_ids = {job.batch_id for job in jobs}
        if len(batch_ids) < len(jobs) or batch_ids & self._ids:
            raise OutOfStep(f"in the queue already: {', '.join(sorted(batch_ids & self._ids or batch_ids))}")
        self._ids |= batch_ids
        for job in jobs:
            self.requests[job.model] += job.requests_left
            self._jobs[job.model] += 1

    def _take_out(self, batch_ids: set[str]) -> list[Job]:
        """Walk from the front only as far as the last of them: what is assigned mostly stands there."""
        self._ids -= batch_ids
        taken: list[Job] = []
        passed: list[Job] = []
        while len(taken) < len(batch_ids):
            job = self._order.popleft()
            (taken if job.batch_id in batch_ids else passed).append(job)
        self._order.extendleft(reversed(passed))
        for job in taken:
            self.requests[job.model] -= job.requests_left
            self._jobs[job.model] -= 1
            if not self._jobs[job.model]:
                del self._jobs[job.model], self.requests[job.model]
        return taken
