"""The worker that notes a dead engine's suspects dies itself, just before or just after its note is durable.

A real local Ray with the echo engine for each; its workers inherit the crash point.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from config import settings
from pipeline import fleet, merge, run
from spool import attempts, failpoints, lines
from tests.integration import test_run as runs

POISON = 60
ATTEMPTS = 2
# Of 120 requests, an eighth after each death that is noted; pipeline/calls.py.
MOST = 3 + ATTEMPTS

pytestmark = pytest.mark.timeout(300)  # a Ray takes 10 s to start, and a minute on a busy machine


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def configured() -> settings.Settings:
    model = {"name": "fragile", "kind": "echo", "latency_s": 0.05}
    return settings.Settings(models=(model,), engine={"max_attempts": ATTEMPTS})


@pytest.fixture(params=["attempts.before:2", "attempts.after"])
def started(
    configured: settings.Settings, log: Path, request: pytest.FixtureRequest
) -> Iterator[fleet.Fleet]:
    made = fleet.Fleet(configured)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ECHO_LOG", str(log))
        patch.setenv(failpoints.VARIABLE, request.param)
        made.start_ray()
    try:
        made.start_engines()
        yield made
    finally:
        made.stop()


def test_a_poison_fails_alone_though_its_notes_kill_whoever_writes_them(
    started: fleet.Fleet,
    configured: settings.Settings,
    log: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """Ray repeats the task: what is on record is never tried in larger company again."""
    batch = runs.make_batch(tmp_path, "noted", "fragile", 120, {POISON: "echo:crash"})
    run.run([run.Work(batch, 1)], "fragile", started, configured, "spot")
    runs.check_merged(batch, "noted", 120, failed=1)
    [failed] = [json.loads(row) for row in (batch / merge.FOLDER / "errors.jsonl").read_bytes().splitlines()]
    assert (failed["custom_id"], failed["error"]["code"]) == (f"noted-{POISON}", "engine_error")
    known = attempts.read(batch, 0)
    assert {line: suspect.kills for line, suspect in known.items() if suspect.kills} == {POISON: ATTEMPTS}
    reached = Counter(row.split()[0] for row in log.read_text().splitlines())
    deaths = reached[lines.request_key("batch_noted", POISON)]
    print(f"{deaths} deaths")
    is_noted_each_time = request.node.callspec.params["started"] == "attempts.after"
    assert ATTEMPTS < deaths <= (MOST if is_noted_each_time else 2 * MOST)
