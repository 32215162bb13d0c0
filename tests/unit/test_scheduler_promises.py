"""What scheduling promises whatever comes: nothing lost or doubled, capacity, wishes, order."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from config.settings import DedicatedSettings, PoolsSettings, SpotSettings
from scheduler import sla
from scheduler.assign import (
    RUN_JOBS,
    RUN_REQUESTS,
    SMALL_REQUESTS,
    Assignment,
    Reason,
    Waiting,
    WaitReason,
    assign,
)
from scheduler.errors import QueueFull
from scheduler.job import Job, PoolChoice, PoolName
from scheduler.pools import Pools, Run
from scheduler.queue import Policy, Queue

POOLS: tuple[PoolName, ...] = ("spot", "dedicated")
jobs = st.builds(
    Job,
    batch_id=st.just("?"),
    model=st.sampled_from(["m", "n", "o"]),
    requests_left=st.one_of(st.integers(0, 50), st.integers(0, SMALL_REQUESTS + 2), st.integers(0, 100_000)),
    submitted_at=st.integers(0, 50).map(float),
    deadline_at=st.integers(51, 400).map(float),
    pool=st.sampled_from(["auto", "auto", "spot", "dedicated"]),
    preemptions=st.integers(0, 2),
)
rates = st.dictionaries(st.sampled_from(["m", "n"]), st.floats(0.1, 1e6))
ready = st.sets(st.sampled_from(["m", "n", "o"]), min_size=1)
policies: st.SearchStrategy[Policy] = st.sampled_from(["fifo", "edf"])


def _pools(spot: int, dedicated: int, preempt_every_s: float = 0, seed: int = 0) -> Pools:
    spot_settings = SpotSettings(capacity=spot, preempt_every_s=preempt_every_s)
    return Pools(PoolsSettings(spot=spot_settings, dedicated=DedicatedSettings(capacity=dedicated)), seed)


def _check_partition(queue: Queue, runs: list[Assignment], waiting: list[Waiting]) -> None:
    decided = [job for run in runs for job in run.jobs] + [job for group in waiting for job in group.jobs]
    assert Counter(job.batch_id for job in decided) == Counter(job.batch_id for job in queue)
    assert all(run.jobs for run in runs)
    assert all(group.jobs for group in waiting)
    assert len({group.reason for group in waiting}) == len(waiting)


def _check_run(run: Assignment) -> None:
    assert {job.model for job in run.jobs} == {run.model}
    (wish,) = {job.pool for job in run.jobs}
    assert wish in ("auto", run.pool)
    assert (wish != "auto") == (run.reason is Reason.ASKED_FOR)
    if len(run.jobs) > 1:
        assert len(run.jobs) <= RUN_JOBS
        assert all(job.requests_left < SMALL_REQUESTS for job in run.jobs)
        assert sum(job.requests_left for job in run.jobs) <= RUN_REQUESTS


def _check_order(queue: Queue, runs: list[Assignment], waiting: list[Waiting], now: float) -> None:
    """Within a lane nobody who begins in turn stands behind one who waits, and runs follow the queue.

    Whoever has expired wants no slot, and with none left it is not looked at: it may stand before others.
    """
    place = {job.batch_id: number for number, job in enumerate(queue)}
    begun: dict[tuple[str, str, bool], list[int]] = defaultdict(list)
    for run in runs:
        for job in run.jobs:
            at_risk = run.reason is Reason.DEADLINE_AT_RISK
            begun[job.model, job.pool, at_risk].append(place[job.batch_id])
    assert all(places == sorted(places) for places in begun.values())
    for group in waiting:
        assert [place[job.batch_id] for job in group.jobs] == sorted(
            place[job.batch_id] for job in group.jobs
        )
        for job in group.jobs:
            if group.reason is WaitReason.NO_CAPACITY and not sla.is_expired(job, now):
                assert all(at < place[job.batch_id] for at in begun[job.model, job.pool, False])


def _waiting(deadline_at: float, requests_left: int = 0, pool: PoolChoice = "auto", model: str = "m") -> Job:
    return Job("?", model, requests_left, 0.0, deadline_at, pool)


# With the last slot gone, jobs that could not begin anyhow stand among those that wait for capacity: expired
# ones before one who began, or at risk as one whose slot was taken; so do those whose engine starts.
@example([_waiting(51, 0, "dedicated"), _waiting(400, 0, "dedicated")], "fifo", 0, 1, {"m"}, {}, 51)
@example([_waiting(400, SMALL_REQUESTS), _waiting(51)], "fifo", 0, 1, {"m"}, {}, 51)
@example([_waiting(400, SMALL_REQUESTS), _waiting(60, 0, "auto", "o")], "fifo", 0, 1, {"m"}, {}, 55)
@settings(max_examples=300, deadline=None)
@given(
    st.lists(jobs, max_size=40),
    policies,
    st.integers(0, 4),
    st.integers(0, 4),
    ready,
    rates,
    st.integers(0, 450),
)
def test_every_decision_keeps_every_promise(drawn, policy, spot, dedicated, ready_models, rates, now):
    """Each job once, wishes, capacity and order within a lane kept, no slot idle that someone could use."""
    queue, pools = Queue(policy, 100), _pools(spot, dedicated)
    for number, job in enumerate(drawn):
        queue.push(dataclasses.replace(job, batch_id=str(number)))
    runs, waiting = assign(queue, pools, float(now), ready_models, rates)

    _check_partition(queue, runs, waiting)
    _check_order(queue, runs, waiting, now)
    for run in runs:
        _check_run(run)
        assert run.model in ready_models
        assert not any(sla.is_expired(job, now) for job in run.jobs)
        at_risk = [sla.at_risk(job, now, rates.get(run.model)) for job in run.jobs]
        assert all(at_risk) or run.reason is not Reason.DEADLINE_AT_RISK
    used = Counter(run.pool for run in runs)
    assert all(used[pool] <= pools.free(pool) for pool in POOLS)
    idle = {pool for pool in POOLS if used[pool] < pools.free(pool)}
    for group in waiting:
        for job in group.jobs:
            if group.reason is WaitReason.NO_CAPACITY:
                assert not (idle if job.pool == "auto" else idle & {job.pool})
            elif group.reason is WaitReason.ENGINE_STARTING:
                assert job.model not in ready_models
            else:
                assert sla.is_expired(job, now)
    if any(run.reason is Reason.SPOT_FULL for run in runs):
        waits = {
            job.batch_id for group in waiting if group.reason is WaitReason.NO_CAPACITY for job in group.jobs
        }
        at_risk_waits = [
            job
            for job in queue
            if job.batch_id in waits
            and job.pool == "auto"
            and job.model in ready_models
            and not sla.is_expired(job, now)
            and sla.at_risk(job, now, rates.get(job.model))
        ]
        assert not at_risk_waits, "overflow got a dedicated slot that a job at risk wanted"


class Daemon(RuleBasedStateMachine):
    """A daemon's life in any order: jobs come, begin, are pre-empted, end, expire and are cancelled."""

    LIMIT = 8

    @initialize(policy=policies, spot=st.integers(0, 3), dedicated=st.integers(0, 3), seed=st.integers(0, 9))
    def start(self, policy, spot, dedicated, seed):
        self.queue = Queue(policy, self.LIMIT)
        self.pools = _pools(spot, dedicated, preempt_every_s=20, seed=seed)
        self.now = 0.0
        self.accepted: set[str] = set()
        self.gone: set[str] = set()
        self.running: dict[str, Assignment] = {}
        self.preempted_runs: set[str] = set()
        self.number = 0

    @rule(job=jobs, window=st.integers(1, 300))
    def arrive(self, job, window):
        self.number += 1
        job = dataclasses.replace(
            job, batch_id=f"b{self.number}", submitted_at=self.now, deadline_at=self.now + window
        )
        if len(self.queue) < self.LIMIT:
            self.queue.push(job)
            self.accepted.add(job.batch_id)
        else:
            with pytest.raises(QueueFull):
                self.queue.push(job)

    @rule(ready_models=ready, rates=rates)
    def decide(self, ready_models, rates):
        runs, waiting = assign(self.queue, self.pools, self.now, ready_models, rates)
        _check_partition(self.queue, runs, waiting)
        for run in runs:
            _check_run(run)
            self.number += 1
            self.queue.take(run.jobs)
            self.pools.take(Run(f"r{self.number}", run.pool, self.now))
            self.running[f"r{self.number}"] = run

    @rule(seconds=st.integers(0, 60))
    def pass_time(self, seconds):
        self.now += seconds
        for job in self.queue.expired(self.now):
            assert self.queue.remove(job.batch_id) == job
            self.gone.add(job.batch_id)

    @rule()
    def preempt(self):
        for run_id in self.pools.preempt(self.now):
            assert run_id not in self.preempted_runs
            self.preempted_runs.add(run_id)
            run = self.running.pop(run_id)
            assert run.pool == "spot"
            self.queue.push_front(*(job.preempted(job.requests_left // 2) for job in run.jobs))
            self.pools.release(run_id)
            if self.queue.policy == "fifo":
                front = [job.batch_id for job in self.queue][: len(run.jobs)]
                assert front == [job.batch_id for job in run.jobs]

    @precondition(lambda self: bool(self.running))
    @rule(data=st.data())
    def finish(self, data):
        run_id = data.draw(st.sampled_from(sorted(self.running)))
        self.gone |= {job.batch_id for job in self.running.pop(run_id).jobs}
        self.pools.release(run_id)

    @precondition(lambda self: len(self.queue) > 0)
    @rule(data=st.data())
    def cancel(self, data):
        batch_id = data.draw(st.sampled_from([job.batch_id for job in self.queue]))
        assert self.queue.remove(batch_id) is not None
        self.gone.add(batch_id)

    @invariant()
    def nothing_is_lost_or_doubled(self):
        running = [job.batch_id for run in self.running.values() for job in run.jobs]
        waiting = [job.batch_id for job in self.queue]
        assert Counter([*running, *waiting, *self.gone]) == Counter(self.accepted)

    @invariant()
    def capacity_holds(self):
        used = Counter(run.pool for run in self.running.values())
        assert all(used[pool] + self.pools.free(pool) == self.pools.capacity(pool) for pool in POOLS)
        assert all(self.pools.free(pool) >= 0 for pool in POOLS)

    @invariant()
    def edf_stands_in_order(self):
        if self.queue.policy == "edf":
            order = [(job.deadline_at, job.submitted_at) for job in self.queue]
            assert order == sorted(order)


TestADaemonsLife = Daemon.TestCase
TestADaemonsLife.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("policy", ["fifo", "edf"])
def test_ten_thousand_jobs_each_run_once(policy: Policy):
    """A full queue of small and large jobs of three models drains through three slots, each job once."""
    queue, pools = Queue(policy, 10_000), _pools(spot=2, dedicated=1)
    for n in range(10_000):
        left = 5_000 if n % 10 == 0 else 1 + n * 37 % 300
        wish = ("auto", "auto", "auto", "spot", "dedicated")[n % 5]
        queue.push(Job(f"b{n}", "mno"[n % 3], left, float(n), 1e9 - n, wish))  # type: ignore[arg-type]
    done: list[str] = []
    while queue:
        runs, _ = assign(queue, pools, 1e4, {"m", "n", "o"}, {})
        assert runs, "slots are free and nobody begins"
        for number, run in enumerate(runs):
            queue.take(run.jobs)
            pools.take(Run(str(number), run.pool, 1e4))
            done += [job.batch_id for job in run.jobs]
        for number in range(len(runs)):
            pools.release(str(number))
    assert len(done) == len(set(done)) == 10_000
