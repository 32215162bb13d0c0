"""How many engines each model should have: with its work, down when idle, and in turns where not all fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.capacity import LEAST_TURN_S, RETRY_S, START_LIMIT_S, TURN_STARTS, Capacity
from scheduler.engines import Absence, Demand, Model, Team

INFINITE = float("inf")
START_S = 10.0
TURN_S = max(LEAST_TURN_S, TURN_STARTS * START_S)


class Machine:
    """What does as it is told: engines start within START_S, and those that are to go are gone at once.

    Attributes:
        starts: how often engines of each model were started.
    """

    def __init__(self, *models: Model, room: float = INFINITE, idle_s: float = 0.0) -> None:
        self.now = 0.0
        self.room = room
        self.capacity = Capacity(models, idle_s, self.now)
        self.has = self.capacity.first(room)
        self.up_at = dict.fromkeys(self.has, 0.0)
        self.demands: dict[str, Demand] = {}
        self.starts = dict.fromkeys(self.has, 0)
        self.swaps = 0
        self.broken: set[str] = set()

    def want(self, **requests: int) -> None:
        """Say what is to be done, the models in the queue's order."""
        self.demands = {name: Demand(count, 0, rank) for rank, (name, count) in enumerate(requests.items())}

    def step(self, seconds: float = 1.0) -> dict[str, int]:
        """Decide, and do it."""
        self.now += seconds
        decision = self.capacity.decide(self.demands, self._teams(), self.room, self.now)
        self.absent = {name: absence for name, (absence, _) in decision.absent.items()}
        self.words = {name: words for name, (_, words) in decision.absent.items()}
        self.swaps += len(decision.swapped)
        for name, target in decision.targets.items():
            if target > self.has[name]:
                self.starts[name] += 1
                if name in self.broken:
                    self.capacity.failed(name, "no memory", self.now)
                    continue
                self.up_at[name] = self.now + START_S
            self.has[name] = target
        sizes = {name: model.size for name, model in self.capacity.models.items()}
        assert sum(count * sizes[name] for name, count in self.has.items()) <= self.room
        return dict(self.has)

    def _teams(self) -> dict[str, Team]:
        return {
            name: Team(count, count if self.now >= self.up_at[name] else 0, START_S)
            for name, count in self.has.items()
        }

    def steps(self, count: int) -> list[dict[str, int]]:
        return [self.step() for _ in range(count)]

    def serves(self, name: str) -> bool:
        return self.has[name] > 0 and self.now >= self.up_at[name]


def _gpu(name: str, most: int = 1, size: float = 1.0) -> Model:
    return Model(name, first=1, idle=1, least=1, most=most, places=10, size=size)


def test_without_idle_s_engines_stay_as_they_started() -> None:
    """Whatever there is to do, and however long there was nothing."""
    machine = Machine(Model("a", 2, 2, 2, 2), Model("b"))
    assert machine.has == {"a": 2, "b": 1}
    assert machine.step(1e6) == {"a": 2, "b": 1}
    machine.want(a=10**6, b=3)
    assert machine.step() == {"a": 2, "b": 1}
    assert machine.absent == {}


def test_an_idle_model_is_stopped_and_started_with_its_next_batch() -> None:
    """Idle since its last request was answered, or since the start."""
    machine = Machine(Model("a", first=2, idle=0, least=2, most=2), idle_s=60)
    assert machine.step(59) == {"a": 2}
    machine.want(a=1)
    machine.step()
    machine.want()
    assert machine.step(59) == {"a": 2}
    assert machine.step(1) == {"a": 0}
    assert machine.absent == {}
    machine.want(a=1)
    assert machine.step() == {"a": 2}
    assert machine.step() == {"a": 2}
    assert machine.absent == {"a": Absence.STARTING}
    assert machine.starts == {"a": 1}


def test_a_run_whose_requests_are_all_answered_still_needs_its_engines() -> None:
    """It may be writing; nothing is stopped under it."""
    machine = Machine(Model("a", idle=0), idle_s=5)
    machine.demands = {"a": Demand(requests=0, runs=1)}
    assert machine.step(100) == {"a": 1}


@pytest.mark.parametrize(("requests", "replicas"), [(1, 1), (10, 1), (11, 2), (35, 4), (10**6, 4)])
def test_replicas_follow_the_queue_up_at_once(requests: int, replicas: int) -> None:
    """As many as have places for what is queued and running, within bounds."""
    machine = Machine(Model("a", first=0, idle=0, least=1, most=4, places=10), idle_s=60)
    assert machine.has == {"a": 0}
    machine.want(a=requests)
    assert machine.step() == {"a": replicas}


def test_replicas_go_down_to_the_minimum_only_when_idle() -> None:
    """A queue that becomes shorter stops nothing; an idle model keeps `min`."""
    machine = Machine(Model("a", first=1, idle=1, least=1, most=4, places=10), idle_s=60)
    machine.want(a=40)
    assert machine.step() == {"a": 4}
    machine.want(a=1)
    assert machine.steps(500)[-1] == {"a": 4}
    machine.want()
    assert machine.step(60) == {"a": 1}
    assert machine.step(6000) == {"a": 1}


