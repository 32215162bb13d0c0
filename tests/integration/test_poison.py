"""Requests that kill or hang their engine: found, charged and failed alone, with every neighbour answered.

A real local Ray with the echo engine, whose header says what the messages beginning with `echo:` do.
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from config import settings
from pipeline import fleet, gate, merge, run
from spool import attempts, control, lines, parts
from tests.integration import test_run as runs

LATENCY_S = 0.05
ATTEMPTS = 2
# What pipeline/calls.py promises for one poison: an eighth after each death, of all 512 places of an engine.
NARROWING, PLACES = 8, 512
MOST = math.ceil(math.log(PLACES, NARROWING)) + ATTEMPTS
Reached = Callable[[Path, int], int]
MODELS: tuple[dict[str, Any], ...] = ({"name": "fragile", "kind": "echo", "latency_s": LATENCY_S},)


@pytest.fixture(scope="module")
def configured() -> settings.Settings:
    return settings.Settings(models=MODELS, engine={"request_timeout_s": 1, "max_attempts": ATTEMPTS})


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("echo") / "log"


@pytest.fixture(scope="module")
def started(configured: settings.Settings, log: Path) -> Iterator[fleet.Fleet]:
    """A fleet that is polled all the time, as the daemon does."""
    made = fleet.Fleet(configured)
    ended = threading.Event()

    def poll() -> None:
        while not ended.wait(0.5):
            made.poll()

    poller = threading.Thread(target=poll, daemon=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ECHO_LOG", str(log))
        made.start_ray()
    try:
        made.start_engines()
        poller.start()
        yield made
    finally:
        ended.set()
        poller.join(10)
        made.stop()


@pytest.fixture
def reached(started: fleet.Fleet, log: Path) -> Reached:
    """How often a line of a batch was reached by an engine: for poison, how many engines it killed."""
    log.unlink(missing_ok=True)

    def count(batch: Path, line: int) -> int:
        key = lines.request_key(batch.name.rpartition("~")[0], line)
        return Counter(row.split()[0] for row in log.read_text().splitlines())[key] if log.exists() else 0

    return count


def test_the_numbers_are_those_of_the_code(started: fleet.Fleet, configured: settings.Settings) -> None:
    from pipeline import calls

    assert (calls.NARROWING, gate.slots(configured.models[0])) == (NARROWING, PLACES)


def check(batch: Path, name: str, requests: int, poison: set[int]) -> None:
    """The poison failed, as engine_error, and nothing else did."""
    runs.check_merged(batch, name, requests, failed=len(poison))
    path = batch / merge.FOLDER / "errors.jsonl"
    failed = [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []
    assert [line["custom_id"] for line in failed] == [f"{name}-{line}" for line in sorted(poison)]
    for line in failed:
        assert line["response"] is None
        assert line["error"]["code"] == "engine_error"
        assert "with this request alone in it" in line["error"]["message"]


def suspects(batch: Path) -> dict[int, attempts.Suspect]:
    """What is on record of a batch's lines."""
    files = [file for file in batch.glob(f"{attempts.FOLDER}/*") if file.name.isdigit()]
    return {line: found for file in files for line, found in attempts.read(batch, int(file.name)).items()}


def test_one_poison_fails_alone(
    started: fleet.Fleet, configured: settings.Settings, reached: Reached, tmp_path: Path
) -> None:
    """It ends the whole process, so that nobody can tell what was in the engine."""
    batch = runs.make_batch(tmp_path, "one", "fragile", 300, {150: "echo:die"})
    began = time.monotonic()
    run.run([run.Work(batch, 1)], "fragile", started, configured, "spot")
    print(f"die: {reached(batch, 150)} deaths, {time.monotonic() - began:.1f} s")
    check(batch, "one", 300, {150})
    assert ATTEMPTS < reached(batch, 150) <= MOST
    kills = {line: suspect.kills for line, suspect in suspects(batch).items() if suspect.kills}
    assert kills == {150: ATTEMPTS}


def test_two_poisons_fail_alone(
    started: fleet.Fleet, configured: settings.Settings, reached: Reached, tmp_path: Path
) -> None:
    """The first and the last line; the engine dies, and its process says what was in it."""
    batch = runs.make_batch(tmp_path, "two", "fragile", 300, {0: "echo:crash", 299: "echo:crash"})
    began = time.monotonic()
    run.run([run.Work(batch, 1)], "fragile", started, configured, "spot")
    deaths = reached(batch, 0) + reached(batch, 299)
    print(f"crash, crash: {deaths} deaths, {time.monotonic() - began:.1f} s")
    check(batch, "two", 300, {0, 299})
    assert deaths <= 2 * MOST


def test_poison_in_one_of_several_batches(
    started: fleet.Fleet, configured: settings.Settings, reached: Reached, tmp_path: Path
) -> None:
    """Two batches in its run, and a run beside it on the same replica."""
    bad = runs.make_batch(tmp_path, "bad", "fragile", 100, {50: "echo:crash"})
    good = runs.make_batch(tmp_path, "good", "fragile", 100)
    beside = runs.make_batch(tmp_path, "beside", "fragile", 100)
    runners = [
        runs.Runner([run.Work(bad, 1), run.Work(good, 1)], "fragile", started, configured),
        runs.Runner([run.Work(beside, 1)], "fragile", started, configured),
    ]
    for runner in runners:
        runner.finish()
    check(bad, "bad", 100, {50})
    check(good, "good", 100, set())
    check(beside, "beside", 100, set())
    assert reached(bad, 50) <= MOST


