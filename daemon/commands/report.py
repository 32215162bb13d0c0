"""`batchd report NAME`: one HTML page about a batch, which needs neither a network nor anything beside it."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from config import load
from daemon.commands import spool_option
from daemon.exits import CommandError, Exit
from daemon.page import facts, page


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "report",
        help="write a page about a batch: states, speed, tokens, errors, deadline, pools, cost",
        description="Write one HTML page about a batch that has ended or goes on: its states, throughput and "
        "latency, lengths in tokens, errors by code, the margin to its deadline, its pools, and its cost "
        "where the settings name a price. The page needs no network and no script. Of a batch whose folder "
        "was moved out of outbox/ it shows what archive/ knows. Throughput and latency of a batch that has "
        "ended come from archive/, which the daemon's user alone may read.",
    )
    spool_option.add_name(parser)
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="where to write it, - for standard output (default: NAME.report.html in this folder)",
    )
    parser.add_argument("--config", metavar="FILE", type=Path, help="settings, for the prices of pools")
    spool_option.add(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write it, and say where."""
    prices = load.load(arguments.config).scheduler.pools
    home = spool_option.home(arguments)
    known = facts.gather(home, arguments.name, time.time())
    content = page.render(known, prices)
    if arguments.output == "-":
        sys.stdout.buffer.write(content)
        return Exit.DONE
    path = Path(arguments.output or f"{known.shown.name}.report.html")
    try:
        path.write_bytes(content)
    except OSError as error:
        raise CommandError(
            f"{path} cannot be written: {error.strerror}: name another with --output", Exit.FAILED
        ) from error
    print(path)
    return Exit.DONE
