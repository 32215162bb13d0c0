"""Runs through a real local Ray with the echo engine: each request answered once, whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest

from config import settings
from pipeline import errors, fleet, gate, merge, priority, run, slices, team
from spool import attempts, control, latency, parts, plan

SHARD_LINES = 128
EXPIRED = ("batch_expired", "too late")
SLOW_S = 1.0
LIMIT_S = 40.0

MODELS: tuple[dict[str, Any], ...] = (
    {"name": "fast", "kind": "echo"},
    {"name": "slow", "kind": "echo", "latency_s": SLOW_S},
    {"name": "flaky", "kind": "echo", "failure_rate": 0.3},
    {"name": "twins", "kind": "echo", "latency_s": 0.3, "replicas": 2},
)


class Tally:
    """A fleet's polls added up, since a poll resets what it reports."""

    def __init__(self, polled: fleet.Fleet) -> None:
        self.outcomes: dict[str, Counter[str]] = {}
        self._fleet = polled

    def poll(self, model: str) -> team.ModelState:
        states = self._fleet.poll()
        for state in states:
            self.outcomes.setdefault(state.model, Counter()).update(state.outcomes)
        return next(state for state in states if state.model == model)

    def answered(self, model: str) -> int:
        self.poll(model)
        return self.outcomes[model].total()


@pytest.fixture(scope="module")
def configured() -> settings.Settings:
    return settings.Settings(models=MODELS)


@pytest.fixture(scope="module")
def started(configured: settings.Settings) -> Iterator[fleet.Fleet]:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    made = fleet.Fleet(configured)
    made.start_ray()
    try:
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
        made.start_engines()
        yield made
    finally:
        children = ray_processes()
        made.stop()
        left = [pid for pid in children if Path(f"/proc/{pid}").exists() and not is_zombie(pid)]
    assert children
    assert left == []


@pytest.fixture
def tally(started: fleet.Fleet) -> Tally:
    made = Tally(started)
    made.poll("fast")
    made.outcomes.clear()
    return made


