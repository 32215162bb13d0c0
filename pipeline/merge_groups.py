"""Shards that are merged together: their parts are read into one buffer, and each request gets its result.

What belongs together is decided by pipeline/part_groups.py. The first result of a request wins; one
without a result gets an error line. What does not fit the plan is refused.

Imported only inside functions, because it imports numpy at the top.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import orjson

from pipeline import errors, part_rows
from pipeline.part_groups import ERROR_BYTES, Group, grouped, read_into
from pipeline.part_rows import BEHIND, Rows
from pipeline.shards import ENTRY
from pipeline.spans import Bytes, Flags, Numbers, Spans
from spool import lines, parts, plan
from spool.parts import Result, Usage
from spool.timeline import Pace

# Line ends are looked for in so many bytes at a time, while the processor has them in its cache.
SEARCH_BYTES = 1 << 18


class Chosen(NamedTuple):
    """One result for each request of a group, in the order in which the requests run.

    Attributes:
        lines: (n,) index of each request among the file's.
        ok: (n,) whether its result belongs into output.jsonl.
        rows: (n,) number of its result among the spans.
        spans: all results.
        usage: tokens of those that are ok.
        shared: how many took the answer of a twin.
    """

    lines: Numbers
    ok: Flags
    rows: Numbers
    spans: Spans
    usage: Usage
    shared: int


class Groups:
    """The groups of a batch."""

    def __init__(
        self,
        batch: Path,
        shards: Sequence[plan.Shard],
        unanswered: tuple[str, str] | None,
        pace: Pace,
    ) -> None:
        """Find the parts.

        Args:
            batch: the batch's folder.
            shards: in the order in which requests run.
            unanswered: code and message for requests without a result; None where each must have one.
            pace: gets all parts.

        Raises:
            FileNotFoundError: the batch was adopted by another daemon.
        """
        self._batch = batch
        self._shards = shards
        self._unanswered = unanswered
        self._pace = pace
        by_shard = itertools.groupby(parts.locate(batch), lambda each: each.name.shard)
        self._located = {shard: list(located) for shard, located in by_shard}
        self._buffer = np.empty(0, np.uint8)

    @property
    def is_ordered(self) -> bool:
        """Whether requests ran in another order than the file's."""
        return any(shard.group is not None for shard in self._shards)

    @property
    def requests(self) -> int:
        """Requests of all shards."""
        return sum(shard.lines for shard in self._shards)

    def size_bytes(self) -> int:
        """About what all results take."""
        located = itertools.chain.from_iterable(self._located.values())
        return sum(os.stat(each.path).st_size for each in located) + self.requests * ERROR_BYTES

    def read(self, group_bytes: int) -> Iterator[Chosen]:
        """The results of one group after the other; each is there until the next one is asked for.

        Args:
            group_bytes: of parts that are in memory together, unless one shard has more.

        Raises:
            PipelineError: the parts do not fit the plan.
            ValueError: a part is damaged.
        """
        for group in grouped(self._shards, self._located, group_bytes):
            yield self._choose(group, self._read(group))

    def _read(self, group: Group) -> Numbers:
        """Read a group's parts into the buffer, and find their line ends."""
        if len(self._buffer) < group.size_bytes + BEHIND:
            self._buffer = np.empty(group.size_bytes + BEHIND, np.uint8)
        ends, begin = [np.empty(0, np.int64)], 0
        for located, piece in zip(group.located, group.pieces, strict=True):
            read_into(located.path, self._buffer[piece.begin : piece.end])
            if piece.end - begin >= SEARCH_BYTES or piece is group.pieces[-1]:
                ends.append(part_rows.line_ends(self._buffer, begin, piece.end))
                begin = piece.end
        return np.concatenate(ends)

    def _choose(self, group: Group, ends: Numbers) -> Chosen:
        rows = part_rows.parse(self._buffer, group.pieces, ends)
        wanted = _wanted(self._batch, group)
        places = _places(wanted, rows.lines) if group.is_ordered else rows.lines - group.first_line
        self._check(group, rows, places)
        chosen = np.full(len(wanted), -1, np.int64)
        chosen[places[::-1]] = np.arange(len(places))[::-1]  # of several, what is written last stays
        answered = chosen[chosen >= 0]
        self._note_pace(group, rows, chosen[places])
        usage = Usage(*rows.usage[:, answered[rows.ok[answered]]].sum(axis=1).tolist())
        shared = int(rows.shared[answered].sum())
        buffer = self._buffer
        if len(answered) < len(wanted):
            buffer, rows = self._add_missing(group, rows, wanted, chosen)
        return Chosen(wanted, rows.ok[chosen], chosen, Spans(buffer, rows.begins, rows.ends), usage, shared)

    def _check(self, group: Group, rows: Rows, places: Numbers) -> None:
        """Raise PipelineError unless each result is of a request of its own shard."""
        spans = {shard.index: (shard.first_line - group.first_line, shard.lines) for shard in group.shards}
        owned = np.array([spans[piece.name.shard] for piece in group.pieces], np.int64).reshape(-1, 2)
        counts = [piece.name.results for piece in group.pieces]
        begins, sizes = np.repeat(owned, np.array(counts, np.int64), axis=0).T
        within = places - begins
        is_foreign = (within < 0) | (within >= sizes)
        if is_foreign.any():
            raise self._unfit(group, rows, int(group.owners()[is_foreign.argmax()]))

    def _unfit(self, group: Group, rows: Rows, index: int) -> errors.PipelineError:
        named = len(np.unique(rows.lines[group.owners() == index]))
        shard = next(shard for shard in group.shards if shard.index == index)
        return errors.PipelineError(
            f"{self._batch.name}: shard {index} holds {shard.lines} requests from the plan's place "
            f"{shard.first_line} on, but its parts and input.jsonl name {named}, or others"
        )

    def _note_pace(self, group: Group, rows: Rows, winners: Numbers) -> None:
        """Tell the pace of each part.

        Args:
            group: which.
            rows: its rows.
            winners: (n,) for each row that which is taken for the same request.
        """
        begin, last = 0, -1
        for piece, at in zip(group.pieces, group.times, strict=True):
            name = piece.name
            fresh = None
            if name.shard == last:
                fresh = [
                    Result(0, bool(rows.ok[row]), Usage(*rows.usage[:, row].tolist()), b"")
                    for row in range(begin, begin + name.results)
                    if winners[row] == row
                ]
            self._pace.add(name, at, fresh)
            begin, last = begin + name.results, name.shard

    def _add_missing(self, group: Group, rows: Rows, wanted: Numbers, chosen: Numbers) -> tuple[Bytes, Rows]:
        """Give each request without a result its error line, behind the rows; fills the gaps in `chosen`."""
        texts: list[bytes] = []
        is_missing = chosen < 0
        for shard in group.shards:
            begin = shard.first_line - group.first_line
            if not is_missing[begin : begin + shard.lines].any():
                continue
            if self._unanswered is None:
                raise self._unfit(group, rows, shard.index)
            missing = is_missing[begin : begin + shard.lines].tolist()
            for place, (line, request) in enumerate(plan.read_requests(self._batch, shard)):
                if missing[place]:
                    texts.append(_error_line(self._batch, line, request, self._unanswered))
        chosen[is_missing] = np.arange(len(texts)) + len(rows.lines)
        content = np.frombuffer(b"".join(texts), np.uint8)
        end = group.size_bytes
        ends = end + np.cumsum([len(text) for text in texts])
        begins = np.concatenate(([end], ends[:-1]))
        no = np.zeros(len(texts), np.bool_)
        return np.concatenate((self._buffer[:end], content)), Rows(
            np.concatenate((rows.lines, wanted[is_missing])),
            np.concatenate((rows.ok, no)),
            np.concatenate((rows.shared, no)),
            rows.usage,
            np.concatenate((rows.begins, begins)),
            np.concatenate((rows.ends, ends)),
        )


