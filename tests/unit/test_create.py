"""Making and checking spools."""

from __future__ import annotations

from pathlib import Path

import pytest

from spool import create, layout
from spool.errors import SpoolUnavailable


def test_a_spool_is_made_with_private_and_public_folders(tmp_path: Path) -> None:
    """work and archive are ours alone, whatever the umask; a second init changes nothing."""
    home = create.create(tmp_path / "new" / "spool")
    identity = home.identity.read_bytes()
    assert create.create(home.root).identity.read_bytes() == identity
    modes = {folder.name: folder.stat().st_mode & 0o777 for folder in home.folders}
    assert modes == {"inbox": 0o755, "work": 0o700, "outbox": 0o755, "archive": 0o700}
    create.check_writable(home)
    assert [list(folder.iterdir()) for folder in home.folders] == [[], [], [], []]


def test_a_folder_that_holds_other_things_becomes_no_spool(tmp_path: Path) -> None:
    """Such as the source folder of a Python package that happens to be called spool."""
    (tmp_path / "batch.py").touch()
    with pytest.raises(SpoolUnavailable, match=r"holds other things \(batch\.py"):
        create.create(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["batch.py"]


def test_a_root_without_spool_json_is_unavailable_and_not_empty(tmp_path: Path) -> None:
    """That is what an unmounted volume looks like; the message says what to do."""
    with pytest.raises(SpoolUnavailable, match="is the volume mounted"):
        create.open_or_create(tmp_path)
    assert create.open_or_create(tmp_path / "absent").identity.exists()


@pytest.mark.parametrize("content", [b"", b"[]", b'{"format": 99, "id": "x"}', b"\xff"])
def test_a_format_that_is_unknown_is_left_alone(tmp_path: Path, content: bytes) -> None:
    """Never guessed at, never overwritten."""
    home = create.create(tmp_path / "spool")
    home.identity.write_bytes(content)
    with pytest.raises(SpoolUnavailable):
        create.check(home)
    assert home.identity.read_bytes() == content


def test_an_outbox_may_be_open_to_a_group_but_not_to_everyone(tmp_path: Path) -> None:
    """Who may write there can put a link where results belong; a group is the operator's choice."""
    home = create.create(tmp_path / "spool")
    for mode in (0o755, 0o775, 0o2770, 0o1770):
        home.outbox.chmod(mode)
        create.check_writable(home)
    for mode in (0o777, 0o1777, 0o702):
        home.outbox.chmod(mode)
        with pytest.raises(SpoolUnavailable, match=f"chmod o-w {home.outbox}") as caught:
            create.check_writable(home)
        assert "\n" not in str(caught.value)


def test_private_folders_that_are_open_to_others_stop_the_start(tmp_path: Path) -> None:
    """With the command that mends it."""
    home = create.create(tmp_path / "spool")
    home.work.chmod(0o755)
    with pytest.raises(SpoolUnavailable, match="chmod 700"):
        create.check_writable(layout.Layout(home.root))
