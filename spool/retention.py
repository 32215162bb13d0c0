"""Retention: what is deleted from archive/, and when. Never from outbox/, which belongs to the users.

Limits: sizes are those of the files, not of the blocks they take.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import NamedTuple


class Kept(NamedTuple):
    """A finished batch in archive/; one whose deletion was cut off counts as the oldest."""

    path: Path
    ended_at: float
    size_bytes: int


def list_kept(archive: Path) -> list[Kept]:
    """What archive/ holds, oldest first."""
    kept = []
    for name in os.listdir(archive):
        folder = archive / name
        if not folder.is_dir() or folder.is_symlink():
            continue
        size_bytes = sum(os.lstat(folder / file).st_size for file in os.listdir(folder))
        ended_at = float("-inf") if name.startswith(".") else folder.stat().st_ctime
        kept.append(Kept(folder, ended_at, size_bytes))
    return sorted(kept, key=lambda batch: batch.ended_at)


def to_delete(kept: list[Kept], now: float, max_days: float, max_bytes: int) -> list[Kept]:
    """The batches that go: those older than max_days, then the oldest until max_bytes hold (0 = no limit)."""
    total_bytes = sum(batch.size_bytes for batch in kept)
    gone = []
    for batch in kept:
        is_old = max_days > 0 and now - batch.ended_at > max_days * 86400
        if is_old or (max_bytes > 0 and total_bytes > max_bytes):
            gone.append(batch)
            total_bytes -= batch.size_bytes
    return gone


def delete(batch: Kept) -> None:
    """Remove one batch; by a rename first, so that a crash leaves no half of one under its name.

    Raises:
        OSError: something is left of it: a folder of another user's was dropped, say; tried again later.
    """
    doomed = batch.path
    if not doomed.name.startswith("."):
        doomed = batch.path.with_name(f".{batch.path.name}.deleted")
        os.rename(batch.path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)
    if doomed.exists():
        raise OSError(errno.ENOTEMPTY, "cannot be removed wholly", str(doomed))
