"""What commands that wait for a batch share: the option --timeout, and how its end is told."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from config.units import seconds
from daemon import follow, outbox
from daemon.exits import CommandError, Exit
from spool import layout


def add(parser: argparse.ArgumentParser) -> None:
    """Declare --timeout."""
    parser.add_argument("--timeout", metavar="TIME", help="give up the wait after this time, such as 30m")


def timeout_s(arguments: argparse.Namespace) -> float:
    """Seconds to wait at most; infinite where nothing was said.

    Raises:
        CommandError: it is no time.
    """
    text: str | None = arguments.timeout
    try:
        return seconds(text) if text is not None else float("inf")
    except ValueError as error:
        raise CommandError(f"--timeout {text!r}: {error}", Exit.WRONG_USE) from error


def wait(home: layout.Layout, find: Callable[[], outbox.Shown | None], before: str, timeout_s: float) -> int:
    """Follow a batch to its end, then print its paths and what was wrong; the arguments are `follow`'s.

    Returns:
        An exit code: whether every request was answered, or the time ran out.
    """
    shown = follow.follow(home, find, before, timeout_s)
    if shown is None:
        print("batchd: the wait ran out of time; the batch goes on", file=sys.stderr)
        return Exit.TIMED_OUT
    tree = shown.tree
    for file in ("status.json", tree["output_file_id"], tree["error_file_id"]):
        if file:
            print(home.outbox / (file if "/" in file else f"{shown.name}/{file}"))
    for problem in (tree["errors"] or {}).get("data", []):
        where = f"line {problem['line']}: " if problem["line"] else ""
        print(layout.printable(f"{where}{problem['code']}: {problem['message']}"), file=sys.stderr)
    total, _, failed = shown.counts
    return Exit.DONE if shown.status == "completed" and failed == 0 and total > 0 else Exit.FAILED