def ray_processes(root: int | None = None) -> list[int]:
    """Every process below this one, or below another."""
    parent_of = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent_of[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = [root or os.getpid()]
    for pid in found:
        found += [child for child, parent in parent_of.items() if parent == pid]
    return found[1:]


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def make_batch(
    root: Path, name: str, model: str, requests: int, said: Mapping[int, str] | None = None
) -> Path:
    """A valid batch; `said` are user messages of some lines, instead of one that names the line."""
    batch = root / f"batch_{name}~1"
    (batch / plan.FOLDER).mkdir(parents=True)
    (batch / parts.FOLDER).mkdir()
    shards: list[plan.Shard] = []
    offset = 0
    with open(batch / plan.INPUT_FILE, "wb") as file:
        for first in range(0, requests, SHARD_LINES):
            held = range(first, min(first + SHARD_LINES, requests))
            content = b"".join(
                request(model, f"{name}-{line}", (said or {}).get(line, f"echo\t{name}-{line}"))
                for line in held
            )
            file.write(content)
            shards.append(plan.Shard(len(shards), first, len(held), offset, len(content)))
            offset += len(content)
    (batch / plan.FOLDER / plan.SHARDS_FILE).write_bytes(b"".join(map(plan.render, shards)))
    return batch


def request(model: str, custom_id: str, said: str) -> bytes:
    body = {"model": model, "messages": [{"role": "user", "content": said}]}
    line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
    return orjson.dumps(line) + b"\n"


def check_merged(batch: Path, name: str, requests: int, failed: int | None = 0) -> None:
    """Every request once, in input order, with its own answer."""
    merged = merge.merge(batch, requests, EXPIRED, 0o644)
    if failed is not None:
        assert merged.failed == failed
    assert merged.completed + merged.failed == requests
    lines = []
    for file in ("output.jsonl", "errors.jsonl"):
        path = batch / merge.FOLDER / file
        lines.append([json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else [])
    for line in lines[0]:
        said = line["response"]["body"]["choices"][0]["message"]["content"]
        assert said == f"echo\t{line['custom_id']}"
    ids = [[line["custom_id"] for line in each] for each in lines]
    expected = [f"{name}-{line}" for line in range(requests)]
    assert ids[0] == [custom_id for custom_id in expected if custom_id in set(ids[0])]
    assert sorted(ids[0] + ids[1]) == sorted(expected)


def until(claim: Callable[[], bool], what: str, limit_s: float = LIMIT_S) -> None:
    limit = time.monotonic() + limit_s
    while not claim():
        assert time.monotonic() < limit, f"waited {limit_s:g} s for: {what}"
        time.sleep(0.02)


def run_alone(batch: Path, ready: Path) -> None:
    """A process of its own that runs a batch, to be killed."""
    with_ = settings.Settings(models=MODELS[:1])
    own = fleet.Fleet(with_)
    own.start_ray()
    own.start_engines()
    ready.touch()
    run.run([run.Work(batch, 1)], "fast", own, with_, "spot")
    own.stop()


class Runner(threading.Thread):
    """A run in a thread, as the daemon does it."""

    def __init__(
        self, works: list[run.Work], model: str, used: fleet.Fleet, with_: settings.Settings
    ) -> None:
        super().__init__(daemon=True)
        self._call = (works, model, used, with_, "spot")
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            run.run(*self._call)
        except Exception as error:  # noqa: BLE001 - handed to the test's thread
            self.error = error

    def finish(self) -> None:
        self.join(LIMIT_S)
        assert not self.is_alive()
        if self.error is not None:
            raise self.error


def test_ten_requests_on_a_warm_engine(
    started: fleet.Fleet, configured: settings.Settings, tmp_path: Path
) -> None:
    """The time that Ray Data adds to a small file; measured, not asserted."""
    for index in range(3):
        batch = make_batch(tmp_path, f"ten{index}", "fast", 10)
        began = time.perf_counter()
        run.run([run.Work(batch, 1)], "fast", started, configured, "spot")
        print(f"10 requests: {time.perf_counter() - began:.3f} s")
        check_merged(batch, f"ten{index}", 10)


def test_a_thousand_requests_are_answered_once(
    started: fleet.Fleet, configured: settings.Settings, tally: Tally, tmp_path: Path
) -> None:
    batch = make_batch(tmp_path, "thousand", "fast", 1000)
    run.run([run.Work(batch, 1)], "fast", started, configured, "spot")
    check_merged(batch, "thousand", 1000)
    assert tally.answered("fast") == 1000
    state = started.poll()[0]
    assert (state.model, state.up, state.inflight) == ("fast", 1, 0)


def test_a_done_batch_is_not_run_again(
    started: fleet.Fleet, configured: settings.Settings, tally: Tally, tmp_path: Path
) -> None:
    batch = make_batch(tmp_path, "again", "fast", 20)
    for attempt in (1, 2):
        run.run([run.Work(batch, attempt)], "fast", started, configured, "spot")
    assert tally.answered("fast") == 20
    assert [name.attempt for name in parts.list_parts(batch)] == [1]


def test_a_run_carries_many_small_batches(
    started: fleet.Fleet, configured: settings.Settings, tally: Tally, tmp_path: Path
) -> None:
    """They share tasks, but each gets its own parts."""
    batches = {f"small{index}": make_batch(tmp_path, f"small{index}", "fast", 7) for index in range(40)}
    run.run([run.Work(batch, 1) for batch in batches.values()], "fast", started, configured, "spot")
    for name, batch in batches.items():
        check_merged(batch, name, 7)
    assert tally.answered("fast") == 280


def test_two_runs_at_the_same_time(
    started: fleet.Fleet, configured: settings.Settings, tmp_path: Path
) -> None:
    """Two threads of one driver, on two models, one of them with two replicas that both work."""
    slow = make_batch(tmp_path, "a", "slow", 300)
    twins = make_batch(tmp_path, "b", "twins", 900)
    began = time.monotonic()
    runners = [
        Runner([run.Work(slow, 1)], "slow", started, configured),
        Runner([run.Work(twins, 1)], "twins", started, configured),
    ]
    for runner in runners:
        runner.finish()
    print(f"two runs: {time.monotonic() - began:.2f} s")
    check_merged(slow, "a", 300)
    check_merged(twins, "b", 900)


def test_a_stopped_run_keeps_what_is_finished(
    started: fleet.Fleet, configured: settings.Settings, tally: Tally, tmp_path: Path
) -> None:
    """The next run does only the rest: no request is answered twice, none is lost."""
    batch = make_batch(tmp_path, "stopped", "slow", 600)
    runner = Runner([run.Work(batch, 1)], "slow", started, configured)
    until(lambda: tally.answered("slow") > 0, "the first answers")
    control.request_stop(batch)
    asked_at = time.monotonic()
    runner.finish()
    print(f"stopped after {time.monotonic() - asked_at:.2f} s")
    finished = sum(name.results for name in parts.list_parts(batch))
    assert 0 < finished < 600
    assert finished == tally.answered("slow")
    run.run([run.Work(batch, 2)], "slow", started, configured, "spot")  # still told to stop: does nothing
    assert finished == tally.answered("slow")
    control.clear_stop(batch)
    run.run([run.Work(batch, 3)], "slow", started, configured, "spot")
    check_merged(batch, "stopped", 600)
    assert tally.answered("slow") == 600


def test_preempted_again_and_again(
    started: fleet.Fleet, configured: settings.Settings, tally: Tally, tmp_path: Path
) -> None:
    """At seeded random moments, within shards and between them: every request is answered once in the end."""
    chance = random.Random(3)
    batch = make_batch(tmp_path, "often", "twins", 3000)
    attempt = 0
    counts = [0]
    while counts[-1] < 3000:
        attempt += 1
        assert attempt < 60
        control.clear_stop(batch)
        runner = Runner([run.Work(batch, attempt)], "twins", started, configured)
        runner.join(chance.uniform(0.0, 0.7))
        control.request_stop(batch)
        runner.finish()
        counts.append(sum(name.results for name in parts.list_parts(batch)))
    print(f"{attempt} runs: {counts}")
    assert attempt > 3
    check_merged(batch, "often", 3000)
    assert tally.answered("twins") == 3000


@pytest.mark.timeout(300)  # a second Ray on a busy machine
def test_a_crash_costs_no_more_than_what_was_in_flight(
    started: fleet.Fleet, configured: settings.Settings, tally: Tally, tmp_path: Path
) -> None:
    """Everything is killed at 90 % of 20,000 lines; the bound is that of pipeline/run.py's header."""
    batch = make_batch(tmp_path, "big", "fast", 20_000)
    ready, log = tmp_path / "ready", tmp_path / "log"

    def reached() -> int:
        return log.read_bytes().count(b"\n")

    code = "import sys; from tests.integration.test_run import *; run_alone(*map(Path, sys.argv[1:]))"
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(batch), str(ready)], env={**os.environ, "ECHO_LOG": str(log)}
    )
    try:
        until(lambda: ready.exists() or child.poll() is not None, "the other engines", 120)
        until(lambda: 18_000 <= sum(name.results for name in parts.list_parts(batch)) < reached(), "90 %")
    finally:
        family = [child.pid, *ray_processes(child.pid)]
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        child.wait()
    until(lambda: all(is_zombie(pid) for pid in family), "all to be dead")
    durable = sum(name.results for name in parts.list_parts(batch))
    answered = {row.split()[0] for row in log.read_text().splitlines()}
    run.run([run.Work(batch, 2)], "fast", started, configured, "spot")
    again = tally.answered("fast")
    print(f"{durable} durable, {len(answered)} answered, {again} asked after the crash")
    check_merged(batch, "big", 20_000)
    assert again == 20_000 - durable
    shape = slices.shape(gate.max_num_seqs(configured.model_named("fast")), 1)
    assert 0 <= len(answered) - durable <= shape.tasks * shape.lines < 20_000 - 18_000


