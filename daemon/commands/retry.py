"""`batchd retry NAME`: drop the requests of a batch that got no answer again, as a new batch."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from daemon import dropping, finished
from daemon.commands import spool_option
from daemon.exits import CommandError, Exit
from daemon.finished import Finished
from pipeline import pairing
from spool import files, layout

# In the metadata of the new batch, with the id of the old one.
LINK = "retry_of"
_SUFFIX = ".retry"


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "retry",
        help="drop the requests of a batch that got no answer again",
        description="Drop those requests of a finished batch again that stand in its errors.jsonl: failed, "
        "expired or cancelled. They become a new batch, NAME.retry, whose metadata names the "
        f"old one ({LINK}). A batch that failed validation is dropped whole, if --on-invalid skip says so: "
        "its bad lines then go to errors.jsonl.",
    )
    spool_option.add_name(parser)
    finished.add_input(parser)
    dropping.add(parser)
    spool_option.add(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Drop them, and wait if that was asked for."""
    home = spool_option.home(arguments)
    batch = Finished(home, spool_option.outbox(home, arguments.name), arguments.input)
    metadata = {**(batch.shown.tree["metadata"] or {}), LINK: str(batch.shown.tree["id"])}
    # Each was accepted once, or refused alone; one that is refused again must not fail the others.
    wishes = {"on_invalid": "skip", **dropping.wishes(arguments, metadata)}
    try:
        return dropping.submit(arguments, home, _content(batch, arguments), _relative(home, batch), wishes)
    except pairing.Mismatch as error:
        message = f"{error}: is it the batch's input, and were its files changed? `batchd verify` says more"
        raise CommandError(message, Exit.FAILED) from error


def _content(batch: Finished, arguments: argparse.Namespace) -> Iterator[bytes]:
    """The lines to be dropped again, or the whole input of a batch of which no line was accepted."""
    shown = batch.shown
    total, _, failed = shown.counts
    if total and not failed:
        raise CommandError(f"{shown.name} has no failed requests: nothing to retry", Exit.FAILED)
    if total:
        return (pair.request + b"\n" for pair in batch.pairs() if not pair.is_answered)
    if shown.status == "failed" and arguments.on_invalid != "skip":
        message = (
            f"{shown.name} failed validation, so none of its lines was run: mend the lines that "
            f"`batchd status {shown.name}` names and drop the file again, or run the good ones with "
            f"`batchd retry {shown.name} --on-invalid skip`"
        )
        raise CommandError(message, Exit.FAILED)
    return _whole(batch)


def _whole(batch: Finished) -> Iterator[bytes]:
    with batch.open_drop() as drop:
        yield from iter(partial(drop.read, files.BUFFER_BYTES), b"")


def _relative(home: layout.Layout, batch: Finished) -> Path:
    """Where it is dropped: beside the old one, `jan.retry.jsonl`, also for a retry of a retry."""
    old = Path(str(batch.shown.tree["input_file_id"]))
    name = f"{old.name.removesuffix(layout.SUFFIX).removesuffix(_SUFFIX)}{_SUFFIX}{layout.SUFFIX}"
    return old.with_name(name) if (home.inbox / old.parent).is_dir() else Path(name)
