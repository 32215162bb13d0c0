"""Which replica a call asks: its own, unless that one has not been there for a moment."""

from __future__ import annotations

import pytest


def test_a_replica_that_was_not_there_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a while, and only as long as another one may be there."""
    from pipeline import calls

    monkeypatch.setattr(calls, "_passed_over", {"b": 10.0})
    replicas = ["a", "b", "c"]
    assert [calls._steps_on(replicas, turn, 9.9) for turn in (0, 1, 2, 3, 4)] == [0, 1, 0, 0, 1]
    assert calls._steps_on(replicas, 1, 10.0) == 0
    calls._passed_over.update(a=10.0, c=10.0)
    assert [calls._steps_on(replicas, turn, 9.9) for turn in (0, 1, 2)] == [0, 0, 0]
