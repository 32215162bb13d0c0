"""Thousands of files at once, and everything hostile at once, dropped on one daemon."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import orjson
import pytest

from daemon import intake
from spool import create, files
from spool.failpoints import Step
from tests import daemons
from tests.faults.nodes import Node
from tests.hostile import (
    CONTENTS,
    GOOD_LINE,
    KINDS,
    NAMES,
    SIDECARS,
    bounded,
    memory_kib,
    put,
)
from tests.loops import Daemon

# On top of what the process takes when it is idle: as for one file, and what its threads' heaps keep.
MOST_MIB = 200


def flood(daemon: Daemon, count: int, limit_s: float) -> float:
    """Drop many files at once and drive until all are answered; CPU seconds that it took.

    Not those of a clock: a machine that does other things as well would decide the test.
    """
    for number in range(count):
        (daemon.home.inbox / f"{number}.jsonl").write_bytes(GOOD_LINE)
    ends_at = time.monotonic() + limit_s
    started, cpu_s = time.monotonic(), time.process_time()
    while daemon.lifecycle.held or any(name.endswith(".jsonl") for name in os.listdir(daemon.home.inbox)):
        assert time.monotonic() < ends_at, f"{len(os.listdir(daemon.home.outbox))} of {count} were claimed"
        daemon.step()
        daemon.wake.wait(0.001)
        daemon.wake.clear()
    cpu_s = time.process_time() - cpu_s
    print(f"{count} files: {time.monotonic() - started:.1f} s, {cpu_s:.1f} s of CPU")
    return cpu_s


@pytest.fixture
def without_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dozen fsyncs for each file are nine tenths of the time on a busy disk, and not what is tried here."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.mark.usefixtures("without_fsync")
def test_a_thousand_files_at_once(daemon: Daemon) -> None:
    """All are answered, none twice."""
    assert flood(daemon, 1_000, limit_s=100) < 20
    assert len(os.listdir(daemon.home.outbox)) == 1_000
    assert all(len(daemon.lines("output.jsonl", name)) == 1 for name in os.listdir(daemon.home.outbox))


@pytest.mark.slow
@pytest.mark.usefixtures("without_fsync")
@pytest.mark.timeout(2400)
def test_twenty_thousand_files_at_once(daemon: Daemon) -> None:
    """More than a daemon holds at a time (scheduler.max_claimed): none is lost, and memory is bounded."""
    with bounded():
        assert flood(daemon, 20_000, limit_s=2300) < 400
    names = os.listdir(daemon.home.outbox)
    assert len(names) == 20_000
    assert all(len(daemon.lines("output.jsonl", name)) == 1 for name in names)
    assert len({daemon.status(name).input_file_id for name in names}) == 20_000


def test_what_cannot_be_claimed_keeps_nobody_waiting(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """More stuck drops than a pass claims, all due again: a new one comes before them all the same."""
    rename = files.rename_durable

    def refuse(source: Path, target: Path, step: Step | None = None, **more: Any) -> None:
        if source.name.startswith("stuck"):
            raise PermissionError(1, "Operation not permitted")
        rename(source, target, step, **more)

    monkeypatch.setattr(files, "rename_durable", refuse)
    monkeypatch.setattr(intake, "CLAIMS_PER_PASS", 8)
    said = []
    monkeypatch.setattr(intake._log, "warning", lambda event, **fields: said.append(fields["drop"]))
    stuck = [f"stuck{number}.jsonl" for number in range(40)]
    for name in stuck:
        (daemon.home.inbox / name).write_bytes(GOOD_LINE)
    for _ in range(10):
        daemon.step()
    assert sorted(said) == sorted(stuck)
    daemon.drop("good")
    daemon.step(later_s=intake.FAILED_RETRY_S + 1)
    assert not (daemon.home.inbox / "good.jsonl").exists()
    assert sorted(said) == sorted(stuck)  # what fails in the same way is no news
    assert [name for name in os.listdir(daemon.lease.folder) if "batch_" in name] == [
        held.batch.folder.name for held in daemon.lifecycle.held.values()
    ]
    monkeypatch.undo()
    daemon.until(lambda: len(os.listdir(daemon.home.outbox)) == 41, later_s=20.0)


@pytest.mark.timeout(300)
def test_a_daemon_that_gets_everything_at_once_stays_up_and_small(tmp_path: Path) -> None:
    """The real process: each hostile file ends with its error, each good one with its answer, and then the
    daemon stops in good order. Its peak of resident memory is measured from outside.
    """
    home = create.create(tmp_path / "spool")
    settings = {
        "models": [{"name": "m", "kind": "echo"}],
        "inbox": {"settle_s": 0.3},
        "metrics": {"port": 0},
        "log": {"format": "json"},
    }
    node = Node(tmp_path / "node", home.root, "light", settings, {})
    assert node.start().until_logged("engine_ready")
    pid = node.process.pid
    before_kib = memory_kib("VmRSS", pid)
    home.pause.touch()  # so that all of it is there before any of it is read
    bad = {f"content{number}" for number in range(len(CONTENTS))}
    for number, (_, content, _, _) in enumerate(CONTENTS):
        (home.inbox / f"content{number}.jsonl").write_bytes(content)
    for number, (_, content) in enumerate(SIDECARS):
        (home.inbox / f"sidecar{number}.batch.yaml").write_bytes(content)
    for kind in KINDS:
        put(kind, home.inbox / f"{kind}.jsonl")
        put(kind, home.inbox / f"beside-{kind}.batch.yaml")
    beside = [f"sidecar{number}" for number in range(len(SIDECARS))] + [f"beside-{kind}" for kind in KINDS]
    for name in beside:
        (home.inbox / f"{name}.jsonl").write_bytes(GOOD_LINE)
    for name, size_bytes in (("gibibyte", 1 << 30), ("terabytes", 15 << 40)):
        with open(home.inbox / f"{name}.jsonl", "wb") as file:
            file.truncate(size_bytes)
    bad |= {*beside, "gibibyte", "terabytes"}
    good = [os.fsdecode(name) for name in NAMES]
    for name in good:
        (home.inbox / f"{name}.jsonl").write_bytes(GOOD_LINE)
    expected = len(bad) + len(good)
    home.pause.unlink()

    def ended() -> dict[str, str] | None:
        assert node.is_alive, node.said[-3000:]
        trees = [orjson.loads((folder / "status.json").read_bytes()) for folder in home.outbox.iterdir()]
        found = {
            tree["input_file_id"]: tree["status"] for tree in trees if tree["status"] in daemons.TERMINAL
        }
        return found if len(found) == expected else None

    found = daemons.until(ended, 250.0, "the end of all")
    assert {name for name, status in found.items() if status == "failed"} == {f"{name}.jsonl" for name in bad}
    assert len([name for name, status in found.items() if status == "completed"]) == len(good)
    grown_mib = (memory_kib("VmHWM", pid) - before_kib) >> 10
    print(f"{expected} files: the daemon grew from {before_kib >> 10} by at most {grown_mib} MiB")
    assert grown_mib < MOST_MIB
    assert {path.name for path in home.inbox.iterdir()} == {
        *(f"{kind}.jsonl" for kind in KINDS),
        *(f"beside-{kind}.batch.yaml" for kind in KINDS),
    }
    assert node.stop(signal.SIGTERM) == 0
    assert all(line.isprintable() and orjson.loads(line)["event"] for line in node.said.splitlines())
