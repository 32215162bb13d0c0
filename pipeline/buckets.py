"""Brings results that come in any order into the file's, through files on the disk, in bounded memory.

Each bucket is a run of the file's requests. Results are appended to their buckets' files; then one bucket
after the other is sorted in memory, and one that is much larger than the others is cut into buckets of its
own. All reading and writing is sequential. Nothing is durable: after a crash a merge begins anew.
A file is a row of segments, one for each `add` that had something for it: how many results and how many bytes
of lines (8 bytes each, little-endian), an entry for each result, the lines with their line ends.

Imported only inside functions, because it imports numpy at the top.
"""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import errors
from pipeline.behind import Behind
from pipeline.spans import Bytes, Flags, Numbers, Spans, Texts

# A bucket that is sorted takes about three times this much memory.
BUCKET_BYTES = 16 << 20
# What should be added at once: with more there are fewer and longer writes.
HELD_BYTES = 16 << 20

_HEAD = struct.Struct("<QQ")
_ENTRY = np.dtype([("line", "<u4"), ("size_bytes", "<u4"), ("is_ok", "?")])


class Buckets:
    """Buckets for some requests of a file."""

    def __init__(self, folder: Path, lines: range, size_bytes: int, executor: Executor) -> None:
        """Prepare empty buckets.

        Args:
            folder: where their files go.
            lines: the requests.
            size_bytes: about what their results take.
            executor: has a thread for the writing.
        """
        count = max(1, min(len(lines), size_bytes // BUCKET_BYTES))
        span = -(-len(lines) // count)
        self._folder = folder
        self._first, self._span = lines.start, span
        self._lines = [lines[start : start + span] for start in range(0, len(lines), span)]
        self._executor = executor
        self._writing = Behind(executor)

    def add(self, lines: Numbers, ok: Flags, rows: Numbers, spans: Spans) -> None:
        """Take results in.

        Args:
            lines: (n,) index of each request among the file's.
            ok: (n,) whether the result belongs into output.jsonl.
            rows: (n,) number of the result among the spans.
            spans: finished lines; they may change after this.

        Raises:
            OSError: these, or those before them, cannot be written.
        """
        # Of 16 bits numpy sorts the fastest; there are more buckets than that from a TiB on.
        kind = np.uint16 if len(self._lines) <= 1 << 16 else np.uint32
        numbers = ((lines - self._first) // self._span).astype(kind)
        order = np.argsort(numbers, kind="stable")
        numbers, rows = numbers[order], rows[order]
        entries = np.empty(len(rows), _ENTRY)
        entries["line"], entries["is_ok"] = lines[order], ok[order]
        entries["size_bytes"] = spans.sizes[rows]
        content = spans.pick(rows).content
        self._writing.do(len(content), functools.partial(self._append, numbers, entries, content))

    def drain(self) -> Iterator[Texts]:
        """All results, some at a time; what was given is gone from the disk.

        Raises:
            PipelineError: a request has no result, or several.
            OSError: the buckets cannot be read or written.
        """
        self._writing.finish()
        for lines in self._lines:
            path = self._path(lines)
            size = path.stat().st_size
            if size > 4 * BUCKET_BYTES and len(lines) > 1:
                smaller = Buckets(self._folder, lines, size, self._executor)
                smaller._add_all(path)
                yield from smaller.drain()
            else:
                yield _sort(path, lines)

    def _append(self, numbers: npt.NDArray[Any], entries: npt.NDArray[Any], content: memoryview) -> None:
        """Append runs of results of one number to their buckets."""
        starts = np.flatnonzero(np.diff(numbers, prepend=-1)).tolist()
        ends = np.cumsum(entries["size_bytes"], dtype=np.int64)
        position = 0
        for start, stop in zip(starts, [*starts[1:], len(numbers)], strict=True):
            end = int(ends[stop - 1])
            head = _HEAD.pack(stop - start, end - position)
            path = self._path(self._lines[numbers[start]])
            _append(path, [head, entries[start:stop].tobytes(), content[position:end]])
            position = end

    def _add_all(self, path: Path) -> None:
        """Take in a bucket that is too large, segment by segment."""
        with open(path, "rb") as file:
            while head := file.read(_HEAD.size):
                count, size = _HEAD.unpack(head)
                entries = np.frombuffer(file.read(count * _ENTRY.itemsize), _ENTRY)
                content = np.frombuffer(file.read(size), np.uint8)
                ends = np.cumsum(entries["size_bytes"], dtype=np.int64)
                spans = Spans(content, ends - entries["size_bytes"], ends)
                self.add(entries["line"].astype(np.int64), entries["is_ok"], np.arange(count), spans)
        self._writing.finish()
        path.unlink()

    def _path(self, lines: range) -> Path:
        return self._folder / f"{lines.start}-{lines.stop}.bucket"


def _append(path: Path, pieces: list[bytes | memoryview]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        written = os.writev(descriptor, pieces)
        if written < sum(map(len, pieces)):  # a full disk may take a part; the next write says so
            rest = memoryview(b"".join(pieces))[written:]
            while rest:
                rest = rest[os.write(descriptor, rest) :]
    finally:
        os.close(descriptor)


def _sort(path: Path, lines: range) -> Texts:
    content = np.fromfile(path, np.uint8)
    path.unlink()
    found, ok, spans = _parse(content)
    places = found - lines.start
    rows = np.full(len(lines), -1, np.int64)
    if len(found) == len(lines) and places.min() >= 0 and places.max() < len(lines):
        rows[places] = np.arange(len(places))
    if rows.min() < 0:
        raise errors.PipelineError(
            f"{path.parent}: requests {lines.start} to {lines.stop - 1} have {len(found)} results, or others"
        )
    return spans.split(rows, ok[rows])


def _parse(content: Bytes) -> tuple[Numbers, Flags, Spans]:
    """Index of each request of a bucket, whether its result is ok, and its line."""
    entries: list[memoryview] = []
    counts, shifts = [], []  # of results, and where the lines begin, less all lines before them
    position = size_before = 0
    view = content.data
    while position < len(content):
        count, size = _HEAD.unpack_from(view, position)
        begin = position + _HEAD.size
        position = begin + count * _ENTRY.itemsize
        entries.append(view[begin:position])
        counts.append(count)
        shifts.append(position - size_before)
        position, size_before = position + size, size_before + size
    table = np.frombuffer(b"".join(entries), _ENTRY)
    ends = np.cumsum(table["size_bytes"], dtype=np.int64)
    shift = np.repeat(shifts, counts)
    spans = Spans(content, ends - table["size_bytes"] + shift, ends + shift)
    return table["line"].astype(np.int64), table["is_ok"], spans
