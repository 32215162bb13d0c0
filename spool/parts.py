"""Parts: the durable results of a shard, kept in `parts/` of a batch's folder until they are merged.

A shard is a run of requests that are worked on together; each time one is worked on, what was finished
is written as one part. The name holds all that progress needs, so counting means listing a folder:

    parts/00000012.1.ok127.err1.tok5120     shard 12, attempt 1, 127 answered, 1 failed, 5,120 tokens
    parts/00000013.1.ok127.err1.tok5120.shr9    the same of shard 13, and 9 took the answer of a twin
    parts/00000014.1.ok128.err0.tok5120.lat12-3-125    how long the engine took for each, see latency.py
    parts/0012/                             the parts of shards 12 * 256 to 12 * 256 + 255

The first 256 shards stand in parts/ itself, so that a small batch needs no other folder. A million lines are
8,000 shards, and each task of a run looks for those of its own.

Attempt 0 is the validator's own: the lines that `on_invalid: skip` refused. A shard is done when its parts
together hold as many results as it has requests; a shard's later attempt runs only what is missing.
Each row is `line TAB flags TAB input TAB cached TAB output TAB reasoning TAB json`, so that merging never
parses JSON; flags are 1 for success and 2 for an answer of a twin's, added up. Parts are never changed; the
first result of a line wins.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from spool import files, latency

FOLDER = "parts"
# Reading a shard's parts lists the names of this many shards at most, and of the folders.
FOLDER_SHARDS = 256
_NAME = re.compile(r"(\d{8})\.(\d+)\.ok(\d+)\.err(\d+)\.tok(\d+)(?:\.shr(\d+))?(?:\.lat(\d+(?:-\d+)+))?")
# Flags of a row.
OK, SHARED = 1, 2
_FLAGS = {b"%d" % flags: (bool(flags & OK), bool(flags & SHARED)) for flags in range(4)}


class Usage(NamedTuple):
    """Tokens of one answer, or of many."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Input and output tokens; the cached and reasoning ones are among them."""
        return self.input_tokens + self.output_tokens

    def plus(self, other: Usage) -> Usage:
        """The sum, field by field."""
        inputs, cached, outputs, reasoning = self
        return Usage(inputs + other[0], cached + other[1], outputs + other[2], reasoning + other[3])


def total(usages: Iterable[Usage]) -> Usage:
    """The sum of many, field by field."""
    sums = [sum(values) for values in zip(*usages, strict=True)]
    return Usage(*sums)


class Result(NamedTuple):
    """What became of one request.

    Attributes:
        line: index of the request among the file's requests, from 0.
        ok: whether it belongs into output.jsonl; errors.jsonl otherwise.
        usage: tokens, all 0 for a failure.
        text: the finished JSON line, without its line end.
        shared: whether it is the result of an identical request, which alone was sent to an engine.
        latency: bucket of the time that the engine took, see latency.py; None for what none answered, and for
            what was read back: a part says it of all its results together.
    """

    line: int
    ok: bool
    usage: Usage
    text: bytes
    shared: bool = False
    latency: int | None = None


class PartName(NamedTuple):
    """What the name of a part says.

    Attributes:
        latency: of its answers, as latency.py encodes it; empty where nothing is known.
    """

    shard: int
    attempt: int
    completed: int
    failed: int
    tokens: int
    shared: int = 0
    latency: str = ""

    @property
    def results(self) -> int:
        """Results in this part."""
        return self.completed + self.failed

    def __str__(self) -> str:
        """The file name."""
        name = f"{self.shard:08d}.{self.attempt}.ok{self.completed}.err{self.failed}.tok{self.tokens}"
        shared = f".shr{self.shared}" if self.shared else ""
        return f"{name}{shared}.lat{self.latency}" if self.latency else f"{name}{shared}"

    @classmethod
    def parse(cls, name: str) -> PartName | None:
        """The part that a file name stands for, None for any other file."""
        match = _NAME.fullmatch(name)
        if not match:
            return None
        *numbers, times = match.groups(default="0")
        shard, attempt, completed, failed, tokens, shared = map(int, numbers)
        return cls(shard, attempt, completed, failed, tokens, shared, "" if times == "0" else times)


class Located(NamedTuple):
    """A part and where it stands."""

    name: PartName
    path: str


def write(batch: Path, shard: int, attempt: int, results: Iterable[Result]) -> PartName:
    """Write the results of one attempt at a shard, durably.

    Args:
        batch: the batch's folder.
        shard: index of the shard, from 0.
        attempt: number of the run, from 1; 0 for the validator.
        results: at least one, of requests of this shard that have no result yet.

    Raises:
        FileNotFoundError: the batch was adopted by another daemon.
    """
    rows: list[bytes] = []
    completed = tokens = shared = 0
    times: list[int] = []
    for line, ok, usage, text, is_shared, took in results:
        flags = ok * OK + is_shared * SHARED
        rows.append(b"%d\t%d\t%d\t%d\t%d\t%d\t%s\n" % (line, flags, *usage, text))
        completed += ok
        shared += is_shared
        tokens += usage.total_tokens
        if took is not None:
            times.append(took)
    known = latency.encode(Counter(times))
    name = PartName(shard, attempt, completed, len(rows) - completed, tokens, shared, known)
    folder = _folder(batch, shard)
    if folder.name != FOLDER:
        files.ensure_folder(folder)  # of an adopted batch the parent is gone as well
    files.write_durable(folder / str(name), b"".join(rows), step="part")
    return name


