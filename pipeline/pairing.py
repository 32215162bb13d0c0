"""Pairing: each request of a batch file with its one result, read back from the finished files.

It shares no code with what made them, so it can prove them: requests and results are in the same order, so
three files are read side by side, a line of each in memory at a time. No ray here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import orjson

_BOM = b"\xef\xbb\xbf"
_SHOWN = 80


class Mismatch(ValueError):
    """A request without a result, a result without a request, or a line that is none; the message says."""


class Pair(NamedTuple):
    """A request and its result.

    Attributes:
        line: physical line of the batch file, from 1.
        request: that line, without blanks around it.
        is_answered: whether the result stands in output.jsonl, rather than in errors.jsonl.
        result: the line there.
    """

    line: int
    request: bytes
    is_answered: bool
    result: dict[str, Any]


def pair(drop: Iterable[bytes], output: Iterable[bytes], errors: Iterable[bytes]) -> Iterator[Pair]:
    """Each request with its result, in the order of the file.

    Args:
        drop: physical lines of the batch file.
        output: lines of output.jsonl; none where there is no such file.
        errors: lines of errors.jsonl, likewise.

    Raises:
        Mismatch: the three do not belong together.
    """
    answers, failures = _Results("output.jsonl", output), _Results("errors.jsonl", errors)
    for number, request in requests(drop):
        custom_id = _custom_id(request)
        if answers.next_id == (custom_id,) and custom_id is not None:
            yield Pair(number, request, True, answers.take())
        # A refused line may have no custom_id that could be read.
        elif failures.next_id in ((custom_id,), (None,)):
            yield Pair(number, request, False, failures.take())
        else:
            raise Mismatch(
                f"line {number} of the input, custom_id {_shown(custom_id)}, has no result: "
                f"{answers.place}, {failures.place}"
            )
    for results in (answers, failures):
        if results.next_id is not None:
            raise Mismatch(f"every request of the input has its result, but {results.place}")


class _Results:
    """The lines of a result file, one ahead."""

    def __init__(self, name: str, lines: Iterable[bytes]) -> None:
        self._name = name
        self._lines = iter(lines)
        self._number = 0
        self._next: dict[str, Any] | None = None
        self._read()

    @property
    def next_id(self) -> tuple[str | None] | None:
        """The custom_id of the next line, as the one item of a tuple; None after the last line."""
        return None if self._next is None else (self._next.get("custom_id"),)

    @property
    def place(self) -> str:
        """Where it stands, for a message."""
        if self._next is None:
            return f"{self._name} ends after line {self._number}"
        return f"line {self._number} of {self._name} is that of {_shown(self._next.get('custom_id'))}"

    def take(self) -> dict[str, Any]:
        """The next line."""
        assert self._next is not None
        taken = self._next
        self._read()
        return taken

    def _read(self) -> None:
        line = next(self._lines, None)
        self._next = None
        if line is None:
            return
        self._number += 1
        try:
            found = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise Mismatch(f"line {self._number} of {self._name} is not JSON: {error.msg}") from error
        if not isinstance(found, dict) or not {"id", "custom_id", "response", "error"} <= found.keys():
            raise Mismatch(f"line {self._number} of {self._name} is no line of a result")
        self._next = found


def requests(drop: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Physical lines that are not blank, with their numbers from 1."""
    for number, raw in enumerate(drop, 1):
        line = (raw.removeprefix(_BOM) if number == 1 else raw).strip(b" \t\r\n")
        if line:
            yield number, line


def _custom_id(request: bytes) -> str | None:
    try:
        found = orjson.loads(request)
    except orjson.JSONDecodeError:
        return None
    custom_id = found.get("custom_id") if isinstance(found, dict) else None
    return custom_id if isinstance(custom_id, str) else None


def _shown(custom_id: str | None) -> str:
    text = "none" if custom_id is None else repr(custom_id)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
