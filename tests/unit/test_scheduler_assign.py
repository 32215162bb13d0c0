"""The decision: pools, packing, risk, order, and what it costs."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping

import pytest

from config.settings import DedicatedSettings, PoolsSettings, SpotSettings
from scheduler import assign
from scheduler.assign import RUN_JOBS, RUN_REQUESTS, RUN_S, SMALL_REQUESTS, Assignment, WaitReason
from scheduler.engines import Absence
from scheduler.job import Job, PoolChoice
from scheduler.pools import Pools, Run
from scheduler.queue import Policy, Queue

LARGE = SMALL_REQUESTS
FAST = {"m": 1e6, "n": 1e6}


def _job(
    batch_id: str,
    requests_left: int = LARGE,
    pool: PoolChoice = "auto",
    model: str = "m",
    deadline_at: float = 1000.0,
) -> Job:
    return Job(batch_id, model, requests_left, 0.0, deadline_at, pool)


def _pools(spot: int = 1, dedicated: int = 1, preempt_every_s: float = 0) -> Pools:
    return Pools(
        PoolsSettings(
            spot=SpotSettings(capacity=spot, preempt_every_s=preempt_every_s),
            dedicated=DedicatedSettings(capacity=dedicated),
        )
    )


def _decide(
    jobs: Collection[Job],
    pools: Pools,
    *,
    now: float = 0.0,
    ready: Collection[str] = ("m", "n"),
    rates: Mapping[str, float] = FAST,
    policy: Policy = "fifo",
    absent: Mapping[str, Absence] | None = None,
) -> tuple[list[Assignment], dict[str, str]]:
    """The runs, and the reason of each job that waits."""
    queue = Queue(policy, 10_000)
    for job in jobs:
        queue.push(job)
    runs, waiting = assign.assign(queue, pools, now, ready, rates, absent or {})
    return runs, {job.batch_id: group.reason.value for group in waiting for job in group.jobs}


def _shown(runs: list[Assignment]) -> list[tuple[str, str, str]]:
    return [("".join(job.batch_id for job in run.jobs), run.pool, run.reason.value) for run in runs]


def test_an_empty_queue_needs_no_decision():
    """Nothing waits and nothing begins."""
    assert _decide([], _pools()) == ([], {})


def test_spot_comes_first_then_dedicated_then_the_job_waits():
    """Large jobs fill spot, overflow to dedicated, and then wait for capacity."""
    runs, waiting = _decide([_job("a"), _job("b"), _job("c")], _pools())
    assert _shown(runs) == [("a", "spot", "spot_first"), ("b", "dedicated", "spot_full")]
    assert waiting == {"c": "no_capacity"}


def test_a_decision_changes_neither_queue_nor_pools():
    """The caller makes a decision come true; asking twice gives the same answer."""
    queue, pools = Queue("fifo", 10), _pools()
    queue.push(_job("a"))
    first = assign.assign(queue, pools, 0.0, {"m"}, FAST)
    assert assign.assign(queue, pools, 0.0, {"m"}, FAST) == first
    assert (len(queue), pools.free("spot")) == (1, 1)


def test_slots_in_use_are_not_given_again():
    """Only what is free is given out."""
    pools = _pools(spot=1, dedicated=0)
    pools.take(Run("r", "spot", 0.0))
    assert _decide([_job("a")], pools) == ([], {"a": "no_capacity"})


def test_who_asked_for_dedicated_never_runs_on_spot():
    """A free spot slot does not help a job that asked for dedicated."""
    runs, waiting = _decide([_job("a", pool="dedicated"), _job("b", pool="dedicated")], _pools(spot=5))
    assert _shown(runs) == [("a", "dedicated", "asked_for")]
    assert waiting == {"b": "no_capacity"}


@pytest.mark.parametrize("now", [0.0, 999.0])
def test_who_asked_for_spot_never_runs_on_dedicated(now: float):
    """Not when spot is full, and not when the deadline is at risk."""
    runs, waiting = _decide(
        [_job("a", pool="spot"), _job("b", pool="spot")], _pools(dedicated=5), now=now, rates={}
    )
    assert _shown(runs) == [("a", "spot", "asked_for")]
    assert waiting == {"b": "no_capacity"}


def test_a_job_at_risk_goes_to_dedicated_though_spot_is_free():
    """A deadline at risk on spot is worth a dedicated slot."""
    runs, _ = _decide([_job("a", deadline_at=1.0)], _pools(spot=5), rates={"m": 1.0})
    assert _shown(runs) == [("a", "dedicated", "deadline_at_risk")]


def test_a_job_at_risk_gets_dedicated_before_overflow_does():
    """Overflow ahead in the queue leaves the last dedicated slot to the job at risk."""
    jobs = [_job("a"), _job("b"), _job("risk", deadline_at=10.0)]
    runs, waiting = _decide(jobs, _pools(), rates={"m": 100.0})
    assert sorted(_shown(runs)) == [("a", "spot", "spot_first"), ("risk", "dedicated", "deadline_at_risk")]
    assert waiting == {"b": "no_capacity"}


def test_who_asked_for_dedicated_gets_it_before_overflow_does():
    """A job that can run nowhere else goes before one that could have had spot."""
    runs, waiting = _decide([_job("a"), _job("b"), _job("d", pool="dedicated")], _pools())
    assert sorted(_shown(runs)) == [("a", "spot", "spot_first"), ("d", "dedicated", "asked_for")]
    assert waiting == {"b": "no_capacity"}


def test_those_at_risk_and_those_who_asked_share_dedicated_in_queue_order():
    """Neither of the two has a claim before the other."""
    risk, asked = _job("r", deadline_at=1.0), _job("d", pool="dedicated")
    for jobs, first in (([risk, asked], "r"), ([asked, risk], "d")):
        runs, _ = _decide(jobs, _pools(spot=0), rates={"m": 1.0})
        assert [run.jobs[0].batch_id for run in runs] == [first]


def test_a_job_at_risk_takes_spot_in_turn_when_dedicated_is_full():
    """Spot is better than waiting, but nobody is overtaken for it."""
    jobs = [_job("a"), _job("risk", deadline_at=10.0)]
    runs, waiting = _decide(jobs, _pools(spot=1, dedicated=0), rates={"m": 100.0})
    assert _shown(runs) == [("a", "spot", "spot_first")]
    assert waiting == {"risk": "no_capacity"}
    runs, _ = _decide(jobs[1:], _pools(spot=1, dedicated=0), rates={"m": 100.0})
    assert _shown(runs) == [("risk", "spot", "spot_first")]


def test_an_unknown_rate_is_no_risk_until_the_window_is_nearly_used():
    """A model that was never measured starts on spot."""
    assert _shown(_decide([_job("a")], _pools(), now=900.0, rates={})[0]) == [("a", "spot", "spot_first")]
    late, _ = _decide([_job("a")], _pools(), now=901.0, rates={})
    assert _shown(late) == [("a", "dedicated", "deadline_at_risk")]


def test_frequent_preemption_sends_work_to_dedicated():
    """What spot would cost in restarts counts against the deadline."""
    job = _job("a", requests_left=LARGE, deadline_at=200.0)
    assert _decide([job], _pools(), rates={"m": 20.0})[0][0].pool == "spot"
    assert _decide([job], _pools(preempt_every_s=10), rates={"m": 20.0})[0][0].pool == "dedicated"


def test_a_model_whose_engine_starts_blocks_no_other_model():
    """Its jobs wait, whatever they asked for, and those behind them begin."""
    jobs = [_job("a"), _job("d", pool="dedicated"), _job("r", deadline_at=0.1), _job("b", model="n")]
    runs, waiting = _decide(jobs, _pools(), ready={"n"}, rates={"m": 1.0, "n": 1e6})
    assert _shown(runs) == [("b", "spot", "spot_first")]
    assert waiting == dict.fromkeys("adr", "engine_starting")


@pytest.mark.parametrize("slots", [0, 1])
def test_a_job_says_why_its_engine_is_absent(slots: int):
    """Also where no slot is free, since with one it would wait all the same."""
    jobs = [_job("a"), _job("b", model="n"), _job("c", model="o"), _job("d")]
    absent = {"n": Absence.NO_ROOM, "o": Absence.FAILED}
    _, waiting = _decide(jobs, _pools(slots, 0), ready={"m"}, absent=absent)
    assert (waiting["b"], waiting["c"]) == ("engine_no_room", "engine_failed")
    assert waiting.get("a") == (None if slots else "no_capacity")


def test_an_expired_job_never_begins():
    """At its deadline a job waits only to be removed."""
    jobs = [_job("a", deadline_at=10.0), _job("d", deadline_at=10.0, pool="dedicated")]
    runs, waiting = _decide(jobs, _pools(), now=10.0)
    assert runs == []
    assert waiting == dict.fromkeys("ad", "deadline_passed")


def test_edf_decides_who_gets_the_slot():
    """The slot goes to the head of the queue, and the policy says who that is."""
    runs, _ = _decide([_job("a"), _job("b", deadline_at=500.0)], _pools(spot=1, dedicated=0), policy="edf")
    assert _shown(runs) == [("b", "spot", "spot_first")]


def test_small_jobs_of_a_model_share_a_run():
    """Jobs of another model or another wish between them do not part them."""
    jobs = [
        _job("a", 10),
        _job("x", 10, model="n"),
        _job("b", 10),
        _job("s", 10, pool="spot"),
        _job("c", SMALL_REQUESTS - 1),
    ]
    runs, waiting = _decide(jobs, _pools(spot=3, dedicated=0))
    assert [(group, reason) for group, _, reason in _shown(runs)] == [
        ("abc", "spot_first"),
        ("x", "spot_first"),
        ("s", "asked_for"),
    ]
    assert [run.model for run in runs] == ["m", "n", "m"]
    assert waiting == {}


def test_a_large_job_shares_its_run_with_nobody():
    """Neither does a small job join a large one, nor a large one a run of small ones."""
    for jobs in ([_job("a", SMALL_REQUESTS), _job("b", 1)], [_job("b", 1), _job("a", SMALL_REQUESTS)]):
        runs, waiting = _decide(jobs, _pools(spot=1, dedicated=0))
        assert [job.batch_id for run in runs for job in run.jobs] == [jobs[0].batch_id]
        assert waiting == {jobs[1].batch_id: "no_capacity"}


def test_nobody_gets_ahead_of_a_job_that_the_run_has_no_room_for():
    """A large job, or one over RUN_REQUESTS, ends the run: nobody slips in behind it."""
    large = [_job("a", 1), _job("L", LARGE), _job("b", 1)]
    runs, waiting = _decide(large, _pools(spot=1, dedicated=0))
    assert _shown(runs) == [("a", "spot", "spot_first")]
    assert waiting == dict.fromkeys("Lb", "no_capacity")
    over = [_job("a", 1999), _job("b", 1999), _job("c", 1999), _job("d", 1)]
    runs, waiting = _decide(over, _pools(spot=1, dedicated=1))
    assert _shown(runs) == [("ab", "spot", "spot_first"), ("cd", "dedicated", "spot_full")]


def test_a_shared_run_holds_at_most_run_requests():
    """The sum may reach the bound and not pass it."""
    fitting = [_job("a", 1999), _job("b", 1999), _job("c", RUN_REQUESTS - 2 * 1999)]
    runs, _ = _decide([*fitting, _job("d", 1)], _pools(spot=1, dedicated=0))
    assert _shown(runs) == [("abc", "spot", "spot_first")]


def test_a_shared_run_holds_at_most_run_jobs():
    """However small the jobs are, their number in a run is bounded."""
    runs, _ = _decide([_job(f"b{n}", 1) for n in range(RUN_JOBS + 5)], _pools(spot=2, dedicated=0))
    assert [len(run.jobs) for run in runs] == [RUN_JOBS, 5]


def test_small_jobs_of_a_slow_model_share_shorter_runs():
    """At 0.1 requests/s a run of 4,000 would take eleven hours, and its last job's deadline with it."""
    jobs = [_job(f"b{n}", 20, deadline_at=1e6) for n in range(5)]
    runs, _ = _decide(jobs, _pools(spot=1, dedicated=1), rates={"m": 60 / RUN_S})
    assert [len(run.jobs) for run in runs] == [3, 2]
    runs, _ = _decide(jobs, _pools(spot=1, dedicated=1), rates={"m": 1 / RUN_S})
    assert [len(run.jobs) for run in runs] == [1, 1]


