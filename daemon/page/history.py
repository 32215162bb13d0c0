"""The history of a batch as stretches of time: what it did, in which pool, and for how long.

Made from status.json alone. Where a daemon died, a stretch lasts until another took the batch up again: when
it died is on nobody's record.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from config.settings import PoolsSettings

# What daemon/runs.py gives as the reason of a run.
_ASSIGNED = re.compile(r"assigned to (\w+): (\w+)")


class Stretch(NamedTuple):
    """Some time in which a batch did one thing.

    Attributes:
        phase: batchd's phase.
        pool: of a running one.
        began, ended: Unix seconds.
        why: the reason that was given for its begin.
    """

    phase: str
    pool: str | None
    began: float
    ended: float
    why: str

    @property
    def seconds(self) -> float:
        """How long it took; a clock that was set back makes no time negative."""
        return max(0.0, self.ended - self.began)


class PoolUse(NamedTuple):
    """What a batch used of a pool.

    Attributes:
        reasons: how many of its runs went there for which reason.
        seconds: how long they took together.
        preemptions: how many of them ended so.
        price_per_hour: of an hour of one run; 0 where none is set.
    """

    pool: str
    reasons: dict[str, int]
    seconds: float
    preemptions: int
    price_per_hour: float

    @property
    def runs(self) -> int:
        """How many of its runs were there."""
        return sum(self.reasons.values())

    @property
    def cost(self) -> float:
        """In the currency of the price."""
        return self.seconds / 3600 * self.price_per_hour


def stretches(events: Sequence[dict[str, Any]], now: float) -> list[Stretch]:
    """What a batch did, in order.

    Args:
        events: the `history` of its status.json.
        now: when a batch that goes on is looked at, Unix seconds.
    """
    found: list[Stretch] = []
    pool: str | None = None
    for event, following in zip(events, [*events[1:], None], strict=True):
        phase = str(event["phase"])
        if match := _ASSIGNED.match(event["reason"]):
            pool = match[1]
        if phase != "running":
            pool = None
        if following is None and phase == "done":
            break
        ended = now if following is None else following["at"]
        found.append(Stretch(phase, pool, event["at"], ended, event["reason"]))
    return found


def is_complete(extra: dict[str, Any]) -> bool:
    """Whether the history holds each run; of one that is very long the middle is dropped."""
    begun = sum(bool(_ASSIGNED.match(event["reason"])) for event in extra["history"])
    return begun == int(extra["attempt"])


def pools(found: Sequence[Stretch], settings: PoolsSettings) -> list[PoolUse]:
    """What was used of each pool, those used first first."""
    uses = []
    for pool in dict.fromkeys(each.pool for each in found if each.pool):
        own = [each for each in found if each.pool == pool]
        reasons = Counter(match[2] for each in own if (match := _ASSIGNED.match(each.why)))
        ends = itertools.pairwise(found)
        preemptions = sum(one.pool == pool and is_preemption(two) for one, two in ends)
        price = {"spot": settings.spot, "dedicated": settings.dedicated}.get(pool)
        seconds = sum(each.seconds for each in own)
        uses.append(
            PoolUse(pool, dict(reasons), seconds, preemptions, price.price_per_hour if price else 0.0)
        )
    return uses


def is_preemption(stretch: Stretch) -> bool:
    """Whether it began with the pool taking its slot back, and not for another reason."""
    return stretch.phase == "preempted" and stretch.why.startswith("preempted")


def is_adoption(stretch: Stretch) -> bool:
    """Whether it began with a daemon taking up what another one, or an earlier start, had left."""
    return stretch.why == "taken up again"
