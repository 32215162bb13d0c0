"""Moves each batch from one stage to the next, on the loop's thread; what takes long goes to workers.

`advance` is called for every held batch in every pass. Each move makes its change durable first and only then
changes what is in memory, so after an I/O error the very same move is tried again later. A batch that another
daemon has adopted is dropped from memory and nothing more is done to it.

    CLAIMED -> VALIDATING -> VALIDATED -> QUEUED <-> RUNNING -> ENDED -> DECIDED -> FINISHING -> gone
"""

from __future__ import annotations

from concurrent.futures import Future

from config.settings import Settings
from daemon import logs, metrics, report, work
from daemon.admission import Admission
from daemon.clock import Clock
from daemon.held import Held, Outcome, Stage, StopReason
from daemon.runs import Runs
from daemon.workers import Workers
from pipeline import validate
from pipeline.errors import PipelineError
from scheduler.job import Job
from spool import claim, control, recover
from spool.batch import Batch
from spool.errors import BatchGone
from spool.lines import Code
from spool.record import Final, LineError, Phase, Status

# After an I/O error, seconds.
RETRY_S = 2.0
# Runs in a row that brought nothing, after which the open lines fail; each waits longer than the one before.
MAX_FAILURES = 5

_log = logs.get()


class Lifecycle:
    """The moves. `held` maps batch ids to batches, in the order in which they came."""

    def __init__(
        self, settings: Settings, clock: Clock, workers: Workers, runs: Runs, count: metrics.Metrics
    ) -> None:
        self.held: dict[str, Held] = {}
        self.is_stopping = False
        self._admission = Admission(settings, count)
        self._clock = clock
        self._workers = workers
        self._runs = runs
        self._metrics = count

    def claimed(self, batch: Batch, monotonic: float) -> None:
        """Take up a batch that was just claimed."""
        _log.info("batch_claimed", batch=batch.id, drop=batch.record.drop)
        self.held[batch.id] = Held(batch, Stage.CLAIMED)

    def adopted(self, batch: Batch, monotonic: float) -> None:
        """Take up a batch of a daemon that is gone, where it stood."""
        record = batch.record
        times = [event.at for event in record.history]
        self._clock.not_before(max(times, default=0.0), monotonic)
        held = Held(batch, Stage.CLAIMED)
        _log.info(
            "batch_adopted", batch=batch.id, drop=record.drop, status=record.status, crashes=record.crashes
        )
        self._metrics.batch_adopted()
        if batch.final:
            held.stage = Stage.DECIDED
            held.outcome = Outcome(batch.final.outcome, batch.final.reason)
        elif record.crashes >= recover.MAX_CRASHES:
            self._give_up(held, f"the daemon died {record.crashes} times in a row while it held this batch")
        elif record.plan:
            held.stage = Stage.VALIDATED
            self._metrics.batch_resumed()
        held.is_dirty = True
        self.held[batch.id] = held

    def _give_up(self, held: Held, why: str) -> None:
        held.stage = Stage.DECIDED
        if held.batch.record.plan:
            held.outcome = Outcome(Status.COMPLETED, why, Code.ENGINE, why)
        else:
            held.outcome = Outcome(Status.FAILED, why, errors=(LineError(code="engine_error", message=why),))

    def advance(self, held: Held, now: float, monotonic: float) -> None:
        """Make the next move of a batch, if there is one to make now."""
        if monotonic < held.retry_at:
            return
        try:
            self._move(held, now, monotonic)
        except BatchGone as error:
            self._forget(held)
            _log.warning("batch_adopted_elsewhere", batch=held.id, reason=str(error))
        except OSError as error:
            held.retry_at = monotonic + RETRY_S
            _log.warning("batch_waits", batch=held.id, stage=held.stage, error=str(error), retry_in_s=RETRY_S)

    def _move(self, held: Held, now: float, monotonic: float) -> None:
        match held.stage:
            case Stage.CLAIMED:
                self._validate(held, monotonic)
            case Stage.VALIDATED:
                self._enqueue(held, now, monotonic)
            case Stage.QUEUED | Stage.ON_HOLD:
                if held.batch.record.cancel_requested_at is not None or now >= held.batch.record.deadline_at:
                    self._runs.queue.remove(held.id)
                    self._decide(held, now)
            case Stage.RUNNING:
                self._stop_if_due(held, now)
            case Stage.ENDED:
                self._after_run(held, now, monotonic)
            case Stage.DECIDED:
                self._finish(held, now)

    # The moves, in the order of a batch's life.

    def _validate(self, held: Held, monotonic: float) -> None:
        if self.is_stopping:
            return
        claim.finish(held.batch)
        held.shown_at = monotonic
        if problem := self._admission.pool_problem(held.batch.record.sidecar.pool):
            held.verdict, held.stage = work.Checked(problem, None, None), Stage.VALIDATED
            return
        held.stage = Stage.VALIDATING
        self._workers.submit(
            "validate",
            work.check,
            held.batch,
            self._admission.rules(held.batch.record),
            lambda: self.is_stopping,
            then=lambda done: self._validated(held, done),
        )

    def _validated(self, held: Held, done: Future[work.Checked]) -> None:
        """Note what a worker found; `_enqueue` acts on it, so that it can be repeated."""
        try:
            held.verdict = done.result()
            held.stage = Stage.VALIDATED
        except BatchGone as error:
            self._forget(held)
            _log.warning("batch_adopted_elsewhere", batch=held.id, reason=str(error))
        except (OSError, validate.ValidationStopped) as error:
            held.stage = Stage.CLAIMED
            held.retry_at = self._clock.monotonic() + RETRY_S
            _log.warning("validation_interrupted", batch=held.id, error=str(error))

    def _enqueue(self, held: Held, now: float, monotonic: float) -> None:
        """Apply a verdict, or take up a batch whose plan stands; then queue it, unless it is over already."""
        if isinstance(held.verdict, work.Checked) and not self._admission.apply(held, held.verdict, now):
            return
        held.verdict = None
        record = held.batch.record
        assert record.plan is not None
        held.recount()
        if held.left == 0 or record.cancel_requested_at is not None or now >= record.deadline_at:
            self._decide(held, now)
            return
        if problem := self._admission.engine_problem(record.plan, held.done):
            held.batch.save(warnings=(*record.warnings, problem))
            held.stage, held.is_dirty = Stage.ON_HOLD, True
            _log.error("batch_on_hold", batch=held.id, reason=problem)
            return
        self._admission.note_engine(held.batch)
        if len(self._runs.queue) >= self._runs.queue.limit:
            held.retry_at = monotonic + RETRY_S  # adopted beyond scheduler.max_claimed: waits for room
            return
        self._queue(held, monotonic, at_front=False)

    def _queue(self, held: Held, monotonic: float, *, at_front: bool) -> None:
        job = Job.of(held.batch.record, held.left)
        for _ in range(held.preemptions):
            job = job.preempted(held.left)
        if at_front:
            self._runs.queue.push_front(job)
        else:
            self._runs.queue.push(job)
        held.stage, held.queued_at, held.is_dirty = Stage.QUEUED, monotonic, True

    def cancel(self, held: Held, now: float) -> None:
        """The user asked to cancel this batch; the next move obeys.

        Raises:
            BatchGone, OSError: as every change of a record.
        """
        if held.batch.record.cancel_requested_at is not None or held.outcome:
            return
        status = Status.CANCELLING
        held.batch.advance(
            now, status, held.batch.record.phase, "cancelled by its user", cancel_requested_at=now
        )
        held.is_dirty = True
        _log.info("batch_cancelling", batch=held.id)

    def _stop_if_due(self, held: Held, now: float) -> None:
        if held.stop_reason in (StopReason.CANCELLED, StopReason.EXPIRED):
            return
        if held.batch.record.cancel_requested_at is not None:
            stop(held, StopReason.CANCELLED)
        elif now >= held.batch.record.deadline_at:
            stop(held, StopReason.EXPIRED)

    def _after_run(self, held: Held, now: float, monotonic: float) -> None:
        """A run is over, or all lines are answered: end the batch, or queue it again."""
        done_before = held.done
        held.recount()
        record = held.batch.record
        if held.left == 0 or record.cancel_requested_at is not None or now >= record.deadline_at:
            self._decide(held, now)
        elif self.is_stopping:
            return  # stays where it is; the next start adopts it
        elif held.stop_reason in (StopReason.PREEMPTED, StopReason.DISK_FULL):
            if held.stop_reason is StopReason.PREEMPTED:
                held.preemptions += 1
            reason = f"{held.stop_reason}: {held.left} requests left"
            held.batch.advance(now, record.status, Phase.PREEMPTED, reason)
            self._queue(held, monotonic, at_front=True)
        else:
            self._after_failure(held, now, monotonic, has_progressed=held.done > done_before)
        held.stop_reason = None

    def _after_failure(self, held: Held, now: float, monotonic: float, *, has_progressed: bool) -> None:
        why = held.run_error or "its run ended early"
        held.failures = 0 if has_progressed else held.failures + 1
        if held.failures >= MAX_FAILURES:
            self._give_up(held, f"{held.failures} runs in a row brought nothing; last: {why}")
            return
        held.batch.advance(now, held.batch.record.status, Phase.QUEUED, f"to be run again: {why}")
        # The queue goes on meanwhile; this one joins it again after a backoff.
        held.stage, held.retry_at, held.is_dirty = (
            Stage.VALIDATED,
            monotonic + RETRY_S * 2**held.failures,
            True,
        )

    def _decide(self, held: Held, now: float) -> None:
        """Choose the outcome of a batch that runs no more."""
        record = held.batch.record
        if record.cancel_requested_at is not None:
            message = "the batch was cancelled before this request was run"
            held.outcome = Outcome(Status.CANCELLED, "cancelled by its user", Code.CANCELLED, message)
        elif held.left == 0:
            held.outcome = Outcome(Status.COMPLETED, "all requests were worked on")
        else:
            message = "the batch's completion window ended before this request was run"
            held.outcome = Outcome(Status.EXPIRED, "its completion window ended", Code.EXPIRED, message)
        held.stage = Stage.DECIDED

    def _finish(self, held: Held, now: float) -> None:
        """Say what is coming, then hand the batch to a worker that merges, commits and publishes."""
        assert held.outcome is not None
        record = held.batch.record
        if held.batch.final is None:
            if held.outcome.errors and not record.errors:
                held.batch.save(errors=held.outcome.errors)
            if record.plan and record.phase is not Phase.MERGING:
                status = record.status
                if record.status is Status.IN_PROGRESS:
                    status = Status.FINALIZING
                held.batch.advance(now, status, Phase.MERGING, held.outcome.reason, finalizing_at=now)
            held.batch.show(held.progress(now, is_running=False))
        held.stage, held.is_dirty = Stage.FINISHING, False
        self._workers.submit(
            "finish",
            work.finish,
            held.batch,
            held.outcome,
            self._clock.now,
            then=lambda done: self._finished(held, done),
        )

    def _finished(self, held: Held, done: Future[Final]) -> None:
        try:
            final = done.result()
        except BatchGone as error:
            self._forget(held)
            _log.warning("batch_adopted_elsewhere", batch=held.id, reason=str(error))
            return
        except OSError as error:
            held.stage = Stage.DECIDED
            held.retry_at = self._clock.monotonic() + RETRY_S
            _log.warning("batch_waits", batch=held.id, stage=held.stage, error=str(error), retry_in_s=RETRY_S)
            return
        except (ValueError, PipelineError) as error:
            # Nothing is decided from files that contradict themselves, and nothing of them is thrown away.
            held.stage = Stage.DAMAGED
            _log.error("batch_damaged", batch=held.id, folder=str(held.batch.folder), error=str(error))
            return
        self._forget(held)
        report.count_end(self._metrics, held, final)

    def _forget(self, held: Held) -> None:
        self._runs.queue.remove(held.id)
        self.held.pop(held.id, None)


def stop(held: Held, reason: StopReason) -> None:
    """Tell the run that has a batch to end its share of it; what is finished is kept."""
    held.stop_reason = reason
    control.request_stop(held.batch.folder)
    _log.info("run_stopping", batch=held.id, run=held.run_id, reason=reason)
