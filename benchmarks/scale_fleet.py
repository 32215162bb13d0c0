"""Simulated nodes: which are up, which may be had, and what they cost.

A node is billed from the second in which it is asked for to the one in which it is given back or taken away,
also while it starts and while it is kept warm. Which slots are free is the real scheduler's to say; here one
finds the node behind a slot.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from scheduler.job import PoolName

Bill = Callable[["Node", float, float], None]


@dataclass(slots=True, eq=False)
class Node:
    """One node.

    Attributes:
        zone: index of its zone; None for a dedicated node.
        is_there: whether its zone has it.
        up_since: second since which it is billed; None while it is not up.
        uses: how often it was taken, by which an order to give it back is known as outdated.
    """

    name: str
    pool: PoolName
    zone: int | None
    is_there: bool = True
    up_since: float | None = None
    uses: int = 0


@dataclass
class Fleet:
    """The nodes that carry no run, by pool: warm ones in the order of their last use, and cold ones.

    Attributes:
        nodes: all of them.
        bill: called with each span in which a node was up.
        hours: billed so far, by pool.
    """

    nodes: list[Node]
    seed: int
    bill: Bill | None = None
    hours: dict[PoolName, float] = field(default_factory=lambda: {"spot": 0.0, "dedicated": 0.0})

    def __post_init__(self) -> None:
        self._random = random.Random(f"fleet/{self.seed}")
        self._warm: dict[PoolName, list[Node]] = {"spot": [], "dedicated": []}
        self._cold: dict[PoolName, list[Node]] = {"spot": [], "dedicated": []}
        for node in self.nodes:
            if node.is_there:
                self._cold[node.pool].append(node)

    def take(self, pool: PoolName, now: float) -> tuple[Node, bool]:
        """A node for a run, the one that was used last or any cold one, and whether it is warm."""
        if self._warm[pool]:
            node, is_warm = self._warm[pool].pop(), True
        else:
            cold = self._cold[pool]
            place = self._random.randrange(len(cold))
            cold[place], cold[-1] = cold[-1], cold[place]
            node, is_warm = cold.pop(), False
            node.up_since = now
        node.uses += 1
        return node, is_warm

    def give_back(self, node: Node) -> None:
        """A run has left it; it stays warm."""
        self._warm[node.pool].append(node)

    def cool(self, node: Node, now: float) -> None:
        """Shut a warm node down."""
        self._warm[node.pool].remove(node)
        self._cold[node.pool].append(node)
        self._close(node, now)

    def take_away(self, node: Node, now: float) -> None:
        """The zone has it no more, whatever it was doing."""
        for idle in (self._warm[node.pool], self._cold[node.pool]):
            if node in idle:
                idle.remove(node)
        node.is_there = False
        self._close(node, now)

    def bring(self, node: Node) -> None:
        """The zone has it again."""
        node.is_there = True
        self._cold[node.pool].append(node)

    def close(self, now: float) -> None:
        """The end: bill what is up."""
        for node in self.nodes:
            self._close(node, now)

    def _close(self, node: Node, now: float) -> None:
        if node.up_since is not None:
            self.hours[node.pool] += (now - node.up_since) / 3600
            if self.bill:
                self.bill(node, node.up_since, now)
            node.up_since = None
            node.uses += 1
