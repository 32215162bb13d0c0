"""What `watch` shows, at a given time; and that it ends when the batch does, or the time is over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from daemon import follow, outbox
from spool import create


def _shown(status: str = "in_progress", **changes: Any) -> outbox.Shown:
    """The batch jan, 40 of 100 done."""
    progress = {"requests_per_s": 12.0, "tokens_per_s": 3400.0, "eta_at": 1065.0}
    extra = {
        "phase": "running",
        "pool": "spot",
        "warnings": [],
        "sla": {"at_risk": False},
        "progress": progress,
        **changes,
    }
    counts = {"total": 100, "completed": 37, "failed": 3}
    tree = {"id": "batch_1", "status": status, "request_counts": counts, "expires_at": 4600, "batchd": extra}
    return outbox.Shown("jan", tree)


def _text(shown: outbox.Shown | None, *, is_served: bool = True) -> str:
    console = Console(width=100)
    with console.capture() as captured:
        console.print(follow.panel(shown, "jan.jsonl waits in the inbox", 1000.0, is_served=is_served))
    return captured.get()


def test_a_running_batch_shows_all_that_a_user_asks() -> None:
    """Where it is, how far, how fast, how long still, and whether the deadline is safe."""
    text = _text(_shown())
    assert "jan  in_progress (running)  on spot" in text
    assert "40/100" in text
    assert "40 %" in text
    for fact in ("3 failed", "12.0 requests/s", "3,400 tokens/s", "done in 0:01:05", "deadline in 1:00:00"):
        assert fact in text
    assert "RISK" not in text


def test_a_deadline_at_risk_and_warnings_are_shown() -> None:
    """A warning may quote what a request holds: it drives no terminal."""
    text = _text(_shown(sla={"at_risk": True}, warnings=["waited \x1b[31m for space"]))
    assert "AT RISK" in text
    assert r"waited \x1b[31m for space" in text


def test_a_batch_that_has_ended_shows_no_speed_and_no_deadline() -> None:
    """Only how it ended."""
    progress = {"requests_per_s": None, "tokens_per_s": None, "eta_at": None}
    text = _text(_shown("completed", phase="done", progress=progress), is_served=False)
    assert "completed" in text
    assert "deadline" not in text
    assert "no daemon" not in text


@pytest.mark.parametrize("shown", [None, _shown()])
def test_that_nobody_serves_the_spool_is_said(shown: outbox.Shown | None) -> None:
    """Whether the drop waits or a run was left behind."""
    assert "no daemon serves" in _text(shown, is_served=False)


def test_in_a_pipe_each_change_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And nothing is repeated."""
    home = create.create(tmp_path / "spool")
    seen = iter([None, None, _shown(), _shown(), _shown("completed", phase="done")])
    ended = follow.follow(home, lambda: next(seen), "jan.jsonl waits in the inbox", 60.0)
    assert ended is not None
    assert ended.status == "completed"
    told = capsys.readouterr()
    assert told.out.splitlines() == [
        "jan.jsonl waits in the inbox",
        "jan: in_progress (running) 40/100, 3 failed, 12.0 requests/s",
        "jan: completed 40/100, 3 failed, 12.0 requests/s",
    ]
    assert told.err.count("no daemon serves") == 1


def test_the_wait_has_a_limit(tmp_path: Path) -> None:
    """Then nothing is known of the end."""
    home = create.create(tmp_path / "spool")
    assert follow.follow(home, _shown, "it waits", 0.0) is None
