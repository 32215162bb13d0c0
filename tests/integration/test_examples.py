"""The examples, as they stand, against the real loop."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd  # type: ignore[import-untyped]  # has no types
import pytest

from tests import daemons
from tests.loops import Daemon

EXAMPLES = daemons.REPOSITORY / "examples"
# The command `batchd`, and the Python that runs the tests, come first.
ENVIRONMENT = {**os.environ, "PATH": f"{Path(daemons.batchd()).parent}:{os.environ['PATH']}"}
LIMIT_S = 60.0


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(tmp_path)
    yield made
    made.stop()


def _run(daemon: Daemon, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run an example while the loop goes on."""
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(
            subprocess.run,
            list(map(str, command)),
            capture_output=True,
            text=True,
            env=ENVIRONMENT,
            timeout=LIMIT_S,
        )
        daemon.until(done.done, limit_s=LIMIT_S)
        return done.result()


def _write(path: Path, count: int, **changes: object) -> Path:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    row = {"method": "POST", "url": "/v1/chat/completions", "body": body, **changes}
    path.write_text("".join(json.dumps({"custom_id": f"a{n}", **row}) + "\n" for n in range(count)))
    return path


def test_a_shell_pipeline_hands_the_answers_on(daemon: Daemon, tmp_path: Path) -> None:
    """And the exit code, whichever it is."""
    file = _write(tmp_path / "jan.jsonl", 3)
    done = _run(daemon, EXAMPLES / "pipeline.sh", file, daemon.home.root)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["custom_id"] for line in done.stdout.splitlines()] == ["a0", "a1", "a2"]
    done = _run(
        daemon, EXAMPLES / "pipeline.sh", _write(tmp_path / "bad.jsonl", 3, method="GET"), daemon.home.root
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "line 1: invalid_method" in done.stderr


def test_a_frame_gets_its_answers(daemon: Daemon, tmp_path: Path) -> None:
    """Each in its own row."""
    csv = tmp_path / "questions.csv"
    pd.DataFrame({"prompt": ["one", "two", "three"]}).to_csv(csv, index=False)
    done = _run(daemon, sys.executable, EXAMPLES / "pandas_client.py", csv, daemon.home.root, "m")
    assert done.returncode == 0, done.stderr
    joined = pd.read_csv(tmp_path / "questions.answers.csv")
    assert list(joined["answer"]) == ["one", "two", "three"]
    assert joined["error"].isna().all()


def test_a_sensor_tells_the_end(daemon: Daemon) -> None:
    """Not done before, done after, and an error where there is nothing to go on with."""
    is_done = runpy.run_path(str(EXAMPLES / "sensor.py"))["is_done"]
    jan = str(daemon.home.outbox / "jan")
    assert not is_done(jan)
    daemon.run.may_go_on.clear()
    daemon.run.answers_before_wait = 1
    daemon.drop()
    daemon.until(daemon.phase("running"))
    assert not is_done(jan)
    daemon.run.may_go_on.set()
    daemon.until(daemon.is_at("completed"))
    assert is_done(jan)
    daemon.drop("feb", method="GET")
    daemon.until(daemon.is_at("failed", name="feb"))
    with pytest.raises(RuntimeError, match="ended as failed: method is 'GET'"):
        is_done(str(daemon.home.outbox / "feb"))


def test_code_for_openai_reads_the_results(daemon: Daemon) -> None:
    """Its own types parse status.json; the answers are told by the plain format."""
    daemon.drop()
    daemon.until(daemon.is_at("completed"))
    done = _run(daemon, sys.executable, EXAMPLES / "openai_reader.py", daemon.home.outbox / "jan")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "a0\thi\na1\thi\na2\thi\n"
