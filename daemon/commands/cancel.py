"""`batchd cancel NAME`: what `touch outbox/NAME/cancel` does, with a check."""

from __future__ import annotations

import argparse
from typing import Any

from daemon import outbox
from daemon.commands import spool_option
from daemon.exits import CommandError, Exit
from spool import control


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "cancel",
        help="cancel a batch; what is finished is kept",
        description="Cancel a batch: finished lines stay in output.jsonl, the others get batch_cancelled.",
    )
    spool_option.add_name(parser)
    spool_option.add(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Ask for the cancel."""
    home = spool_option.home(arguments)
    folder = spool_option.outbox(home, arguments.name)
    shown = outbox.read(folder)
    if shown and shown.is_terminal:
        message = f"{folder.name} has already ended as {shown.status}: nothing to cancel"
        raise CommandError(message, Exit.FAILED)
    control.request_cancel(folder)
    print(f"cancel of {folder.name} requested; `batchd status {folder.name}` shows when it is done")
    outbox.warn_if_unserved(home)
    return Exit.DONE
