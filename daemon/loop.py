"""The loop: `run` repeats `step` until it is told to stop, then stops everything in order.

`step` is one pass: collect what threads have finished, look at the spool, take in drops, move every batch one
stage on, begin runs, report. It takes the time as an argument and returns how long it is safe to wait; events
only make it look earlier. A pass that meets an I/O error on the spool itself changes nothing and says so.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass

from config.settings import Settings
from daemon import http, lifecycle, logs, metrics, needs, outbox, runs
from daemon.clock import Clock
from daemon.engines import Engines
from daemon.held import ENDING, Held, Stage, StopReason
from daemon.intake import Intake
from daemon.report import COUNT_EVERY_S, Reporter
from daemon.workers import Workers
from spool import control, create, layout, lease, retention
from spool.errors import BatchGone, InstanceLost, SpoolUnavailable

# Between two looks at `cancel` files and at the disk, seconds; a cancel is to be seen within 2 s.
LOOK_EVERY_S = 1.0
# Between two looks for cancels of batches that have ended, seconds; each looks at every folder in outbox/.
REFUSE_EVERY_S = 5.0
# Between two looks at archive/, seconds.
RETENTION_EVERY_S = 600.0
# Stages in which a batch's record is not the loop's to change.
_NOT_OURS = (Stage.VALIDATING, *ENDING, Stage.DAMAGED)
# Stages that have a next move to make now.
_MOVING = (Stage.VALIDATED, Stage.ENDED, Stage.DECIDED, Stage.PUBLISHED)
# The longest wait, so that deadlines, leases and /healthz are never far behind; seconds.
LONGEST_WAIT_S = 1.0

_log = logs.get()


@dataclass
class Parts:
    """What the loop works with."""

    settings: Settings
    home: layout.Layout
    lease: lease.Lease
    clock: Clock
    wake: threading.Event
    workers: Workers
    engines: Engines
    intake: Intake
    runs: runs.Runs
    lifecycle: lifecycle.Lifecycle
    reporter: Reporter
    metrics: metrics.Metrics
    health: http.Health


class Loop:
    """Drives the daemon from one thread."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self._pauses: frozenset[metrics.Pause] = frozenset()
        self._looked_at = float("-inf")
        self._retained_at = float("-inf")
        self._refused_at = float("-inf")
        self._low_since: float | None = None

    def run(self, stop: threading.Event) -> None:
        """Step until `stop` is set, then shut down.

        Raises:
            EngineStartError: an engine could not be started.
        """
        wake = self.parts.wake
        is_woken = True
        while not stop.is_set():
            started = time.monotonic()
            wait_s = self.step(started, is_woken=is_woken)
            self.parts.metrics.step_took(time.monotonic() - started)
            self.parts.health.beat()
            is_woken = wake.wait(wait_s)
            wake.clear()  # before the pass that looks, so that nothing is missed
        self.shut_down()

    def step(self, monotonic: float, *, is_woken: bool) -> float:
        """One pass.

        Args:
            monotonic: seconds of the monotonic clock.
            is_woken: whether an event came since the last pass.

        Returns:
            Seconds that it is safe to wait.

        Raises:
            EngineStartError: an engine could not be started.
            InstanceLost: another daemon took this one for dead.
        """
        parts = self.parts
        if parts.engines.error:
            raise parts.engines.error
        now = parts.clock.now(monotonic)
        parts.workers.collect()
        if monotonic - self._looked_at >= LOOK_EVERY_S:
            self._looked_at = monotonic
            self._look(now, monotonic)
        held = parts.lifecycle.held
        if metrics.Pause.SPOOL_UNAVAILABLE not in self._pauses:
            try:
                self._take_in(now, monotonic, is_woken)
            except OSError as error:  # the spool went away since the last look; the next one says so
                _log.warning("intake_failed", error=str(error))
                self._looked_at = float("-inf")
            for each in list(held.values()):
                parts.lifecycle.advance(each, now, monotonic)
            self._run_some(now, monotonic)
            parts.reporter.report(held, now, monotonic)
        return self._wait_s(monotonic)

    def _run_some(self, now: float, monotonic: float) -> None:
        """Stop and begin runs, all by one view of the engines, and say what there is left to do."""
        parts = self.parts
        view = parts.engines.view
        parts.runs.preempt_some(now, parts.engines.pools, lifecycle.stop)
        parts.runs.make_room(view.leaving, lifecycle.stop)
        if metrics.Pause.DISK_NEARLY_FULL not in self._pauses:
            ready = parts.engines.ready_for(view, needs.requests(parts.runs))
            parts.runs.begin_some(parts.lifecycle.held, ready, view.absent, now, monotonic)
        parts.engines.hand_over(needs.demands(parts.runs), view.number)

    def _take_in(self, now: float, monotonic: float, is_woken: bool) -> None:
        """Adopt what dead daemons held, and claim what is complete."""
        parts = self.parts
        for batch in parts.intake.adopt_some(monotonic, parts.lifecycle.held.keys()):
            parts.lifecycle.adopted(batch, monotonic)
        room = 0 if self._pauses else parts.settings.scheduler.max_claimed - len(parts.lifecycle.held)
        for batch in parts.intake.claim_some(now, monotonic, is_woken, room):
            parts.lifecycle.claimed(batch)

    def _wait_s(self, monotonic: float) -> float:
        if metrics.Pause.SPOOL_UNAVAILABLE in self._pauses:
            return LOOK_EVERY_S
        held = self.parts.lifecycle.held
        if any(each.stage in _MOVING for each in held.values()):
            # A next move is there; one that waits for its retry must not make the loop spin.
            return 0.0 if any(self._can_move(each, monotonic) for each in held.values()) else COUNT_EVERY_S
        wait_s = COUNT_EVERY_S if self.parts.runs.going else LONGEST_WAIT_S
        return min(wait_s, self.parts.intake.next_in_s(monotonic, can_claim=not self._pauses))

    def _can_move(self, each: Held, monotonic: float) -> bool:
        is_due = each.stage in _MOVING and monotonic >= each.retry_at
        return is_due and not self.parts.lifecycle.is_stopping

    # What is looked at every second.

    def _look(self, now: float, monotonic: float) -> None:
        """Pause file, disk, cancels, retention; then say whether the daemon is ready."""
        pauses = set()
        try:
            create.check(self.parts.home)
            if control.is_paused(self.parts.home):
                pauses.add(metrics.Pause.PAUSE_FILE)
            self._look_at_disk(pauses, now)
        except (SpoolUnavailable, OSError) as error:
            pauses.add(metrics.Pause.SPOOL_UNAVAILABLE)
            if metrics.Pause.SPOOL_UNAVAILABLE not in self._pauses:
                _log.error("spool_unavailable", error=str(error))
        else:
            self._must_be_alive()
        if len(self.parts.lifecycle.held) >= self.parts.settings.scheduler.max_claimed:
            pauses.add(metrics.Pause.MAX_CLAIMED)
        for pause in sorted(pauses ^ self._pauses):
            _log.warning("paused" if pause in pauses else "resumed", reason=pause)
        self._pauses = frozenset(pauses)
        self.parts.metrics.set_paused(self._pauses)
        starting = [f"engine starting: {model}" for model in self.parts.engines.starting]
        blocking = self._pauses & {metrics.Pause.DISK_NEARLY_FULL, metrics.Pause.SPOOL_UNAVAILABLE}
        self.parts.health.set_not_ready(starting + sorted(str(pause).replace("_", " ") for pause in blocking))
        if metrics.Pause.SPOOL_UNAVAILABLE not in self._pauses:
            self._look_for_cancels(now)
            self._refuse_late_cancels(monotonic)
            self._retain(now, monotonic)

    def _must_be_alive(self) -> None:
        """End if another daemon took this one for dead, while it slept say: a new start is a new instance.

        Raises:
            InstanceLost: it did; whatever this one held is the other's now.
        """
        if self.parts.lease.is_lost:
            raise InstanceLost(
                f"another daemon took this one for dead and adopted {self.parts.lease.folder}: start again"
            )

    def _look_at_disk(self, pauses: set[metrics.Pause], now: float) -> None:
        try:
            free_bytes = control.free_bytes(self.parts.home)
        except OSError as error:
            raise SpoolUnavailable(
                f"the spool cannot be asked for its free space: {error.strerror}: is the volume mounted?"
            ) from error
        least_bytes = self.parts.settings.spool.min_free_bytes
        self.parts.metrics.set_free_bytes(free_bytes, least_bytes)
        self.parts.lifecycle.is_disk_low = free_bytes < least_bytes
        if free_bytes < least_bytes:
            pauses.add(metrics.Pause.DISK_NEARLY_FULL)
            if self._low_since is None:
                self._low_since = now
                _log.error("disk_nearly_full", free_bytes=free_bytes, min_free_bytes=int(least_bytes))
            running = list(self.parts.lifecycle.held.values())
            self.parts.runs.stop_all(running, StopReason.DISK_FULL, lifecycle.stop)
        elif self._low_since is not None:
            self._note_in_status(
                f"waited {now - self._low_since:.0f} s for disk space (spool.min_free_bytes)"
            )
            self._low_since = None

    def _note_in_status(self, warning: str) -> None:
        for each in self.parts.lifecycle.held.values():
            # Also one whose own move waits for space; but what a worker has is the worker's.
            if each.stage not in _NOT_OURS:
                try:
                    each.batch.save(warnings=(*each.batch.record.warnings, warning))
                    each.is_dirty = True
                except (OSError, BatchGone) as error:
                    _log.warning("warning_not_saved", batch=each.id, error=str(error))

    def _look_for_cancels(self, now: float) -> None:
        for each in list(self.parts.lifecycle.held.values()):
            if each.stage in (Stage.CLAIMED, *ENDING):
                continue  # not shown yet, or ending: publishing answers a cancel that comes too late
            if each.batch.record.outbox_name and control.cancel_requested(each.batch.outbox):
                try:
                    if each.batch.is_placed:  # else the folder of that name is another batch's by now
                        self.parts.lifecycle.cancel(each, now)
                except (OSError, BatchGone) as error:
                    _log.warning("cancel_waits", batch=each.id, error=str(error))

    def _refuse_late_cancels(self, monotonic: float) -> None:
        """Answer a cancel of a batch that has ended; of one that another daemon holds, that daemon will."""
        if monotonic - self._refused_at < REFUSE_EVERY_S:
            return
        self._refused_at = monotonic
        try:
            names = os.listdir(self.parts.home.outbox)
        except OSError as error:
            _log.warning("cancel_not_refused", error=str(error))
            return
        for name in names:
            folder = self.parts.home.outbox / name
            try:
                if control.cancel_requested(folder):
                    shown = outbox.read(folder)
                    if shown and shown.is_terminal:
                        control.refuse_cancel(folder, f"the batch had already ended as {shown.status}")
            except OSError as error:  # of this one, such as where its user made a folder of that name
                _log.warning("cancel_not_refused", outbox=name, error=str(error))

    def _retain(self, now: float, monotonic: float) -> None:
        if monotonic - self._retained_at < RETENTION_EVERY_S:
            return
        self._retained_at = monotonic
        spool = self.parts.settings.spool
        try:
            kept = retention.list_kept(self.parts.home.archive)
        except OSError as error:
            _log.warning("retention_failed", error=str(error))
            return
        for batch in retention.to_delete(kept, now, spool.retention_days, spool.retention_bytes):
            try:
                retention.delete(batch)
            except OSError as error:  # of this one only
                _log.warning("retention_failed", batch=batch.path.name, error=str(error))
            else:
                _log.info("archive_deleted", batch=batch.path.name, size_bytes=batch.size_bytes)

    def shut_down(self) -> None:
        """Stop in order: intake, then runs, so that finished lines become durable, then what is merging.

        What does not end within shutdown.grace_s is left as a crash would leave it.
        """
        parts = self.parts
        grace_s = parts.settings.shutdown.grace_s
        _log.info("stopping", batches=len(parts.lifecycle.held), grace_s=grace_s)
        parts.metrics.set_paused({metrics.Pause.STOPPING})
        parts.health.set_not_ready(["stopping"])
        parts.lifecycle.is_stopping = True
        parts.runs.stop_all(list(parts.lifecycle.held.values()), StopReason.SHUTDOWN, lifecycle.stop)
        ends_at = time.monotonic() + grace_s
        while parts.workers.under_way and time.monotonic() < ends_at:
            parts.wake.wait(min(0.2, max(0.0, ends_at - time.monotonic())))
            parts.wake.clear()
            parts.workers.collect()
        parts.health.beat()
        if parts.workers.under_way:
            _log.warning("grace_is_over", left=parts.workers.under_way)
        parts.workers.stop()
