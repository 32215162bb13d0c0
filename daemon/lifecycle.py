"""Moves each batch from one stage to the next, on the loop's thread; what takes long goes to workers.

`advance` is called for every held batch in every pass. Each move makes its change durable first and only then
changes what is in memory, so after an I/O error the very same move is tried again later: obstacles.py says
what becomes of a batch whose move failed, closing.py has the moves after the decision.

    CLAIMED -> VALIDATING -> VALIDATED -> QUEUED <-> RUNNING -> ENDED -> DECIDED -> FINISHING
            -> PUBLISHED -> CLOSING -> gone
"""

from __future__ import annotations

from concurrent.futures import Future

from config.settings import Settings
from daemon import logs, metrics, work
from daemon.admission import Admission
from daemon.clock import Clock
from daemon.closing import Closing
from daemon.held import Held, Outcome, Stage, StopReason
from daemon.obstacles import RETRY_S, Obstacles
from daemon.progress import Progress
from daemon.runs import Runs
from daemon.workers import Workers
from scheduler.job import Job
from spool import attempts, claim, control, layout, plan, recover
from spool.batch import Batch
from spool.codes import Failure
from spool.record import LineError, Phase, Status

# Validation, which may write much, doubles RETRY_S each time up to this, seconds.
MAX_RETRY_S = 60.0
# Runs in a row that brought neither an answer nor a new attempt, after which the open lines fail; each waits
# longer than the one before.
MAX_FAILURES = 5
# A batch that is to end leaves a run that it shares after this long, without waiting for the others.
LEAVE_SHARED_S = 5.0

_log = logs.get()


