"""What users say by touching files: `pause` in the root, `cancel` in a batch's outbox folder.

And what the daemon says to its workers in the same way: `stop` in a batch's private folder.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from spool import files, layout

CANCEL_FILE = "cancel"
REFUSED_FILE = "cancel.refused"
STOP_FILE = "stop"


def is_paused(home: layout.Layout) -> bool:
    """Whether nothing new is to be claimed."""
    return home.pause.exists()


def pause(home: layout.Layout) -> None:
    """Have nothing new claimed, as `touch pause` does."""
    home.pause.touch()


def resume(home: layout.Layout) -> bool:
    """Take the pause file away; whether there was one."""
    try:
        os.unlink(home.pause)
    except FileNotFoundError:
        return False
    return True


def cancel_requested(outbox: Path) -> bool:
    """Whether the user asked to cancel the batch of this outbox folder."""
    return os.path.lexists(outbox / CANCEL_FILE)


def request_cancel(outbox: Path) -> None:
    """Ask for a cancel, as `touch outbox/NAME/cancel` does."""
    (outbox / CANCEL_FILE).touch()


def clear_cancel(outbox: Path) -> None:
    """Take away a cancel that was obeyed."""
    with suppress(FileNotFoundError, IsADirectoryError):
        os.unlink(outbox / CANCEL_FILE)


def refuse_cancel(outbox: Path, reason: str) -> None:
    """Answer a cancel that came too late: cancel.refused holds the reason."""
    if not cancel_requested(outbox):
        return
    with suppress(FileNotFoundError):
        files.write_durable(outbox / REFUSED_FILE, reason.encode() + b"\n", 0o644)
        clear_cancel(outbox)


def request_stop(batch: Path) -> None:
    """Tell whoever works on a batch to stop; what is finished is kept."""
    with suppress(FileNotFoundError):  # adopted by another daemon: nobody of ours may work on it anyway
        (batch / STOP_FILE).touch()


def clear_stop(batch: Path) -> None:
    """Let a batch be worked on again."""
    with suppress(FileNotFoundError):
        os.unlink(batch / STOP_FILE)


def must_stop(batch: Path) -> bool:
    """Whether work on a batch must end: it was told to, or the folder is no longer ours."""
    return os.path.lexists(batch / STOP_FILE) or not batch.is_dir()


def free_bytes(home: layout.Layout) -> int:
    """Bytes that can still be written to the spool.

    Raises:
        OSError: the spool cannot be asked.
    """
    facts = os.statvfs(home.root)
    # Without inodes nothing can be created either, however many bytes are free.
    return facts.f_bavail * facts.f_frsize if facts.f_files == 0 or facts.f_favail > 0 else 0
