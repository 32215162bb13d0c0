"""Values that describe a batch: record.json (the truth while it lives) and final.json (the commit point).

Records are frozen; a change makes a new one, and spool/batch.py makes it durable before anyone sees it.
Times are Unix seconds. A format number that this version does not know is refused, never guessed at.
"""

from __future__ import annotations

import os
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

# Also the default of `format` below; a change of either needs a reader for the old one.
FORMAT = 1


class Status(StrEnum):
    """OpenAI's status of a batch."""

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    CANCELLING = "cancelling"
    FAILED = "failed"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """Whether nothing follows."""
        return self in _TERMINAL


_TERMINAL = frozenset({Status.FAILED, Status.COMPLETED, Status.EXPIRED, Status.CANCELLED})


class Phase(StrEnum):
    """What batchd does with a batch, finer than its status."""

    VALIDATING = "validating"
    QUEUED = "queued"
    RUNNING = "running"
    PREEMPTED = "preempted"
    MERGING = "merging"
    DONE = "done"


class Frozen(BaseModel):
    """A frozen value that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LineError(Frozen):
    """One error of validation, as OpenAI reports it.

    Attributes:
        line: physical line in the drop, from 1; None for an error of the whole file.
    """

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class Event(Frozen):
    """One change of state, for the history."""

    at: float
    status: Status
    phase: Phase
    reason: str


class FileIdentity(Frozen):
    """What stat said of a file, to notice a writer that goes on after the claim, or another in its place."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, facts: os.stat_result) -> FileIdentity:
        """What these facts say."""
        return cls(
            device=facts.st_dev,
            inode=facts.st_ino,
            size_bytes=facts.st_size,
            mtime_ns=facts.st_mtime_ns,
            ctime_ns=facts.st_ctime_ns,
        )


class Sidecar(Frozen):
    """What the user asked for beside the drop; None where he said nothing."""

    completion_window: float | None = None
    endpoint: str | None = None
    metadata: dict[str, str] | None = None
    pool: Literal["auto", "spot", "dedicated"] = "auto"
    on_invalid: Literal["fail", "skip"] | None = None
    submission: str | None = None


class Plan(Frozen):
    """What validation fixed, before the first part; a restart with another engine holds the batch.

    Attributes:
        requests: requests in the file, refused ones included.
        sha256: of the drop as it was read, hexadecimal.
        engine: model source and engine arguments, or what else decides its answers.
    """

    endpoint: str
    model: str
    requests: int
    shards: int
    input_bytes: int
    sha256: str
    engine: dict[str, Any]


class Record(Frozen):
    """The durable truth about a batch.

    Attributes:
        drop: the drop's path relative to inbox/, readable (bytes that are no UTF-8 are escaped).
        drop_path: the same, exact: percent-encoded bytes.
        sidecar_error: why the sidecar could not be used; the batch fails with it.
        sidecar_identity: of the sidecar to unlink after the claim, if one was read; it is not renamed, so
            that its ctime counts as well.
        outbox_name: the folder in outbox/ that is tried or taken; None before the first try.
        submitted_at: time of the claim.
        deadline_at: when what is unfinished expires.
        runs: runs begun; numbers the attempts of shards.
        crashes: unclean adoptions in a row, counted from the last that found a new part or a new attempt;
            that one is the first.
        parts: parts seen at the last unclean adoption.
        attempts: digest of the attempts seen there; narrowing a poison down brings no parts.
        cancel_requested_at: when the user's cancel was seen.
        errors: what validation found, at most limits.max_reported_errors of them.
    """

    format: Literal[1] = 1
    batch_id: str
    drop: str
    drop_path: str
    identity: FileIdentity
    sidecar: Sidecar = Sidecar()
    sidecar_error: str | None = None
    sidecar_identity: FileIdentity | None = None
    outbox_name: str | None = None
    status: Status = Status.VALIDATING
    phase: Phase = Phase.VALIDATING
    pool: str | None = None
    submitted_at: float
    deadline_at: float
    in_progress_at: float | None = None
    finalizing_at: float | None = None
    cancel_requested_at: float | None = None
    plan: Plan | None = None
    runs: int = 0
    crashes: int = 0
    parts: int = 0
    attempts: str = ""
    errors: tuple[LineError, ...] = ()
    warnings: tuple[str, ...] = ()
    history: tuple[Event, ...] = ()


class FileFacts(Frozen):
    """Size and hash of a result file."""

    size_bytes: int
    sha256: str
    lines: int


class UsageTotals(Frozen):
    """Tokens of all lines in output.jsonl."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0


class Timeline(Frozen):
    """How many results became durable when: sums over equal intervals, see timeline.py.

    Attributes:
        began: when the first interval begins, Unix seconds.
        interval_s: length of each; 0 where all came at one moment.
        completed, failed, tokens: one number for each interval.
    """

    began: float
    interval_s: float
    completed: tuple[int, ...]
    failed: tuple[int, ...]
    tokens: tuple[int, ...]


class Latency(Frozen):
    """How long the engine took for each answer: counts of buckets, see latency.py.

    Attributes:
        bounds_s: the most seconds of each bucket but the last.
        counts: one more than bounds.
    """

    bounds_s: tuple[float, ...]
    counts: tuple[int, ...]


class Final(Frozen):
    """The commit point: once durable, recovery only rolls forward to this outcome.

    Attributes:
        outcome: the terminal status.
        at: when it was decided.
        output: None where no line succeeded.
        errors_file: None where no line failed.
        shared_requests: how many took the answer of an identical request.
        timeline: None where no request was worked on, and in what older versions wrote. So latency.
    """

    format: Literal[1] = 1
    batch_id: str
    outcome: Status
    reason: str
    at: float
    total: int = 0
    completed: int = 0
    failed: int = 0
    output: FileFacts | None = None
    errors_file: FileFacts | None = None
    usage: UsageTotals = UsageTotals()
    shared_requests: int = 0
    timeline: Timeline | None = None
    latency: Latency | None = None
    warnings: tuple[str, ...] = ()
