"""Are the answers right? Whatever was measured, each request must have its one answer, in the file's order.

What it must say depends on the request and the model: a forced length, the sum (tiny-adder is sure of
every token of it, so nothing that runs beside it may change one), or the prompt (echo). Streaming: a result
file may have millions of lines.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from benchmarks.served import Answers

# What is wrong is told for a few lines, then counted.
MAX_TOLD = 5
_SUM = re.compile(r"What is (\d+)\+(\d+)\?")


def check(requests: Path, results: Path, answers: Answers) -> list[str]:
    """What is wrong with a result file; nothing if all is right.

    Args:
        requests: the batch file.
        results: its answers, as batchd and `vllm run-batch` write them.
        answers: what the model's answers have to be.
    """
    if not results.exists():
        return [f"{results.name}: no results"]
    wrong: list[str] = []
    count = 0
    for asked, row in itertools.zip_longest(read(requests), read(results)):
        problem = _problem(asked, row, answers)
        if problem:
            count += 1
            wrong += [problem] if count <= MAX_TOLD else []
    return wrong + ([f"{count} lines are wrong in all"] if count > MAX_TOLD else [])


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file."""
    with open(path, "rb") as file:
        for line in file:
            yield orjson.loads(line)


def texts(results: Path) -> dict[str, str]:
    """What each request was answered, and why its answer ended."""
    said = {}
    for row in read(results):
        choice = row["response"]["body"]["choices"][0]
        said[row["custom_id"]] = f"{choice['message']['content']!r} ({choice['finish_reason']})"
    return said


def differences(one: Path, other: Path) -> list[str]:
    """Requests that two result files answer differently, or that only one of them has."""
    first, second = texts(one), texts(other)
    found = [
        f"{custom_id}: {first.get(custom_id)} and {second.get(custom_id)}"
        for custom_id in sorted(first.keys() | second.keys())
        if first.get(custom_id) != second.get(custom_id)
    ]
    more = len(found) - MAX_TOLD
    return [*found[:MAX_TOLD], f"and {more} more"] if more > 0 else found


def _problem(asked: dict[str, Any] | None, row: dict[str, Any] | None, answers: Answers) -> str | None:
    if asked is None or row is None:
        have = (asked or row or {}).get("custom_id")
        return f"{have}: {'has no answer' if asked else 'was never asked'}"
    custom_id = asked["custom_id"]
    if row["custom_id"] != custom_id:
        return f"{custom_id}: {row['custom_id']} stands in its place"
    response = row["response"]
    if response is None or response.get("status_code", 200) != 200 or row.get("error"):
        return f"{custom_id}: failed: {str(row)[:300]}"
    body, wanted = response["body"], asked["body"]
    said = body["choices"][0]["message"]["content"]
    tokens = body["usage"]["completion_tokens"]
    if answers != "echo" and "min_tokens" in wanted and tokens != wanted["max_tokens"]:
        return f"{custom_id}: {tokens} tokens instead of {wanted['max_tokens']}"
    right = _right_text(wanted, answers)
    if right is not None and (said or "").strip() != right:
        return f"{custom_id}: {said!r} instead of {right!r}"
    return None


def _right_text(wanted: dict[str, Any], answers: Answers) -> str | None:
    """What the answer must say; None if that is nobody's to know."""
    question: str = wanted["messages"][-1]["content"]
    if answers == "echo":
        return question
    found = _SUM.fullmatch(question)
    if answers == "any" or "min_tokens" in wanted or found is None:
        return None
    return str(int(found[1]) + int(found[2]))