def test_a_range_without_idle_s_never_shrinks() -> None:
    """Idle for 0 seconds is never."""
    machine = Machine(Model("a", first=1, idle=1, least=1, most=4, places=10))
    machine.want(a=40)
    machine.step()
    machine.want()
    assert machine.step(1e6) == {"a": 4}


def test_what_does_not_fit_is_not_started_at_first() -> None:
    """The first models of the settings have the room; nobody waits, so nothing is amiss."""
    machine = Machine(_gpu("a"), _gpu("b"), room=1)
    assert machine.has == {"a": 1, "b": 0}
    assert machine.steps(100)[-1] == {"a": 1, "b": 0}
    assert machine.absent == {}


def test_a_model_without_work_gives_its_room_at_once() -> None:
    """And has it no more afterwards, until it is needed."""
    machine = Machine(_gpu("a"), _gpu("b"), room=1)
    machine.want(b=1)
    assert machine.step() == {"a": 0, "b": 1}
    machine.want()
    assert machine.steps(100)[-1] == {"a": 0, "b": 1}


def test_a_model_with_work_keeps_its_room_for_a_turn() -> None:
    """Then it gives it to the one that waits; the words say who has it."""
    machine = Machine(_gpu("a"), _gpu("b"), room=1)
    machine.want(a=100, b=100)
    machine.step()
    assert machine.absent == {"b": Absence.NO_ROOM}
    assert machine.words["b"] == "the engine of b waits for the GPUs of a"
    assert all(had == {"a": 1, "b": 0} for had in machine.steps(int(TURN_S) - 1))
    assert machine.step() == {"a": 0, "b": 1}
    assert machine.swaps == 1
    machine.step()
    assert machine.absent["a"] is Absence.NO_ROOM


def test_a_turn_begins_when_the_engine_is_up() -> None:
    """A start is no part of it: starts take at most one part in TURN_STARTS + 1."""
    machine = Machine(_gpu("a"), _gpu("b"), room=1)
    machine.want(b=100, a=100)
    machine.steps(5 * int(TURN_S + START_S))
    taken = sum(machine.starts.values()) * START_S
    assert machine.starts["a"] >= 2
    assert taken <= machine.now / (TURN_STARTS + 1) + START_S


def test_the_model_whose_job_is_first_in_the_queue_is_next() -> None:
    """Not the first of the settings."""
    machine = Machine(_gpu("a"), _gpu("b"), _gpu("c"), room=1)
    machine.want(c=1, b=1)
    assert machine.step() == {"a": 0, "b": 0, "c": 1}


def test_a_model_that_waits_comes_before_one_that_had_its_turn() -> None:
    """Though the latter's batch, of which some is left, is at the front of the queue again."""
    machine = Machine(_gpu("a"), _gpu("b"), _gpu("c"), room=1)
    machine.want(a=100, b=100, c=100)
    served: list[str] = []
    for had in machine.steps(4 * int(TURN_S + START_S)):
        name = next(name for name, count in had.items() if count)
        if served[-1:] != [name]:
            served.append(name)
    assert served[:4] == ["a", "b", "c", "a"]


def test_models_share_what_fits_beside_each_other() -> None:
    """One of two replicas goes, the other stays."""
    machine = Machine(_gpu("a", most=3), _gpu("b"), room=3)
    machine.want(a=100)
    assert machine.step() == {"a": 2, "b": 1} or machine.has == {"a": 3, "b": 0}
    machine.steps(100)
    machine.want(a=100, b=1)
    had = machine.steps(int(TURN_S) + 1)[-1]
    assert had == {"a": 2, "b": 1}
    assert machine.steps(1000)[-1] == had


def test_room_for_one_that_needs_much_is_kept_for_it() -> None:
    """Small ones that come later would let it wait for ever."""
    machine = Machine(_gpu("a"), _gpu("b"), _gpu("big", size=2), room=2)
    machine.want(a=1)
    machine.steps(100)
    machine.want(big=1, a=1)
    machine.step()
    for _ in range(5 * int(TURN_S)):
        machine.want(big=1, a=1, b=1)
        if machine.step()["big"]:
            break
    assert machine.has == {"a": 0, "b": 0, "big": 1}


def test_one_that_can_never_fit_holds_up_nobody() -> None:
    """Such as after a node was lost; it says so."""
    machine = Machine(_gpu("a"), _gpu("big", size=4), room=2)
    machine.want(big=1, a=1)
    machine.steps(100)
    assert machine.has == {"a": 1, "big": 0}
    assert machine.absent == {"big": Absence.FAILED}
    assert machine.words["big"] == "the engine of big needs 4 GPUs, Ray has 2"