def test_an_adopted_batch_ends_its_run_quietly(
    started: fleet.Fleet, configured: settings.Settings, tally: Tally, tmp_path: Path
) -> None:
    """Another daemon renames the folder: nothing is written any more, and the engine gets free."""
    batch = make_batch(tmp_path, "adopted", "slow", 600)
    runner = Runner([run.Work(batch, 1)], "slow", started, configured)
    until(lambda: tally.poll("slow").inflight > 0, "requests in the engine")
    adopted = tmp_path / "batch_adopted~2"
    batch.rename(adopted)
    runner.finish()
    assert not batch.exists()
    assert tally.poll("slow").inflight == 0
    run.run([run.Work(adopted, 2)], "slow", started, configured, "spot")
    check_merged(adopted, "adopted", 600)


def test_a_killed_replica_is_restarted_and_nothing_is_lost(
    started: fleet.Fleet, configured: settings.Settings, tally: Tally, tmp_path: Path
) -> None:
    import ray

    batch = make_batch(tmp_path, "killed", "slow", 300)
    before = tally.poll("slow").restarts
    runner = Runner([run.Work(batch, 1)], "slow", started, configured)
    until(lambda: tally.poll("slow").inflight > 0, "requests in the engine")
    [handle] = started.handles("slow")
    os.kill(ray.get(handle.__ray_call__.remote(lambda replica: os.getpid())), signal.SIGKILL)
    runner.finish()
    check_merged(batch, "killed", 300)
    until(lambda: tally.poll("slow").restarts == before + 1, "the restart to be seen")
    assert tally.poll("slow").up == 1


