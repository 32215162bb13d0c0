"""Writes the private copy of a drop and its plan while it is validated: input.jsonl, plan/ and refused lines.

Nothing has its final name before all of it is there: first the parts of attempt 0 (what `on_invalid: skip`
refused), then input.jsonl, last shards.jsonl. What an earlier attempt has left is removed first.
A batch's folder that is gone raises FileNotFoundError: another daemon has adopted it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pipeline.request_guards import Problem
from spool import files, lines, parts, plan

SHARD_LINES = 128
SHARD_BYTES = 4 << 20


class Abandoned(Exception):
    """Raised inside `open_copy` when the file turned out to be invalid: nothing of the copy stays."""


class Copy:
    """The copy in the making. Made by `open_copy`."""

    def __init__(self, batch: Path, batch_id: str, requests: BinaryIO, shards: BinaryIO) -> None:
        self.shards = 0
        self._batch = batch
        self._batch_id = batch_id
        self._requests_file = requests
        self._shards_file = shards
        self._lines: list[bytes] = []
        self._size_bytes = 0
        self._first_line = 0
        self._offset = 0
        self._refused: list[parts.Result] = []

    def add(self, line: bytes) -> None:
        """Add the next request."""
        size = len(line) + 1
        if len(self._lines) == SHARD_LINES or (self._size_bytes + size > SHARD_BYTES and self._lines):
            self.end_shard()
        self._lines.append(line)
        self._size_bytes += size

    def refuse(self, number: int, custom_id: str | None, problem: Problem) -> None:
        """Add a refused request: an empty line here, and its failure in a part.

        Args:
            number: its physical line in the drop.
            custom_id: None where it has none that can be used.
            problem: becomes the body of its failure, with status 400.
        """
        self.add(b"")
        index = self._first_line + len(self._lines) - 1
        message = f"Line {number}: {problem.message}"
        body = lines.error_body(message, "invalid_request_error", problem.param, problem.code)
        text = lines.response_line(lines.request_key(self._batch_id, index), custom_id, 400, body)
        self._refused.append(parts.Result(index, False, parts.Usage(), text))

    def end_shard(self) -> None:
        """Write the requests that wait as one shard; without any, nothing happens."""
        if not self._lines:
            return
        if self._refused:
            parts.write(self._batch, self.shards, 0, self._refused)
        shard = plan.Shard(self.shards, self._first_line, len(self._lines), self._offset, self._size_bytes)
        self._requests_file.write(b"\n".join(self._lines) + b"\n")
        self._shards_file.write(plan.render(shard))
        self.shards += 1
        self._first_line += shard.lines
        self._offset += shard.size_bytes
        self._size_bytes = 0
        self._lines.clear()
        self._refused.clear()


@contextmanager
def open_copy(batch: Path, batch_id: str) -> Iterator[Copy]:
    """Write a copy; it becomes durable when the block ends, and nothing stays when the block raises.

    Raises:
        FileNotFoundError: the batch was adopted by another daemon.
    """
    for folder in (batch / plan.FOLDER, batch / parts.FOLDER):
        with suppress(FileExistsError):
            files.make_folder(folder)
    _clear(batch)
    shards_path = batch / plan.FOLDER / plan.SHARDS_FILE
    try:
        with (
            files.durable(shards_path, step="plan.shards") as shards,
            files.durable(batch / plan.INPUT_FILE, step="plan.input") as requests,
        ):
            copy = Copy(batch, batch_id, requests, shards)
            yield copy
            copy.end_shard()
    except Abandoned:
        _clear(batch)
        raise


def _clear(batch: Path) -> None:
    shards = batch / plan.FOLDER / plan.SHARDS_FILE
    refused = [parts.path_of(batch, name) for name in parts.list_parts(batch) if name.attempt == 0]
    for path in (shards, batch / plan.INPUT_FILE, *refused):
        path.unlink(missing_ok=True)
    files.remove_temporaries((batch, batch / plan.FOLDER, *parts.folders(batch)))
