"""Drops: what a scan finds, and when a drop is complete."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from spool import drops


def _names(candidates: list[drops.Candidate]) -> list[str]:
    return [str(candidate.relative) for candidate in candidates]


def test_a_scan_finds_drops_in_subfolders_and_nothing_hidden(tmp_path: Path) -> None:
    """Temporary names, hidden files and hidden folders are left alone."""
    (tmp_path / "team").mkdir()
    (tmp_path / ".git").mkdir()
    for name in ("a.jsonl", "team/b.jsonl", ".c.jsonl", "d.jsonl.tmp", "e.txt", ".git/f.jsonl"):
        (tmp_path / name).touch()
    found = drops.scan(tmp_path)
    assert sorted(_names(found.candidates)) == ["a.jsonl", "team/b.jsonl"]
    assert found.is_complete
    assert found.ignored == []


def test_what_is_no_regular_file_is_reported_and_not_opened(tmp_path: Path) -> None:
    """A symlink, a folder, a FIFO and a socket that look like drops are named by kind."""
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "folder.jsonl" / "inner.jsonl").touch()
    os.symlink("/etc/passwd", tmp_path / "link.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.jsonl"))
        found = drops.scan(tmp_path)
    kinds = {str(ignored.relative): ignored.reason for ignored in found.ignored}
    assert kinds == {
        "folder.jsonl": "folder",
        "link.jsonl": "symlink",
        "pipe.jsonl": "fifo",
        "socket.jsonl": "socket",
    }
    assert found.candidates == []


def test_a_missing_inbox_is_unknown_and_not_empty(tmp_path: Path) -> None:
    """Absence in a scan that failed means nothing."""
    found = drops.scan(tmp_path / "absent")
    assert not found.is_complete
    assert isinstance(found.error, FileNotFoundError)


def test_a_drop_must_stand_still_for_settle_s(tmp_path: Path) -> None:
    """Each change starts the wait anew, on the monotonic clock."""
    drop = tmp_path / "a.jsonl"
    drop.write_text("x")
    settling = drops.Settling(2.0)
    assert settling.observe(drops.scan(tmp_path), set(), 0.0) == []
    assert settling.observe(drops.scan(tmp_path), set(), 1.5) == []
    drop.write_text("xy")
    assert settling.observe(drops.scan(tmp_path), set(), 2.5) == []
    assert settling.next_in_s(3.5) == 1.0
    assert _names(settling.observe(drops.scan(tmp_path), set(), 4.5)) == ["a.jsonl"]


def test_a_changed_sidecar_starts_the_wait_anew(tmp_path: Path) -> None:
    """A sidecar is settled like its drop."""
    (tmp_path / "a.jsonl").write_text("x")
    settling = drops.Settling(2.0)
    settling.observe(drops.scan(tmp_path), set(), 0.0)
    (tmp_path / "a.batch.yaml").write_text("pool: spot")
    assert settling.observe(drops.scan(tmp_path), set(), 2.0) == []
    assert _names(settling.observe(drops.scan(tmp_path), set(), 4.0)) == ["a.jsonl"]


def test_a_renamed_drop_is_complete_at_once(tmp_path: Path) -> None:
    """A rename within the inbox needs no settling."""
    (tmp_path / "a.jsonl").write_text("x")
    assert _names(drops.Settling(2.0).observe(drops.scan(tmp_path), {"a.jsonl"}, 0.0)) == ["a.jsonl"]


def test_a_failed_scan_forgets_nothing(tmp_path: Path) -> None:
    """A drop that waited goes on waiting from where it was."""
    (tmp_path / "a.jsonl").write_text("x")
    settling = drops.Settling(2.0)
    settling.observe(drops.scan(tmp_path), set(), 0.0)
    settling.observe(drops.scan(tmp_path / "absent"), set(), 1.0)
    assert _names(settling.observe(drops.scan(tmp_path), set(), 2.0)) == ["a.jsonl"]


def test_an_open_writer_is_seen(tmp_path: Path) -> None:
    """F_SETLEASE tells that a descriptor is open for writing, and that it was closed."""
    drop = tmp_path / "a.jsonl"
    with open(drop, "w") as writer:
        writer.write("x")
        writer.flush()
        assert drops.has_writer(drop)
    assert not drops.has_writer(drop)
    assert not drops.has_writer(tmp_path / "absent")


def test_a_name_too_long_for_a_sidecar_hides_nothing(tmp_path: Path) -> None:
    """The lookup of its sidecar fails, and the scan goes on: such a drop once hid its whole folder."""
    (tmp_path / ("x" * 249 + ".jsonl")).touch()
    (tmp_path / "a.jsonl").touch()
    assert len(drops.scan(tmp_path).candidates) == 2


def test_a_renamed_drop_is_complete_at_once_at_any_time_of_the_clock(tmp_path: Path) -> None:
    """Whatever the clock says: 0.3 s taken off and added again once came out one rounding short."""
    (tmp_path / "a.jsonl").write_text("x")
    found = drops.scan(tmp_path)
    for step in range(2000):
        monotonic = 10_000.0 + step * 0.0137
        assert drops.Settling(0.3).observe(found, {"a.jsonl"}, monotonic), monotonic
        waiting = drops.Settling(0.3)
        assert not waiting.observe(found, set(), monotonic)
        wait_s = waiting.next_in_s(monotonic)
        assert wait_s is not None
        assert waiting.observe(found, set(), monotonic + wait_s) or waiting.next_in_s(monotonic + wait_s), (
            monotonic
        )
