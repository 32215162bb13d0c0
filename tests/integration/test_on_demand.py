"""Engines on demand in the loop, with stand-ins for engines (tests/loops.py): idle, growing, in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon import engines, waiting
from pipeline.run import Work
from scheduler import capacity
from tests.loops import Daemon, Elastic, Run

TURN_S = 0.5
# For a batch that comes in it to be seen waiting.
LONG_TURN_S = 3.0
NAMES = ("a", "b")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "POLL_EVERY_S", 0.02)
    monkeypatch.setattr(waiting, "LASTS_S", 0.0)
    monkeypatch.setattr(capacity, "LEAST_TURN_S", TURN_S)
    monkeypatch.setattr(capacity, "RETRY_S", (0.1, 0.2))


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Makes a daemon of some models whose engines come and go, and stops it."""
    made: list[Daemon] = []

    def build(
        *, room: float = 0.0, size: float = 0.0, names: tuple[str, ...] = ("m",), **sections: Any
    ) -> Daemon:
        run = sections.pop("run", None) or Run()
        fleet = Elastic(run, names, room, size)
        made.append(Daemon(tmp_path, fleet, run, names=names, size=size, **sections))
        return made[-1]

    yield build
    for daemon in made:
        daemon.stop()


def _fleet(daemon: Daemon) -> Elastic:
    fleet = daemon.engines._fleet
    assert isinstance(fleet, Elastic)
    return fleet


def _value(daemon: Daemon, name: str, model: str) -> float | None:
    return daemon.registry.get_sample_value(f"batchd_engine_{name}", {"model": model})


def _reasons(daemon: Daemon, name: str) -> list[str]:
    return [event["reason"] for event in daemon.extra(name)["history"]]


def test_an_idle_engine_is_stopped_and_started_by_the_next_batch(make: Callable[..., Daemon]) -> None:
    """It is no fault: the daemon stays ready, and the metrics tell it from an engine that is down."""
    daemon = make(engine={"idle_s": 0.2})
    fleet = _fleet(daemon)
    daemon.until(lambda: daemon.engines.ready)
    for name in ("jan", "feb"):
        daemon.until(lambda: fleet.members == {"m": 0})
        daemon.until(lambda: not daemon.engines.view.leaving)
        assert (daemon.engines.ready, daemon.engines.starting) == (frozenset(), [])
        daemon.until(lambda: daemon.health.not_ready() == (), later_s=2)
        assert _value(daemon, "replicas_wanted", "m") == 0
        daemon.until(lambda: _value(daemon, "up", "m") == 0)
        fleet.may_start.clear()
        daemon.drop(name)
        daemon.until(lambda: _value(daemon, "replicas_wanted", "m") == 1)
        daemon.step(later_s=4)
        assert (daemon.engines.ready, daemon.health.not_ready()) == (frozenset(), ())
        fleet.may_start.set()
        daemon.until(daemon.is_at("completed", name=name))
    assert fleet.starts == ["m", "m"]
    assert _value(daemon, "swaps_total", "m") == 0


def test_an_engine_with_work_is_not_idle(make: Callable[..., Daemon]) -> None:
    """However long a run takes; shrink() of the stand-in looks."""
    daemon = make(engine={"idle_s": 0.1})
    daemon.run.may_go_on.clear()
    daemon.drop()
    daemon.until(daemon.phase("running"))
    begun = daemon.clock.now()
    daemon.until(lambda: daemon.clock.now() - begun > 0.5)
    assert _fleet(daemon).members == {"m": 1}
    daemon.run.may_go_on.set()
    daemon.until(daemon.is_at("completed"))


class Counting(Run):
    """Notes how many engines there were when it began."""

    fleet: Elastic | None = None

    def __init__(self) -> None:
        super().__init__()
        self.engines: list[int] = []

    def __call__(self, works: list[Work], model: str, pool: str) -> None:
        assert self.fleet is not None
        self.engines.append(self.fleet.members[model])
        super().__call__(works, model, pool)


def test_a_run_begins_with_the_engines_that_its_queue_needs(make: Callable[..., Daemon]) -> None:
    """Those that were only then asked for, too: one that begins before would never use them."""
    run = Counting()
    daemon = make(run=run, model={"replicas": {"min": 1, "max": 3}}, engine={"idle_s": 60})
    run.fleet = _fleet(daemon)
    run.fleet.may_start.clear()
    places = daemon.engines._capacity.models["m"].places
    for name, count in (("jan", 2), ("feb", places + 1), ("mar", 10 * places)):
        daemon.drop(name, count=count)
        daemon.until(daemon.is_at("completed", name=name))
    assert run.engines == [1, 2, 3]


