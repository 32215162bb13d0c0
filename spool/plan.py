"""The plan of a batch: its shards, made while the file is validated and never changed after.

`plan/shards.jsonl` holds one shard a line, in the order in which they should run. `input.jsonl` beside it
holds one request a line, in the file's order and without blank lines; a line that `on_invalid: skip`
refused stands there empty, so that every request keeps its index.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

FOLDER = "plan"
SHARDS_FILE = "shards.jsonl"
INPUT_FILE = "input.jsonl"


@dataclass(frozen=True, slots=True)
class Shard:
    """A run of requests that are worked on together.

    Attributes:
        index: number of the shard, from 0.
        first_line: index of its first request among the file's requests, from 0.
        lines: number of requests, refused ones included.
        offset: where it begins in input.jsonl, bytes.
        size_bytes: its length in input.jsonl, line ends included.
    """

    index: int
    first_line: int
    lines: int
    offset: int
    size_bytes: int


def render(shard: Shard) -> bytes:
    """One line of shards.jsonl."""
    return orjson.dumps(shard) + b"\n"


def read(batch: Path) -> list[Shard]:
    """All shards of a batch, in the order in which they should run."""
    with open(batch / FOLDER / SHARDS_FILE, "rb") as file:
        return [Shard(**orjson.loads(line)) for line in file]


def read_requests(batch: Path, shard: Shard) -> Iterator[tuple[int, bytes]]:
    """The requests of a shard as (index among the file's requests, raw JSON line)."""
    with open(batch / INPUT_FILE, "rb") as file:
        file.seek(shard.offset)
        content = file.read(shard.size_bytes)
    yield from enumerate(content.split(b"\n")[:-1], shard.first_line)
