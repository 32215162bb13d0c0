"""`batchd init DIR`: make a spool."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from daemon.exits import Exit
from spool import create


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "init", help="make a spool in a folder", description="Make a spool; an existing one is left as it is."
    )
    parser.add_argument("dir", metavar="DIR", type=Path, help="folder, made if it does not exist")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Make it."""
    home = create.create(arguments.dir)
    create.check_writable(home)
    print(f"spool ready: drop batch files into {home.inbox}, read results from {home.outbox}")
    return Exit.DONE