def break_engine(replica: Any) -> None:
    """Runs in the replica: requests below 100 are answered at once, then the engine dies under 200."""
    from pipeline.echo import EchoEngine

    slow = replica._engine.answer
    fast = EchoEngine(settings.EchoModel(name="slow", kind="echo"))

    async def answer(url: str, body: dict[str, Any], request_id: str) -> Any:
        line = int(request_id.rpartition("_")[2])
        if line < 100:
            await fast.start()
            return await fast.answer(url, body, request_id)
        if line == 200:
            await asyncio.sleep(SLOW_S / 2)
            raise errors.EngineDeadError("killed by the test")
        return await slow(url, body, request_id)

    replica._engine.answer = answer


def test_a_replica_whose_engine_dies_restarts_itself(
    started: fleet.Fleet, configured: settings.Settings, tally: Tally, tmp_path: Path
) -> None:
    """The process lives and its engine does not: what was finished is kept, the rest goes to the next one.

    The requests of the other shards were once taken for aborted, and the run ended without them.
    """
    import ray

    batch = make_batch(tmp_path, "dead", "slow", 300)
    before = tally.poll("slow").restarts
    [handle] = started.handles("slow")
    ray.get(handle.__ray_call__.remote(break_engine))
    tally.answered("slow")
    answered = tally.outcomes["slow"].total()
    runner = Runner([run.Work(batch, 1)], "slow", started, configured)
    until(lambda: tally.answered("slow") == answered + 100, "the answers before the engine dies")
    runner.finish()
    check_merged(batch, "dead", 300)
    assert tally.answered("slow") == answered + 300
    until(lambda: tally.poll("slow").restarts == before + 1, "the restart to be seen")


def test_failures_go_to_the_errors_file(
    started: fleet.Fleet, configured: settings.Settings, tally: Tally, tmp_path: Path
) -> None:
    batch = make_batch(tmp_path, "flaky", "flaky", 200)
    run.run([run.Work(batch, 1)], "flaky", started, configured, "spot")
    check_merged(batch, "flaky", 200, failed=None)
    failed = [json.loads(line) for line in (batch / "merged" / "errors.jsonl").read_bytes().splitlines()]
    assert 0 < len(failed) < 200
    assert {line["response"]["status_code"] for line in failed} == {500}
    assert {line["error"] for line in failed} == {None}
    tally.poll("flaky")
    assert tally.outcomes["flaky"] == {"failed": len(failed), "completed": 200 - len(failed)}


def test_a_private_ray_starts_nothing_that_nobody_asks(started: fleet.Fleet) -> None:
    titles = []
    for pid in ray_processes():
        with contextlib.suppress(OSError):
            titles.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode())
    assert any("/gcs_server " in title for title in titles)
    unwanted = ("/autoscaler/_private/monitor.py", "/dashboard/dashboard.py", "/_private/log_monitor.py")
    assert [title for title in titles if any(name in title for name in unwanted)] == []


def test_engines_run_before_the_workers_that_hand_requests_around(
    started: fleet.Fleet, configured: settings.Settings, tmp_path: Path
) -> None:
    batch = make_batch(tmp_path, "niced", "fast", 300)
    run.run([run.Work(batch, 1)], "fast", started, configured, "spot")
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    niceness: dict[str, set[int]] = {}
    for pid in ray_processes():
        with contextlib.suppress(OSError):
            title = Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0].decode()
            threads = os.listdir(f"/proc/{pid}/task")
            found = {os.getpriority(os.PRIO_PROCESS, int(thread)) for thread in threads}
            niceness[title] = niceness.get(title, set()) | found
    assert niceness["ray::Replica"] == {ours}
    assert priority.NICENESS in niceness["ray::IDLE"], "they have worked, and wait"


