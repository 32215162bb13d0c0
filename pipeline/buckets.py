"""Brings results that come in any order into the file's, through files on the disk, in bounded memory.

Each bucket is a run of the file's requests. Results are appended to their buckets' files; then one bucket
after the other is sorted in memory, and one that is much larger than the others is cut into buckets of its
own. All reading and writing is sequential. Nothing is durable: after a crash a merge begins anew.
A row is the request's index in so many digits that rows sort as they are, `1` or `0` for success, the line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline import errors
from spool.parts import Result

# A bucket that is sorted takes about three times this much memory.
BUCKET_BYTES = 8 << 20
# What waits for being appended: with more there are fewer and longer writes.
HELD_BYTES = 16 << 20

_ROW = b"%010d%d%s\n"
_DIGITS = 10
_OK = ord("1")


class Texts(NamedTuple):
    """Finished lines in the file's order, without their line ends."""

    output: list[bytes]
    errors: list[bytes]


class Buckets:
    """Buckets for some requests of a file."""

    def __init__(self, folder: Path, lines: range, size_bytes: int) -> None:
        """Prepare empty buckets.

        Args:
            folder: where their files go.
            lines: the requests.
            size_bytes: about what their results take.
        """
        count = max(1, min(len(lines), size_bytes // BUCKET_BYTES))
        span = -(-len(lines) // count)
        self._folder = folder
        self._first, self._span = lines.start, span
        self._lines = [lines[start : start + span] for start in range(0, len(lines), span)]
        self._held: list[list[bytes]] = [[] for _ in self._lines]
        self._held_bytes = 0

    def add(self, results: Iterable[Result]) -> None:
        """Take results in.

        Raises:
            OSError: they cannot be written.
        """
        first, span, held = self._first, self._span, self._held
        for line, ok, _, text, *_ in results:
            held[(line - first) // span].append(_ROW % (line, ok, text))
            self._held_bytes += len(text)
        if self._held_bytes >= HELD_BYTES:
            self._flush()

    def drain(self) -> Iterator[Texts]:
        """All results, some at a time; what was given is gone from the disk.

        Raises:
            PipelineError: a request has no result, or several.
            OSError: the buckets cannot be read or written.
        """
        self._flush()
        for lines in self._lines:
            path = self._path(lines)
            size = path.stat().st_size
            if size > 4 * BUCKET_BYTES and len(lines) > 1:
                smaller = Buckets(self._folder, lines, size)
                smaller._add_all(path)
                yield from smaller.drain()
            else:
                yield _sort(path, lines)

    def _add_all(self, path: Path) -> None:
        """Take in a bucket that is too large."""
        with open(path, "rb") as file:
            for row in file:
                number = (int(row[:_DIGITS]) - self._first) // self._span
                self._held[number].append(row)
                self._held_bytes += len(row)
                if self._held_bytes >= HELD_BYTES:
                    self._flush()
        path.unlink()

    def _flush(self) -> None:
        for lines, rows in zip(self._lines, self._held, strict=True):
            if rows:
                with open(self._path(lines), "ab", buffering=0) as file:
                    file.write(b"".join(rows))
                rows.clear()
        self._held_bytes = 0

    def _path(self, lines: range) -> Path:
        return self._folder / f"{lines.start}-{lines.stop}.bucket"


def _sort(path: Path, lines: range) -> Texts:
    rows = path.read_bytes().split(b"\n")
    path.unlink()
    rows.pop()
    rows.sort()
    if [int(row[:_DIGITS]) for row in rows] != list(lines):
        raise errors.PipelineError(
            f"{path.parent}: requests {lines.start} to {lines.stop - 1} have {len(rows)} results, or others"
        )
    begin = _DIGITS + 1
    return Texts(
        [row[begin:] for row in rows if row[_DIGITS] == _OK],
        [row[begin:] for row in rows if row[_DIGITS] != _OK],
    )
