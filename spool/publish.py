"""Commit an outcome, and roll it forward into the outbox and the archive.

final.json is the commit point: before it, a crash means "run what is missing and merge again"; after it,
recovery only rolls forward. Each step of `publish` and `archive` looks at what is there, so they may be cut
off anywhere and run again:
 1. merged/output.jsonl, merged/errors.jsonl -> outbox/NAME/        a name missing here was moved already
 2. a cancel that came too late is refused, with the reason in cancel.refused; partial/ is removed
 3. status.json becomes terminal, last, and the mark `published` is made: from here on the folder in the
    outbox is its user's, who may take it away
 4. what only a running batch needs is removed, and the folder is renamed into archive/
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress

from spool import control, files, layout, partial
from spool.batch import Batch
from spool.errors import BatchGone, ResultsLost
from spool.failpoints import Step
from spool.record import FileFacts, Final, Status

MERGED_FOLDER = "merged"
# Of a batch that has ended, in archive/.
# The mark stays, so that there is no step between its end and the rename; it costs an inode.
_KEPT = {layout.DROP_FILE, layout.RECORD_FILE, layout.FINAL_FILE, layout.PUBLISHED_FILE}


def commit(batch: Batch, final: Final) -> None:
    """Make an outcome durable; from here on it cannot change.

    Raises:
        BatchGone: the batch was adopted by another daemon.
    """
    try:
        files.write_durable(
            batch.folder / layout.FINAL_FILE, final.model_dump_json().encode() + b"\n", step="final"
        )
    except FileNotFoundError as error:
        raise BatchGone(f"{batch.id} was adopted by another daemon") from error
    batch.final = final


def publish(batch: Batch) -> OSError | None:
    """Show the results of a committed batch, then its end; what was shown once is never shown again.

    Returns:
        Why something was left in partial/; mostly None. An end matters more than a leftover.

    Raises:
        BatchGone: the batch was adopted by another daemon.
        ResultsLost: a result file is neither here nor in the outbox: merge again, then publish again.
        OSError: it goes on from here at the next try.
    """
    final = batch.final
    assert final is not None, "only a committed batch is published"
    if _is_over(batch, final):
        return None
    if not batch.is_placed:
        batch.show()  # not terminal: the results come first
    _publish(batch, layout.OUTPUT_FILE, final.output, "publish.output")
    _publish(batch, layout.ERRORS_FILE, final.errors_file, "publish.errors")
    _answer_cancel(batch, final)
    left = partial.clear(batch.outbox)
    batch.show(final=final)
    return left


def archive(batch: Batch) -> None:
    """Put a published batch away: keep the drop, the record and the outcome, remove the rest.

    Raises:
        BatchGone: the batch was adopted by another daemon.
        OSError: it goes on from here at the next try.
    """
    assert batch.final is not None, "only a published batch is archived"
    if batch.is_placed:  # else the folder of that name is gone, or another batch's
        _answer_cancel(batch, batch.final)  # one that came before the end could be seen
    try:
        for name in set(os.listdir(batch.folder)) - _KEPT:
            path = batch.folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                os.unlink(path)
        files.rename_durable(batch.folder, batch.home.archive / batch.id, "archive")
    except FileNotFoundError as error:
        raise BatchGone(f"{batch.id} was adopted by another daemon") from error


def _answer_cancel(batch: Batch, final: Final) -> None:
    if final.outcome is Status.CANCELLED:
        control.clear_cancel(batch.outbox)
    else:
        control.refuse_cancel(batch.outbox, f"the batch had already ended as {final.outcome}: {final.reason}")


def _is_over(batch: Batch, final: Final) -> bool:
    """Whether the end was shown already: a terminal status.json never changes, nor its instance."""
    shown = batch.shown_status
    if shown is None:  # its user has taken it, or it was never there
        return batch.is_published
    if shown != final.outcome:
        return False
    # What a kill or an error may have kept from being done between the rename and the end of `Batch.show`.
    files.touch(batch.folder / layout.PUBLISHED_FILE)
    with suppress(FileNotFoundError):
        files.fsync_folder(batch.outbox)
    return True


def _publish(batch: Batch, name: str, facts: FileFacts | None, step: Step) -> None:
    if facts is None:
        return
    source, target = batch.folder / MERGED_FOLDER / name, batch.outbox / name
    if not source.exists():
        if not batch.folder.is_dir():
            raise BatchGone(f"{batch.id} was adopted by another daemon")
        if not target.exists() or target.stat().st_size != facts.size_bytes:
            raise ResultsLost(f"{batch.id}: {name} is gone from the outbox before the batch ended")
        return  # moved before a crash
    try:
        files.rename_durable(source, target, step)
    except FileNotFoundError as error:
        if not batch.folder.is_dir():
            raise BatchGone(f"{batch.id} was adopted by another daemon") from error
        raise
