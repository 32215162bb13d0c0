"""Writes the private copy of a drop and its plan while it is validated: input.jsonl, plan/ and refused lines.

The copy is written on the way, and notes are taken; the plan is made from these at the end. Nothing has its
final name before all of it is there: first input.jsonl, then the parts of attempt 0 (what `on_invalid: skip`
refused), then the order if there is one, last shards.jsonl. What an earlier attempt has left is removed
first. A batch's folder that is gone raises FileNotFoundError: another daemon has adopted it.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Any, BinaryIO

from pipeline.order_notes import Notes, Wishes
from pipeline.request_guards import Problem
from spool import files, lines, parts, plan

# What is written and noted in one go; parsed, a request takes many times its bytes.
_HELD_LINES = 128
_HELD_BYTES = 256 << 10
_REFUSED_HEAD = struct.Struct("<QI")
_REFUSED_BYTES = 1 << 20


class Abandoned(Exception):
    """Raised inside `open_copy` when the file turned out to be invalid: nothing of the copy stays."""


class Copy:
    """The copy in the making. Made by `open_copy`.

    Attributes:
        shards: of the plan; 0 until it is made.
    """

    def __init__(self, batch_id: str, requests: BinaryIO, notes: Notes, refused: IO[bytes]) -> None:
        self.shards = 0
        self._batch_id = batch_id
        self._requests = requests
        self._notes = notes
        self._refused = refused
        self._url = ""
        self._lines: list[bytes] = []
        self._bodies: list[dict[str, Any] | None] = []
        self._size_bytes = 0

    def add(self, line: bytes, request: dict[str, Any]) -> None:
        """Add the next request, as it stands in the drop and parsed."""
        self._url = request["url"]
        self._hold(line, request["body"])

    def refuse(self, number: int, custom_id: str | None, problem: Problem) -> None:
        """Add a refused request: an empty line here, and its failure in a part.

        Args:
            number: its physical line in the drop.
            custom_id: None where it has none that can be used.
            problem: becomes the body of its failure, with status 400.
        """
        index = self._notes.lines + len(self._lines)
        message = f"Line {number}: {problem.message}"
        body = lines.error_body(message, "invalid_request_error", problem.param, problem.code)
        text = lines.response_line(lines.request_key(self._batch_id, index), custom_id, 400, body)
        self._refused.write(_REFUSED_HEAD.pack(index, len(text)) + text)
        self._hold(b"", None)

    def _hold(self, line: bytes, body: dict[str, Any] | None) -> None:
        self._lines.append(line)
        self._bodies.append(body)
        self._size_bytes += len(line)
        if len(self._lines) >= _HELD_LINES or self._size_bytes >= _HELD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write and note what is held."""
        if not self._lines:
            return
        self._requests.write(b"\n".join(self._lines) + b"\n")
        self._notes.take(self._url, self._lines, self._bodies)
        self._lines.clear()
        self._bodies.clear()
        self._size_bytes = 0


@contextmanager
def open_copy(batch: Path, batch_id: str, wishes: Wishes) -> Iterator[Copy]:
    """Write a copy; it and its plan are durable when the block has ended, and nothing stays when it raises.

    Raises:
        FileNotFoundError: the batch was adopted by another daemon.
    """
    for folder in (batch / plan.FOLDER, batch / parts.FOLDER):
        with suppress(FileExistsError):
            files.make_folder(folder, is_durable=False)  # becomes so with input.jsonl beside it
    _clear(batch)
    try:
        with (
            closing(Notes(wishes, batch / plan.FOLDER)) as notes,
            SpooledTemporaryFile(_REFUSED_BYTES, dir=str(batch / plan.FOLDER)) as refused,
        ):
            with files.durable(batch / plan.INPUT_FILE, step="plan.input") as requests:
                copy = Copy(batch_id, requests, notes, refused)
                yield copy
                copy.flush()
            copy.shards = _write_plan(batch, notes, refused)
    except Abandoned:
        _clear(batch)
        raise


def _write_plan(batch: Path, notes: Notes, refused: IO[bytes]) -> int:
    """Decide the order, and write all that goes by it.

    Returns:
        The number of shards.
    """
    from pipeline import order, shards

    chosen = order.decide(notes)
    sizes = order.load(notes.sizes)
    sizes += 1  # the line ends
    # Where there is an order, refused requests come last in it, as the file has them.
    failures = _failures(refused, notes.lines - notes.refused if chosen else None)
    place, failure = next(failures, _NO_FAILURE)
    count = 0
    with files.durable(batch / plan.FOLDER / plan.SHARDS_FILE, step="plan.shards") as file:
        for shard in shards.cut(sizes, chosen):
            file.write(plan.render(shard))
            rows = []
            while failure and place < shard.first_line + shard.lines:
                rows.append(failure)
                place, failure = next(failures, _NO_FAILURE)
            if rows:
                parts.write(batch, shard.index, 0, rows)
            count += 1
        if chosen:
            with files.durable(batch / plan.FOLDER / plan.ORDER_FILE, step="plan.order") as entries:
                for piece in shards.addresses(sizes, chosen):
                    entries.write(piece)
    return count


_NO_FAILURE: tuple[int, parts.Result | None] = (0, None)


def _failures(refused: IO[bytes], first: int | None) -> Iterator[tuple[int, parts.Result]]:
    """The failures of refused requests, each with its place in the order in which requests run.

    Args:
        refused: what `Copy.refuse` wrote.
        first: the place of the first; None where the order is the file's.
    """
    refused.seek(0)
    for number in itertools.count():
        if not (head := refused.read(_REFUSED_HEAD.size)):
            return
        line, size = _REFUSED_HEAD.unpack(head)
        failure = parts.Result(line, False, parts.Usage(), refused.read(size))
        yield (line if first is None else first + number), failure


def _clear(batch: Path) -> None:
    refused = [parts.path_of(batch, name) for name in parts.list_parts(batch) if name.attempt == 0]
    planned = [batch / plan.FOLDER / name for name in (plan.SHARDS_FILE, plan.ORDER_FILE)]
    for path in (*planned, batch / plan.INPUT_FILE, *refused):
        path.unlink(missing_ok=True)
    files.remove_temporaries((batch, batch / plan.FOLDER, *parts.folders(batch)))
