"""Retention: what is deleted from archive/, and when. Never from outbox/, which belongs to the users.

Limits: sizes are those of the files, not of the blocks they take.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple


class Kept(NamedTuple):
    """A finished batch in archive/."""

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
        kept.append(Kept(folder, folder.stat().st_ctime, size_bytes))
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
    """Remove one batch; by a rename first, so that a crash leaves no half of one under its name."""
    doomed = batch.path.with_name(f".{batch.path.name}.deleted")
    os.rename(batch.path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)
