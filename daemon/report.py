"""Reports: how far running batches are, to status.json, to the metrics and to the throughput estimate.

Progress is what durable parts hold, counted by listing their names. A running batch's status.json is written
every SHOW_EVERY_S whether something changed or not, so that users see that it is alive; another's when it
changed.
"""

from __future__ import annotations

import itertools
from collections import Counter

from daemon import logs, metrics
from daemon.held import ENDING, Held, Stage
from daemon.progress import Progress
from daemon.runs import Runs
from pipeline.team import ModelState
from scheduler import sla
from scheduler.job import Job
from spool import partial, parts
from spool.errors import BatchGone
from spool.record import Final, Status

COUNT_EVERY_S = 0.5
SHOW_EVERY_S = 1.0
# Between two looks at the deadlines of what waits in the queue: there may be thousands.
JUDGE_QUEUED_EVERY_S = 5.0
# Writing one waits for the disk, for an fsync: a run of hundreds of batches must not hold up the loop.
SHOWN_PER_PASS = 32
# A batch whose status.json could not be written is tried again after this long.
RETRY_S = 2.0
# Batches that go on only after a person has done something.
_FOR_A_PERSON = (Stage.ON_HOLD, Stage.DAMAGED)

_log = logs.get()


class Reporter:
    """Counts, estimates and shows; on the loop's thread."""

    def __init__(
        self, runs: Runs, progress: Progress, count: metrics.Metrics, preempt_every_s: float
    ) -> None:
        self._runs = runs
        self._progress = progress
        self._metrics = count
        self._preempt_every_s = preempt_every_s
        self._counted_at = 0.0
        self._judged_at = float("-inf")

    def report(self, held: dict[str, Held], now: float, monotonic: float) -> None:
        """Bring everything up to date that is due."""
        if monotonic - self._counted_at >= COUNT_EVERY_S:
            self._count_all(held, now, monotonic)
        due = [batch for batch in held.values() if self._is_due(batch, monotonic)]
        for batch in sorted(due, key=lambda batch: batch.shown_at)[:SHOWN_PER_PASS]:
            self._show(batch, now, monotonic)

    def _count_all(self, held: dict[str, Held], now: float, monotonic: float) -> None:
        seconds, self._counted_at = monotonic - self._counted_at, monotonic
        is_queue_due = monotonic - self._judged_at >= JUDGE_QUEUED_EVERY_S
        if is_queue_due:
            self._judged_at = monotonic
        for batch in held.values():
            if batch.stage is Stage.RUNNING:
                self._count(batch, monotonic)
                self._judge_risk(batch, now)
            elif batch.stage is Stage.QUEUED and is_queue_due:
                self._judge_risk(batch, now)
        fresh = self._progress.take()
        runs = Counter(going.model for going in self._runs.going.values())
        seconds = min(seconds, 10 * COUNT_EVERY_S)
        for model in runs.keys() | fresh.keys():  # of what ended just now the last answers are counted here
            self._runs.throughput.observe(model, fresh[model], seconds, max(1, runs[model]))
        self._export(held)

    def _count(self, held: Held, monotonic: float) -> None:
        """Count a running batch's parts; one that is complete need not wait for the rest of its run."""
        before = held.tallies
        try:
            self._progress.recount(held, monotonic)
        except (BatchGone, OSError, ValueError):
            return  # the next move of the batch meets the same and acts on it
        if held.left == 0:
            held.stage = Stage.ENDED
        elif held.shows_parts:
            _show_parts(held, before)

    def _judge_risk(self, held: Held, now: float) -> None:
        rate = self._runs.throughput.rates.get(held.model)
        job = Job.of(held.batch.record, held.left, held.ahead_s)
        is_at_risk = sla.at_risk(
            job, now, rate, self._preempt_every_s if held.batch.record.pool == "spot" else 0.0
        )
        if is_at_risk != held.is_at_risk:
            held.is_at_risk, held.is_dirty = is_at_risk, True
            _log.info("deadline_at_risk" if is_at_risk else "deadline_safe", batch=held.id, left=held.left)

    def _is_due(self, held: Held, monotonic: float) -> bool:
        if not held.is_dirty or held.stage in (Stage.CLAIMED, Stage.VALIDATING, Stage.DECIDED, *ENDING):
            return False  # a worker has it, or its next move shows it
        return monotonic - held.shown_at >= SHOW_EVERY_S

    def _show(self, held: Held, now: float, monotonic: float) -> None:
        held.shown_at = monotonic
        try:
            held.batch.show(held.progress(held.time(now), is_running=held.stage is Stage.RUNNING))
            held.is_dirty = False
        except BatchGone:
            pass  # the next move of the batch meets the same and acts on it
        except OSError as error:
            held.shown_at = monotonic + RETRY_S
            _log.warning("status_not_written", batch=held.id, error=str(error))

    def _export(self, held: dict[str, Held]) -> None:
        active = [batch for batch in held.values() if batch.stage not in (Stage.PUBLISHED, Stage.CLOSING)]
        self._metrics.set_active(Counter(batch.batch.record.status for batch in active))
        self._metrics.set_held(sum(batch.stage in _FOR_A_PERSON for batch in held.values()))
        at_risk = sum(batch.is_at_risk for batch in held.values())
        self._metrics.set_queue(len(self._runs.queue), at_risk, self._runs.waits.counts)
        for pool in metrics.POOLS:
            self._metrics.set_pool(pool, self._runs.pools.capacity(pool), self._runs.pools.free(pool))


