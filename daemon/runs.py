"""Runs: asks the scheduler what begins now and where, starts it in a worker thread, and ends it.

Every decision is logged with its reason and counted. A slot of a pool is taken before the run begins and
given back when its thread has ended, whatever became of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass

from config.settings import Settings
from daemon import logs, waiting
from daemon.held import Held, Stage, StopReason
from daemon.metrics import Metrics
from daemon.workers import Workers
from pipeline import errors, placement
from pipeline.run import Work
from scheduler import assign
from scheduler.engines import Absence
from scheduler.pools import Pools, Run
from scheduler.queue import Queue
from scheduler.sla import Throughput
from spool import attempts, control
from spool.errors import BatchGone
from spool.record import Phase, Status

_log = logs.get()

# After an I/O error, seconds.
RETRY_S = 2.0

# Runs works of one model on a pool's engines; blocks (pipeline.run.run with the fleet bound).
Execute = Callable[[list[Work], str, str], None]


@dataclass(frozen=True, slots=True)
class _Going:
    """A run that is going."""

    run: Run
    model: str
    batches: tuple[Held, ...]


class Runs:
    """The scheduler's state, and the runs that are going."""

    def __init__(self, settings: Settings, workers: Workers, count: Metrics, execute: Execute) -> None:
        scheduler = settings.scheduler
        self.queue = Queue(scheduler.policy, limit=scheduler.max_claimed)
        self.pools = Pools(scheduler.pools)
        self.throughput = Throughput()
        self.going: dict[str, _Going] = {}
        self._workers = workers
        self._metrics = count
        self._execute = execute
        self._numbers = itertools.count(1)
        self.waits = waiting.Waits()

    def begin_some(
        self,
        held: dict[str, Held],
        ready: Collection[str],
        absent: Mapping[str, tuple[Absence, str]],
        now: float,
        monotonic: float,
    ) -> None:
        """Begin what the scheduler says may begin now.

        Args:
            held: the batches.
            ready: models of which runs may begin.
            absent: why no engine of a model takes requests, in a class and in words.
            now: Unix seconds.
            monotonic: seconds of the monotonic clock.
        """
        reasons = {model: why for model, (why, _) in absent.items()}
        begun, left = assign.assign(self.queue, self.pools, now, ready, self.throughput.rates, reasons)
        for assignment in begun:
            self._begin(assignment, held, now, monotonic)
        self.waits.note(left, absent, held, now, monotonic)

    def _begin(
        self, assignment: assign.Assignment, held: dict[str, Held], now: float, monotonic: float
    ) -> None:
        batches = []
        for job in assignment.jobs:
            batch = held[job.batch_id]
            self.queue.remove(job.batch_id)
            if self._is_begun(batch, assignment, now, monotonic):
                batches.append(batch)
        if not batches:
            return
        run = Run(f"run-{next(self._numbers)}", assignment.pool, now)
        self.pools.take(run)
        self.going[run.run_id] = _Going(run, assignment.model, tuple(batches))
        for batch in batches:
            batch.stage, batch.run_id = Stage.RUNNING, run.run_id
            batch.stop_reason = batch.run_error = None
            batch.is_dirty, batch.done_at_begin = True, batch.done
            batch.samples.clear()
            batch.samples.append((monotonic, batch.done, batch.tokens))
            self.waits.begun(batch.id)
            if batch.batch.record.runs == 1:
                self._metrics.queue_waited(monotonic - batch.queued_at)
            _log.info(
                "batch_assigned",
                batch=batch.id,
                pool=assignment.pool,
                reason=assignment.reason,
                run=run.run_id,
                attempt=batch.batch.record.runs,
                requests=batch.left,
            )
        self._metrics.pool_assigned(assignment.pool, assignment.reason)
        works = [Work(batch.batch.folder, batch.batch.record.runs) for batch in batches]
        self._workers.submit(
            "run",
            self._execute,
            works,
            assignment.model,
            assignment.pool,
            then=lambda done: self._ended(run.run_id, done),
        )

    def _is_begun(self, held: Held, assignment: assign.Assignment, now: float, monotonic: float) -> bool:
        """Make the begin of a batch's run durable; False if it cannot be, and the batch waits."""
        record = held.batch.record
        status = Status.IN_PROGRESS if record.status is Status.VALIDATING else record.status
        try:
            control.clear_stop(held.batch.folder)
            held.attempts_at_begin = attempts.digest(held.batch.folder)
            held.batch.advance(
                held.time(now),
                status,
                Phase.RUNNING,
                f"assigned to {assignment.pool}: {assignment.reason}",
                pool=assignment.pool,
                runs=record.runs + 1,
                in_progress_at=record.in_progress_at or held.time(now),
            )
        except (OSError, BatchGone) as error:
            held.stage, held.retry_at = Stage.VALIDATED, monotonic + RETRY_S  # is queued again then
            _log.warning("run_not_begun", batch=held.id, error=str(error))
            return False
        return True

    def _ended(self, run_id: str, done: Future[None]) -> None:
        """A run's thread has ended: give the slot back and let each of its batches move on."""
        going = self.going.pop(run_id)
        self.pools.release(run_id)
        problem, is_disk_to_blame = None, False
        try:
            done.result()
        except Exception as error:  # noqa: BLE001 (whatever went wrong, the slot and the batches must move on)
            problem = str(error) or repr(error)
            is_disk_to_blame = _is_io_error(error)
            known = isinstance(error, errors.PipelineError | OSError)
            (_log.error if known else _log.exception)(
                "run_failed", run=run_id, model=going.model, error=problem
            )
        for held in going.batches:
            if held.stage is Stage.RUNNING and held.run_id == run_id:
                held.stage, held.run_error = Stage.ENDED, problem
                held.is_disk_to_blame = is_disk_to_blame

    def preempt_some(
        self, now: float, found: placement.Pools, stop: Callable[[Held, StopReason], None]
    ) -> None:
        """Stop the runs of pools that take them back: the mock one at random, a real one without nodes."""
        self.pools.open_only(found.ready)
        for run_id in self.pools.preempt(now, found.lost):
            going = self.going[run_id]
            _log.info("run_preempted", run=run_id, pool=going.run.pool, batches=len(going.batches))
            self._metrics.pool_preempted(going.run.pool)
            self.stop_all(going.batches, StopReason.PREEMPTED, stop)

    def make_room(self, models: Collection[str], stop: Callable[[Held, StopReason], None]) -> None:
        """Stop the runs of models whose engines others need."""
        for going in self.going.values():
            if going.model in models:
                self.stop_all(going.batches, StopReason.SWAPPED, stop)

    def stop_all(
        self, batches: Collection[Held], reason: StopReason, stop: Callable[[Held, StopReason], None]
    ) -> None:
        """Stop what runs of these batches, unless it is stopping already."""
        for held in batches:
            if held.stage is Stage.RUNNING and held.stop_reason is None:
                try:
                    stop(held, reason)
                except OSError as error:
                    _log.warning("run_not_stopped", batch=held.id, reason=reason, error=str(error))

    def is_shared(self, held: Held) -> bool:
        """Whether the run that has a batch has others as well."""
        going = self.going.get(held.run_id or "")
        return going is not None and len(going.batches) > 1


def _is_io_error(error: BaseException | None) -> bool:
    """Whether an I/O error is behind it; Ray and the run wrap what a task raised."""
    while error is not None:
        if isinstance(error, OSError):
            return True
        inner = getattr(error, "cause", None)
        error = inner if isinstance(inner, BaseException) else error.__cause__
    return False
