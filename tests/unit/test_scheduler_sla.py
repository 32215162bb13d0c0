"""Deadlines: throughput, the estimated end, jobs at risk; and the job itself."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler import sla
from scheduler.job import Job, PoolChoice
from spool.record import FileIdentity, Plan, Record, Sidecar


def _job(requests_left: int = 100, deadline_at: float = 1000.0, preemptions: int = 0) -> Job:
    return Job("b", "m", requests_left, 0.0, deadline_at, preemptions=preemptions)


def _record(plan: Plan | None, pool: PoolChoice) -> Record:
    identity = FileIdentity(device=1, inode=2, size_bytes=3, mtime_ns=4, ctime_ns=5)
    return Record(
        batch_id="b", drop="d", drop_path="d", identity=identity, outbox_name="d",
        sidecar=Sidecar(pool=pool), submitted_at=1.0, deadline_at=2.0, plan=plan,
    )  # fmt: skip


def test_a_job_is_what_scheduling_needs_of_a_record():
    """Model, times and the pool asked for come from the record."""
    plan = Plan(endpoint="/v1/x", model="m", requests=9, shards=1, input_bytes=1, sha256="", engine={})
    assert Job.of(_record(plan, "spot"), requests_left=7) == Job("b", "m", 7, 1.0, 2.0, "spot")


def test_a_job_of_another_clock_has_the_times_of_ours():
    """The scheduler compares deadlines of all jobs with one clock."""
    plan = Plan(endpoint="/v1/x", model="m", requests=9, shards=1, input_bytes=1, sha256="", engine={})
    job = Job.of(_record(plan, "auto"), requests_left=7, ahead_s=0.5)
    assert (job.submitted_at, job.deadline_at) == (0.5, 1.5)


def test_a_record_without_a_plan_is_no_job():
    """What is not validated cannot be scheduled."""
    with pytest.raises(AssertionError, match="not validated"):
        Job.of(_record(None, "auto"), requests_left=1)


def test_a_preemption_keeps_what_is_done_and_is_counted():
    """A pre-empted job has less to do and remembers that it was pre-empted."""
    job = _job(100).preempted(requests_left=40).preempted(requests_left=30)
    assert (job.requests_left, job.preemptions, job.deadline_at) == (30, 2, 1000.0)


def test_an_unseen_model_has_no_rate():
    """Without an answer seen, however long was waited, a model's rate is unknown."""
    throughput = sla.Throughput()
    throughput.observe("m", done=0, seconds=50)
    assert "m" not in throughput.rates


def test_models_have_rates_of_their_own():
    """One model's speed says nothing of another's."""
    throughput = sla.Throughput()
    throughput.observe("fast", done=1000, seconds=10)
    throughput.observe("slow", done=10, seconds=10)
    assert dict(throughput.rates) == {"fast": 100.0, "slow": 1.0}


@settings(deadline=None)
@given(st.integers(1, 10_000), st.lists(st.integers(1, 10_000), min_size=1, max_size=20))
def test_a_constant_rate_is_found_however_time_is_sliced(rate: int, slices: list[int]):
    """The length of the observations does not bend the average."""
    throughput = sla.Throughput(half_life_s=60)
    for seconds in slices:
        throughput.observe("m", done=rate * seconds, seconds=seconds)
    assert throughput.rates["m"] == pytest.approx(rate)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 1000)), min_size=1))
def test_a_rate_lies_between_the_slowest_and_the_fastest_that_was_seen(seen: list[tuple[int, int]]):
    """An average invents nothing."""
    throughput = sla.Throughput()
    for done, seconds in seen:
        throughput.observe("m", done, seconds)
    rates = [done / seconds for done, seconds in seen]
    assert min(rates) * 0.999 <= throughput.rates.get("m", 0.0) <= max(rates) * 1.001


def test_an_observation_weighs_half_after_a_half_life():
    """10 s at 30/s, then 10 s at 0/s with a half-life of 10 s: half of 300 in one and a half times 10 s."""
    throughput = sla.Throughput(half_life_s=10)
    throughput.observe("m", done=300, seconds=10)
    throughput.observe("m", done=0, seconds=10)
    assert throughput.rates["m"] == pytest.approx(150 / 15)


