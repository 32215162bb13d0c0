"""What is known of a model's replicas, and what they say of themselves when they are asked.

The fleet starts, asks and ends them; here their answers are added up. Ray is imported inside functions only.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from config import settings
from pipeline import errors, leaving
from spool.parts import Usage

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelState:
    """One model at the time of a poll.

    Attributes:
        replicas: in each pool that has its own, those that start included.
        up: replicas whose engine has started, answered in time and is not away.
        restarts: times a replica came back in a new process, since this fleet began.
        start_seconds: of the replica that started last; None before the first.
        inflight: requests in the engines.
        durations: seconds per request since the last poll, at most 10,000 for each replica.
        outcomes: requests answered since the last poll, by outcome.
        usage: tokens of the completed ones since the last poll.
        engines: what each replica's engine says of itself, see engine_stats; empty for one that says nothing.
        leaving: replicas that are being stopped, and still have what they hold.
        problem: why a start that `grow` began failed, since the last poll; None if none did.
    """

    model: str
    replicas: int
    up: int
    restarts: int
    start_seconds: float | None
    inflight: int
    durations: tuple[float, ...]
    outcomes: dict[str, int]
    usage: Usage
    engines: tuple[dict[str, float], ...] = ()
    leaving: int = 0
    problem: str | None = None


@dataclass(slots=True, eq=False)
class Member:
    """A replica as the fleet knows it.

    Attributes:
        handle: of its actor.
        pool: that it stands in; None where all pools use it.
        process: name of the process seen last; another one means a restart.
        start_s: what its engine took to start; None until it has.
        is_up: whether its engine had started when the replica was heard last.
        starting: comes when its first start has ended, if `grow` began it; None afterwards.
        asked: the statistics that were asked for and have not come yet.
        asked_at: when, by the monotonic clock.
        outages: of its engine's servers, when it last said so.
    """

    handle: Any
    pool: str | None = None
    process: str | None = None
    start_s: float | None = None
    is_up: bool = False
    starting: Any = None
    asked: Any = None
    asked_at: float = 0.0
    restarts: int = 0
    outages: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Team:
    """The replicas of one model. Other threads read `members`, which is replaced and never changed."""

    model: settings.ModelSettings
    members: list[Member] = field(default_factory=list)
    leaving: leaving.Leaving = field(default_factory=leaving.Leaving)
    start_seconds: float | None = None
    problem: str | None = None


def started(model: settings.ModelSettings, ready: Any) -> float:
    """Seconds that a replica took to start.

    Raises:
        EngineStartError: it did not.
    """
    import ray

    try:
        seconds: float = ray.get(ready)
        return seconds
    except errors.EngineStartError as error:
        # Ray's error carries the remote traceback; what the engine said is its cause.
        said = getattr(error, "cause", None) or error
        raise errors.EngineStartError(str(said)) from error
    except ray.exceptions.RayError as error:
        reason = " ".join(str(error).split())[:500]
        raise errors.EngineStartError(
            f"model {model.name!r}: its replica died while it started: {reason}"
        ) from error


def collect(team: Team, done: set[Any], pools: Collection[str | None]) -> ModelState:
    """Add up what a model's replicas said."""
    up = inflight = 0
    durations: list[float] = []
    outcomes: Counter[str] = Counter()
    usage = Usage()
    engines: list[dict[str, float]] = []
    for member in team.members:
        stats = _stats_of(member) if member.asked in done else None
        engines.append(stats.engine if stats else {})
        if stats is None:
            continue
        if member.process not in (None, stats.process):
            member.restarts += 1
            _log.warning("replica_restarted", extra={"model": team.model.name})
        if stats.start_s is not None and member.start_s != stats.start_s:
            team.start_seconds = stats.start_s
        member.process, member.start_s = stats.process, stats.start_s
        member.is_up = stats.start_s is not None
        _log_outages(team.model.name, member.outages, stats.outages)
        member.outages = stats.outages
        up += stats.start_s is not None and not stats.is_away
        inflight += stats.inflight
        durations += stats.activity.durations
        outcomes.update(stats.activity.outcomes)
        usage = usage.plus(stats.activity.usage)
    return ModelState(
        model=team.model.name,
        replicas=min(sum(member.pool == pool for member in team.members) for pool in pools),
        up=up,
        restarts=sum(member.restarts for member in team.members),
        start_seconds=team.start_seconds,
        inflight=inflight,
        durations=tuple(durations),
        outcomes=dict(outcomes),
        usage=usage,
        engines=tuple(engines),
        leaving=len(team.leaving),
        problem=team.problem,
    )


def _log_outages(model: str, before: dict[str, str], now: dict[str, str]) -> None:
    """Say which servers get no requests any more, and which do again; a replica's own log is not shown."""
    for url in now.keys() - before.keys():
        _log.warning("server_down", extra={"model": model, "server": url, "reason": now[url]})
    for url in before.keys() - now.keys():
        _log.info("server_up", extra={"model": model, "server": url})


def _stats_of(member: Member) -> Any:
    """The statistics that a replica sent; None if it is dead or its engine is."""
    import ray

    asked, member.asked = member.asked, None
    try:
        return ray.get(asked)
    except (ray.exceptions.RayError, errors.PipelineError) as error:
        _log.debug("replica_down", extra={"reason": " ".join(str(error).split())[:200]})
        member.is_up = False
        return None
