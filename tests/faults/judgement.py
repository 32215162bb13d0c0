"""A round's judgement: the oracle's, and what the oracle lets pass because only the round knows better.

A valid file must end as `completed`, or as `cancelled` where its user asked for that, and a line may be an
error only for a reason that the round gave.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults import oracle, traffic


@dataclass
class Round:
    """One injected fault and what came of it.

    Attributes:
        seed: what plays it again; of the disk's faults, where in the sweep it was.
        recovery_s: from the fault to the end of the last file that was dropped in the round.
        has_struck: whether something was under way when the fault came.
        notes: what is worth knowing and no mistake.
    """

    fault: str
    engine: str
    seed: int | str
    verdict: oracle.Verdict = field(default_factory=oracle.Verdict)
    recovery_s: float = 0.0
    took_s: float = 0.0
    has_struck: bool = False
    notes: list[str] = field(default_factory=list)


class Reader(oracle.Reader):
    """The oracle's, which looks into a status.json only when it is another one than before."""

    def __init__(self, spool: Path) -> None:
        self._seen: dict[Path, tuple[int, int, int]] = {}
        super().__init__(spool)

    def _look(self, folder: Path) -> None:
        try:
            facts = os.stat(folder / "status.json")
        except OSError:
            return
        key = (facts.st_ino, facts.st_mtime_ns, facts.st_size)
        if self._seen.get(folder) != key:
            self._seen[folder] = key
            super()._look(folder)


def judge(
    spool: Path, files: list[traffic.File], cancelled: set[str], expected: oracle.Expected
) -> oracle.Verdict:
    """The verdict on everything that a round dropped.

    Args:
        spool: the root; nothing is under way in it any more.
        files: what was dropped.
        cancelled: names of those whose user asked for a cancel before they had ended.
        expected: the right answer of a request.
    """
    try:
        verdict = oracle.judge(spool, {file.name: file.content for file in files}, expected)
    except (AssertionError, OSError, ValueError, KeyError, TypeError) as error:
        verdict = oracle.Verdict(lost=[f"what is there cannot be read: {error!r}"])
    for file in files:
        folder = spool / "outbox" / file.stem
        try:
            status = json.loads((folder / "status.json").read_bytes())["status"]
        except (OSError, ValueError):
            continue  # the oracle has said so
        allowed = {"completed", "cancelled"} if file.name in cancelled else {"completed"}
        if status in oracle.TERMINAL - allowed:
            verdict.wrong.append(f"{file.stem}: ended as {status}")
        codes = {"batch_cancelled"} if status == "cancelled" else set()
        verdict.wrong += _bad_errors(folder, codes)
    return verdict


def _bad_errors(folder: Path, codes: set[str]) -> list[str]:
    rows: list[dict[str, Any]] = oracle._lines(folder / "errors.jsonl")
    return [
        f"{folder.name}: {row['custom_id']}: {json.dumps(row['error'] or row['response'])[:200]}"
        for row in rows
        if row["custom_id"] != traffic.BAD["custom_id"] and (row["error"] or {}).get("code") not in codes
    ]
