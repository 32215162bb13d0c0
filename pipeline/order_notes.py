"""Notes on the requests of a file while it is validated: what its order is decided from at the end.

A column holds one number for each request, or for each that reaches a rung of the ladder; all but its end
lies in a nameless file in the batch's folder, so that five million requests take no more memory than five
thousand. Deciding is order.py's, which needs numpy.
"""

from __future__ import annotations

from array import array
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, Literal, NamedTuple

from pipeline import prefixes, twins

# Numbers of a column that stay in memory.
_HELD = 1 << 15
# What a line has at least, beside its endpoint and its prompt; shorter ones need no look at their prompt.
_ENVELOPE_BYTES = len('{"custom_id":"a","method":"POST","url":"","body":{"model":"m","input":}}')


class Wishes(NamedTuple):
    """What the settings ask for.

    Attributes:
        by_prefix: order requests by their prompts' prefixes and their lengths; else as in the file.
        is_deduping: put identical requests together.
    """

    by_prefix: bool = True
    is_deduping: bool = True


class Column:
    """Unsigned numbers, appended one by one.

    Attributes:
        kind: "I" for 4 bytes each, "Q" for 8.
        held: the latest, to which more are appended.
    """

    def __init__(self, kind: Literal["I", "Q"], folder: Path) -> None:
        self.kind = kind
        self.held = array(kind)
        self._folder = folder
        self._file: BinaryIO | None = None
        self._stored = 0

    def __len__(self) -> int:
        return self._stored + len(self.held)

    def spill(self) -> None:
        """Move what is held to the disk if it is much.

        Raises:
            FileNotFoundError: the folder is gone.
            OSError: such as on a full disk.
        """
        if len(self.held) < _HELD:
            return
        if self._file is None:
            self._file = TemporaryFile(dir=self._folder)  # noqa: SIM115 - closed by `close`
        self._file.write(self.held)
        self._stored += len(self.held)
        del self.held[:]

    def read_into(self, target: memoryview) -> None:
        """Copy all of it into a buffer of its length and kind."""
        raw = target.cast("B")
        size = self._stored * self.held.itemsize
        if self._file is not None:
            self._file.seek(0)
            read = 0
            while read < size:
                count = self._file.readinto(raw[read:size])  # type: ignore[attr-defined]  # BinaryIO lacks it
                if not count:
                    raise OSError(f"{self._folder}: a file of notes is shorter than it was written")
                read += count
        raw[size:] = memoryview(self.held).cast("B")

    def close(self) -> None:
        """Free the disk."""
        if self._file is not None:
            self._file.close()


class Notes:
    """Columns on the requests of one file, in the file's order; a request's line is its index, from 0.

    Attributes:
        sizes: bytes of each request in input.jsonl, without the line end.
        lengths: the most tokens of each answer, all the same where they do not matter; 0 for a refused
            request.
        marks: numbers that are equal for twins; 0 for a request that can have none.
        rungs: for each rung, `hash << 32 | line` of the requests that reach it.
        lines: how many requests there are.
        size_bytes: of all of them in input.jsonl.
        refused: how many of them were refused.
        determined: how many have a mark.
    """

    def __init__(self, wishes: Wishes, folder: Path) -> None:
        self.wishes = wishes
        self.sizes = Column("I", folder)
        self.lengths = Column("I", folder)
        self.marks = Column("Q", folder)
        self.rungs = [Column("Q", folder) for _ in prefixes.RUNGS]
        self.lines = self.size_bytes = self.refused = self.determined = 0
        self._columns = (self.sizes, self.lengths, self.marks, *self.rungs)

    def take(self, url: str, lines: list[bytes], bodies: list[dict[str, Any] | None]) -> None:
        """Note the next requests.

        Args:
            url: their endpoint.
            lines: as they stand in input.jsonl, without line ends.
            bodies: as they were parsed; None for a refused one, whose line is empty.

        Raises:
            OSError: what is too much for memory cannot be written.
        """
        self.sizes.held.extend(map(len, lines))
        self._take_lengths(url, bodies)
        if self.wishes.by_prefix:
            self._take_prompts(url, lines, bodies)
        if self.wishes.is_deduping:
            self._take_marks(url, bodies)
        self.lines += len(lines)
        self.size_bytes += sum(map(len, lines))
        self.refused += bodies.count(None)
        for column in self._columns:
            column.spill()

    def _take_lengths(self, url: str, bodies: list[dict[str, Any] | None]) -> None:
        endpoint = prefixes.endpoint(url)
        fields = endpoint.length if self.wishes.by_prefix else ()
        add, find, default = self.lengths.held.append, prefixes.answer_length, endpoint.default_length
        for body in bodies:
            add(0 if body is None else find(body, fields, default))

    def _take_prompts(self, url: str, lines: list[bytes], bodies: list[dict[str, Any] | None]) -> None:
        fields = prefixes.endpoint(url).prompt
        least = prefixes.RUNGS[0]
        least_line = least + len(url) + _ENVELOPE_BYTES
        adds = [rung.held.append for rung in self.rungs]
        for number, (line, body) in enumerate(zip(lines, bodies, strict=True), self.lines):
            if len(line) < least_line or body is None:
                continue
            prompt = prefixes.prompt_of(body, fields)
            if len(prompt) >= least:
                for mark, add in zip(prefixes.ladder(prompt), adds, strict=False):
                    add(mark << 32 | number)

    def _take_marks(self, url: str, bodies: list[dict[str, Any] | None]) -> None:
        add, find = self.marks.held.append, twins.mark
        for body in bodies:
            mark = 0 if body is None else find(url, body)
            add(mark)
            self.determined += mark != 0

    def close(self) -> None:
        """Free the disk."""
        for column in self._columns:
            column.close()
