"""An excerpt of a bad line with a caret below the place, for people who look at a terminal."""

from __future__ import annotations

import orjson

from spool.codes import Refusal
from spool.record import LineError

# Characters shown before and behind the place.
_BEFORE, _BEHIND = 40, 30


def excerpt(line: bytes, problem: LineError) -> list[str]:
    """Two lines: a piece of the bad one, and a caret; nothing where no place can be told.

    Args:
        line: the physical line.
        problem: what validation found in it.
    """
    text = line.strip(b" \t\r\n").decode("utf-8", "replace")
    at = _place(line.strip(b" \t\r\n"), text, problem)
    if at is None:
        return []
    start, end = max(0, at - _BEFORE), min(len(text), at + _BEHIND)
    head, tail = "…" * (start > 0), "…" * (end < len(text))
    shown = "".join(char if char.isprintable() else "·" for char in text[start:end])
    return [f"{head}{shown}{tail}", " " * (len(head) + at - start) + "^"]


def _place(line: bytes, text: str, problem: LineError) -> int | None:
    """Where in the text it is wrong: the character at which JSON ends, or the field's name."""
    if problem.code == Refusal.INVALID_JSON:
        try:
            line.decode()
            orjson.loads(line)
        except UnicodeDecodeError as error:
            return len(line[: error.start].decode())
        except orjson.JSONDecodeError as error:
            return min(error.pos, len(text))
        return None
    field = (problem.param or "").rpartition(".")[2]
    at = text.find(f'"{field}"') if field else -1
    return at if at >= 0 else None
