"""Retention: what leaves archive/, and that nothing else does."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

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


def test_what_cannot_be_deleted_wholly_is_tried_again_under_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of another user's was dropped, say: it counts as the oldest, and its name does not grow."""
    (tmp_path / "one/drop.jsonl/theirs").mkdir(parents=True)
    rmtree = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda path, **more: None)
    for _ in range(3):
        [kept] = retention.list_kept(tmp_path)
        with pytest.raises(OSError, match="cannot be removed wholly"):
            retention.delete(kept)
        assert [path.name for path in tmp_path.iterdir()] == [".one.deleted"]
    [kept] = retention.list_kept(tmp_path)
    assert retention.to_delete([kept], 0.0, 30, 0) == [kept]
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    retention.delete(kept)
    assert list(tmp_path.iterdir()) == []


def test_a_batch_is_deleted_whole_and_its_neighbours_stay(tmp_path: Path) -> None:
    """Listed by age, with its size."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "drop.jsonl").write_bytes(b"12345")
    kept = retention.list_kept(tmp_path)
    assert [batch.size_bytes for batch in kept] == [5, 5]
    retention.delete(next(batch for batch in kept if batch.path.name == "one"))
    assert [path.name for path in tmp_path.iterdir()] == ["two"]
