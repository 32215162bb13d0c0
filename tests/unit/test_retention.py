"""Retention: what leaves archive/, and that nothing else does."""

from __future__ import annotations

from pathlib import Path

from spool import retention
from spool.retention import Kept

DAY_S = 86400.0


def _kept(name: str, days_ago: float, size_bytes: int = 10) -> Kept:
    return Kept(Path(name), -days_ago * DAY_S, size_bytes)


def test_what_is_older_than_the_limit_goes() -> None:
    """And nothing younger."""
    kept = [_kept("a", 31), _kept("b", 29)]
    assert retention.to_delete(kept, 0.0, 30, 0) == kept[:1]


def test_the_oldest_go_until_the_bytes_hold() -> None:
    """Whatever their age."""
    kept = [_kept("a", 3), _kept("b", 2), _kept("c", 1)]
    assert retention.to_delete(kept, 0.0, 0, 15) == kept[:2]


def test_no_limit_deletes_nothing() -> None:
    """0 is no limit."""
    assert retention.to_delete([_kept("a", 10_000, 1 << 40)], 0.0, 0, 0) == []


def test_a_batch_is_deleted_whole_and_its_neighbours_stay(tmp_path: Path) -> None:
    """Listed by age, with its size."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "drop.jsonl").write_bytes(b"12345")
    kept = retention.list_kept(tmp_path)
    assert [batch.size_bytes for batch in kept] == [5, 5]
    retention.delete(next(batch for batch in kept if batch.path.name == "one"))
    assert [path.name for path in tmp_path.iterdir()] == ["two"]
