"""Moves each batch from one stage to the next, on the loop's thread; what takes long goes to workers.

`advance` is called for every held batch in every pass. Each move makes its change durable first and only then
changes what is in memory, so after an I/O error the very same move is tried again later. A batch that another
daemon has adopted is dropped from memory and nothing more is done to it.

    CLAIMED -> VALIDATING -> VALIDATED -> QUEUED <-> RUNNING -> ENDED -> DECIDED -> FINISHING -> gone
"""

from __future__ import annotations

from concurrent.futures import Future

from config.settings import EchoModel, OpenAIModel, Settings, VllmModel
from daemon import logs, metrics, work
from daemon.clock import Clock
from daemon.held import Held, Outcome, Stage, StopReason
from daemon.runs import Runs
from daemon.workers import Workers
from pipeline import validate
from pipeline.errors import PipelineError
from scheduler.job import Job
from spool import claim, control, parts, recover
from spool.batch import Batch
from spool.errors import BatchGone
from spool.lines import Code
from spool.record import Final, LineError, Phase, Plan, Status

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
        self._settings = settings
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
        settings = self._settings
        if problem := self._pool_problem(held.batch.record.sidecar.pool):
            held.verdict, held.stage = work.Checked(problem, None, None), Stage.VALIDATED
            return
        rules = validate.Rules(
            models=frozenset(model.name for model in settings.models),
            limits=settings.limits,
            endpoint=held.batch.record.sidecar.endpoint,
            on_invalid=held.batch.record.sidecar.on_invalid or settings.batches.on_invalid,
            allowed_media_domains=settings.engine.allowed_media_domains,
        )
        held.stage = Stage.VALIDATING
        self._workers.submit(
            "validate",
            work.check,
            held.batch,
            rules,
            lambda: self.is_stopping,
            then=lambda done: self._validated(held, done),
        )

    def _pool_problem(self, pool: str) -> LineError | None:
        """Why a batch could never run: it asks for a pool in which nothing runs here."""
        pools = self._settings.scheduler.pools
        capacity = {"spot": pools.spot.capacity, "dedicated": pools.dedicated.capacity}.get(pool)
        if capacity != 0:
            return None
        message = f"sidecar pool: {pool!r} has no capacity here (scheduler.pools.{pool}.capacity is 0)"
        return LineError(code="invalid_request", message=message, param="pool")

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
        if isinstance(held.verdict, work.Checked) and not self._apply(held, held.verdict, now):
            return
        held.verdict = None
        record = held.batch.record
        assert record.plan is not None
        recount(held)
        if held.left == 0 or record.cancel_requested_at is not None or now >= record.deadline_at:
            self._decide(held, now)
            return
        if problem := self._engine_differs(record.plan, held.done):
            held.batch.save(warnings=(*record.warnings, problem))
            held.stage, held.is_dirty = Stage.ON_HOLD, True
            _log.error("batch_on_hold", batch=held.id, reason=problem)
            return
        if record.plan.engine != self._identity(record.plan.model):
            held.batch.save(plan=record.plan.model_copy(update={"engine": self._identity(record.plan.model)}))
        if len(self._runs.queue) >= self._runs.queue.limit:
            held.retry_at = monotonic + RETRY_S  # adopted beyond scheduler.max_claimed: waits for room
            return
        self._queue(held, monotonic, at_front=False)

    def _apply(self, held: Held, checked: work.Checked, now: float) -> bool:
        """Make a verdict durable; False if the batch ends with it."""
        verdict = checked.verdict
        if checked.problem or verdict is None or not verdict.is_valid:
            self._fail(held, checked)
        else:
            plan = Plan(
                endpoint=verdict.endpoint,
                model=verdict.model,
                requests=verdict.requests,
                shards=verdict.shards,
                input_bytes=verdict.input_bytes,
                sha256=verdict.sha256,
                engine=self._identity(verdict.model),
            )
            reason = f"valid: {verdict.requests} requests for {verdict.model}"
            status = held.batch.record.status
            held.batch.advance(now, status, Phase.QUEUED, reason, plan=plan, identity=checked.identity)
            _log.info("batch_valid", batch=held.id, requests=verdict.requests, rejected=verdict.rejected)
        for code, count in verdict.codes.items() if verdict else ():
            self._metrics.lines_rejected(code, count)
        held.verdict, held.is_dirty = None, True
        return held.stage is not Stage.DECIDED

    def _fail(self, held: Held, checked: work.Checked) -> None:
        """End a batch whose file is not valid; a cancel that came meanwhile is obeyed all the same."""
        if checked.problem:
            found: tuple[LineError, ...] = (checked.problem,)
            count = 1
            self._metrics.lines_rejected(checked.problem.code)
        else:
            assert checked.verdict is not None
            found, count = checked.verdict.errors, checked.verdict.total_errors
        if held.batch.record.cancel_requested_at is not None:
            held.outcome = Outcome(Status.CANCELLED, "cancelled while it was validated")
        else:
            reason = f"validation found {count} error{'s' if count > 1 else ''}: {found[0].message}"
            held.outcome = Outcome(Status.FAILED, reason, errors=found)
        held.stage = Stage.DECIDED

    def _identity(self, model: str) -> dict[str, object]:
        """What decides the answers of a model; empty for one that is not configured."""
        for configured in self._settings.models:
            if configured.name == model:
                return identity(configured)
        return {}

    def _engine_differs(self, plan: Plan, done: int) -> str | None:
        """Why a batch cannot go on with the engine of today."""
        today = self._identity(plan.model)
        if not plan.model:
            return None
        if not today:
            return f"model {plan.model!r} is not configured any more: configure it again, or cancel the batch"
        if done and today != plan.engine:
            return (
                f"model {plan.model!r} was {plan.engine} when this batch began and is {today} now: "
                "set it back, or cancel the batch and drop the file again"
            )
        return None

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
        recount(held)
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
        self._count_end(held, final)

    def _count_end(self, held: Held, final: Final) -> None:
        record = held.batch.record
        seconds = round(final.at - record.submitted_at, 3)
        _log.info(
            "batch_ended",
            batch=held.id,
            status=final.outcome,
            reason=final.reason,
            completed=final.completed,
            failed=final.failed,
            seconds=seconds,
            outbox=record.outbox_name,
        )
        self._metrics.batch_ended(final.outcome, seconds)
        if final.outcome in (Status.COMPLETED, Status.EXPIRED):
            self._metrics.deadline_judged(final.at <= record.deadline_at, record.deadline_at - final.at)
        if record.plan and (unanswered := final.failed - held.failed) > 0:
            outcome = {Code.EXPIRED: metrics.Outcome.EXPIRED, Code.CANCELLED: metrics.Outcome.CANCELLED}
            code = held.outcome.code if held.outcome else Code.ENGINE
            self._metrics.requests_ended(
                record.plan.model, outcome.get(code, metrics.Outcome.FAILED), unanswered
            )

    def _forget(self, held: Held) -> None:
        self._runs.queue.remove(held.id)
        self.held.pop(held.id, None)


def identity(model: VllmModel | OpenAIModel | EchoModel) -> dict[str, object]:
    """What of a model's settings decides its answers; how many engines it has does not."""
    return model.model_dump(mode="json", exclude={"name", "replicas", "latency_s", "urls", "api_key_env"})


def recount(held: Held) -> None:
    """Count what durable parts hold.

    Raises:
        BatchGone: the batch was adopted by another daemon.
    """
    try:
        names = parts.list_parts(held.batch.folder)
    except FileNotFoundError as error:
        raise BatchGone(f"{held.id} was adopted by another daemon") from error
    held.completed = sum(name.completed for name in names)
    held.failed = sum(name.failed for name in names)
    held.tokens = sum(name.tokens for name in names)


def stop(held: Held, reason: StopReason) -> None:
    """Tell the run that has a batch to end its share of it; what is finished is kept."""
    held.stop_reason = reason
    control.request_stop(held.batch.folder)
    _log.info("run_stopping", batch=held.id, run=held.run_id, reason=reason)
