"""Files that run in an order of their own, with twins, through a real local Ray with the echo engine."""

from __future__ import annotations

import contextlib
import io
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from config import settings
from pipeline import echo, fleet, merge, run, validate
from pipeline.order_notes import Wishes
from spool import control, parts, plan

URL = "/v1/chat/completions"
MODELS: tuple[dict[str, Any], ...] = (
    {"name": "fast", "kind": "echo", "replicas": 2},
    {"name": "slow", "kind": "echo", "latency_s": 1.0},
)
LIMIT_S = 60.0
DOCUMENTS = [f"{number} {random.Random(number).random()} " * 30 for number in range(20)]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the engines of this module write each request that reaches them."""
    path = tmp_path_factory.mktemp("log") / "echo.log"
    path.touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(echo.LOG_VARIABLE, str(path))
        yield path


@pytest.fixture(scope="module")
def configured() -> settings.Settings:
    return settings.Settings(models=MODELS)


@pytest.fixture(scope="module")
def started(configured: settings.Settings, log: Path) -> Iterator[fleet.Fleet]:
    made = fleet.Fleet(configured)
    made.start_ray()
    try:
        made.start_engines()
        yield made
    finally:
        made.stop()


@pytest.fixture
def reached(log: Path) -> Callable[[], list[str]]:
    """Request ids that reached an engine since the test began."""
    before = len(log.read_text().splitlines())
    return lambda: [row.split()[0] for row in log.read_text().splitlines()[before:]]


def bodies(model: str, count: int) -> list[dict[str, Any]]:
    """Requests about documents in any order; every second one repeats an earlier one, mostly greedily."""
    chance = random.Random(count)
    made: list[dict[str, Any]] = []
    for number in range(count):
        if number % 2:
            made.append(made[chance.randrange(len(made))])
            continue
        text = f"{DOCUMENTS[chance.randrange(20)]} question {number}"
        body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": text}]}
        sampling = chance.choice([{"temperature": 0}, {"temperature": 0}, {"seed": 1}, {}])
        made.append({**body, "max_tokens": chance.choice([10, 100]), **sampling})
    return made


def distinct(asked: list[dict[str, Any]]) -> int:
    """How many must reach an engine: what is not determined each time, all else once."""
    free = [body for body in asked if "temperature" not in body and "seed" not in body]
    return len(free) + len({orjson.dumps(body) for body in asked if body not in free})


def make_batch(root: Path, name: str, asked: list[dict[str, Any]], wishes: Wishes | None = None) -> Path:
    """A batch as validation leaves it."""
    batch = root / f"batch_{name}~1"
    batch.mkdir()
    rows = (
        {"custom_id": f"{name}-{line}", "method": "POST", "url": URL, "body": body}
        for line, body in enumerate(asked)
    )
    content = b"\n".join(map(orjson.dumps, rows))
    rules = validate.Rules(
        frozenset(model["name"] for model in MODELS), settings.LimitSettings(), wishes=wishes or Wishes()
    )
    verdict = validate.check_and_copy(io.BytesIO(content), batch, f"batch_{name}", rules)
    assert verdict.is_valid
    return batch


def check_merged(batch: Path, name: str, asked: list[dict[str, Any]]) -> merge.Merged:
    """Each request once, in input order, with its own answer and with ids that are its alone."""
    merged = merge.merge(batch, len(asked), None, 0o644)
    assert (merged.completed, merged.failed) == (len(asked), 0)
    rows = [orjson.loads(row) for row in (batch / merge.FOLDER / "output.jsonl").read_bytes().splitlines()]
    assert len(rows) == len(asked)
    for line, (row, body) in enumerate(zip(rows, asked, strict=True)):
        assert row["custom_id"] == f"{name}-{line}"
        assert row["id"] == f"batch_req_{name}_{line}"
        assert row["response"]["request_id"] == f"req_{name}_{line}"
        answer = row["response"]["body"]
        assert answer["id"] == f"echo-{name}_{line}"
        assert answer["choices"][0]["message"]["content"] == body["messages"][0]["content"]
    used = sum(row["response"]["body"]["usage"]["total_tokens"] for row in rows)
    assert merged.usage.input_tokens + merged.usage.output_tokens == used
    return merged


def until(claim: Callable[[], bool], what: str) -> None:
    limit = time.monotonic() + LIMIT_S
    while not claim():
        assert time.monotonic() < limit, f"waited {LIMIT_S:g} s for: {what}"
        time.sleep(0.02)


def test_two_thousand_requests_in_an_order_of_their_own(
    started: fleet.Fleet, configured: settings.Settings, reached: Callable[[], list[str]], tmp_path: Path
) -> None:
    """What is identical and determined reaches an engine once, all else each time; each line gets its own."""
    asked = bodies("fast", 2000)
    batch = make_batch(tmp_path, "all", asked)
    assert (batch / plan.FOLDER / plan.ORDER_FILE).exists()
    run.run([run.Work(batch, 1)], "fast", started, configured, "spot")
    merged = check_merged(batch, "all", asked)
    assert len(reached()) == len(set(reached())) == distinct(asked) < 1600
    assert merged.shared == 2000 - distinct(asked)
    assert sum(tally.shared for tally in parts.tally(batch).values()) == merged.shared


def test_requests_of_one_document_reach_one_replica_together(
    started: fleet.Fleet, configured: settings.Settings, reached: Callable[[], list[str]], tmp_path: Path
) -> None:
    """Their order at the engines is that of the plan, shard by shard."""
    chance = random.Random(1)
    asked = [
        {"model": "fast", "messages": [{"role": "user", "content": f"{DOCUMENTS[n % 20]} {chance.random()}"}]}
        for n in range(600)
    ]
    batch = make_batch(tmp_path, "docs", asked)
    run.run([run.Work(batch, 1)], "fast", started, configured, "spot")
    check_merged(batch, "docs", asked)
    lines = [int(key.rpartition("_")[2]) for key in reached()]
    assert sorted(lines) == list(range(600))
    for shard in plan.read(batch):
        held = list(plan.read_lines(batch, shard))
        assert [line for line in lines if line in set(held)] == held
        assert len({line % 20 for line in held}) == -(-len(held) // 30)


@pytest.mark.parametrize("wishes", [Wishes(False, True), Wishes(True, False), Wishes(False, False)])
def test_either_may_be_switched_off(
    started: fleet.Fleet, reached: Callable[[], list[str]], tmp_path: Path, wishes: Wishes
) -> None:
    order = "prefix" if wishes.by_prefix else "file"
    with_ = settings.Settings(models=MODELS, engine={"order": order, "dedupe": wishes.is_deduping})
    asked = bodies("fast", 300)
    batch = make_batch(tmp_path, "off", asked, wishes)
    run.run([run.Work(batch, 1)], "fast", started, with_, "spot")
    merged = check_merged(batch, "off", asked)
    assert len(reached()) == (distinct(asked) if wishes.is_deduping else 300)
    assert merged.shared == 300 - len(reached())
    assert (batch / plan.FOLDER / plan.ORDER_FILE).exists() == any(wishes)


def test_a_plan_with_twins_runs_without_sharing_once_that_is_switched_off(
    started: fleet.Fleet, reached: Callable[[], list[str]], tmp_path: Path
) -> None:
    """The settings of the run decide, not those of the time of the plan."""
    with_ = settings.Settings(models=MODELS, engine={"dedupe": False})
    asked = bodies("fast", 100)
    batch = make_batch(tmp_path, "late", asked)
    run.run([run.Work(batch, 1)], "fast", started, with_, "spot")
    assert check_merged(batch, "late", asked).shared == 0
    assert len(reached()) == 100


def test_a_stopped_run_goes_on_with_what_is_missing(
    started: fleet.Fleet, configured: settings.Settings, reached: Callable[[], list[str]], tmp_path: Path
) -> None:
    """Whoever was answered takes its twins along, so the rest is sent once as well."""
    asked = bodies("slow", 2000)
    batch = make_batch(tmp_path, "stop", asked)
    attempt = 0
    counts = [0]
    while counts[-1] < 2000:
        attempt += 1
        control.clear_stop(batch)
        runner = threading.Thread(
            target=run.run, args=([run.Work(batch, attempt)], "slow", started, configured, "spot")
        )
        runner.start()
        runner.join(1.3)
        control.request_stop(batch)
        runner.join(LIMIT_S)
        assert not runner.is_alive()
        counts.append(sum(name.results for name in parts.list_parts(batch)))
        assert attempt < 60
    print(f"{attempt} runs: {counts}")
    assert attempt > 2
    check_merged(batch, "stop", asked)
    # What a stop caught in the engine was sent again; nothing else was.
    assert len(set(reached())) == distinct(asked)


def test_a_twin_that_an_earlier_attempt_left_out_is_its_own_leader(
    started: fleet.Fleet, configured: settings.Settings, reached: Callable[[], list[str]], tmp_path: Path
) -> None:
    """Its leader has a result in a part already, from a run that did not share."""
    body = {"model": "fast", "messages": [{"role": "user", "content": "same"}], "temperature": 0}
    asked = [body] * 5
    whole = make_batch(tmp_path, "whole", asked)
    run.run([run.Work(whole, 1)], "fast", started, configured, "spot")
    (name,) = parts.list_parts(whole)
    first = list(parts.read(whole, name))[:2]
    batch = make_batch(tmp_path, "left", asked)
    readdressed = [row._replace(text=row.text.replace(b"whole", b"left"), shared=False) for row in first]
    parts.write(batch, 0, 1, readdressed)
    run.run([run.Work(batch, 2)], "fast", started, configured, "spot")
    assert check_merged(batch, "left", asked).shared == 2
    assert reached() == ["whole_0", "left_2"]


@pytest.mark.timeout(240)
def test_twins_of_a_poisonous_request_fail_with_it(
    started: fleet.Fleet, configured: settings.Settings, reached: Callable[[], list[str]], tmp_path: Path
) -> None:
    """The engine dies for one of them, max_attempts times, and not for each."""
    asked = bodies("slow", 60)
    poison = {"model": "slow", "messages": [{"role": "user", "content": "echo:crash"}], "temperature": 0}
    for line in (7, 30, 59):
        asked[line] = poison
    batch = make_batch(tmp_path, "poison", asked)
    run.run([run.Work(batch, 1)], "slow", started, configured, "spot")
    merged = merge.merge(batch, 60, None, 0o644)
    assert (merged.completed, merged.failed) == (57, 3)
    rows = [orjson.loads(row) for row in (batch / merge.FOLDER / "errors.jsonl").read_bytes().splitlines()]
    assert [row["custom_id"] for row in rows] == ["poison-7", "poison-30", "poison-59"]
    assert len({row["id"] for row in rows}) == 3
    for row in rows:
        assert row["error"]["code"] == "engine_error"
        assert "died 3 times" in row["error"]["message"]
    assert {key for key in reached() if key in ("poison_30", "poison_59")} == set()


def run_alone(batch: Path, ready: Path) -> None:
    """A process of its own that runs a batch, to be killed."""
    with_ = settings.Settings(models=MODELS[1:])
    own = fleet.Fleet(with_)
    own.start_ray()
    own.start_engines()
    ready.touch()
    run.run([run.Work(batch, 1)], "slow", own, with_, "spot")
    own.stop()


@pytest.mark.timeout(240)  # a second Ray on a busy machine
def test_a_crash_in_the_middle_costs_only_what_was_in_flight(
    started: fleet.Fleet, configured: settings.Settings, reached: Callable[[], list[str]], tmp_path: Path
) -> None:
    """Everything is killed; what is durable stays, and twins are shared in what is left, too."""
    asked = bodies("slow", 2000)
    batch = make_batch(tmp_path, "big", asked)
    ready, log = tmp_path / "ready", tmp_path / "log"
    code = "import sys; from tests.integration.test_order import *; run_alone(*map(Path, sys.argv[1:]))"
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(batch), str(ready)],
        env={**os.environ, echo.LOG_VARIABLE: str(log)},
        start_new_session=True,
    )
    try:
        until(lambda: ready.exists() or child.poll() is not None, "the other engines")
        until(lambda: sum(name.results for name in parts.list_parts(batch)) >= 500, "a quarter")
    finally:
        family = [child.pid, *_below(child.pid)]
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        child.wait()
    until(lambda: not any(map(_lives, family)), "all to be dead")
    durable = sum(name.results for name in parts.list_parts(batch))
    done = {row.line for name in parts.list_parts(batch) for row in parts.read(batch, name)}
    assert durable in range(500, 2000)
    run.run([run.Work(batch, 2)], "slow", started, configured, "spot")
    check_merged(batch, "big", asked)
    left = [body for line, body in enumerate(asked) if line not in done]
    assert len(reached()) == distinct(left)


def _below(root: int) -> list[int]:
    """Every process below another."""
    parent_of = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                parent_of[int(entry.name)] = int(stat[1])
    found = [root]
    for pid in found:
        found += [child for child, parent in parent_of.items() if parent == pid]
    return found[1:]


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
