"""A simulated batchd: the real queue, pools, estimate and decision on simulated nodes, event by event.

Time is only what the next event says. Between two events nothing is computed line by line, so that ten
million lines take seconds; what is held is bounded by the batches that may be claimed and by the nodes. A
decision knows what has happened until then and nothing else. Arrivals that find the daemon full wait in the
inbox.

Limits: one model; a run has one node and works on its batches one after the other; validation, merge and the
loop cost no time here (benchmarks/scale_limits.py measures them); all nodes are equally fast.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.scale_fleet import Fleet, Node
from benchmarks.scale_policies import Policy, RuledQueue
from benchmarks.scale_records import Going, Held, Outcome, Setup, course
from benchmarks.scale_traces import Arrival
from config.settings import DedicatedSettings, PoolsSettings, SpotSettings
from scheduler import assign
from scheduler.job import Job
from scheduler.pools import Pools, Run
from scheduler.queue import Policy as Order
from scheduler.sla import Throughput

MODEL = "m"
# The daemon's passes while runs go on (daemon/report.py, COUNT_EVERY_S), seconds; and after how many without
# an event the risk of what waits is looked at again, which the daemon does in each pass.
PASS_S, LOOK_EVERY_S = 0.5, 60.0

# A zone: whether it has its nodes at second 0, and the seconds at which that changes.
Toggles = tuple[bool, Iterator[float]]


class Simulation:
    """One policy on one trace.

    Args:
        journal: told each decision, and each span in which a node was up; for tests.
    """

    def __init__(
        self,
        setup: Setup,
        policy: Policy,
        order: Order,
        arrivals: Iterator[Arrival],
        zones: Sequence[Toggles],
        seed: int,
        journal: list[tuple[Any, ...]] | None = None,
    ) -> None:
        self._setup, self._policy, self._arrivals, self._zones = setup, policy, arrivals, zones
        self._journal = journal
        self._nodes = setup.nodes(policy, len(zones))
        for node in self._nodes:
            node.is_there = node.zone is None or zones[node.zone][0]
        bill = None if journal is None else lambda node, a, b: journal.append(("up", node.name, a, b))
        self._fleet = Fleet(self._nodes, seed, bill)
        self._rule = policy.rule(setup.node_rate, setup.changeover_s)
        self._queue = RuledQueue(order, setup.max_claimed, self._rule)
        self._pools = self._real_pools(seed)
        self._throughput = Throughput()
        self._held: dict[str, Held] = {}
        self._going: dict[str, Going] = {}
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = itertools.count()
        self._drop: Arrival | None = None  # the next one, or one that finds no room
        self._is_full = False
        self._decide_at = math.inf
        self._now = self._observed_at = 0.0
        self._productive = 0
        self._answered = self._run_s = 0.0  # lines and seconds of runs since the last observation
        self.outcome = Outcome()

    def _real_pools(self, seed: int) -> Pools:
        """The scheduler's pools; a slot whose node is not there is taken, under the node's name."""
        spot = sum(node.pool == "spot" for node in self._nodes)
        settings = PoolsSettings(
            spot=SpotSettings(capacity=spot, preempt_every_s=self._setup.preempt_every_s),
            dedicated=DedicatedSettings(capacity=len(self._nodes) - spot),
        )
        pools = Pools(settings, seed)
        for node in self._nodes:
            if not node.is_there:
                pools.take(Run(node.name, "spot", 0.0))
        return pools

    def run(self) -> Outcome:
        """Go through the trace until every batch has ended."""
        began, outcome = time.perf_counter(), self.outcome
        for zone, (is_on, changes) in enumerate(self._zones):
            self._next_change(zone, is_on, changes)
        self._next_drop()
        while self._held or self._drop:
            at, _, handle, arguments = heapq.heappop(self._events)
            self._answered += self._productive * self._setup.node_rate * (at - self._now)
            self._run_s += len(self._going) * (at - self._now)
            self._now = at
            handle(*arguments)
        self._fleet.close(self._now)
        outcome.ended_at, outcome.hours = self._now, self._fleet.hours
        outcome.cost = sum(hours * self._setup.price(pool) for pool, hours in outcome.hours.items())
        outcome.wall_s = time.perf_counter() - began
        return outcome

    def _at(self, at: float, handle: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._events, (at, next(self._numbers), handle, arguments))

    # Batches come and end.

    def _next_drop(self) -> None:
        self._drop = next(self._arrivals, None)
        if self._drop:
            self._at(max(self._now, self._drop.at), self._claim)

    def _claim(self) -> None:
        """Claim the drop that has come; a daemon that is full does it when a batch ends."""
        drop, outcome = self._drop, self.outcome
        assert drop
        self._is_full = len(self._held) >= self._setup.max_claimed
        if self._is_full:
            return
        outcome.batches += 1
        outcome.lines += drop.lines
        outcome.tight += drop.is_tight
        outcome.longest_in_inbox_s = max(outcome.longest_in_inbox_s, self._now - drop.at)
        deadline_at = self._now + drop.window_s
        job = Job(f"b{outcome.batches}", MODEL, drop.lines, self._now, deadline_at, self._rule.wish)
        self._held[job.batch_id] = Held(drop.at, drop.is_tight)
        began = time.thread_time()
        self._queue.push(job)
        outcome.decide_s += time.thread_time() - began
        outcome.longest_queue = max(outcome.longest_queue, len(self._queue))
        self._at(deadline_at, self._deadline, job.batch_id)
        self._decide_soon()
        self._next_drop()

    def _deadline(self, batch_id: str) -> None:
        if job := self._queue.remove(batch_id):  # else it has ended, or the run that has it stops by itself
            self._ended(job, answered=0)

    def _ended(self, job: Job, answered: int) -> None:
        """A batch is complete or its deadline has come, with so many more lines answered."""
        outcome, held = self.outcome, self._held.pop(job.batch_id)
        is_met = answered == job.requests_left
        outcome.lines_done += answered
        outcome.lines_expired += job.requests_left - answered
        outcome.batches_met += is_met
        outcome.tight_met += is_met and held.is_tight
        self._rule.forget(job.batch_id)
        if self._is_full:
            self._is_full = False
            self._at(self._now, self._claim)

    # Decisions.

    def _decide_soon(self, later_s: float = 0.0) -> None:
        at = math.ceil((self._now + later_s) / PASS_S) * PASS_S
        if at < self._decide_at:
            self._decide_at = at
            self._at(at, self._decide, at)

    def _decide(self, at: float) -> None:
        if at != self._decide_at:
            return  # an earlier one came in between
        self._decide_at = math.inf
        self._observe()
        if self._policy.moves_back:
            self._move_back()
        began = time.thread_time()
        self._queue.judge(self._now, self._pools.free("spot") + self._pools.free("dedicated"))
        begun, _ = assign.assign(self._queue, self._pools, self._now, (MODEL,), self._throughput.rates)
        runs = []
        for each in begun:
            jobs = [job for asked in each.jobs if (job := self._queue.remove(asked.batch_id))]
            runs.append((Run(f"run-{next(self._numbers)}", each.pool, self._now), each.reason, jobs))
            self._pools.take(runs[-1][0])
        took_s = time.thread_time() - began
        self.outcome.decisions += 1
        self.outcome.decide_s += took_s
        self.outcome.longest_decision_s = max(self.outcome.longest_decision_s, took_s)
        for run, reason, jobs in runs:
            self._begin(run, reason, jobs)
        if len(self._queue):
            self._decide_soon(LOOK_EVERY_S)

    def _observe(self) -> None:
        """Tell the real estimate what was answered, as daemon/report.py does."""
        seconds, self._observed_at = self._now - self._observed_at, self._now
        if self._run_s and seconds:
            runs = self._run_s / seconds if self._policy.knows_runs else 1
            done = int(self._answered)
            self._throughput.observe(MODEL, done, seconds, runs)
            self._answered, self._run_s = self._answered - done, 0.0

    # Runs.

    def _begin(self, run: Run, reason: assign.Reason, jobs: list[Job]) -> None:
        outcome, setup = self.outcome, self._setup
        node, is_warm = self._fleet.take(run.pool, self._now)
        answers_at = self._now if is_warm else self._now + setup.start_s
        going = Going(run, node, course(jobs, answers_at, setup.node_rate))
        self._going[run.run_id] = going
        outcome.runs += 1
        outcome.cold_starts += not is_warm
        outcome.reasons[str(reason)] += 1
        for job in jobs:
            held = self._held[job.batch_id]
            if not held.has_run:
                outcome.waited(self._now - held.dropped_at)
            held.has_run = True
        if self._journal is not None:
            ids = tuple(job.batch_id for job in jobs)
            self._journal.append(("begin", self._now, node.name, ids))
        self._at(answers_at, self._answers, going)
        self._at(going.shares[-1].ends_at, self._share_ended, going)

    def _answers(self, going: Going) -> None:
        if going.run.run_id in self._going:
            going.is_productive = True
            self._productive += 1

    def _share_ended(self, going: Going) -> None:
        if going.run.run_id not in self._going:
            return
        self._settle(going)
        if going.shares:
            self._at(going.shares[-1].ends_at, self._share_ended, going)
        else:
            self._leave(going)

    def _settle(self, going: Going) -> None:
        while going.shares and going.shares[-1].ends_at <= self._now:
            share = going.shares.pop()
            self._ended(share.job, share.lines)

    def _leave(self, going: Going) -> None:
        """A run is over: its slot is free, and its node kept warm."""
        del self._going[going.run.run_id]
        self._productive -= going.is_productive
        self._pools.release(going.run.run_id)
        self._fleet.give_back(going.node)
        self._at(self._now + self._setup.keep_s, self._cool, going.node, going.node.uses)
        self._decide_soon()

    def _cool(self, node: Node, uses: int) -> None:
        if node.uses == uses:
            self._fleet.cool(node, self._now)

    def _interrupt(self, going: Going) -> None:
        """Stop a run: what it has not finished waits again, ahead of the others."""
        self._settle(going)
        setup, jobs = self._setup, []
        for share in sorted(going.shares, key=lambda share: share.begins_at):
            lines = share.lines_by(self._now - setup.lost_s, setup.node_rate)
            self.outcome.lines_done += lines
            jobs.append(share.job.preempted(share.job.requests_left - lines))
        self._queue.push_front(*jobs)
        self._leave(going)

    def _move_back(self) -> None:
        """Let runs leave dedicated nodes for spot ones that nobody waits for, if their one batch is ahead."""
        room = self._pools.free("spot") - len(self._queue)
        for going in list(self._going.values()):
            if room <= 0:
                return
            if going.run.pool == "spot" or len(going.shares) > 1 or not going.is_productive:
                continue
            job, lines = going.shares[0].job, going.shares[0].lines_by(self._now, self._setup.node_rate)
            if self._rule.is_ahead(
                dataclasses.replace(job, requests_left=job.requests_left - lines), self._now
            ):
                self._interrupt(going)
                self.outcome.moved_back += 1
                room -= 1

    # Zones.

    def _next_change(self, zone: int, is_on: bool, changes: Iterator[float]) -> None:
        at = next(changes, None)
        if at is not None:
            self._at(at, self._zone_changed, zone, not is_on, changes)

    def _zone_changed(self, zone: int, is_on: bool, changes: Iterator[float]) -> None:
        for going in list(self._going.values()):
            if going.node.zone == zone:
                self._interrupt(going)
                self.outcome.interruptions += 1
        for node in self._nodes:
            if node.zone == zone and is_on:
                self._fleet.bring(node)
                self._pools.release(node.name)
            elif node.zone == zone:
                self._fleet.take_away(node, self._now)
                self._pools.take(Run(node.name, "spot", self._now))
        self._decide_soon()
        self._next_change(zone, is_on, changes)
