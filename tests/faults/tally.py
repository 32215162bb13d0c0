"""The table of a run of rounds, for people and for machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.faults.judgement import Round

_HEAD = ("fault", "engine", "rounds", "lost", "doubled", "wrong", "longest recovery (s)")


class Tally:
    """Sums up rounds by fault and engine."""

    def __init__(self) -> None:
        self.rounds: list[Round] = []

    def add(self, done: Round) -> None:
        """Count a round."""
        self.rounds.append(done)

    @property
    def is_right(self) -> bool:
        """Whether at least one round was played, and none found anything."""
        return bool(self.rounds) and all(each.verdict.is_right for each in self.rounds)

    def rows(self) -> list[dict[str, Any]]:
        """A row for each fault and engine."""
        kinds = sorted({(each.fault, each.engine) for each in self.rounds})
        return [self._row(*kind) for kind in kinds]

    def _row(self, fault: str, engine: str) -> dict[str, Any]:
        rounds = [each for each in self.rounds if (each.fault, each.engine) == (fault, engine)]
        counts = {
            kind: sum(len(getattr(each.verdict, kind)) for each in rounds)
            for kind in ("lost", "doubled", "wrong")
        }
        longest_s = max(each.recovery_s for each in rounds)
        return {
            "fault": fault,
            "engine": engine,
            "rounds": len(rounds),
            **counts,
            "longest_recovery_s": round(longest_s, 1),
        }

    def __str__(self) -> str:
        """The table in Markdown."""
        rows = [_HEAD, ("---",) * len(_HEAD), *(tuple(map(str, row.values())) for row in self.rows())]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)

    def write(self, path: Path, **about: Any) -> None:
        """Write the rows and every round that found something as JSON."""
        failures = [
            {"fault": each.fault, "engine": each.engine, "seed": each.seed, **vars(each.verdict)}
            for each in self.rounds
            if not each.verdict.is_right
        ]
        text = json.dumps({**about, "rows": self.rows(), "failures": failures}, indent=2)
        path.write_text(text + "\n")