def test_a_lone_request_dies_max_attempts_times(
    started: fleet.Fleet, configured: settings.Settings, reached: Reached, tmp_path: Path
) -> None:
    """Where the engine dies alone, the replica knows that nothing else was in it."""
    batch = runs.make_batch(tmp_path, "lone", "fragile", 1, {0: "echo:crash"})
    run.run([run.Work(batch, 1)], "fragile", started, configured, "spot")
    check(batch, "lone", 1, {0})
    assert reached(batch, 0) == ATTEMPTS


def test_a_restart_keeps_the_attempts(
    started: fleet.Fleet, configured: settings.Settings, reached: Reached, tmp_path: Path
) -> None:
    """Adopted after the first death and after the first on its own: none is forgotten, and no part helps."""
    batch = runs.make_batch(tmp_path, "kept", "fragile", 120, {60: "echo:die"})
    for epoch, kills in ((2, 0), (3, 1)):
        runner = runs.Runner([run.Work(batch, epoch)], "fragile", started, configured)
        limit = time.monotonic() + runs.LIMIT_S
        while suspects(batch).get(60, attempts.Suspect(0, -1)).kills < kills and time.monotonic() < limit:
            time.sleep(0.02)
        adopted = tmp_path / f"batch_kept~{epoch}"
        batch.rename(adopted)
        batch = adopted
        runner.finish()
    assert list(parts.list_parts(batch)) == []
    assert suspects(batch)[60] == attempts.Suspect(1, 1)
    run.run([run.Work(batch, 4)], "fragile", started, configured, "spot")
    check(batch, "kept", 120, {60})
    assert reached(batch, 60) <= MOST


def test_preemption_during_narrowing_loses_no_attempt(
    started: fleet.Fleet, configured: settings.Settings, reached: Reached, tmp_path: Path
) -> None:
    chance = random.Random(5)
    batch = runs.make_batch(tmp_path, "stops", "fragile", 200, {30: "echo:crash"})
    attempt = 0
    while sum(name.results for name in parts.list_parts(batch)) < 200:
        attempt += 1
        assert attempt < 40
        control.clear_stop(batch)
        runner = runs.Runner([run.Work(batch, attempt)], "fragile", started, configured)
        runner.join(chance.uniform(0.2, 1.5))
        control.request_stop(batch)
        runner.finish()
    check(batch, "stops", 200, {30})
    print(f"{attempt} runs, {reached(batch, 30)} deaths")
    assert reached(batch, 30) <= MOST


def test_a_stopped_process_is_restarted(
    started: fleet.Fleet, configured: settings.Settings, tmp_path: Path
) -> None:
    """SIGSTOP: nothing answers, nothing ends; what was in it is done again."""
    import ray

    batch = runs.make_batch(tmp_path, "frozen", "fragile", 300)
    [handle] = started.handles("fragile")
    pid = ray.get(handle.__ray_call__.remote(lambda replica: os.getpid()))
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    runner = runs.Runner([run.Work(batch, 1)], "fragile", started, configured)
    runner.finish()
    print(f"stopped process: {time.monotonic() - began:.1f} s")
    check(batch, "frozen", 300, set())
    assert not Path(f"/proc/{pid}").exists() or runs.is_zombie(pid)


def test_a_request_that_stalls_its_engine_fails_alone(
    started: fleet.Fleet, configured: settings.Settings, reached: Reached, tmp_path: Path
) -> None:
    """The process is well, but its engine answers nothing: seen by the time limit and a small request."""
    batch = runs.make_batch(tmp_path, "stalled", "fragile", 6, {2: "echo:stall"})
    began = time.monotonic()
    once = configured.model_copy(update={"engine": configured.engine.model_copy(update={"max_attempts": 1})})
    run.run([run.Work(batch, 1)], "fragile", started, once, "spot")
    print(f"stalled engine: {time.monotonic() - began:.1f} s, {reached(batch, 2)} times")
    check(batch, "stalled", 6, {2})
    assert reached(batch, 2) == 2


def test_damaged_attempts_are_named(tmp_path: Path) -> None:
    """They are never taken for none."""
    batch = tmp_path / "batch_x~1"
    batch.mkdir()
    assert attempts.read(batch, 3) == {}
    attempts.write(batch, 3, {7: attempts.Suspect(40, 0), 9: attempts.Suspect(1, 2)})
    assert attempts.read(batch, 3) == {7: attempts.Suspect(40, 0), 9: attempts.Suspect(1, 2)}
    (batch / attempts.FOLDER / "00000003").write_bytes(b"7\t40\n")
    with pytest.raises(ValueError, match="batch_x~1: the attempts of shard 3 are damaged"):
        attempts.read(batch, 3)