class Lifecycle:
    """The moves. `held` maps batch ids to batches, in the order in which they came."""

    def __init__(
        self,
        settings: Settings,
        home: layout.Layout,
        clock: Clock,
        workers: Workers,
        runs: Runs,
        progress: Progress,
        count: metrics.Metrics,
    ) -> None:
        self.held: dict[str, Held] = {}
        self.is_stopping = False
        self.is_disk_low = False
        self._admission = Admission(settings, count)
        self._clock = clock
        self._workers = workers
        self._runs = runs
        self._progress = progress
        self._metrics = count
        self._obstacles = Obstacles(home, clock, self._forget)
        self._closing = Closing(
            settings.hooks, clock, workers, count, self._obstacles, self._forget, lambda: self.is_stopping
        )

    def claimed(self, batch: Batch) -> None:
        """Take up a batch that was just claimed."""
        _log.info("batch_claimed", batch=batch.id, drop=batch.record.drop)
        self.held[batch.id] = Held(batch, Stage.CLAIMED)

    def adopted(self, batch: Batch, monotonic: float) -> None:
        """Take up a batch of a daemon that is gone, where it stood."""
        record = batch.record
        latest = max([record.submitted_at, *(event.at for event in record.history)])
        ahead_s = max(0.0, latest - self._clock.now(monotonic))
        # Not to be shown before its parts are counted: the counts that users have seen would fall.
        held = Held(batch, Stage.CLAIMED, ahead_s=ahead_s)
        _log.info(
            "batch_adopted",
            batch=batch.id,
            drop=record.drop,
            status=record.status,
            crashes=record.crashes,
            ahead_s=round(ahead_s, 3),
        )
        self._metrics.batch_adopted()
        self.held[batch.id] = held
        if batch.final:
            held.stage, held.outcome = Stage.DECIDED, Outcome(batch.final.outcome, batch.final.reason)
            return
        if record.plan:
            held.stage = Stage.VALIDATED
            self._metrics.batch_resumed()
        if record.crashes >= recover.MAX_CRASHES:
            self._give_up(
                held, f"the daemon died {record.crashes} times in a row while it worked on this batch"
            )

    def _give_up(self, held: Held, why: str) -> None:
        """End a batch that cannot be worked on; a cancel that came before is obeyed all the same."""
        _log.error("batch_given_up", batch=held.id, reason=why)
        held.stage = Stage.DECIDED
        if held.batch.record.cancel_requested_at is not None:
            held.outcome = Outcome(Status.CANCELLED, "cancelled by its user")
        elif held.batch.record.plan:
            held.outcome = Outcome(Status.COMPLETED, why, gives_up=True)
        else:
            held.outcome = Outcome(Status.FAILED, why, errors=(LineError(code=Failure.ENGINE, message=why),))

    def advance(self, held: Held, now: float, monotonic: float) -> None:
        """Make the next move of a batch, if there is one to make now."""
        now = held.time(now)
        if monotonic < held.retry_at and not (held.stage is Stage.VALIDATED and self._is_over(held, now)):
            return
        with self._obstacles.met(held, held.stage):
            self._move(held, now, monotonic)

    def _move(self, held: Held, now: float, monotonic: float) -> None:
        match held.stage:
            case Stage.CLAIMED:
                self._validate(held, now, monotonic)
            case Stage.VALIDATED:
                self._enqueue(held, now, monotonic)
            case Stage.QUEUED | Stage.ON_HOLD:
                if self._is_over(held, now):
                    self._runs.queue.remove(held.id)
                    self._decide(held)
            case Stage.RUNNING:
                self._stop_if_over(held, now, monotonic)
            case Stage.ENDED:
                self._after_run(held, now, monotonic)
            case Stage.DECIDED:
                self._closing.finish(held, now)
            case Stage.PUBLISHED:
                self._closing.close(held)

    def _is_over(self, held: Held, now: float) -> bool:
        """Whether a batch is to end whatever is left of it."""
        record = held.batch.record
        return record.cancel_requested_at is not None or now >= record.deadline_at

    # The moves, in the order of a batch's life.

    def _validate(self, held: Held, now: float, monotonic: float) -> None:
        if self.is_stopping or self.is_disk_low:
            return
        claim.finish(held.batch)
        held.shown_at = monotonic
        if held.failures and self._is_over(held, now):  # it could not be copied, again and again
            self._decide(held)
            return
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
        wait_s = min(RETRY_S * 2**held.failures, MAX_RETRY_S)
        held.failures = min(held.failures + 1, 10)
        with self._obstacles.met(held, Stage.CLAIMED, wait_s):
            held.verdict, held.stage, held.failures = done.result(), Stage.VALIDATED, 0

    def _enqueue(self, held: Held, now: float, monotonic: float) -> None:
        """Apply a verdict, or take up a batch whose plan stands; then queue it, unless it is over already."""
        if isinstance(held.verdict, work.Checked):
            if not self._admission.apply(held, held.verdict, now):
                return
        elif not held.tallies:
            held.recount()  # adopted: what an earlier daemon did is no news for the metrics
        self._progress.recount(held, monotonic)
        record = held.batch.record
        assert record.plan is not None
        if held.left == 0 or self._is_over(held, now):
            self._decide(held)
        elif problem := self._admission.engine_problem(record.plan, record.runs):
            if problem not in record.warnings:
                held.batch.save(warnings=(*record.warnings, problem))
            held.stage, held.is_dirty = Stage.ON_HOLD, True
            _log.error("batch_on_hold", batch=held.id, reason=problem)
        elif len(self._runs.queue) >= self._runs.queue.limit:
            held.retry_at = monotonic + RETRY_S  # adopted beyond scheduler.max_claimed: waits for room
        else:
            self._admission.note_engine(held.batch)
            if record.phase is not Phase.QUEUED:
                held.batch.advance(now, record.status, Phase.QUEUED, "taken up again", pool=None)
            self._queue(held, monotonic, at_front=False)

    def _queue(self, held: Held, monotonic: float, *, at_front: bool) -> None:
        job = Job.of(held.batch.record, held.left, held.ahead_s)
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
        phase, now = held.batch.record.phase, held.time(now)
        held.batch.advance(now, Status.CANCELLING, phase, "cancelled by its user", cancel_requested_at=now)
        held.is_dirty = True
        _log.info("batch_cancelling", batch=held.id)

    def _stop_if_over(self, held: Held, now: float, monotonic: float) -> None:
        """Stop a run's work on a batch that is over; where others share the run, do not wait for them.

        That is safe: a part that a task writes after the merge has no folder to go to, and its lines are
        told as unanswered.
        """
        if not self._is_over(held, now):
            return
        if held.stop_reason not in (StopReason.CANCELLED, StopReason.EXPIRED):
            is_cancelled = held.batch.record.cancel_requested_at is not None
            stop(held, StopReason.CANCELLED if is_cancelled else StopReason.EXPIRED)
            held.stopped_at = monotonic
        elif monotonic - held.stopped_at > LEAVE_SHARED_S and self._runs.is_shared(held):
            held.stage = Stage.ENDED

    def _after_run(self, held: Held, now: float, monotonic: float) -> None:
        """A run is over, or all lines are answered: end the batch, or queue it again."""
        self._progress.recount(held, monotonic)
        record = held.batch.record
        if held.left == 0 or self._is_over(held, now):
            self._decide(held)
        elif self.is_stopping:
            return  # stays where it is; the next start adopts it
        elif held.stop_reason in (StopReason.PREEMPTED, StopReason.DISK_FULL, StopReason.SWAPPED):
            reason = f"{held.stop_reason}: {held.left} requests left"
            held.batch.advance(now, record.status, Phase.PREEMPTED, reason)
            held.preemptions += held.stop_reason is StopReason.PREEMPTED
            self._queue(held, monotonic, at_front=True)
        else:
            self._after_failure(held, now, monotonic)
        held.stop_reason = None

    def _after_failure(self, held: Held, now: float, monotonic: float) -> None:
        if held.is_disk_to_blame:
            plan.must_stand(held.batch.folder)  # else it would be run again for ever
        why = held.run_error or "its run ended early"
        is_news = held.done > held.done_at_begin
        is_news |= attempts.digest(held.batch.folder) != held.attempts_at_begin
        failures = 0 if is_news else held.failures + (not held.is_disk_to_blame)
        if failures >= MAX_FAILURES:
            self._give_up(held, f"{failures} runs in a row brought nothing; last: {why}")
            return
        held.batch.advance(now, held.batch.record.status, Phase.QUEUED, f"to be run again: {why}")
        held.failures = failures
        # The queue goes on meanwhile; this one joins it again after a backoff.
        held.stage, held.retry_at, held.is_dirty = Stage.VALIDATED, monotonic + RETRY_S * 2**failures, True

    def _decide(self, held: Held) -> None:
        """Choose the outcome of a batch that runs no more."""
        if held.batch.record.cancel_requested_at is not None:
            held.outcome = Outcome(Status.CANCELLED, "cancelled by its user")
        elif held.batch.record.plan and held.left == 0:
            held.outcome = Outcome(Status.COMPLETED, "all requests were worked on")
        else:
            held.outcome = Outcome(Status.EXPIRED, "its completion window ended")
        held.stage = Stage.DECIDED

    def _forget(self, held: Held) -> None:
        self._runs.queue.remove(held.id)
        self.held.pop(held.id, None)


def stop(held: Held, reason: StopReason) -> None:
    """Tell the run that has a batch to end its share of it; what is finished is kept.

    Raises:
        OSError: it could not be told.
    """
    control.request_stop(held.batch.folder)
    held.stop_reason = reason
    _log.info("run_stopping", batch=held.id, run=held.run_id, reason=reason)
