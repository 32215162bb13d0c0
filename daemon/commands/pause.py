"""`batchd pause` and `batchd resume`: what `touch pause` in the spool does, and removing it."""

from __future__ import annotations

import argparse
from typing import Any

from daemon.commands import spool_option
from daemon.exits import Exit
from spool import control


def add(commands: Any) -> None:
    """Declare both commands."""
    about = "While a spool is paused, its daemons claim nothing new; what they hold goes on."
    for name, run, what in (
        ("pause", _pause, "claim nothing new until `batchd resume`"),
        ("resume", _resume, "claim again what is dropped"),
    ):
        parser = commands.add_parser(name, help=what, description=about)
        spool_option.add(parser)
        parser.set_defaults(run=run)


def _pause(arguments: argparse.Namespace) -> int:
    home = spool_option.home(arguments)
    control.pause(home)
    print(f"paused: {home.pause} stands, `batchd resume` removes it")
    return Exit.DONE


def _resume(arguments: argparse.Namespace) -> int:
    home = spool_option.home(arguments)
    print("resumed" if control.resume(home) else "it was not paused")
    return Exit.DONE
