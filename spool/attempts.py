"""Attempts: which requests were in an engine when it died, kept in `attempts/` of a batch's folder.

    attempts/00000012          shard 12: a row `line TAB company TAB kills` for each suspect

A shard's file is replaced as a whole, durably, after each death and before any of its suspects is sent again;
so it holds at most a row for each line of the shard, and a restart of the daemon goes on where narrowing was.
A suspect that was answered meanwhile keeps its row, which nobody reads any more. Recovery carries the folder
along, archiving removes it. What the numbers lead to is decided in pipeline/calls.py.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from spool import files

FOLDER = "attempts"


class Suspect(NamedTuple):
    """What is known of a request that was in an engine when it died.

    Attributes:
        company: most requests that may be in an engine at a time while this one is, itself included.
        kills: engines that died while this request was alone in them.
    """

    company: int
    kills: int


def write(batch: Path, shard: int, suspects: Mapping[int, Suspect]) -> None:
    """Make durable what is known of a shard's suspects, by line, instead of what was.

    Raises:
        FileNotFoundError: the batch was adopted by another daemon.
    """
    files.ensure_folder(batch / FOLDER)
    rows = (b"%d\t%d\t%d\n" % (line, *suspect) for line, suspect in suspects.items())
    files.write_durable(_path(batch, shard), b"".join(rows), step="attempts")


def read(batch: Path, shard: int) -> dict[int, Suspect]:
    """A shard's suspects by line; none where no engine ever died under it.

    Raises:
        ValueError: the file is damaged; the message names it.
    """
    try:
        content = _path(batch, shard).read_bytes()
    except FileNotFoundError:
        return {}
    try:
        rows = [[int(field) for field in row.split(b"\t")] for row in content.splitlines()]
        return {line: Suspect(company, kills) for line, company, kills in rows}
    except ValueError as error:
        raise ValueError(f"{batch.name}: the attempts of shard {shard} are damaged") from error


def digest(batch: Path) -> str:
    """A hash of all that is on record of a batch; another one means that an engine died since.

    Returns:
        Hexadecimal; empty where no engine ever died.
    """
    try:
        names = sorted(name for name in os.listdir(batch / FOLDER) if name.isdigit())
    except FileNotFoundError:
        return ""
    found = hashlib.sha256()
    for name in names:
        found.update(b"%s\n%s\n" % (name.encode(), (batch / FOLDER / name).read_bytes()))
    return found.hexdigest() if names else ""


def _path(batch: Path, shard: int) -> Path:
    return batch / FOLDER / f"{shard:08d}"
