"""Reading the outbox for the command line: what status.json says, and whether anyone serves the spool."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from spool import files, layout, lease
from spool.record import Status

UNSERVED = "note: no daemon serves this spool now; start one with `batchd run`"


class Shown(NamedTuple):
    """A batch as its status.json shows it.

    Attributes:
        name: of its folder in outbox/.
        tree: the whole document.
    """

    name: str
    tree: dict[str, Any]

    @property
    def status(self) -> str:
        """OpenAI's status."""
        return str(self.tree["status"])

    @property
    def is_terminal(self) -> bool:
        """Whether nothing follows."""
        return Status(self.status).is_terminal

    @property
    def stage(self) -> str:
        """The status, with batchd's finer phase where that says more."""
        phase = str(self.extra["phase"])
        return self.status if self.is_terminal or phase == self.status else f"{self.status} ({phase})"

    @property
    def counts(self) -> tuple[int, int, int]:
        """(total, completed, failed) requests."""
        counts = self.tree["request_counts"]
        return counts["total"], counts["completed"], counts["failed"]

    @property
    def extra(self) -> dict[str, Any]:
        """What OpenAI has no field for."""
        extra: dict[str, Any] = self.tree["batchd"]
        return extra


def read(folder: Path) -> Shown | None:
    """The batch of an outbox folder; None where no status.json of ours stands."""
    try:
        tree = orjson.loads(files.read_regular(folder / layout.STATUS_FILE))
    except (FileNotFoundError, NotADirectoryError, files.NotRegular, orjson.JSONDecodeError):
        return None
    if not isinstance(tree, dict) or not {"status", "request_counts", "batchd", "created_at"} <= tree.keys():
        return None
    return Shown(folder.name, tree)


def unreadable(folder: Path) -> str:
    """What to say where `read` finds nothing in a batch's folder."""
    return (
        f"{folder / layout.STATUS_FILE} is no status of batchd's: was it changed? `batchd status` lists all"
    )


def read_all(home: layout.Layout) -> list[Shown]:
    """All batches, newest first."""
    found = [read(home.outbox / name) for name in os.listdir(home.outbox)]
    shown = [each for each in found if each]
    return sorted(shown, key=lambda each: (each.tree["created_at"], each.tree["id"]), reverse=True)


def is_served(home: layout.Layout) -> bool:
    """Whether a daemon holds a live lease on the spool; where this user cannot tell, it counts as served."""
    try:
        return lease.any_live(home, time.time())
    except PermissionError:
        return True  # work/ is the daemon's own


def warn_if_unserved(home: layout.Layout) -> None:
    """Say on standard error when no daemon holds the spool, as far as this user can tell."""
    if not is_served(home):
        print(UNSERVED, file=sys.stderr)
