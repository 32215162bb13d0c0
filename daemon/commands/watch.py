"""`batchd watch NAME`: follow a batch to its end, live."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from daemon import outbox
from daemon.commands import spool_option, waiting
from daemon.exits import CommandError
from spool import drops, layout


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "watch",
        help="follow a batch to its end, live",
        description="Follow a batch to its end: progress, speed, deadline. Ctrl-C ends the watching, not the "
        "batch. In a pipe, a line each time something changes. Exit code 0: every request was "
        "answered; 1: the batch failed or has errors; 4: --timeout ran out.",
    )
    spool_option.add_name(parser)
    waiting.add(parser)
    spool_option.add(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Follow it."""
    timeout_s = waiting.timeout_s(arguments)
    home = spool_option.home(arguments)
    drop = _waiting(home, arguments.name)  # before the outbox is looked at: it may be claimed in between
    try:
        folder, before = spool_option.outbox(home, arguments.name), "{} is gone from outbox/"
    except CommandError:
        if drop is None:
            raise
        folder, before = home.outbox / layout.outbox_name(drop), "{} waits in the inbox"
    return waiting.wait(home, partial(outbox.read, folder), before.format(folder.name), timeout_s)


def _waiting(home: layout.Layout, name: str) -> Path | None:
    """The drop of a name that nobody has claimed yet, as in the seconds after a `cp`."""
    for candidate in drops.scan(home.inbox).candidates:
        drop = candidate.relative
        if name in (str(drop), str(drop).removesuffix(layout.SUFFIX), layout.outbox_name(drop)):
            return drop
    return None
