"""Expiry and cancel in each phase of a batch, exact to the line, on the real loop.

What is finished stays in the output, the rest gets its code; what has been decided stays decided.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from pipeline import merge, validate
from spool import control
from tests.loops import Daemon, Paced

End = Literal["cancelled", "expired"]
ENDS: tuple[End, ...] = ("cancelled", "expired")
OTHER: dict[End, End] = {"cancelled": "expired", "expired": "cancelled"}
WINDOW_S = 3600.0
SHARD_LINES = 128
SIDECAR = "completion_window: 1h\n"


class Hold:
    """Holds up calls of a function until they are let go on."""

    def __init__(self, patch: pytest.MonkeyPatch, module: Any, name: str) -> None:
        self.is_there = threading.Event()
        self.may_go_on = threading.Event()
        self._call = getattr(module, name)
        patch.setattr(module, name, self._held)

    def _held(self, *args: Any) -> Any:
        self.is_there.set()
        assert self.may_go_on.wait(30)
        return self._call(*args)


class Story:
    """A daemon, and the time that has passed for it."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.later_s = 0.0

    def until(self, holds: Callable[[], Any]) -> Any:
        self.later_s += 2.0  # so that `cancel` is looked for again
        return self.daemon.until(holds, self.later_s)

    def comes(self, end: End) -> None:
        """Its user cancels the batch, or its deadline passes; seen by the daemon."""
        if end == "cancelled":
            control.request_cancel(self.daemon.home.outbox / "jan")
        else:
            self.later_s += WINDOW_S
        self.later_s += 2.0
        self.daemon.step(self.later_s)

    def ended(self, status: str, lines: int, answered: int) -> Any:
        """The status at the end, after a look at each line of the files."""
        shown = self.until(self.daemon.is_at("completed", "failed", "expired", "cancelled"))
        assert shown.status == status
        output, failed = self.daemon.lines("output.jsonl"), self.daemon.lines("errors.jsonl")
        assert [row["custom_id"] for row in output] == [f"a{n}" for n in range(answered)]
        assert [row["custom_id"] for row in failed] == [f"a{n}" for n in range(answered, lines)]
        assert all(row["response"] is None and row["error"]["code"] == f"batch_{status}" for row in failed)
        counts = shown.request_counts
        assert (counts.total, counts.completed, counts.failed) == (lines, answered, lines - answered)
        assert [name for name in ("cancelled_at", "expired_at", "completed_at", "failed_at")
                if getattr(shown, name)] == [f"{status}_at"]  # fmt: skip
        was_cancelling = "cancelling" in [event["status"] for event in self.daemon.extra()["history"]]
        assert was_cancelling == (status == "cancelled")
        assert not control.cancel_requested(self.daemon.home.outbox / "jan")
        return shown

    def refused(self) -> str:
        """What the user is told of a cancel that came too late; empty if nothing."""
        path = self.daemon.home.outbox / "jan" / control.REFUSED_FILE
        return path.read_text() if path.exists() else ""


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    daemon = Daemon(tmp_path)
    yield Story(daemon)
    daemon.stop()


