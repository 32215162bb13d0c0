"""A batch as the daemon holds it in memory: where it stands, what it waits for, how fast it goes.

Everything here can be made anew from the spool; nothing here is ever the only copy of a fact.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from spool import parts
from spool.batch import Batch
from spool.errors import BatchGone
from spool.record import LineError, Status
from spool.status import Progress

# Rates are measured over the last samples, taken when a part becomes durable.
_SAMPLES = 32


class Stage(StrEnum):
    """What is to be done next with a batch, and by whom."""

    CLAIMED = "claimed"  # show it, then validate
    VALIDATING = "validating"  # a worker thread has it
    VALIDATED = "validated"  # apply the verdict
    QUEUED = "queued"  # the scheduler has it
    ON_HOLD = "on_hold"  # its model or engine is not what it began with
    DAMAGED = "damaged"  # its files cannot be read: left as they are for a person
    RUNNING = "running"  # a run has it
    ENDED = "ended"  # its run is over, or it is complete: decide what comes next
    DECIDED = "decided"  # an outcome stands: merge, commit, publish
    FINISHING = "finishing"  # a worker thread has it
    PUBLISHED = "published"  # its end is seen: tell the hook, put it away
    CLOSING = "closing"  # a worker thread has it


# A worker has the batch, or it waits for one: nothing of it is the loop's to change or to show any more.
ENDING = (Stage.FINISHING, Stage.PUBLISHED, Stage.CLOSING)


class StopReason(StrEnum):
    """Why a run was told to stop working on a batch."""

    PREEMPTED = "preempted"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    DISK_FULL = "disk_full"
    SWAPPED = "swapped"
    SHUTDOWN = "shutdown"


class Outcome(NamedTuple):
    """How a batch ends.

    Attributes:
        gives_up: whether it is COMPLETED although lines have no result; they get the reason.
        errors: of a failed validation.
    """

    status: Status
    reason: str
    gives_up: bool = False
    errors: tuple[LineError, ...] = ()


@dataclass(slots=True, eq=False)
class Held:
    """A batch that this daemon holds.

    Attributes:
        completed, failed, tokens, shared: what durable parts hold.
        run_id: of the run that has it.
        stop_reason: why that run was told to stop, if it was.
        is_disk_to_blame: whether its last run ended with an I/O error, which says nothing of its requests.
        failures: runs in a row that brought nothing, or tries in a row to validate.
        done_at_begin: results when its run began.
        attempts_at_begin: digest of its attempts then.
        shows_parts: whether its parts can be linked into the outbox.
        is_told: whether the hook knows of its end.
        ahead_s: by how much its record is ahead of our clock, as one is that another machine's clock dated,
            or before our clock was set back. Its time goes on from the record, others' do not.
        stopped_at: monotonic seconds at which that run was told to stop working on it.
        tallies: what its parts held when they were last counted, by shard.
        misses: times in a row that a path of it could not be found.
        missed_at: monotonic seconds of the last of them.
        retry_at: monotonic seconds before which nothing is tried, after an I/O error.
        shown_at: monotonic seconds of the last status.json.
        is_dirty: whether status.json lags behind the record.
        samples: (monotonic seconds, results, tokens) of the running run.
    """

    batch: Batch
    stage: Stage
    completed: int = 0
    failed: int = 0
    tokens: int = 0
    shared: int = 0
    preemptions: int = 0
    shows_parts: bool = True
    is_told: bool = False
    ahead_s: float = 0.0
    run_id: str | None = None
    stop_reason: StopReason | None = None
    run_error: str | None = None
    is_disk_to_blame: bool = False
    failures: int = 0
    done_at_begin: int = 0
    attempts_at_begin: str = ""
    stopped_at: float = 0.0
    misses: int = 0
    missed_at: float = float("-inf")
    retry_at: float = 0.0
    shown_at: float = 0.0
    is_dirty: bool = False
    is_at_risk: bool = False
    queued_at: float = 0.0
    outcome: Outcome | None = None
    verdict: object = None
    tallies: dict[int, parts.Tally] = field(default_factory=dict)
    samples: deque[tuple[float, int, int]] = field(default_factory=lambda: deque(maxlen=_SAMPLES))

    @property
    def id(self) -> str:
        """The batch id."""
        return self.batch.id

    @property
    def done(self) -> int:
        """Requests with a durable result."""
        return self.completed + self.failed

    @property
    def left(self) -> int:
        """Requests without one; 0 before validation."""
        plan = self.batch.record.plan
        return plan.requests - self.done if plan else 0

    @property
    def model(self) -> str:
        """The model of its plan."""
        plan = self.batch.record.plan
        assert plan is not None
        return plan.model

    def time(self, now: float) -> float:
        """Unix seconds as this batch tells time, which never precede its record."""
        return now + self.ahead_s

    def recount(self) -> None:
        """Count what durable parts hold.

        Raises:
            BatchGone: the batch was adopted by another daemon.
            ValueError: a part is damaged.
        """
        try:
            self.tallies = parts.tally(self.batch.folder, self.tallies)
        except FileNotFoundError as error:
            raise BatchGone(f"{self.id} was adopted by another daemon") from error
        self.completed = sum(tally.completed for tally in self.tallies.values())
        self.failed = sum(tally.failed for tally in self.tallies.values())
        self.tokens = sum(tally.tokens for tally in self.tallies.values())
        self.shared = sum(tally.shared for tally in self.tallies.values())

    def rates(self) -> tuple[float, float] | None:
        """(requests/s, tokens/s) over the samples; None while there are too few."""
        if len(self.samples) < 2:
            return None
        (t0, done0, tokens0), (t1, done1, tokens1) = self.samples[0], self.samples[-1]
        if t1 <= t0 or done1 <= done0:
            return None
        return (done1 - done0) / (t1 - t0), (tokens1 - tokens0) / (t1 - t0)

    def progress(self, now: float, *, is_running: bool) -> Progress:
        """What status.json says of it.

        Args:
            now: Unix seconds, by the batch's own time.
            is_running: whether a run has it.
        """
        rates = self.rates() if is_running else None
        return Progress(
            completed=self.completed,
            failed=self.failed,
            shared=self.shared,
            at=round(now, 3),
            requests_per_s=round(rates[0], 3) if rates else None,
            tokens_per_s=round(rates[1], 3) if rates else None,
            eta_at=round(now + self.left / rates[0], 3) if rates else None,
            at_risk=self.is_at_risk,
        )
