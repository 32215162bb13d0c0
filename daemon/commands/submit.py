"""`batchd submit FILE`: drop a file so that it enters complete and overwrites nothing; maybe wait.

The file is copied under a hidden name, made durable, then linked to its final name: link fails where that
name is taken, which rename would not. A sidecar with a random submission id goes first; `--wait` follows
that id.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from config.units import seconds, window
from daemon import outbox
from daemon.commands import spool_option
from daemon.exits import CommandError, Exit
from spool import files, layout

POLL_S = 0.3


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "submit",
        help="drop a batch file into the spool",
        description="Drop a batch file into the spool; with --wait, follow it to its end. "
        "Exit code 0: every request was answered; 1: the batch failed or has errors; 4: --timeout ran out.",
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="a batch file (OpenAI's JSONL)")
    parser.add_argument("--name", metavar="NAME", help="name in the inbox (default: the file's own)")
    parser.add_argument("--window", metavar="TIME", help="completion window, such as 90m, 24h, 7d")
    parser.add_argument("--pool", choices=("auto", "spot", "dedicated"), help="where to run (default: auto)")
    parser.add_argument("--on-invalid", choices=("fail", "skip"), help="what one bad line does to the file")
    parser.add_argument(
        "--metadata",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="goes into status.json; repeatable",
    )
    parser.add_argument("--wait", action="store_true", help="wait for the end and print the result's paths")
    parser.add_argument("--timeout", metavar="TIME", help="give up the wait after this time, such as 30m")
    spool_option.add(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Drop the file, and wait if that was asked for."""
    home = spool_option.home(arguments)
    timeout_s = _timeout_s(arguments.timeout)
    name = _name(arguments)
    submission = secrets.token_hex(8)
    _drop(arguments.file, home.inbox / name, _wishes(arguments, submission))
    print(f"dropped {name} (submission {submission})", flush=True)
    outbox.warn_if_unserved(home)
    if not arguments.wait:
        return Exit.DONE
    return _wait(home, Path(name), submission, timeout_s)


def _timeout_s(text: str | None) -> float:
    try:
        return seconds(text) if text is not None else float("inf")
    except ValueError as error:
        raise CommandError(f"--timeout {text!r}: {error}", Exit.WRONG_USE) from error


def _name(arguments: argparse.Namespace) -> str:
    name: str = arguments.name or arguments.file.name
    if not name.endswith(layout.SUFFIX):
        name += layout.SUFFIX
    if "/" in name or not layout.is_drop_name(name):
        raise CommandError(
            f"{name!r} cannot be the name of a drop: choose another with --name", Exit.WRONG_USE
        )
    return name


def _wishes(arguments: argparse.Namespace, submission: str) -> dict[str, Any]:
    wishes: dict[str, Any] = {"submission": submission}
    if arguments.window is not None:
        try:
            window(arguments.window)
        except ValueError as error:
            raise CommandError(f"--window {error}", Exit.WRONG_USE) from error
        wishes["completion_window"] = arguments.window
    asked = {"pool": arguments.pool, "on_invalid": arguments.on_invalid}
    wishes |= {key: value for key, value in asked.items() if value}
    pairs = [pair.partition("=") for pair in arguments.metadata]
    if any(not separator for _, separator, _ in pairs):
        raise CommandError("--metadata takes KEY=VALUE", Exit.WRONG_USE)
    if pairs:
        wishes["metadata"] = {key: value for key, _, value in pairs}
    return wishes


def _drop(source: Path, drop: Path, wishes: dict[str, Any]) -> None:
    sidecar = layout.sidecar_of(drop)
    hidden = drop.with_name(f".{drop.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(source, "rb") as reader, files.durable(hidden, 0o644) as writer:
            shutil.copyfileobj(reader, writer, files.BUFFER_BYTES)
        _enter(yaml.safe_dump(wishes).encode(), sidecar)
        try:
            os.link(hidden, drop)
        except FileExistsError as error:
            with suppress(FileNotFoundError):
                os.unlink(sidecar)
            raise CommandError(
                f"{drop.name} waits in the inbox already: wait a little, or choose --name", Exit.WRONG_USE
            ) from error
        files.fsync_folder(drop.parent)
    except OSError as error:
        raise CommandError(
            f"cannot drop {source}: {error.strerror} ({error.filename})", Exit.WRONG_USE
        ) from error
    finally:
        with suppress(OSError):
            os.unlink(hidden)


def _enter(content: bytes, sidecar: Path) -> None:
    """Write the sidecar whole, and never over another's."""
    hidden = sidecar.with_name(f".{sidecar.name}.{secrets.token_hex(4)}.tmp")
    files.write_durable(hidden, content, 0o644)
    try:
        os.link(hidden, sidecar)
    except FileExistsError as error:
        raise CommandError(
            f"{sidecar.name} waits in the inbox already: choose --name", Exit.WRONG_USE
        ) from error
    finally:
        os.unlink(hidden)


def _wait(home: layout.Layout, relative: Path, submission: str, timeout_s: float) -> int:
    """Follow a submission to its end; a line each time something changes."""
    ends_at = time.monotonic() + timeout_s
    told = ""
    while True:
        shown = _find(home, relative, submission)
        line = _line(shown) if shown else f"{relative} waits in the inbox"
        if line != told:
            print(line, flush=True)
            told = line
        if shown and shown.is_terminal:
            return _end(home, shown)
        if time.monotonic() >= ends_at:
            print("batchd: the wait ran out of time; the batch goes on", file=sys.stderr)
            return Exit.TIMED_OUT
        time.sleep(min(POLL_S, max(0.0, ends_at - time.monotonic())))


def _find(home: layout.Layout, relative: Path, submission: str) -> outbox.Shown | None:
    """The batch of a submission: its name is the drop's, or that with a number."""
    plain = layout.outbox_name(relative)
    for name in os.listdir(home.outbox):
        if name == plain or name.startswith(f"{plain}."):
            shown = outbox.read(home.outbox / name)
            if shown and shown.extra["submission"] == submission:
                return shown
    return None


def _line(shown: outbox.Shown) -> str:
    total, completed, failed = shown.counts
    rate = shown.extra["progress"]["requests_per_s"]
    speed = f", {rate:.1f} requests/s" if rate else ""
    return f"{shown.name}: {shown.stage} {completed + failed}/{total}, {failed} failed{speed}"


def _end(home: layout.Layout, shown: outbox.Shown) -> int:
    tree = shown.tree
    for file in ("status.json", tree["output_file_id"], tree["error_file_id"]):
        if file:
            print(home.outbox / (file if "/" in file else f"{shown.name}/{file}"))
    for problem in (tree["errors"] or {}).get("data", []):
        where = f"line {problem['line']}: " if problem["line"] else ""
        print(layout.printable(f"{where}{problem['code']}: {problem['message']}"), file=sys.stderr)
    total, _, failed = shown.counts
    return Exit.DONE if shown.status == "completed" and failed == 0 and total > 0 else Exit.FAILED