def test_the_rate_is_that_of_one_run_however_many_answer():
    """100 runs that give 100 answers a second together: a job, which has one of them, gets 1 a second.

    Before the simulation of 1,000 replicas it was their sum: a job that needed ten hours seemed to need six
    minutes, was left on spot until then, and missed its deadline.
    """
    throughput = sla.Throughput()
    throughput.observe("m", done=1000, seconds=10, runs=100)
    assert throughput.rates["m"] == pytest.approx(1.0)
    throughput.observe("m", done=10, seconds=10, runs=1)
    assert throughput.rates["m"] == pytest.approx(1.0)


def test_answers_of_no_duration_are_not_lost():
    """Answers reported at the same instant as others count with the next seconds."""
    throughput = sla.Throughput()
    throughput.observe("m", done=10, seconds=0)
    assert "m" not in throughput.rates
    throughput.observe("m", done=0, seconds=1e-9)
    throughput.observe("m", done=90, seconds=10)
    assert throughput.rates["m"] == pytest.approx(10, rel=0.01)


def test_the_eta_is_now_plus_the_work_at_the_rate():
    """Without a rate there is no estimate, and with nothing left the end is now."""
    assert sla.eta_at(100.0, left=50, rate=10.0) == 105.0
    assert sla.eta_at(100.0, left=50, rate=None) is None
    assert sla.eta_at(100.0, left=50, rate=0.0) is None
    assert sla.eta_at(100.0, left=0, rate=None) == 100.0


def test_a_job_is_at_risk_when_its_work_with_safety_does_not_fit():
    """100 requests at 1/s are taken for 150 s."""
    assert not sla.at_risk(_job(100, deadline_at=1000), now=850.0, rate=1.0)
    assert sla.at_risk(_job(100, deadline_at=1000), now=850.1, rate=1.0)


def test_expected_preemptions_put_a_job_at_risk():
    """150 s of work with a pre-emption every 75 s cost two restarts more."""
    assert not sla.at_risk(_job(100, deadline_at=270), now=0.0, rate=1.0, preempt_every_s=75)
    assert sla.at_risk(_job(100, deadline_at=269), now=0.0, rate=1.0, preempt_every_s=75)
    assert not sla.at_risk(_job(100, deadline_at=269), now=0.0, rate=1.0, preempt_every_s=0)


def test_a_job_that_was_preempted_is_expected_to_be_again():
    """What happened on spot counts, whatever the settings expect."""
    assert not sla.at_risk(_job(100, deadline_at=200), now=0.0, rate=1.0)
    assert sla.at_risk(_job(100, deadline_at=200, preemptions=1), now=0.0, rate=1.0)


@pytest.mark.parametrize("rate", [None, 0.0])
def test_with_an_unknown_rate_only_a_nearly_used_window_is_at_risk(rate: float | None):
    """Without a rate the last tenth of the window is at risk, however little is left to do."""
    assert not sla.at_risk(_job(10**9, deadline_at=1000), now=900.0, rate=rate)
    assert sla.at_risk(_job(1, deadline_at=1000), now=900.1, rate=rate)


def test_risk_survives_a_vanishing_rate():
    """A rate of nearly nothing is a risk, not an error."""
    assert sla.at_risk(_job(), now=0.0, rate=math.ulp(0.0))


def test_a_margin_is_what_was_left_at_the_end():
    """A batch that ended late has a negative margin."""
    assert sla.margin_s(deadline_at=100.0, finished_at=70.0) == 30.0
    assert sla.margin_s(deadline_at=100.0, finished_at=101.0) == -1.0


def test_a_deadline_comes_at_its_very_instant():
    """At deadline_at what is unfinished expires."""
    assert not sla.is_expired(_job(deadline_at=10), now=9.999)
    assert sla.is_expired(_job(deadline_at=10), now=10.0)
