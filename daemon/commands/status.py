"""`batchd status`: all batches as a table, or one in detail, from the outbox alone."""

from __future__ import annotations

import argparse
import time
from typing import Any

import orjson

from daemon import outbox
from daemon.commands import spool_option
from daemon.exits import CommandError, Exit
from spool import layout
from spool.record import Status

_EMPTY = "no batches yet: drop a .jsonl file into inbox/"


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "status",
        help="show batches: all, or one",
        description="Show all batches, newest first, or one in detail.",
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="name in outbox/, or the drop's")
    parser.add_argument("--json", action="store_true", help="status.json as it is; without NAME one a line")
    parser.add_argument(
        "--state",
        metavar="STATUS",
        action="append",
        choices=[*Status, "active"],
        help=f"only batches of this status; repeatable: {', '.join(Status)}, or active for all that go on",
    )
    spool_option.add(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Show them."""
    home = spool_option.home(arguments)
    if arguments.name:
        _show_one(home, arguments)
    else:
        batches = [shown for shown in outbox.read_all(home) if _is_wanted(shown, arguments.state)]
        if arguments.json:
            for shown in batches:
                print(orjson.dumps(shown.tree).decode())
        else:
            _show_table(batches, arguments.state)
    outbox.warn_if_unserved(home)
    return Exit.DONE


def _is_wanted(shown: outbox.Shown, states: list[str] | None) -> bool:
    return states is None or shown.status in states or ("active" in states and not shown.is_terminal)


def _show_one(home: layout.Layout, arguments: argparse.Namespace) -> None:
    folder = spool_option.outbox(home, arguments.name)
    shown = outbox.read(folder)
    if shown is None:
        raise CommandError(outbox.unreadable(folder), Exit.FAILED)
    if arguments.json:
        print(orjson.dumps(shown.tree, option=orjson.OPT_INDENT_2).decode())
        return
    for label, value in _details(shown):
        print(f"{label:<11}{layout.printable(value)}")  # a reason may quote an engine, which quotes a request


def _details(shown: outbox.Shown) -> list[tuple[str, str]]:
    total, completed, failed = shown.counts
    extra, tree = shown.extra, shown.tree
    details = [
        ("batch", f"{shown.name}  ({tree['id']})"),
        ("input", str(tree["input_file_id"])),
        ("status", shown.stage),
        ("requests", f"{completed} completed, {failed} failed, of {total}"),
        ("deadline", _at(tree["expires_at"]) + ("  AT RISK" if extra["sla"]["at_risk"] else "")),
    ]
    if extra["progress"]["requests_per_s"]:
        eta = _at(extra["progress"]["eta_at"])
        details.append(("speed", f"{extra['progress']['requests_per_s']:.1f} requests/s, done about {eta}"))
    for label, key in (("output", "output_file_id"), ("errors", "error_file_id")):
        if tree[key]:
            details.append((label, tree[key]))
    for problem in (tree["errors"] or {}).get("data", []):
        where = f"line {problem['line']}: " if problem["line"] else ""
        details.append(("error", f"{where}{problem['code']}: {problem['message']}"))
    details += [("warning", warning) for warning in extra["warnings"]]
    details += [
        ("history", f"{_at(event['at'])}  {event['phase']}: {event['reason']}") for event in extra["history"]
    ]
    return details


def _show_table(batches: list[outbox.Shown], states: list[str] | None) -> None:
    if not batches:
        print(f"no batches are {' or '.join(states)}" if states else _EMPTY)
        return
    rows = [("NAME", "STATUS", "PHASE", "DONE", "TOTAL", "FAILED", "CREATED", "DEADLINE")]
    for shown in batches:
        total, completed, failed = shown.counts
        rows.append(
            (
                shown.name,
                shown.status,
                shown.extra["phase"],
                str(completed + failed),
                str(total),
                str(failed),
                _at(shown.tree["created_at"]),
                _at(shown.tree["expires_at"]),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _at(unix: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix))
