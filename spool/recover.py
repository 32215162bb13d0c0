"""Recovery is adoption: take over the batches of instances that are dead, and tidy what a crash left.

Our own folder is looked through in the same way, for batches that an error made us lose sight of.

Adopting is one rename, work/<theirs>/<batch>~<epoch> -> work/<ours>/<batch>~<epoch+1>: of several daemons
one wins, and the old owner finds its paths gone. What the folder holds says what comes next:

    no record.json, no drop.jsonl   a claim that had not begun          removed
    record.json, no drop.jsonl      a claim that was lost or cut off    removed; the drop stands in the inbox
    record.json beside the folder   such a removal was cut off          put back into it, and looked at again
    drop.jsonl, no record.json      none of ours                        left where it is, loudly
    drop.jsonl, no plan in record   claimed, maybe not validated        the claim's last steps, validated anew
    drop.jsonl is no regular file   swapped in at the claim             as above: validation fails it
    a plan in the record            valid                               queued; parts that exist are done
    final.json                      committed                           rolled forward, never decided again
    published, beside final.json    its end was shown                   archived, also where its user took the
                                                                        folder in the outbox away since
    a record of another version     not ours to judge                   left where it is, loudly
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from spool import attempts, control, failpoints, files, layout, lease, parts, plan
from spool.batch import Batch, read_final, read_record, take_back_record
from spool.errors import BatchGone, RecordUnknown
from spool.record import Phase

# A batch whose work kills the daemon each time must not do so for ever.
MAX_CRASHES = 5


def adopt(
    home: layout.Layout,
    own: Path,
    dead: Path,
    *,
    mode: int,
    report: Callable[[str, str], None],
    held: Collection[str] = (),
) -> list[Batch]:
    """Take over every batch of a dead instance, or those of our own that nobody works on.

    Args:
        home: the spool.
        own: our folder in work/.
        dead: the other's folder, whose lease the caller holds; or ours.
        mode: permission bits of what is published.
        report: called with (event, detail) for what is left alone or tidied.
        held: ids of batches that are left where they are.

    Returns:
        The adopted batches, by id, which is by age. For each that has no `final`, `claim.finish` is to be
        run; one that has is published and archived.
    """
    was_clean = own == dead or lease.ended_cleanly(dead)
    adopted = []
    for name in sorted(os.listdir(dead)):
        parsed = layout.parse_batch_folder(name)
        if not parsed or parsed[0] in held:
            continue
        try:
            batch = _adopt_one(home, dead / name, layout.batch_folder(own, parsed[0], parsed[1] + 1), mode)
        except RecordUnknown as error:
            report("batch_left_alone", str(error))
        except FileNotFoundError:
            report("batch_adopted_elsewhere", name)
        except OSError as error:  # of this one only; it is tried again
            report("batch_not_adopted", f"{name}: {error}")
        else:
            if batch:
                _settle(batch, was_clean, report)
                adopted.append(batch)
    if not adopted:
        return []
    # Once for all of them: thousands may wait. A rename that a power cut undoes is simply done again.
    files.fsync_folder(own)
    with suppress(FileNotFoundError):
        files.fsync_folder(dead)
    failpoints.reach("adopt", "after")
    return adopted


def _adopt_one(home: layout.Layout, theirs: Path, ours: Path, mode: int) -> Batch | None:
    """Take one batch over; None where there was nothing but a claim that had come to nothing.

    The rename comes first and the drop is looked for behind it: an owner that wakes up in between finds its
    path gone, and can no longer move a drop into a folder that is about to be removed.
    """
    has_record = True
    take_back_record(theirs)  # a removal was cut off
    try:
        read_record(theirs)  # of another version: left where it is
        read_final(theirs)
    except FileNotFoundError:
        has_record = False
        if os.path.lexists(theirs / layout.DROP_FILE):
            raise RecordUnknown(
                f"{theirs} holds a drop but no record, and is left alone: drop it again from there"
            ) from None
    failpoints.reach("adopt", "before")
    os.rename(theirs, ours)
    if not has_record:
        with suppress(OSError):
            files.remove_temporaries([ours])
            os.rmdir(ours)
        return None
    # Only now: what an owner that is alive after all wrote before it lost the folder, counts.
    batch = Batch(home, ours, read_record(ours), mode=mode, final=read_final(ours))
    if batch.has_drop:
        return batch
    batch.discard()
    return None


def _settle(batch: Batch, was_clean: bool, report: Callable[[str, str], None]) -> None:
    """Drop what a killed writer left, and count crashes that brought nothing new.

    A batch that only waited when its daemon died is no suspect. What cannot be done now, on a full disk say,
    is left out: the batch is ours, and must not be lost from sight.
    """
    record = batch.record
    try:
        control.clear_stop(batch.folder)
        files.remove_temporaries([batch.folder, batch.folder / attempts.FOLDER, *parts.folders(batch.folder)])
        was_validated = record.phase is Phase.VALIDATING and (batch.folder / plan.FOLDER).exists()
        if was_clean or batch.final or not (was_validated or record.phase in (Phase.RUNNING, Phase.MERGING)):
            return
        done = len(parts.list_parts(batch.folder)) if record.plan else 0
        noted = attempts.digest(batch.folder)
        is_news = done > record.parts or noted != record.attempts
        batch.save(crashes=1 if is_news else record.crashes + 1, parts=done, attempts=noted)
    except (OSError, BatchGone) as error:
        report("adoption_incomplete", f"{batch.id}: {error}")
