"""Deadlines: measured throughput, the estimated end, and which jobs would be late on spot.

Pure arithmetic on Unix seconds and requests per second. Limits: a request counts as one whatever its length,
and all runs of a model as equally fast, so an estimate is off where the long requests come last; SAFETY is
there for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from scheduler.job import Job

# Estimates, not measurements: work takes this much longer than the rate promises,
SAFETY = 1.5
# a pre-emption costs this much (the unfinished shards again, the wait for a slot),
PREEMPTION_COST_S = 60.0
# and with no rate to go by, a job is at risk when this share of its window is left.
UNKNOWN_RATE_SHARE = 0.1
# Long enough to smooth answers that become durable a shard at a time, short enough to follow the load.
HALF_LIFE_S = 120.0


class Throughput:
    """Requests per second of a run of each model: an average in which an observation's weight halves every
    half-life.

    The weight of an observation is its duration, so how the daemon slices time does not bend the average.
    Observe a model only while a run of it is going; idle time is no evidence.
    """

    def __init__(self, half_life_s: float = HALF_LIFE_S) -> None:
        self._half_life_s = half_life_s
        self._seen: dict[str, tuple[float, float]] = {}  # model -> decayed requests done, decayed run seconds
        self._rates: dict[str, float] = {}

    @property
    def rates(self) -> Mapping[str, float]:
        """Requests per second by model, always positive; a model of which no answer was seen is absent."""
        return MappingProxyType(self._rates)

    def observe(self, model: str, done: int, seconds: float, runs: float = 1) -> None:
        """Take in that `done` more requests of a model got their answers within the last `seconds`.

        Args:
            model: the model.
            done: requests of all its runs together.
            seconds: since the last observation.
            runs: how many of its runs were going. A job has one: with the rate of all of them, one that needs
                hours would seem to need minutes.
        """
        done_before, seconds_before = self._seen.get(model, (0.0, 0.0))
        decay = 0.5 ** (seconds / self._half_life_s)
        done_now, seconds_now = done_before * decay + done, seconds_before * decay + seconds * runs
        self._seen[model] = done_now, seconds_now
        if done_now > 0 and seconds_now > 0:
            self._rates[model] = done_now / seconds_now


def is_expired(job: Job, now: float) -> bool:
    """Whether the deadline has come: at deadline_at itself what is unfinished expires."""
    return now >= job.deadline_at


def eta_at(now: float, left: int, rate: float | None) -> float | None:
    """When the last of `left` requests will have its answer; None while the rate is unknown."""
    if left <= 0:
        return now
    return now + left / rate if rate else None


def at_risk(job: Job, now: float, rate: float | None, preempt_every_s: float = 0.0) -> bool:
    """Whether the job would probably miss its deadline if it were put on spot now.

    Args:
        job: the job, with what is left of it.
        now: Unix seconds.
        rate: measured requests per second of its model; None or 0 is unknown.
        preempt_every_s: mean seconds between pre-emptions of a spot run (0 = never). A job that was
            pre-empted before is expected to be pre-empted as often again.
    """
    left_s = job.deadline_at - now
    if not rate:
        return left_s < UNKNOWN_RATE_SHARE * (job.deadline_at - job.submitted_at)
    work_s = SAFETY * job.requests_left / rate
    preemptions = job.preemptions + (work_s / preempt_every_s if preempt_every_s else 0.0)
    return work_s + preemptions * PREEMPTION_COST_S > left_s


def margin_s(deadline_at: float, finished_at: float) -> float:
    """Seconds to spare at the end; negative or 0 when the deadline was missed."""
    return deadline_at - finished_at
