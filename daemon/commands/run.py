"""`batchd run`: the daemon."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from config import load
from daemon.exits import CommandError, Exit


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "run",
        help="serve a spool until Ctrl-C or SIGTERM",
        description="Serve a spool: claim what is dropped, answer it, publish. Ctrl-C or SIGTERM stops in "
        "order within shutdown.grace_s; the next start goes on where this one stopped.",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help=f"settings (default: {load.DEFAULT_FILE.name} of this package)",
    )
    parser.add_argument(
        "--check", action="store_true", help="check the settings and what they name, then exit"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Check the settings, then serve."""
    settings = load.load(arguments.config)
    from daemon import serve
    from pipeline import errors

    try:
        serve.preflight(settings)
        if arguments.check:
            print(f"settings are fine: {', '.join(model.name for model in settings.models)}")
            return Exit.DONE
        serve.serve(settings)
    except (errors.EngineStartError, serve.NotStarted) as error:
        raise CommandError(str(error), Exit.NOT_STARTED) from error
    return Exit.DONE