def test_two_models_that_do_not_fit_take_turns(
    make: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long batch is stopped after its turn, with its lines kept, and goes on after the other one."""
    monkeypatch.setattr(capacity, "LEAST_TURN_S", LONG_TURN_S)
    daemon = make(names=NAMES, room=1.0, size=1.0)
    daemon.run.answers_before_wait = 5
    daemon.run.may_go_on.clear()
    daemon.drop("jan", count=20, model="a")
    daemon.until(daemon.phase("running", "jan"))
    daemon.drop("feb", count=10, model="b")
    daemon.until(
        lambda: (
            daemon.status("feb")
            and "waits: the engine of b waits for the GPUs of a" in _reasons(daemon, "feb")
        )
    )
    assert _value(daemon, "replicas_wanted", "b") == 0
    assert daemon.engines.starting == []
    daemon.until(daemon.phase("running", "feb"))
    assert daemon.extra("jan")["phase"] == "preempted"
    assert daemon.extra("jan")["progress"]["done"] == 5
    daemon.run.may_go_on.set()
    daemon.until(daemon.is_at("completed", name="feb"))
    daemon.until(daemon.is_at("completed", name="jan"))
    assert [row["custom_id"] for row in daemon.lines("output.jsonl", "jan")] == [f"a{n}" for n in range(20)]
    assert daemon.run.answered == 30
    assert _fleet(daemon).starts == ["b", "a"]
    assert "swapped: 15 requests left" in _reasons(daemon, "jan")
    assert _value(daemon, "swaps_total", "a") == 1


def test_neither_of_two_streams_starves_the_other(make: Callable[..., Daemon]) -> None:
    """Each has work for ever; batches of both end again and again, and no engine is started for one batch."""
    daemon = make(names=NAMES, room=1.0, size=1.0)
    dropped = dict.fromkeys(NAMES, 0)
    ended = dict.fromkeys(NAMES, 0)

    def keep_busy() -> bool:
        for model in NAMES:
            ended[model] = sum(
                bool((shown := daemon.status(f"{model}{n}")) and shown.status == "completed")
                for n in range(dropped[model])
            )
            while dropped[model] - ended[model] < 2:
                daemon.drop(f"{model}{dropped[model]}", model=model)
                dropped[model] += 1
        return min(ended.values()) >= 6

    daemon.until(keep_busy, limit_s=60)
    assert len(_fleet(daemon).starts) <= 2 + sum(ended.values()) / 2


def test_a_start_that_fails_is_told_and_tried_again(make: Callable[..., Daemon]) -> None:
    """The batch waits and says why; the daemon is not ready, and goes on."""
    daemon = make(engine={"idle_s": 0.2})
    fleet = _fleet(daemon)
    daemon.until(lambda: daemon.engines.ready)
    daemon.until(lambda: fleet.members == {"m": 0})
    fleet.problem = "model 'm' from /m: no memory"
    daemon.drop()
    why = "waits: the engine of m did not start: model 'm' from /m: no memory"
    daemon.until(lambda: daemon.status() and why in _reasons(daemon, "jan"))
    daemon.until(lambda: daemon.health.not_ready() == ("engine starting: m",), later_s=2)
    daemon.until(lambda: len(fleet.starts) >= 3)
    fleet.problem = None
    daemon.until(daemon.is_at("completed"))
    daemon.until(lambda: _value(daemon, "up", "m") == 1)


def test_a_cancel_while_its_engine_is_absent_is_obeyed(
    make: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the other model keeps its engine."""
    monkeypatch.setattr(capacity, "LEAST_TURN_S", LONG_TURN_S)
    daemon = make(names=NAMES, room=1.0, size=1.0)
    daemon.run.may_go_on.clear()
    daemon.drop("jan", model="a")
    daemon.until(daemon.phase("running", "jan"))
    daemon.drop("feb", model="b")
    daemon.until(daemon.phase("queued", "feb"))
    (daemon.home.outbox / "feb/cancel").touch()
    daemon.until(daemon.is_at("cancelled", name="feb"), later_s=5)
    daemon.run.may_go_on.set()
    daemon.until(daemon.is_at("completed", name="jan"))
    assert _fleet(daemon).starts == []
