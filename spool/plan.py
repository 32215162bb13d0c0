"""The plan of a batch: its shards, made while the file is validated and never changed after.

`plan/shards.jsonl` holds one shard a line, in the order in which they should run. `input.jsonl` beside
`plan/` holds one request a line, in the file's order and without blank lines; a line that `on_invalid: skip`
refused stands there empty, so that every request keeps its index.

Where requests do not run in the file's order, `plan/order.bin` holds an entry for each, in the order in which
they do: where it begins in input.jsonl (8 bytes), its index there (4) and its size with its line end (4), all
little-endian. A shard is then a run of entries, so that reading one is a single read of addresses.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

FOLDER = "plan"
SHARDS_FILE = "shards.jsonl"
ORDER_FILE = "order.bin"
INPUT_FILE = "input.jsonl"
ENTRY = struct.Struct("<QII")


@dataclass(frozen=True, slots=True)
class Shard:
    """A run of requests that are worked on together.

    Attributes:
        index: number of the shard, from 0.
        first_line: place of its first request in the order in which requests run, from 0.
        lines: number of requests, refused ones included.
        offset: where it begins in input.jsonl, or in order.bin if it has a group; bytes.
        size_bytes: length of its requests in input.jsonl, line ends included.
        group: shards of one number share a prefix of their prompts; None in the file's order.
        distinct: how many of its requests differ from each other; None where nobody has looked.
    """

    index: int
    first_line: int
    lines: int
    offset: int
    size_bytes: int
    group: int | None = None
    distinct: int | None = None


def render(shard: Shard) -> bytes:
    """One line of shards.jsonl."""
    fields = {name: getattr(shard, name) for name in Shard.__slots__}
    return orjson.dumps({name: value for name, value in fields.items() if value is not None}) + b"\n"


def read(batch: Path) -> list[Shard]:
    """All shards of a batch, in the order in which they should run."""
    with open(batch / FOLDER / SHARDS_FILE, "rb") as file:
        return [Shard(**orjson.loads(line)) for line in file]


def must_stand(batch: Path) -> None:
    """Return if the files that a run reads are there.

    Raises:
        FileNotFoundError: one is missing.
    """
    names = [f"{FOLDER}/{ORDER_FILE}"] if any(shard.group is not None for shard in read(batch)) else []
    for name in [INPUT_FILE, *names]:
        os.stat(batch / name)


def read_lines(batch: Path, shard: Shard) -> Sequence[int]:
    """Which requests a shard has, by their index among the file's, in its order.

    Raises:
        ValueError: the order does not hold what the plan says.
    """
    if shard.group is None:
        return range(shard.first_line, shard.first_line + shard.lines)
    return [line for _, line, _ in ENTRY.iter_unpack(read_entries(batch, [shard]))]


def read_requests(batch: Path, shard: Shard) -> Iterator[tuple[int, bytes]]:
    """The requests of a shard as (index among the file's requests, raw JSON line).

    Raises:
        ValueError: input.jsonl, or the order, does not hold what the plan says.
    """
    if shard.group is None:
        with open(batch / INPUT_FILE, "rb") as file:
            file.seek(shard.offset)
            content = file.read(shard.size_bytes)
        found = content.split(b"\n")[:-1]
        if len(found) != shard.lines:
            raise _damaged(batch, shard, len(found))
        yield from enumerate(found, shard.first_line)
        return
    entries = ENTRY.iter_unpack(read_entries(batch, [shard]))
    with open(batch / INPUT_FILE, "rb", buffering=0) as file:
        for number, (offset, line, size) in enumerate(entries):
            request = os.pread(file.fileno(), size, offset)
            if len(request) != size or request.find(b"\n") != size - 1:
                raise _damaged(batch, shard, number)
            yield line, request[:-1]


def read_entries(batch: Path, shards: Sequence[Shard]) -> bytes:
    """The entries of shards that follow each other in the order, as ENTRY has them.

    Raises:
        ValueError: the order does not hold what the plan says.
    """
    size = sum(shard.lines for shard in shards) * ENTRY.size
    with open(batch / FOLDER / ORDER_FILE, "rb") as file:
        file.seek(shards[0].offset)
        entries = file.read(size)
    if len(entries) != size:
        raise ValueError(
            f"{batch.name}: {ORDER_FILE} ends before shard {shards[-1].index}, which its plan says it holds"
        )
    return entries


def _damaged(batch: Path, shard: Shard, found: int) -> ValueError:
    return ValueError(
        f"{batch.name}: input.jsonl holds {found} requests of shard {shard.index}, "
        f"its plan says {shard.lines}"
    )
