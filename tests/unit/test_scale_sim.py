"""The simulation of 1,000 replicas (benchmarks/scale_sim.py): what must hold whatever is simulated."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks import scale_sim
from benchmarks.scale_model import Simulation, Toggles
from benchmarks.scale_policies import POLICIES, UniformProgress
from benchmarks.scale_records import Outcome, Setup, Share, course
from benchmarks.scale_traces import TRACES, ZONES, Arrival, toggles
from scheduler.job import Job

# So few nodes that all of them are fought for.
SETUP = Setup(spot_nodes=9, dedicated_nodes=2, start_s=60.0, keep_s=120.0)
LINES_PER_S = 9.0
CASES = list(itertools.product(TRACES, (policy.name for policy in POLICIES), ("fifo", "edf")))
TIMINGS = ("decide_s", "longest_decision_s", "wall_s")


def _simulate(
    trace: str, policy: str, order: Any, lines: int = 40_000, until: float = float("inf")
) -> tuple[Outcome, list[tuple[Any, ...]]]:
    """One simulation, and its journal; nothing happens outside after `until`."""

    def arrivals() -> Iterator[Arrival]:
        drops = TRACES[trace](1, lines, LINES_PER_S, SETUP.node_rate)
        return itertools.takewhile(lambda drop: drop.at <= until, drops)

    def zone(toggled: Toggles) -> Toggles:
        is_on, changes = toggled
        return is_on, itertools.takewhile(lambda at: at <= until, changes)

    journal: list[tuple[Any, ...]] = []
    zones = [zone(toggles(each, 1)) for each in ZONES]
    chosen = next(each for each in POLICIES if each.name == policy)
    return Simulation(SETUP, chosen, order, arrivals(), zones, 1, journal).run(), journal


def _figures(outcome: Outcome) -> dict[str, Any]:
    return {name: value for name, value in vars(outcome).items() if name not in TIMINGS}


@pytest.mark.parametrize(("trace", "policy", "order"), CASES)
def test_each_line_is_answered_or_expires_and_each_node_hour_is_paid(trace: str, policy: str, order: str):
    """Lines add up, cost is the sum of the node hours, and no node is two at a time."""
    outcome, journal = _simulate(trace, policy, order)
    assert outcome.lines_done + outcome.lines_expired == outcome.lines == 40_000
    assert 0 < outcome.batches_met <= outcome.batches
    assert outcome.waits.total() <= outcome.batches
    spans = sorted((name, begins, ends) for kind, name, begins, ends in journal if kind == "up")
    for (name, _, ends), (next_name, begins, _) in itertools.pairwise(spans):
        assert name != next_name or ends <= begins
    hours = {
        pool: sum(ends - begins for name, begins, ends in spans if name.startswith(pool)) / 3600
        for pool in ("spot", "dedicated")
    }
    assert outcome.hours == pytest.approx(hours)
    assert outcome.cost == pytest.approx(hours["spot"] * 1.0 + hours["dedicated"] * 3.0)
    # A line takes a second of a node that is up.
    assert outcome.lines_done / 3600 <= sum(hours.values())
    up = {name: [(a, b) for n, a, b in spans if n == name] for name, _, _ in spans}
    for kind, at, name, _ in journal:
        assert kind == "up" or any(begins <= at <= ends for begins, ends in up[name])


def test_what_is_hard_happens_here():
    """Interruptions, missed deadlines, moves back to spot: else the tests above would prove little."""
    outcome, _ = _simulate("long", "uniform", "edf", 4_000_000)
    assert outcome.interruptions > 10
    assert outcome.moved_back > 0
    assert outcome.lines_expired > 0
    assert outcome.batches_met > 0
    assert min(outcome.hours.values()) > 1


@pytest.mark.parametrize("policy", ["batchd", "uniform"])
def test_no_decision_knows_the_future(policy: str):
    """Whatever happens later, until then the same batches begin on the same nodes at the same seconds."""
    until = 3000.0
    _, whole = _simulate("poisson", policy, "edf")
    _, cut = _simulate("poisson", policy, "edf", until=until)
    first, second = (
        [each for each in journal if each[0] == "begin" and each[1] <= until] for journal in (whole, cut)
    )
    assert first == second
    assert len(first) > 10


def test_the_same_seed_gives_the_same_figures():
    """Everything but the processor times."""
    once, again = (_simulate("bursts", "uniform", "edf", 5000)[0] for _ in range(2))
    assert _figures(once) == _figures(again)


def test_a_daemon_that_is_full_leaves_drops_in_the_inbox():
    """They are claimed when a batch has ended, and all are answered."""
    arrivals = iter([Arrival(float(n), 100, 86_400.0, False) for n in range(50)])
    setup = SETUP._replace(max_claimed=3)
    policy = next(each for each in POLICIES if each.name == "dedicated")
    outcome = Simulation(setup, policy, "fifo", arrivals, [(True, iter(()))], 1).run()
    assert (outcome.batches, outcome.batches_met) == (50, 50)
    assert outcome.longest_queue <= 3
    assert outcome.longest_in_inbox_s > 100


def test_a_run_answers_its_batches_in_turn_and_none_beyond_its_deadline():
    """A deadline in the middle of a batch ends it there, and the next goes on."""
    jobs = [Job(name, "m", 100, 0.0, deadline_at) for name, deadline_at in
            (("a", 1000.0), ("b", 150.0), ("c", 120.0), ("d", 1000.0))]  # fmt: skip
    shares = course(jobs, begins_at=10.0, rate=1.0)
    assert [(s.job.batch_id, s.begins_at, s.ends_at, s.lines) for s in shares] == [
        ("d", 150.0, 250.0, 100),
        ("b", 110.0, 150.0, 40),
        ("c", 150.0, 120.0, 0),
        ("a", 10.0, 110.0, 100),
    ]
    assert Share(jobs[0], 10.0, 110.0, 100).lines_by(60.0, 1.0) == 50
    assert Share(jobs[0], 10.0, 110.0, 100).lines_by(5.0, 1.0) == 0


def test_uniform_progress_is_the_rule_of_the_paper():
    """Spot while there is much time; then at an even pace, on anything; dedicated when there is none left."""
    rule = UniformProgress(node_rate=1.0, changeover_s=10.0)
    job = Job("b", "m", 1000, 0.0, 2000.0)
    assert rule.choice(job, 0.0) == "spot"  # C/R = 0.5
    assert rule.choice(job, 600.0) == "auto"  # 0.71: the even pace begins, and it is behind at once
    ahead = Job("b", "m", 500, 0.0, 2000.0)
    assert rule.choice(ahead, 1299.0) == "spot"  # half of the work in half of the time
    assert rule.choice(ahead, 1301.0) == "auto"
    assert not rule.is_ahead(ahead, 1285.0)  # on a dedicated node it stays until two changeovers are gained
    assert rule.is_ahead(ahead, 1279.0)
    assert rule.choice(ahead, 1481.0) == "dedicated"  # R < C + 2d
    rule.forget("b")
    assert not rule.is_ahead(ahead, 0.0)


def test_traces_hold_as_many_lines_as_asked_for_at_the_asked_rate():
    """And none looks further ahead than it is asked."""
    for trace in TRACES.values():
        drops = list(trace(7, 2_000_000, 20.0, 1.0))
        assert sum(drop.lines for drop in drops) == 2_000_000
        assert [drop.at for drop in drops] == sorted(drop.at for drop in drops)
        assert 2_000_000 / drops[-1].at == pytest.approx(20.0, rel=0.35)


def test_every_scenario_can_be_run():
    """The names in the table lead to a simulation."""
    for scenario in scale_sim.SCENARIOS:
        outcome = scale_sim.run(scale_sim.Task(scenario.name, "batchd", "edf", 1, 2000))
        assert outcome.lines_done + outcome.lines_expired == 2000
