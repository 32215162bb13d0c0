"""What is swapped in between the look and the claim: it fails, and nothing of others is touched."""

from __future__ import annotations

import functools
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from spool import files
from spool.failpoints import Step
from tests.hostile import GOOD_LINE, KINDS, fails_with, others_go_on, put
from tests.loops import Daemon


def swap_before_the_claim(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at bad.jsonl and its rename it becomes something else."""
    rename = files.rename_durable

    def swap(source: Path, target: Path, step: Step | None = None, **more: Any) -> None:
        if source.name == "bad.jsonl":
            source.unlink()
            put(kind, source)
        rename(source, target, step, **more)

    monkeypatch.setattr(files, "rename_durable", swap)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_swapped_in_before_the_claim_fails(
    daemon: Daemon, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails, with a reason, and once; it is never opened, and kept like any other drop."""
    swap_before_the_claim(kind, monkeypatch)
    opened = []
    real = os.open

    def spy(path: Any, *rest: Any, **more: Any) -> int:
        opened.append(str(path))
        return real(path, *rest, **more)

    monkeypatch.setattr(os, "open", spy)
    (daemon.home.inbox / "bad.jsonl").write_bytes(GOOD_LINE)
    [(code, message)] = fails_with(daemon)
    assert code == "invalid_request"
    assert "not a regular file" in message and message.isprintable()
    assert not [path for path in opened if path.endswith("drop.jsonl")]
    others_go_on(daemon)
    daemon.until(lambda: not daemon.lifecycle.held)
    [kept] = [path for path in daemon.home.archive.iterdir() if drop_of(path) == "bad.jsonl"]
    assert os.path.lexists(kept / "drop.jsonl")
    assert not (kept / "drop.jsonl").is_file() or kind == "symlink"
    if kind == "folder":
        assert os.listdir(kept / "drop.jsonl") == ["x"]
    assert not (daemon.home.inbox / "bad.jsonl").exists()


def drop_of(batch: Path) -> Any:
    """Which drop a batch's folder is of."""
    return orjson.loads((batch / "record.json").read_bytes())["drop"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_swapped_in_before_a_crash_fails_after_it(
    daemon: Daemon, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next daemon finds a claimed drop, whatever it is, and ends it in the same way."""
    swap_before_the_claim(kind, monkeypatch)
    (daemon.home.inbox / "bad.jsonl").write_bytes(GOOD_LINE)
    list(daemon.loop.parts.intake.claim_some(time.time(), time.monotonic(), True, 10))
    assert not os.path.lexists(daemon.home.inbox / "bad.jsonl")
    assert not (daemon.home.outbox / "bad").exists()
    daemon.stop()
    monkeypatch.undo()
    after = Daemon(daemon.home.root.parent)
    try:
        [(code, message)] = fails_with(after)
        assert (code, "not a regular file" in message) == ("invalid_request", True)
        others_go_on(after)
        after.until(lambda: not after.lifecycle.held)
        assert all(not os.listdir(work) or work.is_file() for work in daemon.home.work.glob("*/batch_*"))
    finally:
        after.stop()


def test_another_file_that_is_swapped_in_before_the_claim_fails(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not the one that stood still: what was looked at and what was taken must be the same file."""
    rename = files.rename_durable

    def swap(source: Path, target: Path, step: Step | None = None, **more: Any) -> None:
        if source.name == "bad.jsonl":
            (daemon.home.inbox / ".other").write_bytes(GOOD_LINE)
            os.replace(daemon.home.inbox / ".other", source)
        rename(source, target, step, **more)

    monkeypatch.setattr(files, "rename_durable", swap)
    (daemon.home.inbox / "bad.jsonl").write_bytes(GOOD_LINE)
    [(code, _)] = fails_with(daemon)
    assert code == "input_modified"
    others_go_on(daemon)


def test_a_swapped_subfolder_moves_nothing_of_others(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A subfolder that becomes a link between the look and the rename must not make us move a file that its
    owner could not: another batch's private input, say.
    """
    private = tmp_path / "private"
    private.mkdir(0o700)
    (private / "input.jsonl").write_bytes(GOOD_LINE)
    (daemon.home.inbox / "team").mkdir()
    (daemon.home.inbox / "team/input.jsonl").write_bytes(GOOD_LINE)
    rename = files.rename_durable

    def swap(source: Path, target: Path, step: Step | None = None, **more: Any) -> None:
        if source.name == "input.jsonl" and "team" in source.parts:
            os.rename(daemon.home.inbox / "team", daemon.home.inbox / ".aside")
            os.symlink(private, daemon.home.inbox / "team")
        rename(source, target, step, **more)

    monkeypatch.setattr(files, "rename_durable", swap)
    daemon.step()
    daemon.step()
    assert (private / "input.jsonl").exists()
    monkeypatch.undo()
    others_go_on(daemon)


def swap_for_link(folder: Path, target: Path) -> None:
    os.rename(folder, folder.with_name(f".{folder.name}"))
    os.symlink(target, folder)


@contextmanager
def before_call(number: int, act: Callable[[], None]) -> Iterator[list[str]]:
    """Act before this call, counted from 0, that this thread makes to the filesystem; gives the calls."""
    calls: list[str] = []
    here = threading.get_ident()

    def counting(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **more: Any) -> Any:
            if threading.get_ident() == here:
                calls.append(name)
                if len(calls) == number + 1:
                    act()
            return real(*given, **more)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("scandir", "lstat", "stat", "open", "mkdir", "rename", "unlink"):
            patch.setattr(os, name, counting(name, getattr(os, name)))
        yield calls


def test_a_subfolder_that_is_swapped_at_any_instant_touches_nothing_of_others(
    daemon: Daemon, tmp_path: Path
) -> None:
    """For each call that a pass makes to the filesystem: the folder becomes a link just before it.

    What stands behind the link is neither moved, nor unlinked, nor read as a sidecar.
    """
    private = tmp_path / "private"
    private.mkdir(0o700)
    inodes = {}
    for name, content in (("x.jsonl", GOOD_LINE), ("x.batch.yaml", b"metadata: {secret: told}")):
        (private / name).write_bytes(content)
        inodes[name] = (private / name).stat().st_ino
    for at in itertools.count():
        team = daemon.home.inbox / f"team{at}"
        team.mkdir()
        (team / "x.jsonl").write_bytes(GOOD_LINE)
        (team / "x.batch.yaml").write_bytes(b"metadata: {mine: told}")
        with before_call(at, functools.partial(swap_for_link, team, private)) as calls:
            daemon.step()
        assert {entry.name: entry.stat().st_ino for entry in private.iterdir()} == inodes, at
        if len(calls) <= at:  # all calls of a pass were tried
            break
        daemon.until(lambda: not daemon.lifecycle.held)
    assert at > 20
    shown = [daemon.status(name) for name in os.listdir(daemon.home.outbox)]
    assert shown and all(each.metadata in (None, {"mine": "told"}) for each in shown)
    others_go_on(daemon)
