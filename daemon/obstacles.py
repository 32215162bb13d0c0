"""What stands in the way of a batch's move: each kind of error has its one answer, whichever move met it.

The world is bad: the very same move is tried again later. The batch was adopted by another daemon: it is
dropped from memory, and nothing more is done to it. Its files contradict each other, or we are wrong: it is
held for a person, untouched. On the loop's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from daemon import logs
from daemon.clock import Clock
from daemon.held import Held, Stage
from pipeline import validate
from spool import create, layout
from spool.errors import BatchGone, SpoolUnavailable

# Between two tries of a move, seconds.
RETRY_S = 2.0
# How often in a row a path is looked for that is missing in a folder that stands, RETRY_S apart: network
# filesystems remember for a minute that something was not there.
MAX_MISSES = 45

_log = logs.get()


class Obstacles:
    """Decides what becomes of a batch whose move failed."""

    def __init__(self, home: layout.Layout, clock: Clock, forget: Callable[[Held], None]) -> None:
        self._home = home
        self._clock = clock
        self._forget = forget

    @contextmanager
    def met(self, held: Held, stage: Stage, wait_s: float = RETRY_S) -> Iterator[None]:
        """Within it a move is made, or what a worker did is taken in; no error comes out.

        Args:
            held: the batch.
            stage: from which the move is tried again.
            wait_s: after how long, seconds.
        """
        try:
            yield
        except (BatchGone, FileNotFoundError) as error:
            self._gone(held, error, stage)
        except (OSError, validate.ValidationStopped) as error:
            self._wait(held, error, stage, wait_s)
        except ValueError as error:
            self._damaged(held, error)
        except Exception as error:  # noqa: BLE001 (a mistake of ours must cost one batch, not the daemon)
            _log.exception("batch_broke", batch=held.id, stage=stage)
            self._damaged(held, error)

    def _gone(self, held: Held, error: BatchGone | FileNotFoundError, stage: Stage) -> None:
        """A path of the batch is gone: another daemon adopted it, unless its folder or the spool says else.

        Should the folder be there after all, though it cannot be seen now, then the intake finds it again.
        """
        try:
            create.check(self._home)
            stands = held.batch.folder.is_dir()
        except (SpoolUnavailable, OSError):
            self._wait(held, error, stage, RETRY_S)
            return
        if stands:
            self._missing(held, error, stage)
        else:
            self._forget(held)
            _log.warning("batch_adopted_elsewhere", batch=held.id, reason=str(error))

    def _missing(self, held: Held, error: BatchGone | FileNotFoundError, stage: Stage) -> None:
        """A file of a batch that is ours cannot be found: look again, since a network filesystem may err."""
        monotonic = self._clock.monotonic()
        held.misses = held.misses + 1 if monotonic - held.missed_at < 5 * RETRY_S else 1
        held.missed_at = monotonic
        if held.misses < MAX_MISSES:
            self._wait(held, error, stage, RETRY_S)
        else:
            self._damaged(held, error)

    def _wait(self, held: Held, error: Exception, stage: Stage, wait_s: float) -> None:
        held.stage, held.retry_at = stage, self._clock.monotonic() + wait_s
        _log.warning("batch_waits", batch=held.id, stage=stage, error=str(error), retry_in_s=wait_s)

    def _damaged(self, held: Held, error: Exception) -> None:
        """Nothing is decided from files that contradict themselves, and nothing of them is thrown away."""
        held.stage = Stage.DAMAGED
        _log.error("batch_damaged", batch=held.id, folder=str(held.batch.folder), error=str(error))
        warning = f"held, its files need a person: {error}"
        if warning not in held.batch.record.warnings:
            try:
                held.batch.save(warnings=(*held.batch.record.warnings, warning))
                held.is_dirty = True
            except (OSError, BatchGone) as failure:
                _log.warning("warning_not_saved", batch=held.id, error=str(failure))
