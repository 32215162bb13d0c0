"""The option --spool, which every command but `run` and `validate` has, and names of batches."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from daemon.exits import CommandError, Exit
from spool import create, layout

_ENVIRONMENT = "BATCHD_SPOOL__ROOT"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare --spool."""
    parser.add_argument(
        "--spool",
        metavar="DIR",
        type=Path,
        default=Path(os.environ.get(_ENVIRONMENT, "./spool")),
        help=f"the spool's folder (default: ${_ENVIRONMENT}, else ./spool)",
    )


def add_name(parser: argparse.ArgumentParser) -> None:
    """Declare NAME, which `outbox` reads."""
    parser.add_argument("name", metavar="NAME", help="name in outbox/, or the drop's")


def home(arguments: argparse.Namespace) -> layout.Layout:
    """The spool that was named.

    Raises:
        SpoolUnavailable: there is none.
    """
    spool = layout.Layout(arguments.spool)
    create.check(spool)
    return spool


def outbox(spool: layout.Layout, name: str) -> Path:
    """The outbox folder of a batch, by its name or the drop's: `jan`, `jan.jsonl`, `team-a/jan.jsonl`.

    Raises:
        CommandError: no batch has that name.
    """
    for candidate in (name, layout.outbox_name(Path(name))):
        folder = spool.outbox / candidate
        if "/" not in candidate and (folder / layout.STATUS_FILE).exists():
            return folder
    raise CommandError(
        f"no batch named {name!r} in {spool.outbox}: `batchd status` lists them", Exit.WRONG_USE
    )
