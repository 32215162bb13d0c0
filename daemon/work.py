"""What worker threads do with one batch: validate it, and end it. No decision is made here but the verdict.

Both may be repeated from the start after an I/O error or a crash. Raises BatchGone or FileNotFoundError where
another daemon has adopted the batch, OSError where the world is bad.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from daemon import logs
from daemon.held import Outcome
from pipeline import merge, validate
from spool import files, publish
from spool.batch import Batch, read_final
from spool.codes import Failure, Refusal
from spool.errors import ResultsLost
from spool.record import FileIdentity, Final, LineError, Phase, Status
from spool.status import Progress

# The results of fewer are merged within some milliseconds.
SHOWN_REQUESTS = 1000

_log = logs.get()


@dataclass(frozen=True, slots=True)
class Checked:
    """What validating a batch found.

    Attributes:
        problem: why the file fails whatever its lines say.
        verdict: None where there is a problem.
        identity: of the drop after it was copied.
    """

    problem: LineError | None
    verdict: validate.Verdict | None
    identity: FileIdentity | None


def check(batch: Batch, rules: validate.Rules, stopped: Callable[[], bool]) -> Checked:
    """Validate a claimed drop and make the private copy."""
    record = batch.record
    if record.sidecar_error:
        return Checked(LineError(code=Refusal.INVALID_REQUEST, message=record.sidecar_error), None, None)
    try:
        source = files.open_regular(batch.drop)
    except files.NotRegular as error:
        # Swapped in between the look and the rename; in our private folder nobody can swap it any more.
        problem = f"{error} (it was put there in the instant of the claim), and was not opened: drop a file"
        return Checked(LineError(code=Refusal.INVALID_REQUEST, message=problem), None, None)
    except PermissionError:
        problem = "the file cannot be read by the daemon: make it readable and drop it again"
        return Checked(LineError(code=Refusal.INVALID_REQUEST, message=problem), None, None)
    with source:
        before = os.fstat(source.fileno())
        if not _is_same(FileIdentity.of(before), record.identity):
            return Checked(_MODIFIED, None, None)
        verdict = validate.check_and_copy(source, batch.folder, batch.id, rules, stopped)
        after = os.fstat(source.fileno())
    if not _is_same(FileIdentity.of(after), record.identity) or _was_touched(before, after):
        return Checked(_MODIFIED, None, None)
    return Checked(None, verdict, FileIdentity.of(after))


_MODIFIED = LineError(
    code=Refusal.INPUT_MODIFIED,
    message="the file was written to after it was claimed: drop it again when it is complete, best by rename",
)


def _is_same(one: FileIdentity, other: FileIdentity) -> bool:
    """Whether it is the same file with the same content; a rename changes ctime, so that is not compared."""
    return (one.inode, one.size_bytes, one.mtime_ns) == (other.inode, other.size_bytes, other.mtime_ns)


def _was_touched(before: os.stat_result, after: os.stat_result) -> bool:
    """Whether ctime moved for another reason than a hard link that came or went, such as `submit`'s own."""
    return before.st_nlink == after.st_nlink and before.st_ctime_ns != after.st_ctime_ns


def finish(batch: Batch, outcome: Outcome, progress: Progress, now: Callable[[], float]) -> Final:
    """Say what is coming, merge, commit and publish; what is committed already is only published.

    Raises:
        BatchGone, FileNotFoundError: the batch was adopted by another daemon, unless its folder stands.
        ValueError, PipelineError: its files contradict each other; nothing is published from them.
        OSError: to be tried again.
    """
    if batch.final is None and (final := read_final(batch.folder)):
        # The rename that committed it was followed by an error: make it durable, and never decide again.
        files.fsync_folder(batch.folder)
        batch.final = final
    if batch.final is None:
        _announce(batch, outcome, progress, now())
        publish.commit(batch, _decide(batch, outcome, now))
    assert batch.final is not None
    try:
        left = publish.publish(batch)
    except ResultsLost:
        _merge_again(batch, batch.final)
        left = publish.publish(batch)
    if left:
        _log.warning("partial_not_removed", batch=batch.id, outbox=str(batch.outbox), error=str(left))
    return batch.final


def _announce(batch: Batch, outcome: Outcome, progress: Progress, at: float) -> None:
    """Note that the batch is about to end, and show it where that takes long enough to be read."""
    record = batch.record
    if outcome.errors and not record.errors:
        batch.save(errors=outcome.errors)
    if record.plan and record.phase is not Phase.MERGING:
        if record.status is Status.IN_PROGRESS:
            batch.advance(at, Status.FINALIZING, Phase.MERGING, outcome.reason, finalizing_at=at)
        else:
            batch.advance(at, record.status, Phase.MERGING, outcome.reason)
    if record.plan and record.plan.requests > SHOWN_REQUESTS:
        batch.show(progress)


def unanswered(status: Status, reason: str) -> tuple[str, str]:
    """Code and message for the lines of a batch that ended so and that have no result."""
    if status is Status.EXPIRED:
        return Failure.EXPIRED, "the batch's completion window ended before this request was run"
    if status is Status.CANCELLED:
        return Failure.CANCELLED, "the batch was cancelled before this request was run"
    return Failure.ENGINE, reason


def _merge(batch: Batch, requests: int, missing: tuple[str, str] | None) -> merge.Merged:
    return merge.merge(batch.folder, requests, missing, batch.mode, batch.record.in_progress_at)


def _merge_again(batch: Batch, final: Final) -> None:
    """Make the result files of a committed batch once more, the very same ones."""
    merged = _merge(batch, final.total, unanswered(final.outcome, final.reason))
    if (merged.output, merged.errors) != (final.output, final.errors_file):
        raise ValueError(f"{batch.id}: its parts no longer give the results that final.json names")


def _decide(batch: Batch, outcome: Outcome, now: Callable[[], float]) -> Final:
    plan = batch.record.plan
    if plan is None:
        return Final(batch_id=batch.id, outcome=outcome.status, reason=outcome.reason, at=now())
    must_be_whole = outcome.status is Status.COMPLETED and not outcome.gives_up
    merged = _merge(
        batch, plan.requests, None if must_be_whole else unanswered(outcome.status, outcome.reason)
    )
    warnings = list(batch.record.warnings)
    if not _is_same(FileIdentity.of(os.stat(batch.drop)), batch.record.identity):
        warnings.append(
            "the dropped file was written to after it was validated; the answers are for what it held then"
        )
    return Final(
        batch_id=batch.id,
        outcome=outcome.status,
        reason=outcome.reason,
        at=now(),
        total=merged.total,
        completed=merged.completed,
        failed=merged.failed,
        output=merged.output,
        errors_file=merged.errors,
        usage=merged.usage,
        shared_requests=merged.shared,
        timeline=merged.timeline,
        latency=merged.latency,
        warnings=tuple(warnings),
    )