@pytest.mark.parametrize("rates", [{}, {"m": 0.0}, {"m": 1e6}])
def test_a_shared_run_holds_no_more_than_its_bound_at_any_speed(rates: Mapping[str, float]):
    """Without a rate, and with a high one, the bound on requests holds."""
    jobs = [_job(f"b{n}", SMALL_REQUESTS - 1, deadline_at=1e6) for n in range(3)]
    runs, _ = _decide(jobs, _pools(spot=2, dedicated=0), rates=rates)
    assert [len(run.jobs) for run in runs] == [2, 1]


def test_small_jobs_at_risk_share_a_dedicated_run_with_those_at_risk_alone():
    """A job that is not at risk would only slow those that are."""
    jobs = [_job("r", 10, deadline_at=1.0), _job("a", 10), _job("s", 10, deadline_at=1.0)]
    runs, _ = _decide(jobs, _pools(), rates={"m": 10.0})
    assert _shown(runs) == [("rs", "dedicated", "deadline_at_risk"), ("a", "spot", "spot_first")]


class _WatchedQueue(Queue):
    """A queue that counts how many jobs were looked at."""

    looks = 0

    def __iter__(self) -> Iterator[Job]:
        for job in super().__iter__():
            self.looks += 1
            yield job


@pytest.mark.parametrize("capacity", [0, 1, 50])
def test_a_decision_looks_at_each_job_a_few_times_at_most(capacity: int):
    """The work grows with the queue and not with its square, whatever is free."""
    queue = _WatchedQueue("fifo", 2000)
    for n in range(2000):
        queue.push(_job(f"b{n}", 10 if n % 3 else LARGE, model="mn"[n % 2]))
    assign.assign(queue, _pools(capacity, capacity), 0.0, {"m", "n"}, FAST)
    assert queue.looks <= 2 * len(queue)


def test_without_capacity_ten_thousand_waiting_jobs_cost_next_to_nothing():
    """Measured 0.05 ms (2 cores, 2026-11); 5 ms of this thread's time leaves room for a busy machine."""
    queue, pools = Queue("fifo", 10_000), _pools(spot=1, dedicated=0)
    for n in range(10_000):
        queue.push(_job(f"b{n}"))
    pools.take(Run("r", "spot", 0.0))
    costs = []
    for _ in range(20):
        begun = time.thread_time()
        runs, waiting = assign.assign(queue, pools, 0.0, {"m"}, FAST)
        costs.append(time.thread_time() - begun)
    assert runs == []
    assert [(len(group.jobs), group.reason) for group in waiting] == [(10_000, WaitReason.NO_CAPACITY)]
    assert min(costs) < 0.005


def test_behind_the_last_slot_everybody_waits_for_capacity():
    """Once no slot is left nobody's engine is asked about: the reason is the first thing that is missing."""
    jobs = [_job("x", model="o"), _job("a"), _job("y", model="o")]
    assert _decide(jobs, _pools(0, 0))[1] == dict.fromkeys("xay", "no_capacity")
    assert _decide(jobs, _pools(1, 0))[1] == {"x": "engine_starting", "y": "no_capacity"}
