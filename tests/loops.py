"""The loop on real folders and real threads, with a stand-in for the run: no Ray and no engine.

The stand-in answers lines itself, by the very files that a run would write, and waits where a test wants.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import prometheus_client
from openai.types import Batch as OpenAIBatch

from config.settings import Settings
from daemon import engines, http, metrics, needs
from daemon.clock import Clock
from daemon.engines import Engines
from daemon.intake import Intake
from daemon.lifecycle import Lifecycle
from daemon.loop import Loop, Parts
from daemon.progress import Progress
from daemon.report import EngineMetrics, Reporter
from daemon.runs import Runs
from daemon.watch import Watcher
from daemon.workers import Workers
from pipeline import errors
from pipeline.placement import Pools
from pipeline.run import Work
from pipeline.team import ModelState
from spool import control, create, lease, lines, parts, plan
from spool.parts import Result, Usage

LIMIT_S = 20.0


class Fleet:
    """A fleet whose engines are up at once."""

    def __init__(self, error: str | None = None) -> None:
        self._error = error

    def room(self) -> float:
        return 0.0

    def start_engines(self, counts: Mapping[str, int]) -> None:
        if self._error:
            raise errors.EngineStartError(self._error)

    def grow(self, model: str, count: int) -> None:
        raise AssertionError(model)

    def shrink(self, model: str, count: int) -> None:
        raise AssertionError(model)

    def warm_up(self, is_over: Callable[[], bool]) -> None:
        pass

    def poll(self) -> list[ModelState]:
        return [ModelState("m", 1, 1, 0, 0.1, 0, (), {}, Usage())]

    def pools(self) -> Pools:
        return Pools()


class Elastic:
    """A fleet whose engines come and go; it fails where one goes while a run needs it, or that has no room.

    Attributes:
        members: engines of each model.
        starts: models in the order in which engines of theirs were started, by `grow`.
        problem: why no engine starts from now on.
    """

    def __init__(self, run: Run, names: Sequence[str] = ("m",), room: float = 0.0, size: float = 0.0) -> None:
        self.members = dict.fromkeys(names, 0)
        self.starts: list[str] = []
        self.problem: str | None = None
        self.may_start = threading.Event()
        self.may_start.set()
        self._run = run
        self._room, self._size = room, size
        self._up = dict.fromkeys(names, 0)

    def room(self) -> float:
        return self._room

    def start_engines(self, counts: Mapping[str, int]) -> None:
        self.members.update(counts)
        self._up.update(counts)

    def grow(self, model: str, count: int) -> None:
        self.starts.append(model)
        self.members[model] = count
        assert sum(self.members.values()) * self._size <= self._room

    def shrink(self, model: str, count: int) -> None:
        assert model not in self._run.going, f"an engine of {model} ended under a run"
        self.members[model] = self._up[model] = count

    def warm_up(self, is_over: Callable[[], bool]) -> None:
        pass

    def poll(self) -> list[ModelState]:
        return [self._state(model) for model in self.members]

    def _state(self, model: str) -> ModelState:
        problem = self.problem if self._up[model] < self.members[model] else None
        if problem:
            self.members[model] = self._up[model]
        elif self.may_start.is_set():
            self._up[model] = self.members[model]
        up = self._up[model]
        return ModelState(model, self.members[model], up, 0, 0.1, 0, (), {}, Usage(), problem=problem)

    def pools(self) -> Pools:
        return Pools()


class Run:
    """Stands in for pipeline.run.run: answers shard by shard, as told."""

    def __init__(self) -> None:
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.answers_before_wait = 0
        self.error: Exception | None = None
        self.fails_after: int | None = None
        self.heeds_stop = True
        self.calls: list[list[str]] = []
        self.going: list[str] = []  # models
        self.answered = 0

    def __call__(self, works: list[Work], model: str, pool: str) -> None:
        self.calls.append([work.folder.name for work in works])
        self.going.append(model)
        try:
            if self.error:
                raise self.error
            for work in works:
                for shard in plan.read(work.folder):
                    self._shard(work, shard)
        finally:
            self.going.remove(model)

    def _shard(self, work: Work, shard: plan.Shard) -> None:
        done = {
            result.line
            for name in parts.list_shard(work.folder, shard.index)
            for result in parts.read(work.folder, name)
        }
        results: list[Result] = []
        for line, raw in plan.read_requests(work.folder, shard):
            if line in done:
                continue
            if len(results) >= self.answers_before_wait:
                while not self.may_go_on.wait(0.01):
                    if self.heeds_stop and control.must_stop(work.folder):
                        break
                if control.must_stop(work.folder):
                    break
            if len(results) == self.fails_after:
                parts.write(work.folder, shard.index, work.attempt, results)
                raise errors.RunError("as a test asked")
            custom_id = orjson.loads(raw)["custom_id"]
            key = lines.request_key("batch_x", line)
            text = lines.response_line(key, custom_id, 200, _answer(raw))
            results.append(Result(line, True, Usage(2, 0, 1, 0), text))
            self.answered += 1
        if results:
            parts.write(work.folder, shard.index, work.attempt, results)


class Paced(Run):
    """Answers a batch up to a number of lines and then waits to be stopped.

    `limits` are those of its runs, each counted over all runs so far; the last one holds for all that follow.
    """

    def __init__(self, *limits: int) -> None:
        super().__init__()
        self._limits = limits
        self.may_go_on.clear()

    def _shard(self, work: Work, shard: plan.Shard) -> None:
        done = sum(name.results for name in parts.list_parts(work.folder))
        limit = self._limits[min(work.attempt, len(self._limits)) - 1]
        self.answers_before_wait = max(0, limit - done)
        super()._shard(work, shard)


def _answer(raw: bytes) -> bytes:
    """What the echo engine would say: the last message, as a chat completion."""
    content = orjson.loads(raw)["body"]["messages"][-1]["content"]
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return orjson.dumps(
        {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    )


class Daemon:
    """A loop that a test drives pass by pass."""

    def __init__(
        self,
        tmp_path: Path,
        fleet: engines.Fleet | None = None,
        run: Run | None = None,
        *,
        names: Sequence[str] = ("m",),
        size: float = 0.0,
        **sections: Any,
    ) -> None:
        model = {"kind": "echo", **sections.pop("model", {})}
        self.settings = Settings(
            models=tuple({"name": name, **model} for name in names),
            spool={"root": str(tmp_path / "spool"), "min_free_bytes": 0, **sections.pop("spool", {})},
            inbox={"settle_s": 0, "backend": "polling", "poll_s": 0.05},
            **sections,
        )
        self.home = create.open_or_create(tmp_path / "spool")
        self.wake = threading.Event()
        self.run = run or Run()
        self.lease = lease.Lease(self.home, heartbeat_s=5, expire_s=60)
        self.registry = prometheus_client.CollectorRegistry()
        self.metrics = metrics.Metrics(self.registry, names)
        self.health = http.Health(60)
        self.clock = Clock()
        workers = Workers(self.wake, runs=3)
        models = needs.models(self.settings, dict.fromkeys(names, size))
        observer = EngineMetrics(self.metrics)
        idle_s = self.settings.engine.idle_s
        self.engines = Engines(fleet or Fleet(), models, self.wake, observer, idle_s)
        self.runs = Runs(self.settings, workers, self.metrics, self.run)
        progress = Progress(self.metrics)
        self.lifecycle = Lifecycle(
            self.settings, self.home, self.clock, workers, self.runs, progress, self.metrics
        )
        watcher = Watcher(self.home.inbox, "polling", self.wake)
        self.loop = Loop(
            Parts(
                settings=self.settings,
                home=self.home,
                lease=self.lease,
                clock=self.clock,
                wake=self.wake,
                workers=workers,
                engines=self.engines,
                intake=Intake(self.settings, self.home, self.lease.folder, watcher, self.metrics),
                runs=self.runs,
                lifecycle=self.lifecycle,
                reporter=Reporter(self.runs, progress, self.metrics, 0.0),
                metrics=self.metrics,
                health=self.health,
            )
        )
        self.engines.start()

    def drop(
        self, name: str = "jan", count: int = 3, sidecar: str = "", model: str = "m", **changes: Any
    ) -> None:
        """Drop a file of requests a0, a1, …"""
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
        rows = [
            {"custom_id": f"a{n}", "method": "POST", "url": "/v1/chat/completions", "body": body, **changes}
            for n in range(count)
        ]
        if sidecar:
            (self.home.inbox / f"{name}.batch.yaml").write_text(sidecar)
        (self.home.inbox / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def step(self, later_s: float = 0.0) -> None:
        """One pass, as if it were this much later."""
        self.loop.step(time.monotonic() + later_s, is_woken=True)

    def until(self, holds: Callable[[], Any], later_s: float = 0.0, limit_s: float = LIMIT_S) -> Any:
        """Step until something holds."""
        ends_at = time.monotonic() + limit_s
        while time.monotonic() < ends_at:
            self.step(later_s)
            if found := holds():
                return found
            self.wake.wait(0.01)
            self.wake.clear()
        raise AssertionError("did not come to hold")

    def status(self, name: str = "jan") -> Any:
        """What a reader sees, as OpenAI's Batch (Any: each of its fields may be None)."""
        try:
            content = (self.home.outbox / name / "status.json").read_bytes()
        except FileNotFoundError:
            return None
        return OpenAIBatch.model_validate(orjson.loads(content))

    def extra(self, name: str = "jan") -> dict[str, Any]:
        extra: dict[str, Any] = orjson.loads((self.home.outbox / name / "status.json").read_bytes())["batchd"]
        return extra

    def is_at(self, *statuses: str, name: str = "jan") -> Callable[[], Any]:
        def look() -> Any:
            shown = self.status(name)
            return shown if shown and shown.status in statuses else None

        return look

    def phase(self, phase: str, name: str = "jan") -> Callable[[], bool]:
        return lambda: self.status(name) is not None and self.extra(name)["phase"] == phase

    def lines(self, file: str, name: str = "jan") -> list[dict[str, Any]]:
        path = self.home.outbox / name / file
        return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []

    def stop(self) -> None:
        self.run.may_go_on.set()
        self.loop.shut_down()
        self.engines.stop(1.0)
        self.lease.release()


def ended(daemon: Daemon, name: str = "jan") -> None:
    """Wait for the end of a batch, and until all are put away."""
    daemon.until(daemon.is_at("completed", "cancelled", "failed", name=name))
    daemon.until(lambda: not daemon.lifecycle.held)


def cancelled(daemon: Daemon, **drop: Any) -> None:
    """Drop a batch of 300 of which 128 are answered when its user cancels it; for a run of Paced(128)."""
    daemon.run.may_go_on.clear()
    daemon.drop(count=300, **drop)
    daemon.until(daemon.phase("running"))
    daemon.until(lambda: daemon.run.answered == 128)
    control.request_cancel(daemon.home.outbox / "jan")
    daemon.until(daemon.is_at("cancelled"), later_s=5)
    daemon.run.may_go_on.set()
    daemon.until(lambda: not daemon.lifecycle.held)
