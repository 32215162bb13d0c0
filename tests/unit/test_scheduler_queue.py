"""The queue: its policies, its limit, and jobs that come back."""

from __future__ import annotations

import dataclasses

import pytest

from scheduler.errors import OutOfStep, QueueFull
from scheduler.job import Job
from scheduler.queue import Policy, Queue


def _job(batch_id: str, deadline_at: float = 100.0, submitted_at: float = 0.0) -> Job:
    return Job(batch_id, "m", 10, submitted_at, deadline_at)


def _queue(policy: Policy, *jobs: Job, limit: int = 100) -> Queue:
    queue = Queue(policy, limit)
    for job in jobs:
        queue.push(job)
    return queue


def _ids(queue: Queue) -> list[str]:
    return [job.batch_id for job in queue]


def test_fifo_keeps_the_order_of_entry():
    """Under fifo a job's deadline does not matter."""
    assert _ids(_queue("fifo", _job("a", 9), _job("b", 1), _job("c", 5))) == ["a", "b", "c"]


def test_edf_puts_the_earliest_deadline_first_and_then_the_earliest_claim():
    """Under edf the deadline decides, then the time of the claim, then the order of entry."""
    jobs = [_job("late", 9), _job("b", 5, 2), _job("first", 1), _job("a", 5, 1), _job("c", 5, 2)]
    assert _ids(_queue("edf", *jobs)) == ["first", "a", "b", "c", "late"]


def test_a_preempted_job_is_first_under_fifo():
    """A job that lost its slot is the next to get one."""
    queue = _queue("fifo", _job("a"), _job("b"))
    queue.push_front(_job("back").preempted(requests_left=3))
    assert _ids(queue) == ["back", "a", "b"]


def test_a_preempted_run_comes_back_in_its_own_order():
    """The small jobs that shared a run keep their order among themselves."""
    queue = _queue("fifo", _job("z"))
    queue.push_front(_job("a"), _job("b"), _job("c"))
    assert _ids(queue) == ["a", "b", "c", "z"]


def test_a_preempted_job_comes_before_its_equals_under_edf():
    """Under edf the deadline still decides where a pre-empted job stands."""
    queue = _queue("edf", _job("soon", 1), _job("equal", 5), _job("late", 9))
    queue.push_front(_job("back", 5))
    assert _ids(queue) == ["soon", "back", "equal", "late"]


def test_a_full_queue_refuses_new_jobs():
    """At the limit a new job is refused and nothing changes."""
    queue = _queue("fifo", _job("a"), limit=1)
    with pytest.raises(QueueFull, match="max_claimed"):
        queue.push(_job("b"))
    assert _ids(queue) == ["a"]
    assert "b" not in queue


def test_a_full_queue_takes_a_preempted_job_back():
    """What is already claimed is never lost to the limit."""
    queue = _queue("fifo", _job("a"), limit=1)
    queue.push_front(_job("back"))
    assert _ids(queue) == ["back", "a"]


def test_a_job_cannot_wait_twice():
    """The same batch is refused, at either end and twice in one call, and nothing changes."""
    queue = _queue("fifo", _job("a"))
    with pytest.raises(OutOfStep, match="a"):
        queue.push(_job("a"))
    with pytest.raises(OutOfStep, match="a"):
        queue.push_front(_job("b"), _job("a"))
    with pytest.raises(OutOfStep, match="c"):
        queue.push_front(_job("c"), _job("c"))
    assert _ids(queue) == ["a"]


def test_a_job_leaves_from_anywhere_and_once():
    """remove() gives the job wherever it stands, and None afterwards."""
    queue = _queue("fifo", _job("a"), _job("b"), _job("c"))
    assert queue.remove("b") == _job("b")
    assert queue.remove("b") is None
    assert _ids(queue) == ["a", "c"]
    queue.push(_job("b"))
    assert _ids(queue) == ["a", "c", "b"]


def test_the_work_of_each_model_is_known_without_a_walk():
    """Requests by model, and where each model's first job stands; nothing is left of those that left."""
    queue = _queue("fifo", *(_job(name) for name in "abc"))
    other = dataclasses.replace(_job("d"), model="n", requests_left=7)
    queue.push(other)
    left = _job("a").requests_left
    assert queue.requests == {"m": 3 * left, "n": 7}
    assert queue.ranks() == {"m": 0, "n": 3}
    queue.take([_job("a"), _job("c")])
    queue.push_front(other.preempted(5)) if queue.remove("d") else None
    assert queue.requests == {"m": left, "n": 5}
    assert queue.ranks() == {"n": 0, "m": 1}
    queue.remove("b")
    assert queue.requests == {"n": 5}


def test_an_assignments_jobs_leave_together_and_the_rest_keeps_its_order():
    """take() removes exactly the jobs of an assignment."""
    jobs = [_job(name) for name in "abcdef"]
    queue = _queue("fifo", *jobs)
    queue.take([jobs[1], jobs[4]])
    assert _ids(queue) == ["a", "c", "d", "f"]
    assert len(queue) == 4


def test_taking_a_job_that_does_not_wait_changes_nothing():
    """A job that is not there means that the caller is out of step."""
    queue = _queue("fifo", _job("a"))
    with pytest.raises(OutOfStep, match="ghost"):
        queue.take([_job("a"), _job("ghost")])
    assert _ids(queue) == ["a"]


@pytest.mark.parametrize("policy", ["fifo", "edf"])
def test_a_job_expires_at_its_deadline_and_not_before(policy: Policy):
    """At deadline_at itself the job is expired; it stays until it is removed."""
    queue = _queue(policy, _job("late", 20), _job("soon", 10))
    assert queue.expired(9.999) == []
    assert queue.expired(10.0) == [_job("soon", 10)]
    assert len(queue) == 2