@pytest.mark.parametrize("end", ENDS)
def test_while_validating(story: Story, end: End, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verdict is waited for, so that each line can be named; nothing runs."""
    hold = Hold(monkeypatch, validate, "check_and_copy")
    story.daemon.drop(count=5, sidecar=SIDECAR)
    story.until(hold.is_there.is_set)
    story.comes(end)
    hold.may_go_on.set()
    story.ended(end, 5, 0)
    assert story.daemon.run.calls == []


@pytest.mark.parametrize(("end", "status"), [("cancelled", "cancelled"), ("expired", "failed")])
def test_while_validating_a_file_that_is_not_valid(
    story: Story, end: End, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are no lines to be named; a cancel is obeyed, and a deadline is not what it failed of."""
    hold = Hold(monkeypatch, validate, "check_and_copy")
    story.daemon.drop(count=5, sidecar=SIDECAR, method="GET")
    story.until(hold.is_there.is_set)
    story.comes(end)
    hold.may_go_on.set()
    story.ended(status, 0, 0)


@pytest.mark.parametrize("end", ENDS)
def test_while_queued(story: Story, end: End) -> None:
    """It ends without a run, and those that run are left alone."""
    story.daemon.run.may_go_on.clear()
    for n in range(3):  # as many as there are slots
        story.daemon.drop(f"b{n}")
        story.until(story.daemon.phase("running", f"b{n}"))
    story.daemon.drop(count=5, sidecar=SIDECAR)
    story.until(story.daemon.phase("queued"))
    story.comes(end)
    story.ended(end, 5, 0)
    assert len(story.daemon.run.calls) == 3
    assert [story.daemon.status(f"b{n}").status for n in range(3)] == ["in_progress"] * 3


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("answered", [0, 1, SHARD_LINES, SHARD_LINES + 1])
def test_while_running(tmp_path: Path, end: End, answered: int) -> None:
    """Shards that are whole stay, and so does what its engine had answered of the one that was stopped."""
    story = Story(Daemon(tmp_path, run=Paced(answered)))
    story.daemon.drop(count=300, sidecar=SIDECAR)
    durable = answered // SHARD_LINES * SHARD_LINES
    story.until(story.daemon.phase("running"))
    story.until(lambda: story.daemon.status().request_counts.completed == durable)
    story.comes(end)
    story.ended(end, 300, answered)
    assert len(story.daemon.run.calls) == 1
    story.daemon.stop()


@pytest.mark.parametrize("end", ENDS)
def test_while_merging_what_is_complete(story: Story, end: End, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line has its answer: it is completed, and a cancel is told that it came too late."""
    hold = Hold(monkeypatch, merge, "merge")
    story.daemon.drop(count=5, sidecar=SIDECAR)
    story.until(hold.is_there.is_set)
    story.comes(end)
    hold.may_go_on.set()
    story.ended("completed", 5, 5)
    assert ("already ended as completed" in story.refused()) == (end == "cancelled")


@pytest.mark.parametrize("end", ENDS)
def test_while_merging_what_has_ended_otherwise(
    story: Story, end: End, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came first stays: a cancelled batch does not expire, an expired one cannot be cancelled."""
    hold = Hold(monkeypatch, merge, "merge")
    story.daemon.run.answers_before_wait = 3
    story.daemon.run.may_go_on.clear()
    story.daemon.drop(count=10, sidecar=SIDECAR)
    story.until(story.daemon.phase("running"))
    story.comes(end)
    story.until(hold.is_there.is_set)
    story.comes(OTHER[end])
    hold.may_go_on.set()
    story.ended(end, 10, 3)
    assert ("already ended as expired" in story.refused()) == (end == "expired")


@pytest.mark.parametrize("end", ENDS)
def test_while_a_merge_is_to_be_tried_again(story: Story, end: End, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that cannot be written to gives nobody a second choice."""
    with monkeypatch.context() as patch:

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(merge, "merge", full)
        story.daemon.drop(count=5, sidecar=SIDECAR)
        [held] = story.until(lambda: [each for each in story.daemon.lifecycle.held.values() if each.outcome])
        story.until(lambda: held.retry_at)
        story.comes(end)
    story.ended("completed", 5, 5)


def test_a_cancel_is_asked_for_twice(story: Story) -> None:
    """While it is obeyed the second changes nothing; after the end it is refused, with the reason."""
    run = story.daemon.run
    run.answers_before_wait, run.heeds_stop = 2, False
    run.may_go_on.clear()
    story.daemon.drop(count=5)
    story.until(story.daemon.phase("running"))
    for _ in range(2):
        story.comes("cancelled")
        story.until(story.daemon.is_at("cancelling"))
    run.may_go_on.set()
    shown = story.ended("cancelled", 5, 2)
    assert [event["status"] for event in story.daemon.extra()["history"]].count("cancelling") == 2
    story.until(lambda: not story.daemon.lifecycle.held)
    assert story.refused() == ""
    story.comes("cancelled")
    story.until(story.refused)
    assert "already ended as cancelled" in story.refused()
    assert story.daemon.status() == shown


@pytest.mark.parametrize("end", ["completed", "failed", "expired", "cancelled"])
def test_a_cancel_after_the_end_is_refused_whatever_the_end_was(story: Story, end: Any) -> None:
    """With a reason that the user can see; not a byte of the results changes."""
    story.daemon.run.answers_before_wait = 2
    if end in ENDS:
        story.daemon.run.may_go_on.clear()
    story.daemon.drop(count=5, sidecar=SIDECAR, **({"method": "GET"} if end == "failed" else {}))
    if end in ENDS:
        story.until(story.daemon.phase("running"))
        story.comes(end)
    story.until(story.daemon.is_at(end))
    story.until(lambda: not story.daemon.lifecycle.held)
    folder = story.daemon.home.outbox / "jan"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    control.request_cancel(folder)
    story.later_s += 10.0
    story.until(story.refused)
    assert f"already ended as {end}" in story.refused()
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert after == before | {control.REFUSED_FILE: story.refused().encode()}
