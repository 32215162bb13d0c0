"""The table of a run of rounds, for people and for machines; tables of several runs add up to one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.faults.judgement import Round

_HEAD = ("fault", "engine", "rounds", "lost", "doubled", "wrong", "longest recovery (s)")
_COUNTED = ("lost", "doubled", "wrong")

Row = dict[str, Any]


class Tally:
    """Sums up rounds by fault and engine; what was lost, doubled or wrong is counted in rounds."""

    def __init__(self) -> None:
        self.rounds: list[Round] = []

    def add(self, done: Round) -> None:
        """Count a round."""
        self.rounds.append(done)

    @property
    def failures(self) -> list[Round]:
        """The rounds that found something."""
        return [each for each in self.rounds if not each.verdict.is_right]

    @property
    def is_right(self) -> bool:
        """Whether at least one round was played, and none found anything."""
        return bool(self.rounds) and not self.failures

    def rows(self) -> list[Row]:
        """A row for each fault and engine."""
        return add_up(_row(each) for each in self.rounds)

    def __str__(self) -> str:
        """The table in Markdown."""
        return render(self.rows())

    def write(self, path: Path, **about: Any) -> None:
        """Write the rows and every round that found something as JSON."""
        failures = [
            {"fault": each.fault, "engine": each.engine, "seed": each.seed, **vars(each.verdict)}
            for each in self.failures
        ]
        text = json.dumps({**about, "rows": self.rows(), "failures": failures}, indent=2)
        path.write_text(text + "\n")


def _row(done: Round) -> Row:
    found = {kind: int(bool(getattr(done.verdict, kind))) for kind in _COUNTED}
    return {
        "fault": done.fault,
        "engine": done.engine,
        "rounds": 1,
        **found,
        "longest_recovery_s": round(done.recovery_s, 1),
    }


def add_up(rows: Iterable[Row]) -> list[Row]:
    """One row for each fault and engine, engine by engine."""
    sums: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = (row["engine"], row["fault"])
        known = sums.setdefault(key, dict.fromkeys(row, 0) | {"fault": row["fault"], "engine": row["engine"]})
        for kind in ("rounds", *_COUNTED):
            known[kind] += row[kind]
        known["longest_recovery_s"] = max(known["longest_recovery_s"], row["longest_recovery_s"])
    return [sums[key] for key in sorted(sums)]


def read(paths: Iterable[Path]) -> list[Row]:
    """The rows of tables that were written, added up."""
    return add_up(row for path in paths for row in json.loads(path.read_text())["rows"])


def render(rows: list[Row]) -> str:
    """A table in Markdown, with the sum of all rows as its last."""
    if rows:
        total = add_up({**row, "fault": "all", "engine": ""} for row in rows)
        rows = [*rows, *total]
    cells = [_HEAD, ("---",) * len(_HEAD), *(tuple(map(str, row.values())) for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
