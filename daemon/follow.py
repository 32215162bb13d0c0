"""Following one batch to its end: a live panel on a terminal, else a line each time something changes.

All is read from the outbox, so it works on any machine that sees the folder, with no connection to a daemon.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import timedelta

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from daemon import outbox
from spool import layout

POLL_S = 0.3
# Between two looks at the daemons' leases.
_LEASES_EVERY_S = 5.0
_BAR_WIDTH = 40
_COLOURS = {
    "completed": "green",
    "failed": "red",
    "expired": "red",
    "cancelled": "yellow",
    "cancelling": "yellow",
}


def follow(
    home: layout.Layout, find: Callable[[], outbox.Shown | None], waiting: str, timeout_s: float
) -> outbox.Shown | None:
    """Show a batch until it has ended.

    Args:
        home: the spool.
        find: the batch as it is shown now; None while there is none yet.
        waiting: what to say as long as there is none.
        timeout_s: how long to follow it, in seconds.

    Returns:
        How it ended; None where the time ran out.
    """
    console = Console()
    if not console.is_terminal:
        return _in_lines(home, find, waiting, timeout_s)
    with Live(console=console, auto_refresh=False) as live:

        def show(shown: outbox.Shown | None, is_served: bool) -> None:
            live.update(panel(shown, waiting, time.time(), is_served=is_served), refresh=True)

        return _until_over(home, find, timeout_s, show)


def _in_lines(
    home: layout.Layout, find: Callable[[], outbox.Shown | None], waiting: str, timeout_s: float
) -> outbox.Shown | None:
    told, is_warned = "", False

    def show(shown: outbox.Shown | None, is_served: bool) -> None:
        nonlocal told, is_warned
        text = line(shown) if shown else waiting
        if text != told:
            print(text, flush=True)
            told = text
        if not is_served and not is_warned and not (shown and shown.is_terminal):
            print(outbox.UNSERVED, file=sys.stderr, flush=True)
            is_warned = True

    return _until_over(home, find, timeout_s, show)


def _until_over(
    home: layout.Layout,
    find: Callable[[], outbox.Shown | None],
    timeout_s: float,
    show: Callable[[outbox.Shown | None, bool], None],
) -> outbox.Shown | None:
    ends_at = time.monotonic() + timeout_s
    looked_at, is_served = float("-inf"), True
    while True:
        if time.monotonic() - looked_at >= _LEASES_EVERY_S:
            looked_at, is_served = time.monotonic(), outbox.is_served(home)
        shown = find()
        show(shown, is_served)
        if shown and shown.is_terminal:
            return shown
        if time.monotonic() >= ends_at:
            return None
        time.sleep(min(POLL_S, max(0.0, ends_at - time.monotonic())))


def line(shown: outbox.Shown) -> str:
    """A batch in one line, for a pipe or a log."""
    total, completed, failed = shown.counts
    rate = shown.extra["progress"]["requests_per_s"]
    speed = f", {rate:.1f} requests/s" if rate else ""
    return f"{shown.name}: {shown.stage} {completed + failed}/{total}, {failed} failed{speed}"


def panel(shown: outbox.Shown | None, waiting: str, now: float, *, is_served: bool) -> RenderableType:
    """A batch in a few lines, for a terminal.

    Args:
        shown: None while there is none yet.
        waiting: what to say then.
        now: Unix seconds.
        is_served: whether a daemon holds a live lease, as far as this user can tell.
    """
    unserved = [] if is_served or (shown and shown.is_terminal) else [Text(outbox.UNSERVED, style="yellow")]
    if shown is None:
        return Group(Text(waiting), *unserved)
    return Group(_head(shown), _bar(shown), _facts(shown, now), *_notes(shown), *unserved)


def _head(shown: outbox.Shown) -> Text:
    head = Text(shown.name, style="bold").append("  ").append(shown.stage, _COLOURS.get(shown.status, "cyan"))
    if shown.extra["pool"]:
        head.append(f"  on {shown.extra['pool']}", "dim")
    return head


def _bar(shown: outbox.Shown) -> RenderableType:
    total, completed, failed = shown.counts
    row = Table.grid(padding=(0, 2))
    bar = ProgressBar(
        total=max(1, total), completed=completed + failed, width=_BAR_WIDTH, complete_style="cyan"
    )
    share = f"{100 * (completed + failed) // total} %" if total else ""
    row.add_row(bar, f"{completed + failed:,}/{total:,}", share)
    return row


def _facts(shown: outbox.Shown, now: float) -> RenderableType:
    progress = shown.extra["progress"]
    _, _, failed = shown.counts
    facts = [Text(f"{failed:,} failed", "red" if failed else "dim")]
    if progress["requests_per_s"]:
        facts.append(Text(f"{progress['requests_per_s']:,.1f} requests/s"))
        facts.append(Text(f"{progress['tokens_per_s'] or 0:,.0f} tokens/s"))
        facts.append(Text(f"done in {span(progress['eta_at'] - now)}"))
    if not shown.is_terminal:
        left_s = shown.tree["expires_at"] - now
        is_late = shown.extra["sla"]["at_risk"] or left_s < 0
        risk = " AT RISK" if is_late else ""
        facts.append(Text(f"deadline in {span(left_s)}{risk}", "red" if is_late else "dim"))
    row = Table.grid(padding=(0, 2))
    row.add_row(*facts)
    return row


def _notes(shown: outbox.Shown) -> list[Text]:
    return [Text(layout.printable(warning), "yellow") for warning in shown.extra["warnings"]]


def span(seconds: float) -> str:
    """Hours, minutes and seconds; a time that is over counts as none."""
    return str(timedelta(seconds=max(0, round(seconds))))
