"""Recovery is adoption: take over the batches of instances that are dead, and tidy what a crash left.

Adopting is one rename, work/<theirs>/<batch>~<epoch> -> work/<ours>/<batch>~<epoch+1>: of several daemons
one wins, and the old owner finds its paths gone. What the folder holds says what comes next:

    no record.json, no drop.jsonl   a claim that had not begun          removed
    record.json, no drop.jsonl      a claim that was lost or cut off    removed; the drop stands in the inbox
    drop.jsonl, no plan in record   claimed, maybe not validated        the claim's last steps, validated anew
    a plan in the record            valid                               queued; parts that exist are done
    final.json                      committed                           rolled forward, never decided again
    a record of another version     not ours to judge                   left where it is, loudly
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from spool import control, failpoints, files, layout, lease, parts
from spool.batch import Batch, read_final, read_record
from spool.errors import BatchGone, RecordUnknown
from spool.record import Phase

# A batch whose work kills the daemon each time must not do so for ever.
MAX_CRASHES = 5


def adopt(
    home: layout.Layout, own: Path, dead: Path, *, mode: int, report: Callable[[str, str], None]
) -> list[Batch]:
    """Take over every batch of a dead instance.

    Args:
        home: the spool.
        own: our folder in work/.
        dead: the other's folder, whose lease the caller holds.
        mode: permission bits of what is published.
        report: called with (event, detail) for what is left alone or tidied.

    Returns:
        The adopted batches, by id, which is by age; for each, `claim.finish` is to be run.
    """
    was_clean = lease.ended_cleanly(dead)
    adopted = []
    for name in sorted(os.listdir(dead)):
        parsed = layout.parse_batch_folder(name)
        if not parsed:
            continue
        try:
            batch = _adopt_one(home, dead / name, layout.batch_folder(own, parsed[0], parsed[1] + 1), mode)
            if batch:
                _settle(batch, was_clean)
                adopted.append(batch)
        except RecordUnknown as error:
            report("batch_left_alone", str(error))
        except (BatchGone, FileNotFoundError):
            report("batch_adopted_elsewhere", name)
    # Once for all of them: thousands may wait. A rename that a power cut undoes is simply done again.
    files.fsync_folder(own)
    with suppress(FileNotFoundError):
        files.fsync_folder(dead)
    failpoints.reach("adopt", "after")
    return adopted


def _adopt_one(home: layout.Layout, theirs: Path, ours: Path, mode: int) -> Batch | None:
    try:
        record = read_record(theirs)
    except FileNotFoundError:
        record = None
    if record is None or not (theirs / layout.DROP_FILE).exists():
        if (theirs / layout.DROP_FILE).exists():
            raise RecordUnknown(f"{theirs} holds a drop but no record")
        shutil.rmtree(theirs, ignore_errors=True)
        return None
    final = read_final(theirs)
    failpoints.reach("adopt", "before")
    os.rename(theirs, ours)
    return Batch(home, ours, record, mode=mode, final=final)


def _settle(batch: Batch, was_clean: bool) -> None:
    """Drop what a killed writer left, and count crashes that brought nothing new.

    A batch that only waited when its daemon died is no suspect.
    """
    control.clear_stop(batch.folder)
    files.remove_temporaries([batch.folder, batch.folder / parts.FOLDER])
    if was_clean or batch.final or batch.record.phase is Phase.QUEUED:
        return
    done = len(parts.list_parts(batch.folder)) if batch.record.plan else 0
    has_progressed = done > batch.record.parts
    batch.save(crashes=1 if has_progressed else batch.record.crashes + 1, parts=done)
