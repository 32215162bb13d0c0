"""Durable files: whole or not at all, never over a failed fsync."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from spool import files


def test_a_file_appears_whole_with_its_mode(tmp_path: Path) -> None:
    """The target has the content and the permissions, and no temporary is left."""
    target = tmp_path / "a"
    files.write_durable(target, b"one", 0o640)
    assert target.read_bytes() == b"one"
    assert target.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["a"]


def test_a_failed_fsync_leaves_the_old_file_and_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is raised once; what stood there still stands."""
    target = tmp_path / "a"
    files.write_durable(target, b"old")

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "injected")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="injected"):
        files.write_durable(target, b"new")
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_an_error_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    """A writer that raises publishes nothing."""

    def write_half() -> None:
        with files.durable(tmp_path / "a") as file:
            file.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        write_half()
    assert os.listdir(tmp_path) == []


def test_a_vanished_folder_is_file_not_found(tmp_path: Path) -> None:
    """Which the batch reads as `adopted by another daemon`."""
    with pytest.raises(FileNotFoundError):
        files.write_durable(tmp_path / "gone" / "a", b"")


def test_temporaries_of_killed_writers_are_removed(tmp_path: Path) -> None:
    """Only names with our suffix go."""
    (tmp_path / "a.1-2.tmp").touch()
    (tmp_path / "a").touch()
    files.remove_temporaries([tmp_path, tmp_path / "absent"])
    assert os.listdir(tmp_path) == ["a"]
