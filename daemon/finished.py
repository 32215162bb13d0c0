"""A finished batch as it lies on disk: its status, its result files, and its drop in archive/."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from daemon import outbox
from daemon.exits import CommandError, Exit
from pipeline import pairing
from spool import files, layout


def add_input(parser: argparse.ArgumentParser) -> None:
    """Declare --input, which names the drop of a `Finished`."""
    parser.add_argument(
        "--input",
        metavar="FILE",
        type=Path,
        help="the batch's input (default: the one in archive/, which the daemon's user alone may read)",
    )


class Finished:
    """A batch that has ended.

    Attributes:
        shown: its status.json.
        drop: its input.
        files: the result files that its status names, by their names.
    """

    def __init__(self, home: layout.Layout, folder: Path, drop: Path | None) -> None:
        """Find it.

        Args:
            home: the spool.
            folder: its folder in outbox/.
            drop: its input, where archive/ does not hold it or may not be read.

        Raises:
            CommandError: it cannot be read, or has not ended yet.
        """
        shown = outbox.read(folder)
        if shown is None:
            raise CommandError(outbox.unreadable(folder), Exit.FAILED)
        if not shown.is_terminal:
            message = f"{shown.name} has not ended yet, it is {shown.stage}: `batchd watch {shown.name}`"
            raise CommandError(message, Exit.FAILED)
        self.shown = shown
        self.archived = home.archive / str(shown.tree["id"])
        self.drop = drop or self.archived / layout.DROP_FILE
        named = {
            layout.OUTPUT_FILE: shown.tree["output_file_id"],
            layout.ERRORS_FILE: shown.tree["error_file_id"],
        }
        self.files = {name: folder / name for name, file_id in named.items() if file_id}

    def pairs(self) -> Iterator[pairing.Pair]:
        """Each request with its result.

        Raises:
            CommandError: a file cannot be read.
            Mismatch: they do not belong together.
        """
        with contextlib.ExitStack() as stack:
            drop = stack.enter_context(self.open_drop())
            output, errors = (
                stack.enter_context(_open(self.files[name])) if name in self.files else ()
                for name in (layout.OUTPUT_FILE, layout.ERRORS_FILE)
            )
            yield from pairing.pair(drop, output, errors)

    def open_drop(self) -> BinaryIO:
        """The input, for reading.

        Raises:
            CommandError: it is gone or not ours to read; the message says what else to do.
        """
        try:
            return files.open_regular(self.drop)
        except FileNotFoundError as error:
            message = f"{self.drop} is gone, archive/ keeps it for spool.retention_days: name it with --input"
            raise CommandError(message, Exit.FAILED) from error
        except PermissionError as error:
            message = f"{self.drop} may be read by the daemon's user alone: name the input with --input"
            raise CommandError(message, Exit.FAILED) from error
        except OSError as error:
            raise CommandError(f"the input {self.drop} cannot be read: {error}", Exit.FAILED) from error


def _open(path: Path) -> BinaryIO:
    try:
        return files.open_regular(path)
    except OSError as error:
        message = f"{path} cannot be read, though status.json names it: {error}"
        raise CommandError(message, Exit.FAILED) from error