def test_parts_say_how_long_the_engine_took(
    started: fleet.Fleet, configured: settings.Settings, tmp_path: Path
) -> None:
    """Of each answer; it comes from the replica's process, through Ray, into the names and the merge."""
    batch = make_batch(tmp_path, "slow", "slow", 150)
    run.run([run.Work(batch, 1)], "slow", started, configured, "spot")
    merged = merge.merge(batch, 150, EXPIRED, 0o644, time.time() - LIMIT_S)
    assert merged.latency is not None and merged.timeline is not None
    took = {index for index, count in enumerate(merged.latency.counts) if count}
    assert sum(merged.latency.counts) == sum(merged.timeline.completed) == 150
    assert min(took) >= latency.bucket(SLOW_S) and max(took) < latency.bucket(LIMIT_S)


def test_a_request_that_takes_too_long_fails_alone(started: fleet.Fleet, tmp_path: Path) -> None:
    """The time limit belongs to the replica, so this one is made for the test."""
    import ray

    from pipeline import replica

    model = settings.EchoModel(name="late", kind="echo", latency_s=1)
    handle = replica.create(model, settings.EngineSettings(request_timeout_s=0.1))
    try:
        requests = [request("late", "a", "late"), b"no JSON"]
        reply = ray.get(handle.infer.remote("batch", 0, "batch_x", [0, 1], requests, "a run", 0))
        answers = [json.loads(result.text) for result in reply.results]
        assert answers[0]["custom_id"] == "a"
        assert answers[0]["error"] == {"code": "request_timeout", "message": "no answer within 0.1 s"}
        assert answers[1]["error"]["code"] == "engine_error"
    finally:
        ray.kill(handle)


def test_reading_and_answering_is_one_task(started: fleet.Fleet, tmp_path: Path) -> None:
    """Else each bundle is a task of its own, which takes ten times as long."""
    from pipeline import calls, data

    batch = make_batch(tmp_path, "fused", "fast", 5 * SHARD_LINES)
    tasks = list(slices.dealt(list(slices.bundled(slices.pending(batch, 1), SHARD_LINES)), 2))
    route = calls.Route(started.handles("fast"), 512, 3, "a run")
    done = data.steps(tasks, route, 2, False).materialize()
    assert re.findall(r"^Operator \d+ (\S+):", done.stats(), re.MULTILINE) == [
        "ReadShardSource->MapBatches(answer)"
    ]
    assert done.count() == 0
    check_merged(batch, "fused", 5 * SHARD_LINES)


def test_a_failing_disk_is_known_for_one(
    started: fleet.Fleet, configured: settings.Settings, tmp_path: Path
) -> None:
    """Whatever Ray Data wraps it in: such a run says nothing of its requests."""
    batch = make_batch(tmp_path, "disk", "fast", 10)
    (batch / attempts.FOLDER).write_bytes(b"")
    with pytest.raises(errors.RunError, match="Not a directory") as failed:
        run.run([run.Work(batch, 1)], "fast", started, configured, "spot")
    assert isinstance(failed.value.__cause__, NotADirectoryError)


def test_a_damaged_input_fails_the_run(
    started: fleet.Fleet, configured: settings.Settings, tmp_path: Path
) -> None:
    batch = make_batch(tmp_path, "damaged", "fast", 10)
    content = (batch / plan.INPUT_FILE).read_bytes()
    (batch / plan.INPUT_FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(errors.RunError, match=r"model 'fast': .*input\.jsonl holds"):
        run.run([run.Work(batch, 1)], "fast", started, configured, "spot")


def test_an_engine_that_cannot_start_says_why(started: fleet.Fleet) -> None:
    bad = {"name": "remote", "kind": "openai", "urls": ["http://127.0.0.1:1"]}
    broken = fleet.Fleet(settings.Settings(models=(bad,)))
    with pytest.raises(errors.EngineStartError, match=r"^model 'remote': [^\n]*$"):
        broken.start_engines()


def test_a_run_does_not_pass_over_a_shard_that_it_cannot_find(started: fleet.Fleet, tmp_path: Path) -> None:
    """Of an adopted batch nothing is left to do; a folder that stands means that the volume errs."""
    from pipeline import data

    shard = plan.Shard(0, 0, 2, 0, 10)
    bundle = [slices.Slice(tmp_path / "batch_x~1", 1, shard, 2)]
    assert list(data.read([bundle])) == []
    bundle[0].batch.mkdir()
    with pytest.raises(FileNotFoundError):
        list(data.read([bundle]))
