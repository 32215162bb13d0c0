"""The moves after the decision, for lifecycle.py: merge, commit and publish, tell the hook, put away.

    DECIDED -> FINISHING -> PUBLISHED -> CLOSING -> gone

Workers do all of it, so that the loop's thread only hands a batch over and takes in how it went.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

from config.settings import HookSettings
from daemon import hooks, logs, metrics, report, work
from daemon.clock import Clock
from daemon.held import Held, Stage
from daemon.obstacles import Obstacles
from daemon.workers import Workers
from spool import layout, publish
from spool.record import Final

_log = logs.get()


class Closing:
    """Takes batches from an outcome to the archive.

    Args:
        settings: of the hook.
        clock: the daemon's.
        workers: who do it.
        count: counts what ended.
        obstacles: what becomes of a batch whose move failed.
        forget: drops a batch from memory that is put away.
        is_stopping: whether a hook is tried no more.
    """

    def __init__(
        self,
        settings: HookSettings,
        clock: Clock,
        workers: Workers,
        count: metrics.Metrics,
        obstacles: Obstacles,
        forget: Callable[[Held], None],
        is_stopping: Callable[[], bool],
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._workers = workers
        self._metrics = count
        self._obstacles = obstacles
        self._forget = forget
        self._is_stopping = is_stopping

    def finish(self, held: Held, now: float) -> None:
        """Hand the batch to a worker that says what is coming, merges, commits and publishes.

        Raises:
            BatchGone, OSError, ValueError: as every move, its parts could not be counted.
        """
        assert held.outcome is not None
        if held.batch.record.plan and not held.batch.final and not held.tallies:
            held.recount()  # given up when it was adopted: what is shown of it must not fall
        held.stage, held.is_dirty = Stage.FINISHING, False
        self._workers.submit(
            "finish",
            work.finish,
            held.batch,
            held.outcome,
            held.progress(now, is_running=False),
            lambda: held.time(self._clock.now()),
            then=lambda done: self._finished(held, done),
        )

    def _finished(self, held: Held, done: Future[Final]) -> None:
        final = None
        with self._obstacles.met(held, Stage.DECIDED):
            final = done.result()
        if final:
            report.count_end(self._metrics, held, final)
            self.close(held)

    def close(self, held: Held) -> None:
        """Hand the batch to a worker that tells the hook of its end, and then to one that puts it away."""
        held.stage = Stage.CLOSING
        if self._settings.on_terminal and not held.is_told:
            self._workers.submit(
                "hook",
                hooks.tell,
                self._settings.on_terminal,
                held.batch.outbox / layout.STATUS_FILE,
                self._settings.timeout_s,
                self._is_stopping,
                then=lambda done: self._told(held, done),
            )
        else:
            self._workers.submit(
                "finish", publish.archive, held.batch, then=lambda done: self._closed(held, done)
            )

    def _told(self, held: Held, done: Future[hooks.Told]) -> None:
        """Note how the hook took it; the batch is put away in any case."""
        told = done.result()
        held.is_told = True
        self._metrics.hook_ended(told.problem is None)
        if told.problem is None:
            _log.info("hook_told", batch=held.id, tries=told.tries)
        else:
            _log.error("hook_failed", batch=held.id, tries=told.tries, error=told.problem)
        self.close(held)

    def _closed(self, held: Held, done: Future[None]) -> None:
        with self._obstacles.met(held, Stage.PUBLISHED):
            done.result()
            self._forget(held)
