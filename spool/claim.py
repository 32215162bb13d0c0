"""Claim a drop: one rename from inbox/ to a unique target decides who has it.

The inbox may be open to everyone: the drop's folder is opened once, without following a link, and all is done
relative to it, so that a folder that is swapped for a link makes us touch nothing of others'. What the rename
took though it is no regular file (swapped in after the look) is a claimed batch like any other, and fails.

Steps, each durable before the next; a crash between two leaves what recover.py knows how to finish:
 1. work/<instance>/<batch_id>~1/record.json says what is about to be claimed (the drop is still in the inbox)
 2. rename inbox/NAME -> drop.jsonl beside it (the claim)
 3. the sidecar that was read is unlinked, if that same file still stands there
 4. out/status.json is renamed to a free name in outbox/ (the user sees the batch)
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from spool import files, layout, sidecar
from spool.batch import Batch, write_record
from spool.errors import BatchGone, SidecarError
from spool.record import Event, FileIdentity, Phase, Record, Sidecar, Status


class Defaults(NamedTuple):
    """What a drop gets that does not say otherwise.

    Attributes:
        window_s: seconds from claim to deadline.
        parse_window: reads a sidecar's completion_window as seconds, or raises ValueError.
        mode: permission bits of what is published.
    """

    window_s: float
    parse_window: Callable[[object], float]
    mode: int


def claim(
    home: layout.Layout, instance: Path, relative: Path, now: float, defaults: Defaults
) -> Batch | None:
    """Claim a drop.

    Args:
        home: the spool.
        instance: our folder in work/.
        relative: the drop's path relative to inbox/.
        now: Unix seconds.
        defaults: for what the sidecar leaves open.

    Returns:
        The batch, which `finish` will show in the outbox; None where the drop is gone (claimed by another
        daemon, or withdrawn by its user).

    Raises:
        BatchGone: the claim's folder was adopted by another daemon, which took us for dead.
        PermissionError: this user may not move it.
        OSError: it could not be claimed; the drop stands where it stood, or the next recovery finishes the
            claim.
    """
    try:
        beside = files.open_folder(home.inbox, relative.parent)
    except FileNotFoundError:
        return None
    try:
        record = _new_record(relative, beside, now, defaults)
        if record is None:
            return None
        batch = Batch(home, layout.batch_folder(instance, record.batch_id, 1), record, mode=defaults.mode)
        return batch if _take(batch, home.inbox / relative, beside) else None
    finally:
        os.close(beside)


def finish(batch: Batch) -> None:
    """Steps 3 and 4, for the caller to run after `claim` and after an adoption; idempotent.

    Raises:
        BatchGone: the batch was adopted by another daemon.
        OSError: to be tried again.
    """
    if not batch.has_drop:
        raise BatchGone(f"{batch.id} was adopted by another daemon")
    _unlink_sidecar(batch)
    batch.show()


def _take(batch: Batch, drop: Path, beside: int) -> bool:
    """Steps 1 and 2; False where the drop is gone, and nothing is left of the claim then.

    Raises:
        BatchGone: the claim's folder was adopted by another daemon, which took us for dead.
        OSError: it could not be claimed.
    """
    try:
        files.make_folder(batch.folder)
        write_record(batch.folder, batch.record, "claim.record")
        if _win(drop, batch, beside):
            return True
    except OSError:
        if not batch.has_drop:
            batch.discard()
            raise
        return True  # though a folder could not be made durable: the drop is ours and must not be dropped
    batch.discard()
    return False


def _new_record(relative: Path, beside: int, now: float, defaults: Defaults) -> Record | None:
    """What is to be claimed; None where there is no regular file any more."""
    try:
        facts = os.lstat(relative.name, dir_fd=beside)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(facts.st_mode):
        return None
    _must_be_movable(facts, beside)
    wishes, read_from, problem = Sidecar(), None, None
    name = Path(layout.sidecar_of(relative).name)
    try:
        found = sidecar.read(name, defaults.parse_window, beside)
        if found:
            wishes, read_from = found
    except SidecarError as error:
        problem = str(error)
        with suppress(OSError):
            bad = os.lstat(name, dir_fd=beside)
            read_from = FileIdentity.of(bad) if stat.S_ISREG(bad.st_mode) else None
    window_s = defaults.window_s if wishes.completion_window is None else wishes.completion_window
    return Record(
        batch_id=layout.new_batch_id(now),
        drop=layout.readable(relative),
        drop_path=layout.exact(relative),
        identity=FileIdentity.of(facts),
        sidecar=wishes,
        sidecar_error=problem,
        sidecar_identity=read_from,
        submitted_at=now,
        deadline_at=now + window_s,
        history=(
            Event(at=now, status=Status.VALIDATING, phase=Phase.VALIDATING, reason="claimed from the inbox"),
        ),
    )


def _must_be_movable(facts: os.stat_result, beside: int) -> None:
    """Find out before a folder and a record are made that the rename will be refused.

    In an inbox open to all, users make folders of their own and fill them: that may cost no more than a look.

    Raises:
        PermissionError: the drop's folder is not writable for us, or sticky and not ours, nor is the drop.
    """
    folder = os.fstat(beside)
    is_kept = folder.st_mode & stat.S_ISVTX and os.geteuid() not in (0, folder.st_uid, facts.st_uid)
    if is_kept or not os.access(".", os.W_OK | os.X_OK, dir_fd=beside, effective_ids=True):
        message = (
            f"its folder (mode {stat.S_IMODE(folder.st_mode):04o}, owner {folder.st_uid}) keeps it: "
            f"let uid {os.geteuid()} write to that folder"
        )
        raise PermissionError(errno.EACCES, message)


def _win(drop: Path, batch: Batch, beside: int) -> bool:
    try:
        files.rename_durable(drop, batch.drop, "claim.drop", source_folder=beside)
    except FileNotFoundError:
        # A network filesystem may report a rename that it did: what decides is our own unique target.
        return batch.has_drop
    return True


def _unlink_sidecar(batch: Batch) -> None:
    """Unlink the sidecar that was read, if that same file still stands there; another is the next drop's.

    One that may not be unlinked, its folder was closed since say, is told and left: the batch goes on.

    Raises:
        BatchGone: the batch was adopted by another daemon.
    """
    if batch.record.sidecar_identity is None:
        return
    stood = layout.sidecar_of(layout.from_exact(batch.record.drop_path))
    try:
        beside = files.open_folder(batch.home.inbox, stood.parent)
        try:
            facts = os.lstat(stood.name, dir_fd=beside)
            # An inode's number comes back, and `cp` writes into the file that stands there.
            if FileIdentity.of(facts) == batch.record.sidecar_identity:
                os.unlink(stood.name, dir_fd=beside)
        finally:
            os.close(beside)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except PermissionError as error:
        warning = f"its sidecar cannot be removed and holds for the next drop of that name: {error.strerror}"
        if warning not in batch.record.warnings:
            batch.save(warnings=(*batch.record.warnings, warning))
