"""Intake: look at the inbox, claim what is complete, adopt what dead daemons held.

A pass claims at most CLAIMS_PER_PASS drops, so that a burst of thousands does not keep the loop from its
other duties; the rest is claimed in the next passes, in the order in which they settled. A drop that could
not be claimed rests, and comes after all that were not tried yet: thousands of them keep nobody waiting.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from config.settings import Settings
from config.units import window
from daemon import logs
from daemon.metrics import Metrics
from daemon.watch import Watcher
from spool import claim, drops, layout, lease, recover
from spool.batch import Batch
from spool.errors import BatchGone

CLAIMS_PER_PASS = 64
# How often others' leases are looked at, seconds; a lease expires after lease.expire_s anyway.
ADOPT_EVERY_S = 5.0
# When a drop that could not be claimed is looked at again, seconds.
RETRY_S = 0.5
# When one whose claim failed with an I/O error is, seconds.
FAILED_RETRY_S = 5.0
# What is ignored is reported once; the memory of it is bounded.
MAX_REPORTED = 10_000

_log = logs.get()


class _Failure(NamedTuple):
    """Why a drop could not be claimed, and the monotonic seconds before which it is not tried again."""

    kind: str
    retry_at: float


class Intake:
    """The way in."""

    def __init__(
        self, settings: Settings, home: layout.Layout, own: Path, watcher: Watcher, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._home = home
        self._own = own
        self._watcher = watcher
        self._metrics = metrics
        self._settling = drops.Settling(settings.inbox.settle_s)
        self._others = lease.Others(
            home, own, heartbeat_s=settings.lease.heartbeat_s, expire_s=settings.lease.expire_s
        )
        self._defaults = claim.Defaults(settings.batches.completion_window, window, settings.spool.file_mode)
        self._reported: set[tuple[Path, str]] = set()
        self._failures: dict[Path, _Failure] = {}
        self._left_alone: set[str] = set()
        self._ready: list[drops.Candidate] = []
        self._scan_at = 0.0
        self._adopt_at = 0.0
        self._scan_error: str | None = None

    def claim_some(self, now: float, monotonic: float, is_woken: bool, room: int) -> Iterator[Batch]:
        """Scan if it is time, and claim at most `room` drops.

        Args:
            now: Unix seconds.
            monotonic: seconds of the monotonic clock.
            is_woken: whether something may have happened in the inbox.
            room: batches that may still be claimed.
        """
        if is_woken or monotonic >= self._scan_at:
            self._scan(now, monotonic)
        quota = max(0, min(room, CLAIMS_PER_PASS))
        batch_of_drops, self._ready = self._ready[:quota], self._ready[quota:]
        for candidate in batch_of_drops:
            drop = self._home.inbox / candidate.relative
            if drops.key_of(drop) != candidate.key or drops.has_writer(drop):
                self._scan_at = min(self._scan_at, monotonic + RETRY_S)  # changed, or still open: ask again
                continue
            try:
                batch = claim.claim(self._home, self._own, candidate.relative, now, self._defaults)
            except (OSError, BatchGone) as error:  # gone: its folder was adopted while we slept
                self._note_failure(candidate.relative, error, monotonic)
                continue
            self._settling.forget(candidate.relative)
            self._failures.pop(candidate.relative, None)
            if batch:
                yield batch
            else:
                _log.info("drop_gone", drop=layout.readable(candidate.relative))

    def _note_failure(self, relative: Path, error: OSError | BatchGone, monotonic: float) -> None:
        """Let it rest; what fails again in the same way is no news."""
        kind = f"{type(error).__name__} {getattr(error, 'errno', '')}"
        before = self._failures.get(relative)
        if before is None or before.kind != kind:
            _log.warning("claim_failed", drop=layout.readable(relative), error=str(error))
        self._failures[relative] = _Failure(kind, monotonic + FAILED_RETRY_S)

    def _scan(self, now: float, monotonic: float) -> None:
        self._watcher.check()
        moved = self._watcher.take_moved()
        found = drops.scan(self._home.inbox)
        self._scan_at = monotonic + self._watcher.interval_s(self._settings.inbox)
        self._report_error(found.error)
        self._metrics.scanned(now, found.is_complete)
        self._metrics.set_watch_mode(self._watcher.mode)
        self._report_ignored(found.ignored)
        ready = self._settling.observe(found, moved, monotonic)
        self._ready = self._in_turn(found, ready, monotonic)
        next_in_s = self._settling.next_in_s(monotonic)
        if next_in_s is not None:
            self._scan_at = min(self._scan_at, monotonic + next_in_s)

    def _in_turn(
        self, found: drops.Scan, ready: list[drops.Candidate], monotonic: float
    ) -> list[drops.Candidate]:
        """What may be claimed now, what failed before last."""
        if found.is_complete:
            there = {candidate.relative for candidate in found.candidates}
            self._failures = {path: failure for path, failure in self._failures.items() if path in there}
        resting = {path: at for path, (_, at) in self._failures.items() if at > monotonic}
        if resting:
            self._scan_at = min(self._scan_at, *resting.values())
        awake = [candidate for candidate in ready if candidate.relative not in resting]
        return sorted(awake, key=lambda candidate: candidate.relative in self._failures)

    def _report_error(self, error: OSError | None) -> None:
        text = str(error) if error else None
        if text != self._scan_error:
            if text:
                _log.error("inbox_unreadable", error=text)
            else:
                _log.info("inbox_readable_again")
            self._scan_error = text

    def _report_ignored(self, ignored: list[drops.Ignored]) -> None:
        now_there = {(item.relative, item.reason) for item in ignored[:MAX_REPORTED]}
        for relative, reason in sorted(now_there - self._reported, key=str):
            _log.warning(
                "drop_ignored", drop=layout.readable(relative), reason=f"it is a {reason}, not a regular file"
            )
            self._metrics.drop_ignored(reason)
        self._reported = now_there

    def next_in_s(self, monotonic: float, can_claim: bool) -> float:
        """Seconds until the next pass has something to do."""
        if self._ready and can_claim:
            return 0.0
        return max(0.0, min(self._scan_at, self._adopt_at) - monotonic)

    def adopt_some(self, monotonic: float, held: Collection[str]) -> list[Batch]:
        """Adopt the batches of dead instances, and our own that are not among the held ones, oldest first."""
        if monotonic < self._adopt_at:
            return []
        self._adopt_at = monotonic + ADOPT_EVERY_S
        mode = self._settings.spool.file_mode
        adopted = recover.adopt(self._home, self._own, self._own, mode=mode, report=self._report, held=held)
        for dead in self._others.dead():
            adopted += recover.adopt(self._home, self._own, dead, mode=mode, report=self._report)
        return sorted(adopted, key=lambda batch: (batch.record.submitted_at, batch.id))

    def _report(self, event: str, detail: str) -> None:
        """Log what adoption left alone: once, since it is looked at again and again."""
        if detail not in self._left_alone and len(self._left_alone) < MAX_REPORTED:
            self._left_alone.add(detail)
            _log.warning(event, detail=detail)