def list_parts(batch: Path) -> list[PartName]:
    """The parts of a batch, by shard and attempt.

    Raises:
        FileNotFoundError: the batch was adopted by another daemon.
    """
    return [each.name for each in locate(batch)]


def locate(batch: Path) -> list[Located]:
    """The parts of a batch with their paths, by shard and attempt.

    Raises:
        FileNotFoundError: the batch was adopted by another daemon.
    """
    found, folders = _scan(batch / FOLDER)
    for folder in folders:
        found += _scan(folder)[0]
    return sorted(found)


def list_shard(batch: Path, shard: int) -> list[PartName]:
    """The parts of one shard, by attempt.

    Raises:
        FileNotFoundError: the batch was adopted by another daemon.
    """
    prefix = f"{shard:08d}."
    found, _ = _scan(batch / FOLDER, prefix)  # all shards stood there before there were folders
    folder = _folder(batch, shard)
    if folder.name != FOLDER:
        with suppress(FileNotFoundError):  # none of its shards has a part yet
            found += _scan(folder, prefix)[0]
    return sorted(each.name for each in found)


def folders(batch: Path) -> list[Path]:
    """Where parts stand: parts/ and the folders in it; none of a batch that has no plan yet."""
    try:
        return [batch / FOLDER, *_scan(batch / FOLDER)[1]]
    except FileNotFoundError:
        return []


def path_of(batch: Path, name: PartName) -> Path:
    """Where a part stands."""
    path = _folder(batch, name.shard) / str(name)
    old = batch / FOLDER / str(name)
    return old if path != old and old.exists() else path


def _folder(batch: Path, shard: int) -> Path:
    number = shard // FOLDER_SHARDS
    return batch / FOLDER / f"{number:04d}" if number else batch / FOLDER


def _scan(folder: Path, prefix: str = "") -> tuple[list[Located], list[Path]]:
    """Of what is in a folder and begins so, the parts, and the folders."""
    found, folders = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(prefix):
                continue
            if name := PartName.parse(entry.name):
                found.append(Located(name, entry.path))
            elif entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry.path))
    return found, folders


class Tally(NamedTuple):
    """What the parts of a shard hold, each line counted once.

    Attributes:
        names: the parts that were counted.
    """

    names: tuple[PartName, ...]
    completed: int
    failed: int
    tokens: int
    shared: int

    @property
    def results(self) -> int:
        """Lines that have a result."""
        return self.completed + self.failed


def tally(batch: Path, known: dict[int, Tally] | None = None) -> dict[int, Tally]:
    """What the parts of a batch hold, by shard.

    A task of a run that failed may outlive it and write lines that the next run answers as well; so where a
    shard has several parts they are read, and a line that stands in two counts once.

    Args:
        batch: the batch's folder.
        known: what an earlier call returned; shards with the same parts are not read again.

    Raises:
        FileNotFoundError: the batch was adopted by another daemon.
        ValueError: a part is damaged.
    """
    by_shard: dict[int, list[PartName]] = {}
    for name in list_parts(batch):
        by_shard.setdefault(name.shard, []).append(name)
    known = known or {}
    return {
        shard: known[shard]
        if shard in known and known[shard].names == tuple(names)
        else _tally_one(batch, tuple(names))
        for shard, names in by_shard.items()
    }


def _tally_one(batch: Path, names: tuple[PartName, ...]) -> Tally:
    if len(names) == 1:
        return Tally(names, names[0].completed, names[0].failed, names[0].tokens, names[0].shared)
    first: dict[int, Result] = {}
    for name in names:
        for result in read(batch, name):
            first.setdefault(result.line, result)
    completed = sum(result.ok for result in first.values())
    tokens = sum(result.usage.total_tokens for result in first.values())
    shared = sum(result.shared for result in first.values())
    return Tally(names, completed, len(first) - completed, tokens, shared)


def read(batch: Path, name: PartName) -> Iterator[Result]:
    """The results of a part, in the order in which they were written.

    Raises:
        ValueError: the part is damaged; the message names it.
    """
    return parse(path_of(batch, name).read_bytes(), name)


def parse(content: bytes, name: PartName) -> Iterator[Result]:
    """The results that a part of this name and content holds.

    Raises:
        ValueError: as `read`.
    """
    rows = content.split(b"\n")
    is_whole = rows.pop() == b""
    for row in rows:
        try:
            line, flags, inputs, cached, outputs, reasoning, text = row.split(b"\t", 6)
            usage = Usage(int(inputs), int(cached), int(outputs), int(reasoning))
            ok, shared = _FLAGS[flags]
            result = Result(int(line), ok, usage, text, shared)
        except (ValueError, TypeError, KeyError):
            raise ValueError(f"part {name} holds a damaged row") from None
        yield result
    if not is_whole:
        raise ValueError(f"part {name} holds a damaged row")
    if len(rows) != name.results:
        raise ValueError(f"part {name} holds {len(rows)} results, its name says {name.results}")
