"""`batchd top`: what goes on in a spool, updated live."""

from __future__ import annotations

import argparse
import time
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live

from config.settings import MetricsSettings
from daemon import outbox, overview
from daemon.commands import spool_option
from daemon.exits import Exit
from spool import drops, layout

EVERY_S = 1.0
_METRICS = f"http://{MetricsSettings().host}:{MetricsSettings().port}/metrics"


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "top",
        help="show what goes on, live",
        description="Show the batches that go on, from the folder alone, and the queue, pools and engines of "
        "a daemon whose /metrics can be reached. Ctrl-C ends it. In a pipe, it shows everything once.",
    )
    parser.add_argument(
        "--metrics", metavar="URL", default=_METRICS, help=f"of the daemon (default: {_METRICS})"
    )
    spool_option.add(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Show it until Ctrl-C."""
    home = spool_option.home(arguments)
    console = Console()
    if not console.is_terminal:
        console.print(_look(home, arguments.metrics))
        return Exit.DONE
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(_look(home, arguments.metrics), refresh=True)
                time.sleep(EVERY_S)
    except KeyboardInterrupt:
        return Exit.DONE


def _look(home: layout.Layout, url: str) -> RenderableType:
    active = [shown for shown in outbox.read_all(home) if not shown.is_terminal]
    waiting = len(drops.scan(home.inbox).candidates)
    numbers = overview.scrape(url)
    return overview.panel(
        active[::-1], waiting, numbers, time.time(), url=url, is_served=outbox.is_served(home)
    )
