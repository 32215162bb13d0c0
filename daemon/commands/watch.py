"""`batchd watch NAME`: follow a batch to its end, live."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from daemon import outbox
from daemon.commands import spool_option, waiting


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
    folder = spool_option.outbox(home, arguments.name)
    return waiting.wait(home, partial(outbox.read, folder), f"{folder.name} is gone from outbox/", timeout_s)