def _show_parts(held: Held, before: dict[int, parts.Tally]) -> None:
    """Link the parts into the outbox that came since."""
    fresh = [tally.names for shard, tally in held.tallies.items() if before.get(shard) is not tally]
    if not fresh:
        return
    try:
        names = itertools.chain.from_iterable(fresh)
        partial.show(held.batch.folder, held.batch.outbox, names, held.batch.mode)
    except FileNotFoundError:
        pass  # its user removed the folder, or it was adopted: the next move of the batch finds out
    except OSError as error:
        held.shows_parts = False
        _log.warning("partial_not_shown", batch=held.id, error=str(error))


def count_end(count: metrics.Metrics, held: Held, final: Final) -> None:
    """Log and count the end of a batch."""
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
    count.batch_ended(final.outcome, seconds)
    if final.outcome in (Status.COMPLETED, Status.EXPIRED):
        count.deadline_judged(final.at <= record.deadline_at, record.deadline_at - final.at)
    if record.plan and (unanswered := final.failed - held.failed) > 0:
        outcomes = {
            Status.EXPIRED: metrics.Outcome.EXPIRED,
            Status.CANCELLED: metrics.Outcome.CANCELLED,
        }
        outcome = outcomes.get(final.outcome, metrics.Outcome.FAILED)
        count.requests_ended(record.plan.model, outcome, unanswered)


class EngineMetrics:
    """Turns what the fleet says into metrics; called on the engines' thread."""

    def __init__(self, count: metrics.Metrics) -> None:
        self._metrics = count
        self._restarts: dict[str, int] = {}

    def planned(self, model: str, replicas: int) -> None:
        """Take in how many replicas a model should have."""
        self._metrics.set_engine_replicas_wanted(model, replicas)

    def swapped(self, model: str) -> None:
        """Count that engines of a model gave room to another's."""
        self._metrics.engine_swapped(model)

    def observe(self, state: ModelState) -> None:
        """Take in one model's state."""
        self._metrics.set_engine_replicas(state.model, state.up)
        self._metrics.set_engine_up(state.model, state.up > 0)
        self._metrics.set_inflight(state.model, state.inflight)
        if state.start_seconds is not None and state.up:
            self._metrics.engine_started(state.model, state.start_seconds)
        for _ in range(state.restarts - self._restarts.get(state.model, 0)):
            self._metrics.engine_restarted(state.model)
        self._restarts[state.model] = state.restarts
        self._metrics.requests_took(state.model, state.durations)
        self._metrics.set_engine_values(state.model, state.engines)
        for kind, count in zip(metrics.TokenKind, state.usage, strict=True):
            self._metrics.tokens_used(state.model, kind, count)
