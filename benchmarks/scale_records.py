"""Records of a simulation: the machine park that goes in, a run's course, and the figures that come out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from benchmarks.scale_fleet import Node
from benchmarks.scale_policies import Policy
from scheduler.job import Job, PoolName
from scheduler.pools import Run


class Setup(NamedTuple):
    """The machine park and its prices.

    Attributes:
        node_rate: lines per second of a node.
        start_s: until a cold node answers: the paper's 4 + 5 minutes for a p3.2xlarge (Table 4).
        lost_s: work of a run that an interruption loses; finished lines are kept, those in the engine are
        not. keep_s: how long a node without a run is kept warm.
        spot_price, dedicated_price: of a node's hour. Only their ratio matters; the paper has -67 % for spot
            (p3.2xlarge, Table 4) and "about $1/hour" for a V100 that costs $3.06 on demand.
        preempt_every_s: what the scheduler is told (scheduler.pools.spot.preempt_every_s).
    """

    spot_nodes: int = 100
    dedicated_nodes: int = 25
    replicas_per_node: int = 8
    node_rate: float = 1.0
    start_s: float = 540.0
    lost_s: float = 120.0
    keep_s: float = 300.0
    spot_price: float = 1.0
    dedicated_price: float = 3.0
    max_claimed: int = 10_000
    preempt_every_s: float = 4 * 3600.0

    @property
    def changeover_s(self) -> float:
        """The paper's d: until a job that lost its node is as far again."""
        return self.start_s + self.lost_s

    def price(self, pool: PoolName) -> float:
        """Of an hour of a node."""
        return self.spot_price if pool == "spot" else self.dedicated_price

    def nodes(self, policy: Policy, zones: int) -> list[Node]:
        """The nodes that a policy has; as many in all of them, spot ones dealt to the zones in turn."""
        spot, dedicated = self.spot_nodes, self.dedicated_nodes
        if policy.pools != "both":
            both = spot + dedicated
            spot, dedicated = (both, 0) if policy.pools == "spot" else (0, both)
        return [Node(f"spot-{n}", "spot", n % zones) for n in range(spot)] + [
            Node(f"dedicated-{n}", "dedicated", None) for n in range(dedicated)
        ]


class Share(NamedTuple):
    """What a run does with one of its batches, if nothing comes in between.

    Attributes:
        lines: answered by ends_at, at which the batch is complete or its deadline comes.
    """

    job: Job
    begins_at: float
    ends_at: float
    lines: int

    def lines_by(self, at: float, rate: float) -> int:
        """Lines that are answered by a second before its end, at so many per second; never all."""
        return max(0, min(self.job.requests_left - 1, math.floor((at - self.begins_at) * rate)))


@dataclass(slots=True, eq=False)
class Held:
    """A claimed batch, as long as it has not ended."""

    dropped_at: float
    is_tight: bool
    has_run: bool = False


@dataclass(slots=True, eq=False)
class Going:
    """A run that is going; `shares` are those that have not ended, the next one last."""

    run: Run
    node: Node
    shares: list[Share]
    is_productive: bool = False


def course(jobs: Iterable[Job], begins_at: float, rate: float) -> list[Share]:
    """What a run does with its batches, one after the other; the last to end first.

    Args:
        jobs: none of them past its deadline when the run is given its node.
        begins_at: the second at which the node answers.
        rate: lines per second of the node.
    """
    shares = []
    for job in jobs:
        ends_at, deadline_at = begins_at + job.requests_left / rate, job.deadline_at
        share = Share(job, begins_at, ends_at, job.requests_left)
        if ends_at >= deadline_at:
            share = Share(job, begins_at, deadline_at, share.lines_by(deadline_at, rate))
            ends_at = max(begins_at, deadline_at)
        shares.append(share)
        begins_at = ends_at
    return sorted(shares, key=lambda share: share.ends_at, reverse=True)


@dataclass
class Outcome:
    """What came of a simulation; everything but the last three is the same for the same seed.

    Attributes:
        tight: batches whose window goes by their size.
        moved_back: runs that left a dedicated node for spot.
        longest_in_inbox_s: until a drop was claimed; more than 0 where the daemon held as many as it may.
        hours: of nodes that were up, by pool.
        reasons: runs by the scheduler's reason.
        waits: batches by their seconds from drop to first run, as tenths of the decimal logarithm.
        decide_s: processor seconds of all decisions, queueing included; then of the longest.
    """

    lines: int = 0
    lines_done: int = 0
    lines_expired: int = 0
    batches: int = 0
    batches_met: int = 0
    tight: int = 0
    tight_met: int = 0
    runs: int = 0
    cold_starts: int = 0
    interruptions: int = 0
    moved_back: int = 0
    decisions: int = 0
    longest_queue: int = 0
    longest_in_inbox_s: float = 0.0
    ended_at: float = 0.0
    cost: float = 0.0
    hours: dict[PoolName, float] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    waits: Counter[int] = field(default_factory=Counter)
    decide_s: float = 0.0
    longest_decision_s: float = 0.0
    wall_s: float = 0.0

    def waited(self, seconds: float) -> None:
        """Note how long a batch waited for its first run."""
        self.waits[math.ceil(10 * math.log10(max(seconds, 0.1)))] += 1

    def wait_s(self, share: float) -> float:
        """Seconds that this share of the batches waited at most for a first run, up to a quarter too many."""
        left = share * self.waits.total()
        for tenth, count in sorted(self.waits.items()):
            left -= count
            if left <= 0:
                return float(10 ** (tenth / 10))
        return math.nan