def test_engines_are_not_stopped_because_a_node_was_lost() -> None:
    """Ray starts them again where it can; runs go on with the others. Nobody else waits for the room."""
    machine = Machine(_gpu("a", most=4), _gpu("b"), room=5)
    machine.want(a=100)
    assert machine.steps(100)[-1] == {"a": 4, "b": 1}
    machine.room = INFINITE
    decision = machine.capacity.decide(machine.demands, machine._teams(), 3.0, machine.now + 1)
    assert decision.targets["a"] == 4


def test_a_start_that_takes_longer_than_idle_s_is_not_in_vain() -> None:
    """An engine is idle from when it is up."""
    machine = Machine(Model("a", idle=0), idle_s=START_S / 2)
    assert machine.step(START_S) == {"a": 1}  # the daemon's first start blocks
    assert machine.steps(int(START_S / 2) - 1)[-1] == {"a": 1}
    assert machine.step() == {"a": 0}


def test_a_start_that_never_ends_keeps_no_room_from_others() -> None:
    """Such as of an engine of two GPUs where each node has one."""
    machine = Machine(_gpu("a"), _gpu("b"), room=1)
    machine.want(b=1)
    machine.step()
    machine.up_at["b"] = INFINITE
    machine.want(b=1, a=1)
    machine.step()
    assert machine.step(START_LIMIT_S - 2)["b"] == 1
    assert machine.steps(4)[-1] == {"a": 1, "b": 0}


def test_a_start_that_fails_is_tried_again_ever_later() -> None:
    """And the batch is told why; the others have the room meanwhile."""
    machine = Machine(_gpu("a"), _gpu("b"), room=1)
    machine.broken = {"b"}
    machine.want(b=1)
    machine.step()
    machine.step()
    assert machine.absent == {"b": Absence.FAILED}
    assert machine.words["b"] == "the engine of b did not start: no memory"
    machine.steps(1800)
    first_s, longest_s = RETRY_S
    assert 5 <= machine.starts["b"] <= 10
    machine.broken = set()
    machine.steps(int(longest_s) + 1)
    assert machine.has["b"] == 1
    machine.capacity.failed("b", "x", machine.now)
    assert machine.capacity.failed("b", "x", machine.now) == 2 * first_s


def test_a_failing_model_does_not_starve_the_others() -> None:
    """Each of its tries costs them the room for a moment only."""
    machine = Machine(_gpu("a"), _gpu("b"), room=1)
    machine.broken = {"b"}
    machine.want(b=1, a=1)
    served = sum(machine.step() == {"a": 1, "b": 0} and machine.serves("a") for _ in range(3600))
    assert served > 0.9 * 3600


models = st.lists(
    st.builds(
        Model,
        name=st.just("?"),
        first=st.integers(0, 2),
        idle=st.just(0),
        least=st.integers(1, 2),
        most=st.integers(2, 4),
        places=st.just(10),
        size=st.sampled_from([0.0, 1.0, 1.0, 2.0]),
    ),
    min_size=1,
    max_size=4,
)


def _named(drawn: Iterable[Model]) -> list[Model]:
    return [dataclasses.replace(model, name="abcd"[index]) for index, model in enumerate(drawn)]


works = st.lists(st.dictionaries(st.sampled_from("abcd"), st.integers(0, 100)), min_size=1, max_size=30)


@given(models, st.integers(2, 5), st.sampled_from([0.0, 20.0]), works)
def test_room_and_bounds_hold_whatever_comes(
    drawn: list[Model], room: int, idle_s: float, plan: list[dict[str, int]]
) -> None:
    """Machine.step holds the room; engines that nobody waits for are never taken from a model with work."""
    machine = Machine(*_named(drawn), room=room, idle_s=idle_s)
    for want in plan:
        machine.want(**{name: count for name, count in want.items() if name in machine.has and count})
        for _ in range(20):
            before = dict(machine.has)
            after = machine.step()
            waiting = [name for name in machine.demands if not before[name]]
            for name, model in machine.capacity.models.items():
                assert after[name] <= max(model.most, before[name])
                if name in machine.demands and not waiting:
                    assert after[name] >= before[name]


@given(models, st.integers(2, 5), st.permutations("abcd"))
def test_nobody_starves_whatever_the_order(drawn: list[Model], room: int, order: list[str]) -> None:
    """With work for all, for ever, each model is served within a turn of each other one, over and over."""
    named = _named(drawn)
    machine = Machine(*named, room=room)
    machine.want(**{name: 100 for name in order if name in machine.has})
    served = dict.fromkeys(machine.has, 0.0)
    longest = dict.fromkeys(machine.has, 0.0)
    for _ in range(1200):
        machine.step()
        for name in machine.has:
            if machine.serves(name):
                served[name] = machine.now
            longest[name] = max(longest[name], machine.now - served[name])
    limit = len(named) * (TURN_S + START_S + 2) + START_S
    assert max(longest.values()) <= limit, longest
    # Starts do not eat everything.
    assert max(machine.starts.values()) <= 1 + machine.now / TURN_S * 2
