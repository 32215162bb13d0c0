r"""Reads a drop as physical lines in bounded memory, hashing its bytes on the way.

A line ends with b"\n" and nothing else: a lone CR, U+2028 and their like are content. A BOM at the start is
dropped, and so are blanks, tabs and CR around a line. A line over the limit is skipped without being held.
What is not text at all (compressed, UTF-16) is named once, instead of as thousands of bad lines.
Reading always ends: where a regular file goes on growing, and in a line that is endless (a sparse file can
claim exabytes).
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from typing import BinaryIO

# Small enough that stopping is polled often, large enough that reading costs little per line.
CHUNK_BYTES = 256 << 10
# Nobody writes a line of this length; limits.max_line_bytes may be larger still.
ENDLESS_BYTES = 1 << 30
_AROUND = b" \t\r"
_BOM = b"\xef\xbb\xbf"
_UTF_16 = "UTF-16; save it as UTF-8"
_FOREIGN = (
    (b"\x1f\x8b", "gzip; uncompress it first"),
    (b"\x28\xb5\x2f\xfd", "zstd; uncompress it first"),
    (b"\xfd7zXZ\x00", "xz; uncompress it first"),
    (b"BZh", "bzip2; uncompress it first"),
    (b"PK\x03\x04", "a zip archive; unpack it first"),
    (b"\xff\xfe", _UTF_16),
    (b"\xfe\xff", _UTF_16),
    (b"{\x00", _UTF_16),
    (b"\x00{", _UTF_16),
)
_LONGEST_FOREIGN = max(len(magic) for magic, _ in _FOREIGN)


class LineReader:
    """Reads one source, once.

    Attributes:
        size_bytes: bytes read so far.
        is_too_large: whether reading stopped because there are more than `max_bytes`.
        has_grown: whether reading stopped because a regular file holds more than it did at first.
        endless_bytes: a line that is longer ends the reading, not only itself.
        is_endless: whether there was one.
        foreign: what the source looks like if it is no text, such as "gzip; uncompress it first"; else "".
    """

    def __init__(
        self, source: BinaryIO, max_line_bytes: int, max_bytes: int, before_read: Callable[[], None]
    ) -> None:
        """Prepare to read from where the source stands.

        Args:
            source: binary; seekable if `line_at` is to be used.
            max_line_bytes: a longer line is given as None.
            max_bytes: 0 for no limit.
            before_read: called before each chunk; what it raises ends the reading.
        """
        self.size_bytes = 0
        self.is_too_large = False
        self.has_grown = False
        self.endless_bytes = max(max_line_bytes, ENDLESS_BYTES)
        self.is_endless = False
        self.foreign = ""
        self._source = source
        self._start = source.tell() if source.seekable() else 0
        self._expected_bytes = _size_of(source, self._start)
        self._max_line_bytes = max_line_bytes
        self._max_bytes = max_bytes
        self._before_read = before_read
        self._hash = hashlib.sha256()
        self._held: list[bytes] = []
        self._held_bytes = 0

    @property
    def sha256(self) -> str:
        """Of the bytes read so far, hexadecimal."""
        return self._hash.hexdigest()

    def lines(self) -> Iterator[tuple[int, int, bytes | None]]:
        """Each line as (number from 1, offset from the start, content); None for one that is too long."""
        number, offset = 1, 0
        limit = self._max_line_bytes
        for chunk in self._chunks():
            if offset == 0 == self._held_bytes and chunk.startswith(_BOM):
                offset, chunk = len(_BOM), chunk[len(_BOM) :]
            head, end, tail = chunk.partition(b"\n")
            self._hold(head)
            if not end:
                if self._held_bytes > self.endless_bytes:
                    self.is_endless = True
                    break
                continue
            size = self._held_bytes
            yield number, offset, self._take()
            number, offset = number + 1, offset + size + 1
            lines = tail.split(b"\n")
            self._hold(lines.pop())
            for line in lines:
                yield number, offset, line.strip(_AROUND) if len(line) <= limit else None
                number, offset = number + 1, offset + len(line) + 1
        if self._held_bytes and not self.is_too_large:
            yield number, offset, self._take()

    def line_at(self, offset: int) -> bytes:
        """A line that was read before, again; empty if it has become too long since."""
        self._source.seek(self._start + offset)
        pieces: list[bytes] = []
        size = 0
        while size <= self._max_line_bytes and (piece := self._source.read(4096)):
            head, end, _ = piece.partition(b"\n")
            pieces.append(head)
            size += len(head)
            if end:
                break
        self._source.seek(self._start + self.size_bytes)
        return b"".join(pieces).strip(_AROUND) if size <= self._max_line_bytes else b""

    def _chunks(self) -> Iterator[bytes]:
        """The source's bytes; of a foreign one none, though all are read and hashed."""
        first = b""
        while len(first) < _LONGEST_FOREIGN and (chunk := self._read()):
            first += chunk
        self.foreign = next((name for magic, name in _FOREIGN if first.startswith(magic)), "")
        if first and not self.foreign:
            yield first
        while chunk := self._read():
            if not self.foreign:
                yield chunk

    def _read(self) -> bytes:
        self._before_read()
        if self._max_bytes and self.size_bytes > self._max_bytes:
            self.is_too_large = True
            return b""
        if self._expected_bytes is not None and self.size_bytes > self._expected_bytes:
            self.has_grown = True
            return b""
        chunk = self._source.read(CHUNK_BYTES)
        self.size_bytes += len(chunk)
        self._hash.update(chunk)
        return chunk

    def _hold(self, piece: bytes) -> None:
        """Keep the beginning of a line, for as long as the line may still be short enough."""
        self._held_bytes += len(piece)
        if self._held_bytes <= self._max_line_bytes:
            self._held.append(piece)
        else:
            self._held.clear()

    def _take(self) -> bytes | None:
        is_whole = self._held_bytes <= self._max_line_bytes
        line = b"".join(self._held).strip(_AROUND) if is_whole else None
        self._held.clear()
        self._held_bytes = 0
        return line


def _size_of(source: BinaryIO, start: int) -> int | None:
    """Bytes of a regular file from where it stands; None of anything else, such as a pipe."""
    try:
        facts = os.fstat(source.fileno())
    except OSError:  # io.UnsupportedOperation is one
        return None
    return max(0, facts.st_size - start) if stat.S_ISREG(facts.st_mode) else None
