"""A job: what scheduling needs to know of a batch that is valid and unfinished.

A frozen value. Progress or a pre-emption makes a new one; the durable truth stays in the spool's record.
Times are Unix seconds.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from spool.record import Record

PoolName = Literal["spot", "dedicated"]
PoolChoice = Literal["auto", "spot", "dedicated"]


@dataclass(frozen=True, slots=True)
class Job:
    """A batch that waits for its turn.

    Attributes:
        requests_left: requests without a durable answer.
        submitted_at: time of the claim.
        deadline_at: from this instant on, what is unfinished expires.
        pool: what the user asked for; auto leaves it to us.
        preemptions: times it lost its place in the spot pool.
    """

    batch_id: str
    model: str
    requests_left: int
    submitted_at: float
    deadline_at: float
    pool: PoolChoice = "auto"
    preemptions: int = 0

    @classmethod
    def of(cls, record: Record, requests_left: int, ahead_s: float = 0.0) -> Job:
        """The job of a batch whose validation has fixed its plan.

        Args:
            record: the batch's.
            requests_left: requests without a durable answer.
            ahead_s: by how much the record's times are ahead of the clock that the scheduler is told.
        """
        assert record.plan is not None, f"{record.batch_id} has no plan: it is not validated"
        return cls(
            batch_id=record.batch_id,
            model=record.plan.model,
            requests_left=requests_left,
            submitted_at=record.submitted_at - ahead_s,
            deadline_at=record.deadline_at - ahead_s,
            pool=record.sidecar.pool,
        )

    def preempted(self, requests_left: int) -> Job:
        """The same job after it was pre-empted, with what is still to do."""
        return dataclasses.replace(self, requests_left=requests_left, preemptions=self.preemptions + 1)
