"""What the result files of a batch add up to, read line by line: memory does not grow with them.

Of a batch that has ended, output.jsonl and errors.jsonl; of one that goes on, the parts in partial/. A line
that is not ours is counted as unreadable, and nothing is guessed about it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from daemon.page.lengths import Lengths
from pipeline.answers import read_usage
from spool import files, parts
from spool.parts import PartName, Result, Usage
from spool.timeline import Pace

# Kinds of errors that are told apart; what else there is counts as one more.
MOST_KINDS = 50
OTHERS = "others"
_MOST_CHARS = 300
# What reading a line of somebody else's form comes to.
_NOT_OURS = (ValueError, KeyError, TypeError, AttributeError)


@dataclass
class Kind:
    """Errors of one code.

    Attributes:
        count: how many there are.
        custom_id: of the first of them; None where it had none.
        message: what the first says.
    """

    count: int
    custom_id: str | None
    message: str


@dataclass
class Results:
    """Sums over results.

    Attributes:
        inputs, outputs: tokens of each answer.
        errors: by HTTP status or code.
        unread_answers: lines of output.jsonl that are no answers, or do not say their tokens.
        unread_failures: lines of errors.jsonl that are no failures.
    """

    inputs: Lengths = field(default_factory=Lengths)
    outputs: Lengths = field(default_factory=Lengths)
    errors: dict[str, Kind] = field(default_factory=dict)
    unread_answers: int = 0
    unread_failures: int = 0

    def add_answers(self, lines: Iterable[bytes]) -> None:
        """Count lines of output.jsonl."""
        for line in lines:
            try:
                self._add_usage(read_usage(orjson.loads(line)["response"]["body"]["usage"]))
            except _NOT_OURS:
                self.unread_answers += 1

    def add_failures(self, lines: Iterable[bytes]) -> None:
        """Count lines of errors.jsonl."""
        for line in lines:
            try:
                row = orjson.loads(line)
                code, message = _code(row)
                self._add_error(code, message, row["custom_id"])
            except _NOT_OURS:
                self.unread_failures += 1

    def _add_usage(self, usage: Usage) -> None:
        if not (isinstance(usage.input_tokens, int) and isinstance(usage.output_tokens, int)):
            raise TypeError("tokens are whole numbers")
        if min(usage.input_tokens, usage.output_tokens) < 0:
            raise TypeError("tokens are not negative")
        self.inputs.add(usage.input_tokens)
        self.outputs.add(usage.output_tokens)

    def _add_error(self, code: str, message: str, custom_id: object) -> None:
        if code not in self.errors and len(self.errors) >= MOST_KINDS:
            code, message = OTHERS, "of other codes than those above"
        if known := self.errors.get(code):
            known.count += 1
        else:
            shown = None if custom_id is None else _cut(str(custom_id))
            self.errors[code] = Kind(1, shown, _cut(message))


def _code(row: dict[str, Any]) -> tuple[str, str]:
    """The code of an error, and what it says."""
    if row["response"] is None:
        return _cut(str(row["error"]["code"])), str(row["error"]["message"])
    told = row["response"]["body"]
    for key in ("error", "message"):
        told = told.get(key, told) if isinstance(told, dict) else told
    return f"HTTP {int(row['response']['status_code'])}", str(told)


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_CHARS else f"{text[: _MOST_CHARS - 1]}…"


def of_files(output: Path | None, errors: Path | None) -> Results:
    """What the files of a batch that has ended hold.

    Raises:
        OSError: one cannot be read.
    """
    results = Results()
    if output:
        with files.open_regular(output) as lines:
            results.add_answers(lines)
    if errors:
        with files.open_regular(errors) as lines:
            results.add_failures(lines)
    return results


def of_parts(folder: Path, pace: Pace) -> Results:
    """What the parts of a batch hold that goes on.

    Args:
        folder: partial/, in its folder in outbox/.
        pace: takes them in, too.

    Raises:
        FileNotFoundError: it is about to end, and its parts are gone.
        OSError: they cannot be read.
    """
    results = Results()
    names = sorted(filter(None, (PartName.parse(path.name) for path in folder.iterdir())))
    for _, own in itertools.groupby(names, key=lambda name: name.shard):
        seen: set[int] = set()  # a part of a shard may hold lines of an earlier one again
        for name in own:
            path = folder / str(name)
            with files.open_regular(path) as file:
                content = file.read()
            fresh = [result for result in parts.parse(content, name) if result.line not in seen]
            seen.update(result.line for result in fresh)
            pace.add(name, path.stat().st_mtime, fresh)
            _add_part(results, fresh)
    return results


def _add_part(results: Results, fresh: Iterable[Result]) -> None:
    failures = []
    for result in fresh:
        if result.ok:
            results.inputs.add(result.usage.input_tokens)
            results.outputs.add(result.usage.output_tokens)
        else:
            failures.append(result.text)
    results.add_failures(failures)
