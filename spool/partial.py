"""Partial results: the parts that a running batch has finished, linked into outbox/NAME/partial/.

They are hard links, so showing them costs no copy, whatever the size; where a filesystem has none, there is
no such folder. A line is `line TAB flags TAB … TAB json`, see parts.py: `cut -f7-` gives lines as they will
stand in output.jsonl (flag 1) or errors.jsonl. The folder is gone before the status is terminal.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from spool import parts

FOLDER = "partial"


def show(batch: Path, outbox: Path, names: Iterable[parts.PartName], mode: int) -> None:
    """Link parts; those that are shown already stay.

    Args:
        batch: the batch's folder.
        outbox: its folder in outbox/.
        names: of its parts.
        mode: permission bits of what is published.

    Raises:
        FileNotFoundError: the batch was adopted by another daemon, or its outbox folder was removed.
        OSError: they cannot be linked, as on a filesystem without hard links.
    """
    folder = outbox / FOLDER
    with suppress(FileExistsError):
        os.mkdir(folder)
        os.chmod(folder, 0o700 | mode | (mode & 0o444) >> 2)
    for name in names:
        part = parts.path_of(batch, name)
        os.chmod(part, mode & 0o444)  # its own folder stays private, and parts never change
        with suppress(FileExistsError):
            os.link(part, folder / str(name))


def clear(outbox: Path) -> None:
    """Take them away: the batch is about to end."""
    with suppress(FileNotFoundError):
        shutil.rmtree(outbox / FOLDER)
