"""Why batches wait: told in the log at once, and in their history where it is an engine's fault and lasts.

On the loop's thread. What cannot be made durable is tried again with the next pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from daemon import logs
from daemon.held import Held
from scheduler.assign import Waiting, WaitReason
from scheduler.engines import Absence
from spool.errors import BatchGone

# Seconds that it must last to be noted: each note is an fsync, and most waits are short.
LASTS_S = 5.0
# Batches noted in a pass, and of those that wait for one reason only the first, for the same cause: thousands
# may wait for engines that go and come again.
NOTED_PER_PASS = 8
NOTED_OF_A_REASON = 100
_OF_ENGINES = (WaitReason.ENGINE_STARTING, WaitReason.ENGINE_NO_ROOM, WaitReason.ENGINE_FAILED)

_log = logs.get()


class Waits:
    """What was told of each batch that waits.

    Attributes:
        counts: batches that wait now, by reason.
    """

    def __init__(self) -> None:
        self.counts: dict[WaitReason, int] = {}
        self._told: dict[str, tuple[WaitReason, float]] = {}
        self._noted: dict[str, str] = {}

    def begun(self, batch_id: str) -> None:
        """A batch waits no more; if it does again, it is told again."""
        self._told.pop(batch_id, None)
        self._noted.pop(batch_id, None)

    def note(
        self,
        waiting: Sequence[Waiting],
        absent: Mapping[str, tuple[Absence, str]],
        held: Mapping[str, Held],
        now: float,
        monotonic: float,
    ) -> None:
        """Log each job's reason to wait once, and again when it changes; note in its history what lasts.

        Args:
            waiting: every job that waits.
            absent: why no engine of a model takes requests, in words.
            held: the batches.
            now: Unix seconds.
            monotonic: seconds of the monotonic clock.
        """
        before, self._told = self._told, {}
        left = NOTED_PER_PASS
        for each in waiting:
            for place, job in enumerate(each.jobs):
                reason, since = before.get(job.batch_id, (None, 0.0))
                if reason != each.reason:
                    since = monotonic
                    _log.info("batch_waiting", batch=job.batch_id, reason=each.reason)
                self._told[job.batch_id] = each.reason, since
                is_due = monotonic - since >= LASTS_S and place < NOTED_OF_A_REASON
                if is_due and left and each.reason in _OF_ENGINES:
                    _, words = absent.get(job.model, (None, f"the engine of {job.model} is starting"))
                    left -= self._is_noted(held[job.batch_id], words, now)
        self._noted = {batch_id: words for batch_id, words in self._noted.items() if batch_id in self._told}
        self.counts = {each.reason: len(each.jobs) for each in waiting}

    def _is_noted(self, held: Held, words: str, now: float) -> bool:
        """Note it in the history if it is news; whether that took a write."""
        if self._noted.get(held.id) == words:
            return False
        record = held.batch.record
        try:
            held.batch.advance(held.time(now), record.status, record.phase, f"waits: {words}")
        except (OSError, BatchGone) as error:
            _log.warning("warning_not_saved", batch=held.id, error=str(error))
        else:
            held.is_dirty = True
            self._noted[held.id] = words
        return True
