"""`batchd run`: the daemon."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from config import load
from config.settings import Settings
from daemon.exits import CommandError, Exit
from spool import create, layout


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
        "--check", action="store_true", help="check settings, models and the spool's rights, then exit"
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
            for fine in _check(settings):
                print(f"ok    {fine}")
            return Exit.DONE
        serve.serve(settings)
    except (errors.EngineStartError, serve.NotStarted) as error:
        raise CommandError(str(error), Exit.NOT_STARTED) from error
    return Exit.DONE


def _check(settings: Settings) -> Iterator[str]:
    """What of the settings was found to be fine, beyond what a preflight sees.

    Raises:
        SpoolUnavailable: the spool cannot be used by this user.
    """
    yield f"settings and models: {', '.join(model.name for model in settings.models)}"
    home = layout.Layout(Path(settings.spool.root))
    if home.root.exists():
        create.check(home)
        create.check_writable(home)
        yield f"spool: {home.root}, its folders are there, private and on one filesystem"
    else:
        yield f"spool: {home.root} does not exist yet and will be made"
