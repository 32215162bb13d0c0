"""1,000 replicas and 10 million lines, simulated: deadlines met, cost, and what a decision costs.

The real scheduler (scheduler/) decides; nodes, spot zones and arrivals are simulated, and the same for every
policy. Prints a table, and leaves results.json and a plot below build/benchmarks/. Everything but the
processor times is the same for the same seed. How each part is meant stands in the modules named scale_*.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from benchmarks import machine, scale_plot
from benchmarks.scale_model import Simulation
from benchmarks.scale_policies import POLICIES, Policy
from benchmarks.scale_records import Outcome, Setup
from benchmarks.scale_traces import TRACES, ZONES, Zone, toggles
from benchmarks.served import ROOT
from scheduler.queue import Policy as Order

LINES, QUICK_LINES, REPETITIONS = 10_000_000, 100_000, 3
ORDERS: tuple[Order, ...] = ("fifo", "edf")


class Scenario(NamedTuple):
    """A trace on a machine park.

    Attributes:
        load: lines that arrive, as a share of what all nodes can answer while their zones have them.
    """

    name: str
    trace: str
    zones: tuple[Zone, ...] = ZONES
    setup: Setup = Setup()
    load: float = 0.8

    @property
    def lines_per_s(self) -> float:
        """Lines that arrive, on average."""
        availability = statistics.fmean(zone.availability for zone in self.zones)
        nodes = self.setup.spot_nodes * availability + self.setup.dedicated_nodes
        return self.load * nodes * self.setup.node_rate


ONE_ZONE = tuple(zone for zone in ZONES if zone.name == "us-east-2b")
SCENARIOS = (
    *(Scenario(trace, trace) for trace in TRACES),
    # As in the paper, where a job has one zone: what it lacks must come from dedicated nodes.
    Scenario("one zone", "long", ONE_ZONE, Setup(spot_nodes=70, dedicated_nodes=55), load=0.6),
)


class Task(NamedTuple):
    """One simulation; names instead of functions, so that it can go to another process."""

    scenario: str
    policy: str
    order: Order
    seed: int
    lines: int


class Row(NamedTuple):
    """A policy and an order in a scenario: its outcomes, one for each seed."""

    scenario: str
    policy: Policy
    order: Order
    outcomes: list[Outcome]

    def mean(self, name: str) -> float:
        """Of a figure, over the seeds."""
        return statistics.fmean(getattr(outcome, name) for outcome in self.outcomes)

    @property
    def met(self) -> list[float]:
        """Share of the batches whose deadline was met, by seed."""
        return [outcome.batches_met / outcome.batches for outcome in self.outcomes]


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1, help=f"the first of {REPETITIONS} seeds in a row")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_LINES:,} lines and one seed")
    parser.add_argument("--lines", type=int, help=f"of each simulation; {LINES:,} if not given")
    parser.add_argument("--out", type=Path, help="where results go")
    arguments = parser.parse_args(argv)
    out = arguments.out or ROOT / "build" / "benchmarks" / time.strftime("%Y%m%d-%H%M%S")
    out.mkdir(parents=True, exist_ok=True)
    lines = arguments.lines or (QUICK_LINES if arguments.quick else LINES)
    seeds = range(arguments.seed, arguments.seed + (1 if arguments.quick else REPETITIONS))
    began = time.monotonic()
    rows = list(simulate(lines, seeds))
    about = {"lines": lines, "seeds": list(seeds), "machine": machine.describe()}
    about["seconds"] = time.monotonic() - began
    (out / "scale_sim.json").write_bytes(orjson.dumps(_tree(about, rows), option=orjson.OPT_INDENT_2))
    scale_plot.plot(out / "scale_sim.png", [_point(rows, row) for row in rows], f"{lines:,} lines")
    print(table(rows))
    print(f"\n{about['seconds']:.0f} s; figures and plot are in {out}")
    return 0


def simulate(lines: int, seeds: Sequence[int]) -> Iterator[Row]:
    """All scenarios, policies and orders, each with every seed."""
    tasks = [
        Task(scenario.name, policy.name, order, seed, lines)
        for scenario in SCENARIOS
        for policy in POLICIES
        for order in ORDERS
        for seed in seeds
    ]
    with ProcessPoolExecutor() as processes:
        outcomes = processes.map(run, tasks)
        for task in tasks[:: len(seeds)]:
            yield Row(
                task.scenario, _policy(task.policy), task.order, list(itertools.islice(outcomes, len(seeds)))
            )


def run(task: Task, journal: list[tuple[Any, ...]] | None = None) -> Outcome:
    """One simulation.

    Raises:
        AssertionError: a line is neither answered nor expired, or both.
    """
    scenario = next(each for each in SCENARIOS if each.name == task.scenario)
    setup = scenario.setup
    arrivals = TRACES[scenario.trace](task.seed, task.lines, scenario.lines_per_s, setup.node_rate)
    zones = [toggles(zone, task.seed) for zone in scenario.zones]
    outcome = Simulation(setup, _policy(task.policy), task.order, arrivals, zones, task.seed, journal).run()
    assert outcome.lines_done + outcome.lines_expired == outcome.lines == task.lines
    return outcome


def table(rows: Sequence[Row]) -> str:
    """A line for each policy and order, by scenario."""
    heads = (
        ("", 28, ""), ("deadlines met", 20, "mean (worst seed)"), ("expired", 10, "lines"), ("cost", 8, ""),
        ("spot", 7, "hours"), ("lost", 7, "nodes"), ("p95 wait", 10, ""), ("decision", 10, "mean"),
    )  # fmt: skip
    text = [
        "".join(f"{first:>{width}}" for first, width, _ in heads),
        "".join(f"{second:>{width}}" for _, width, second in heads),
    ]
    for scenario in dict.fromkeys(row.scenario for row in rows):
        text.append(scenario)
        text += [_line(rows, row) for row in rows if row.scenario == scenario]
    return "\n".join(text)


def _line(rows: Sequence[Row], row: Row) -> str:
    figures = _figures(rows, row)
    met = f"{figures['met']:.2%} ({figures['worst_met']:.2%})"
    return (
        f"  {row.policy.name:<20}{row.order:<6}{met:>20}{figures['expired']:>10.2%}{figures['cost']:>8.0%}"
        f"{figures['spot_share']:>7.0%}{figures['interruptions']:>7.0f}{figures['p95_wait_s']:>8.0f} s"
        f"{figures['decision_us']:>7.0f} us"
    )


def _figures(rows: Sequence[Row], row: Row) -> dict[str, float]:
    """What the table says; cost as a share of that of dedicated nodes alone, in the same order."""
    dedicated = next(
        each for each in rows
        if (each.scenario, each.policy.name, each.order) == (row.scenario, "dedicated", row.order)
    )  # fmt: skip
    spot_hours = sum(outcome.hours["spot"] for outcome in row.outcomes)
    hours = sum(sum(outcome.hours.values()) for outcome in row.outcomes)
    return {
        "met": statistics.fmean(row.met),
        "worst_met": min(row.met),
        "expired": row.mean("lines_expired") / row.mean("lines"),
        "cost": row.mean("cost") / dedicated.mean("cost"),
        "spot_share": spot_hours / hours,
        "interruptions": row.mean("interruptions"),
        "p95_wait_s": statistics.fmean(outcome.wait_s(0.95) for outcome in row.outcomes),
        "decision_us": 1e6 * row.mean("decide_s") / row.mean("decisions"),
        "longest_decision_ms": 1e3 * max(outcome.longest_decision_s for outcome in row.outcomes),
    }


def _point(rows: Sequence[Row], row: Row) -> scale_plot.Point:
    figures = _figures(rows, row)
    return scale_plot.Point(
        row.scenario, row.policy.name, row.policy.text, row.order, figures["cost"], figures["met"]
    )


def _policy(name: str) -> Policy:
    return next(policy for policy in POLICIES if policy.name == name)


def _tree(about: dict[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """All figures, as results.json has them."""
    scenarios = [
        {**scenario._asdict(), "setup": scenario.setup._asdict(), "lines_per_s": scenario.lines_per_s,
         "zones": [zone._asdict() for zone in scenario.zones]}
        for scenario in SCENARIOS
    ]  # fmt: skip
    results = [
        {"scenario": row.scenario, "policy": row.policy.name, "order": row.order, **_figures(rows, row),
         "by_seed": [_plain(outcome) for outcome in row.outcomes]}
        for row in rows
    ]  # fmt: skip
    return {"about": about, "scenarios": scenarios, "results": results}


def _plain(outcome: Outcome) -> dict[str, Any]:
    return {
        **vars(outcome),
        "waits": {f"{10 ** (tenth / 10):.3g}": n for tenth, n in sorted(outcome.waits.items())},
    }


if __name__ == "__main__":
    sys.exit(main())
