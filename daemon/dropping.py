"""Dropping from the command line: a file enters the inbox complete and overwrites nothing.

It is written under a hidden name, made durable, then linked to its final name: link fails where that name is
taken, which rename would not. A sidecar with a random submission id goes first; a wait follows that id.
"""

from __future__ import annotations

import argparse
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from config.units import window
from daemon import outbox
from daemon.commands import waiting
from daemon.exits import CommandError, Exit
from spool import files, layout


def add(parser: argparse.ArgumentParser) -> None:
    """Declare what every command takes that drops something."""
    parser.add_argument("--window", metavar="TIME", help="completion window, such as 90m, 24h, 7d")
    parser.add_argument("--pool", choices=("auto", "spot", "dedicated"), help="where to run (default: auto)")
    parser.add_argument("--on-invalid", choices=("fail", "skip"), help="what one bad line does to the file")
    parser.add_argument("--wait", action="store_true", help="wait for the end and print the result's paths")
    waiting.add(parser)


def wishes(arguments: argparse.Namespace, metadata: dict[str, str] | None) -> dict[str, Any]:
    """A sidecar that says what the arguments do.

    Raises:
        CommandError: --window is no window.
    """
    if arguments.window is not None:
        try:
            window(arguments.window)
        except ValueError as error:
            raise CommandError(f"--window {error}", Exit.WRONG_USE) from error
    asked = {
        "completion_window": arguments.window,
        "pool": arguments.pool,
        "on_invalid": arguments.on_invalid,
        "metadata": metadata,
    }
    return {key: value for key, value in asked.items() if value}


def submit(
    arguments: argparse.Namespace,
    home: layout.Layout,
    content: Iterable[bytes],
    relative: Path,
    wishes: dict[str, Any],
) -> int:
    """Drop something, say so, and wait for its end if that was asked for.

    Args:
        arguments: with the options of `add`.
        home: the spool.
        content: pieces of the file.
        relative: its path in the inbox.
        wishes: of its sidecar.

    Returns:
        An exit code.

    Raises:
        CommandError: it could not be dropped; nothing was.
    """
    timeout_s = waiting.timeout_s(arguments)
    submission = secrets.token_hex(8)
    drop(content, home.inbox / relative, {**wishes, "submission": submission})
    print(f"dropped {relative} (submission {submission})", flush=True)
    if arguments.wait:
        find = partial(_find, home, relative, submission)
        return waiting.wait(home, find, f"{relative} waits in the inbox", timeout_s)
    outbox.warn_if_unserved(home)
    return Exit.DONE


def _find(home: layout.Layout, relative: Path, submission: str) -> outbox.Shown | None:
    """The batch of a submission: its name is the drop's, or that with a number."""
    plain = layout.outbox_name(relative)
    for name in os.listdir(home.outbox):
        if name == plain or name.startswith(f"{plain}."):
            shown = outbox.read(home.outbox / name)
            if shown and shown.extra["submission"] == submission:
                return shown
    return None


def drop(content: Iterable[bytes], target: Path, wishes: dict[str, Any]) -> None:
    """Drop a batch file.

    Args:
        content: pieces of the file.
        target: its path in the inbox.
        wishes: of its sidecar.

    Raises:
        CommandError: a drop or a sidecar of that name waits there already, or it cannot be written.
    """
    sidecar = layout.sidecar_of(target)
    hidden = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with files.durable(hidden, 0o644) as writer:
            for piece in content:
                writer.write(piece)
        _enter(yaml.safe_dump(wishes).encode(), sidecar)
        try:
            os.link(hidden, target)
        except FileExistsError as error:
            with suppress(FileNotFoundError):
                os.unlink(sidecar)
            message = f"{target.name} waits in the inbox already: wait a little, or choose --name"
            raise CommandError(message, Exit.WRONG_USE) from error
        files.fsync_folder(target.parent)
    except OSError as error:
        message = f"cannot drop {target.name}: {error.strerror} ({error.filename})"
        raise CommandError(message, Exit.WRONG_USE) from error
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
        message = f"{sidecar.name} waits in the inbox already: choose --name"
        raise CommandError(message, Exit.WRONG_USE) from error
    finally:
        os.unlink(hidden)
