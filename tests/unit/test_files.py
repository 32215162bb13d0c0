"""Durable files: whole or not at all, never over a failed fsync."""

from __future__ import annotations

import errno
import os
import socket
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


def test_what_is_written_out_is_durable_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name is made so afterwards; nothing is left in the private folder."""
    private, public = tmp_path / "private", tmp_path / "public"
    private.mkdir()
    public.mkdir()
    target = public / "status.json"
    target.write_bytes(b"old")
    synced: list[tuple[str, bytes]] = []
    plain = os.fsync

    def note(descriptor: int) -> None:
        synced.append((Path(os.readlink(f"/proc/self/fd/{descriptor}")).parent.name, target.read_bytes()))
        plain(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    files.write_out(private, target, b"new", 0o640)
    assert synced == [("private", b"old"), (tmp_path.name, b"new")]
    assert (target.read_bytes(), target.stat().st_mode & 0o777) == (b"new", 0o640)
    assert os.listdir(private) == [] and os.listdir(public) == ["status.json"]


@pytest.mark.parametrize("gone", ["private", "public"])
def test_what_cannot_be_written_out_leaves_nothing(tmp_path: Path, gone: str) -> None:
    """Neither an adopted batch nor one whose outbox folder was removed."""
    for name in {"private", "public"} - {gone}:
        (tmp_path / name).mkdir()
    with pytest.raises(FileNotFoundError):
        files.write_out(tmp_path / "private", tmp_path / "public" / "a", b"", 0o600)
    assert [list(folder.iterdir()) for folder in tmp_path.iterdir()] == [[]]


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


def test_a_folder_is_opened_through_no_link(tmp_path: Path) -> None:
    """Neither at its end nor on the way, nor where the walk starts."""
    (tmp_path / "top/a/b").mkdir(parents=True)
    (tmp_path / "top/a/file").touch()
    os.symlink("a", tmp_path / "top/link")
    os.symlink("top", tmp_path / "also-top")
    before = len(os.listdir("/proc/self/fd"))
    for relative in ("", "a", "a/b"):
        descriptor = files.open_folder(tmp_path / "top", Path(relative))
        assert os.path.samestat(os.fstat(descriptor), (tmp_path / "top" / relative).stat())
        os.close(descriptor)
    for top, relative in (("top", "link"), ("top", "link/b"), ("top", "a/file"), ("also-top", "a")):
        with pytest.raises(NotADirectoryError):
            files.open_folder(tmp_path / top, Path(relative))
    with pytest.raises(FileNotFoundError):
        files.open_folder(tmp_path / "top", Path("a/c"))
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("kind", ["symlink", "folder", "fifo", "socket"])
def test_what_is_no_regular_file_is_not_opened(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has a name, and opening it neither hangs nor leaves a descriptor."""
    path = tmp_path / "x"
    match kind:
        case "symlink":
            os.symlink("/etc/passwd", path)
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as bound:
                monkeypatch.chdir(tmp_path)  # a socket's path has 108 bytes at most
                bound.bind("x")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(files.NotRegular, match=f"it is a {kind}, not a regular file") as caught:
        files.open_regular(path)
    assert caught.value.kind == kind
    # Also where it was swapped in after the look.
    monkeypatch.setattr(os, "lstat", lambda *given, **more: os.stat("/etc/passwd"))
    with pytest.raises(OSError):
        files.open_regular(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_regular_file_is_opened(tmp_path: Path) -> None:
    """By its path, or from a descriptor of its folder."""
    (tmp_path / "x").write_bytes(b"content")
    folder = files.open_folder(tmp_path, Path())
    for path, within in ((tmp_path / "x", None), (Path("x"), folder)):
        with files.open_regular(path, within) as file:
            assert file.read() == b"content"
    os.close(folder)


def test_a_file_is_moved_out_of_the_folder_that_was_opened(tmp_path: Path) -> None:
    """Whatever stands at the folder's path by now."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/x").write_bytes(b"mine")
    folder = files.open_folder(tmp_path, Path("in"))
    (tmp_path / "in").rename(tmp_path / "aside")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/x").write_bytes(b"yours")
    (tmp_path / "out").mkdir()
    files.rename_durable(tmp_path / "in/x", tmp_path / "out/y", source_folder=folder)
    os.close(folder)
    assert (tmp_path / "out/y").read_bytes() == b"mine"
    assert (tmp_path / "in/x").read_bytes() == b"yours"


def test_temporaries_of_killed_writers_are_removed(tmp_path: Path) -> None:
    """Only names with our suffix go."""
    (tmp_path / "a.1-2.tmp").touch()
    (tmp_path / "a").touch()
    files.remove_temporaries([tmp_path, tmp_path / "absent"])
    assert os.listdir(tmp_path) == ["a"]


def test_a_folder_that_another_made_is_made_durable_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its maker may have been killed before that; a process asks the disk once, whatever it writes there."""
    (tmp_path / "a").mkdir()
    synced: list[Path] = []
    monkeypatch.setattr(files, "fsync_folder", synced.append)
    for _ in range(3):
        files.ensure_folder(tmp_path / "a")
        files.ensure_folder(tmp_path / "b")
    assert synced == [tmp_path, tmp_path]
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in "ab"] == [0o700, 0o700]


def test_a_folder_that_could_not_be_made_durable_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what succeeded is remembered."""
    calls: list[Path] = []

    def fail_once(folder: Path) -> None:
        calls.append(folder)
        if len(calls) == 1:
            raise OSError(errno.EIO, "injected")

    monkeypatch.setattr(files, "fsync_folder", fail_once)
    with pytest.raises(OSError, match="injected"):
        files.ensure_folder(tmp_path / "a")
    files.ensure_folder(tmp_path / "a")
    assert len(calls) == 2


def test_a_file_that_somebody_made_huge_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_READ_BYTES", 10)
    (tmp_path / "status.json").write_bytes(b"x" * 10)
    assert files.read_regular(tmp_path / "status.json") == b"x" * 10
    (tmp_path / "status.json").write_bytes(b"x" * 11)
    with pytest.raises(files.NotRegular):
        files.read_regular(tmp_path / "status.json")
