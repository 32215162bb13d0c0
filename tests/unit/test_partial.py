"""Partial results: what is linked into the outbox, and what is left of it at the end."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from spool import partial, parts
from spool.batch import Batch
from tests import spools


def _batch(tmp_path: Path) -> tuple[Batch, list[parts.PartName]]:
    home, instance = spools.make(tmp_path)
    batch = spools.planned(spools.claimed(home, instance))
    results = [[parts.Result(line, True, parts.Usage(), b"{}")] for line in range(2)]
    return batch, [parts.write(batch.folder, 0, n + 1, rows) for n, rows in enumerate(results)]


def _shown(batch: Batch) -> list[str]:
    return sorted(os.listdir(batch.outbox / partial.FOLDER))


def test_parts_are_shown_and_taken_away(tmp_path: Path) -> None:
    """As links with the permissions of what is published; showing one again changes nothing."""
    batch, names = _batch(tmp_path)
    for shown in (names[:1], names):
        partial.show(batch.folder, batch.outbox, shown, 0o640)
        assert _shown(batch) == [str(name) for name in shown]
    folder = batch.outbox / partial.FOLDER
    assert folder.stat().st_mode & 0o777 == 0o750
    assert (folder / str(names[0])).stat().st_mode & 0o777 == 0o440
    assert (folder / str(names[0])).samefile(parts.path_of(batch.folder, names[0]))
    assert partial.clear(batch.outbox) is None
    assert os.listdir(batch.outbox) == ["status.json"]
    assert partial.clear(batch.outbox) is None


def test_a_link_in_its_place_leads_nowhere(tmp_path: Path) -> None:
    """Who may write to an outbox folder could have parts linked into another batch, as if its own."""
    batch, names = _batch(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (batch.outbox / partial.FOLDER).symlink_to(other)
    with pytest.raises(NotADirectoryError):
        partial.show(batch.folder, batch.outbox, names, 0o664)
    assert os.listdir(other) == []


def test_an_owner_that_was_adopted_shows_nothing(tmp_path: Path) -> None:
    """It once left an empty partial/ beside the end that another daemon had shown."""
    batch, names = _batch(tmp_path)
    batch.folder.rename(batch.home.work / "elsewhere")
    with pytest.raises(FileNotFoundError):
        partial.show(batch.folder, batch.outbox, names, 0o644)
    assert os.listdir(batch.outbox) == ["status.json"]


@pytest.mark.parametrize("call", ["open", "lstat"])
def test_a_folder_that_is_not_found_though_it_is_there_is_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """It once stayed beside the end."""
    batch, names = _batch(tmp_path)
    partial.show(batch.folder, batch.outbox, names, 0o644)
    real = getattr(os, call)

    def missing(path: Any, *arguments: Any, **options: Any) -> Any:
        if os.fspath(path).endswith(partial.FOLDER):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        return real(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, missing)
        if call == "open":
            with pytest.raises(FileNotFoundError):
                partial.clear(batch.outbox)
        else:
            assert partial.clear(batch.outbox) is None
    if call == "open":
        assert partial.clear(batch.outbox) is None
    assert os.listdir(batch.outbox) == ["status.json"]


@pytest.mark.parametrize("error", [errno.EPERM, errno.EACCES, errno.EBUSY, errno.EROFS])
def test_what_cannot_be_removed_is_told_and_the_rest_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """One immutable file, or a mount."""
    batch, names = _batch(tmp_path)
    partial.show(batch.folder, batch.outbox, names, 0o644)
    _fail_unlink(monkeypatch, str(names[0]), error)
    left = partial.clear(batch.outbox)
    assert left and left.errno == error
    assert _shown(batch) == [str(names[0])]


@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE, errno.ENOENT])
def test_what_may_be_removed_later_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """A network filesystem that does not find for a while what is there leaves nothing behind."""
    batch, names = _batch(tmp_path)
    partial.show(batch.folder, batch.outbox, names, 0o644)
    with monkeypatch.context() as patch:
        _fail_unlink(patch, str(names[0]), error)
        with pytest.raises(OSError) as caught:
            partial.clear(batch.outbox)
    assert caught.value.errno == error
    assert partial.clear(batch.outbox) is None
    assert os.listdir(batch.outbox) == ["status.json"]


@pytest.mark.parametrize("kind", ["file", "fifo", "folder in it"])
def test_what_another_put_there_is_left_to_him(tmp_path: Path, kind: str) -> None:
    """Nothing waits for a FIFO's writer."""
    batch, _ = _batch(tmp_path)
    folder = batch.outbox / partial.FOLDER
    match kind:
        case "file":
            folder.touch()
        case "fifo":
            os.mkfifo(folder)
        case "folder in it":
            (folder / "mine").mkdir(parents=True)
    assert partial.clear(batch.outbox) is not None
    assert folder.exists()


def _fail_unlink(patch: pytest.MonkeyPatch, name: str, error: int) -> None:
    plain = os.unlink

    def unlink(path: Any, **more: Any) -> None:
        if str(path) == name:
            raise OSError(error, os.strerror(error), name)
        plain(path, **more)

    patch.setattr(os, "unlink", unlink)
