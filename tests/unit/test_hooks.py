"""A hook gets the path, has a time limit, is tried again, and no shell reads what a user chose."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import pytest

from daemon import hooks
from tests import daemons


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other at once."""
    monkeypatch.setattr(hooks, "BACKOFF_S", (0.01, 0.01))


def _tell(script: str, status_file: Path, timeout_s: float = 20.0, *, stopped: bool = False) -> hooks.Told:
    return hooks.tell([sys.executable, "-c", script], status_file, timeout_s, lambda: stopped)


def test_it_gets_the_path_as_its_last_argument(tmp_path: Path) -> None:
    """Also one that a shell would take apart."""
    status_file = tmp_path / "$(touch pwned); a b'\"" / "status.json"
    script = f"import pathlib, sys; pathlib.Path({str(tmp_path / 'told')!r}).write_text(sys.argv[-1])"
    assert _tell(script, status_file) == hooks.Told(1, None)
    assert (tmp_path / "told").read_text() == str(status_file)


def test_it_is_tried_again(tmp_path: Path) -> None:
    """What worked at the third try worked."""
    script = f"import os, sys; os.mkdir({str(tmp_path)!r} + '/' + str(len(os.listdir({str(tmp_path)!r}))))"
    script += f"; sys.exit(len(os.listdir({str(tmp_path)!r})) < 3)"
    assert _tell(script, tmp_path / "status.json") == hooks.Told(3, None)


def test_its_last_words_are_told(tmp_path: Path) -> None:
    """After three tries, or one where the daemon is to stop."""
    script = "import sys; print('x' * 10_000); print('no such queue', file=sys.stderr); sys.exit(7)"
    told = _tell(script, tmp_path / "status.json")
    assert told.tries == 3
    assert told.problem is not None
    assert told.problem.startswith("ended with 7: ")
    assert told.problem.endswith("no such queue")
    assert len(told.problem) < 600
    assert _tell(script, tmp_path / "status.json", stopped=True).tries == 1
    absent = hooks.tell([str(tmp_path / "absent")], tmp_path, 1.0, lambda: True)
    assert "cannot be started" in str(absent.problem)


def test_one_that_hangs_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    """A child that it left would keep running otherwise."""
    script = (
        "import subprocess, sys, time; "
        f"child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid)); time.sleep(60)"
    )
    began = time.monotonic()
    told = _tell(script, tmp_path / "status.json", 2.0, stopped=True)
    assert told.problem == "did not end within 2 s"
    assert time.monotonic() - began < 20
    pid = int((tmp_path / "pid").read_text())
    daemons.until(lambda: not _is_running(pid), what="the end of the child")


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_one_that_cannot_even_be_tried_is_told_as_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full /tmp once ended the daemon, and its next start."""

    def full() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    told = _tell("", tmp_path / "status.json")
    assert told == hooks.Told(3, "cannot be started: [Errno 28] No space left on device")