def _wanted(batch: Path, group: Group) -> Numbers:
    """(n,) the requests of a group, by their index among the file's."""
    if not group.is_ordered:
        return np.arange(group.first_line, group.first_line + group.requests)
    entries = np.frombuffer(plan.read_entries(batch, group.shards), ENTRY)
    return entries["line"].astype(np.int64)


def _places(wanted: Numbers, found: Numbers) -> Numbers:
    """(m,) where each of these numbers stands among those that are wanted; -1 for nowhere."""
    order, sequence = np.argsort(wanted), np.argsort(found)
    if np.array_equal(wanted[order], found[sequence]):  # nearly always, and much faster than a search
        places = np.empty_like(order)
        places[sequence] = order
        return places
    if not len(found):
        return found
    places = order[np.minimum(np.searchsorted(wanted, found, sorter=order), len(wanted) - 1)]
    return np.where(wanted[places] == found, places, -1)


def _error_line(batch: Path, line: int, request: bytes, unanswered: tuple[str, str]) -> bytes:
    key = lines.request_key(batch.name.rpartition("~")[0], line)
    return lines.error_line(key, _custom_id(request), *unanswered) + b"\n"


def _custom_id(request: bytes) -> str | None:
    """The custom_id of a request that validation let through; None for one that it refused."""
    if not request:
        return None
    custom_id: str | None = orjson.loads(request).get("custom_id")
    return custom_id
