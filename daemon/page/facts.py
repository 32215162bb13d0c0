"""All that is known of a batch, read from the spool: outbox/ first, archive/ where this user may read it.

A batch whose folder in outbox/ was moved away is found in archive/ and shown without its results. What cannot
be known is None here, with the reason beside it: a page never shows a figure that was not recorded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from daemon import outbox
from daemon.commands import spool_option
from daemon.exits import CommandError, Exit
from daemon.page import results
from daemon.page.results import Results
from spool import batch, files, layout, partial, status
from spool.errors import RecordUnknown
from spool.record import Final, Latency, Record, Timeline
from spool.timeline import Pace

_OWNER_ONLY = "archive/ may be read by the daemon's user alone"
_OLDER = "the version of batchd that ended it did not record this"
# A batch may end while its parts are read.
_TRIES = 3


@dataclass(frozen=True)
class Facts:
    """What is known.

    Attributes:
        shown: its status.json, or what that would say by its record.
        at: when it was looked at, Unix seconds.
        timeline: None where nobody knows. So latency, and results.
        why_no_timeline: why, for people. So the others.
    """

    shown: outbox.Shown
    at: float
    timeline: Timeline | None = None
    why_no_timeline: str = ""
    latency: Latency | None = None
    why_no_latency: str = ""
    results: Results | None = None
    why_no_results: str = ""


def gather(home: layout.Layout, name: str, now: float) -> Facts:
    """What is known of a batch.

    Args:
        home: the spool.
        name: in outbox/, or the drop's, or the batch's id.
        now: Unix seconds.

    Raises:
        CommandError: there is no such batch, or it cannot be read; the message says what to do.
    """
    try:
        folder = spool_option.outbox(home, name)
    except CommandError:
        return _of_archived(home, name, now)
    for _ in range(_TRIES):
        shown = outbox.read(folder)
        if shown is None:
            raise CommandError(outbox.unreadable(folder), Exit.FAILED)
        try:
            return (
                _of_ended(home, folder, shown, now) if shown.is_terminal else _of_active(folder, shown, now)
            )
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise CommandError(f"{folder}: {error}", Exit.FAILED) from error
    raise CommandError(f"{folder}: its files come and go; try again", Exit.FAILED)


def _of_active(folder: Path, shown: outbox.Shown, now: float) -> Facts:
    """Of a batch that goes on: its parts, as far as they are shown.

    Raises:
        FileNotFoundError: it is about to end.
        OSError, ValueError: a part cannot be read.
    """
    if not (folder / partial.FOLDER).exists():
        why = "no part is shown: it has only begun, is about to end, or this filesystem has no hard links"
        return Facts(shown, now, None, why, None, why, None, why)
    pace = Pace()
    found = results.of_parts(folder / partial.FOLDER, pace)
    why = "nothing was answered yet"
    return Facts(
        shown, now, pace.timeline(shown.tree["in_progress_at"]), why, pace.latency(), why, found, why
    )


def _of_ended(home: layout.Layout, folder: Path, shown: outbox.Shown, now: float) -> Facts:
    final, why = _final(home.archive / str(shown.tree["id"]))
    output, errors = (
        folder / file if shown.tree[key] else None
        for key, file in (("output_file_id", layout.OUTPUT_FILE), ("error_file_id", layout.ERRORS_FILE))
    )
    found, why_no_results = None, ""
    try:
        found = results.of_files(output, errors)
    except (FileNotFoundError, PermissionError, files.NotRegular) as error:
        why_no_results = f"a result file cannot be read: {error}"
    return _with_final(shown, now, final, why, found, why_no_results)


def _with_final(
    shown: outbox.Shown, now: float, final: Final | None, why: str, found: Results | None, why_not: str
) -> Facts:
    timeline, latency = (final.timeline, final.latency) if final else (None, None)
    why_no_latency = why
    if final and "timeline" not in final.model_fields_set:
        why = why_no_latency = _OLDER
    elif final:
        why, why_no_latency = "no request was worked on", "no part says how long the engine took"
    return Facts(shown, now, timeline, why, latency, why_no_latency, found, why_not)


def _final(archived: Path) -> tuple[Final | None, str]:
    """How a batch ended, or why nobody can tell."""
    try:
        final = batch.read_final(archived)
    except PermissionError:
        return None, _OWNER_ONLY
    except (RecordUnknown, OSError) as error:
        return None, str(error)
    if final is None and not os.access(archived.parent, os.R_OK | os.X_OK):
        return None, _OWNER_ONLY
    return final, "archive/ does not hold it: not yet, or no longer (spool.retention_days)"


def _of_archived(home: layout.Layout, name: str, now: float) -> Facts:
    """Of a batch whose folder in outbox/ is gone.

    Raises:
        CommandError: archive/ has no such batch either.
    """
    try:
        record, final = next(_find(home, name))
    except (StopIteration, PermissionError) as error:
        where = "outbox/ or archive/" if isinstance(error, StopIteration) else f"outbox/, and {_OWNER_ONLY}"
        message = f"no batch named {name!r} in {where}: `batchd status` lists those in outbox/"
        raise CommandError(message, Exit.WRONG_USE) from error
    except OSError as error:
        raise CommandError(f"{home.archive}: {error}", Exit.FAILED) from error
    tree = orjson.loads(status.render(record, "", final=final))
    shown = outbox.Shown(str(record.outbox_name or record.batch_id), tree)
    gone = f"outbox/{shown.name} is gone, and its results with it"
    return _with_final(shown, now, final, "", None, gone)


def _find(home: layout.Layout, name: str) -> Iterator[tuple[Record, Final]]:
    """Archived batches of that name or id, newest first."""
    names = {name, layout.outbox_name(Path(name))}
    for batch_id in sorted(os.listdir(home.archive), reverse=True):
        try:
            record = batch.read_record(home.archive / batch_id)
            final = batch.read_final(home.archive / batch_id)
        except (RecordUnknown, FileNotFoundError, NotADirectoryError):
            continue
        if final and (batch_id == name or record.outbox_name in names):
            yield record, final
