"""The plot of benchmarks/scale_sim.py: a panel for each scenario, cost against deadlines met."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

# Colours that are told apart by people who see red and green alike (Okabe and Ito).
COLOURS = {
    "dedicated": "#000000", "spot": "#56B4E9", "before": "#E69F00",
    "batchd": "#D55E00", "greedy": "#0072B2", "uniform": "#009E73",
}  # fmt: skip
MARKERS = {"fifo": "o", "edf": "^"}


class Point(NamedTuple):
    """A policy in an order.

    Attributes:
        cost: as a share of that of dedicated nodes alone.
        met: share of the batches whose deadline was met.
    """

    scenario: str
    policy: str
    text: str
    order: str
    cost: float
    met: float


def plot(path: Path, points: Sequence[Point], title: str) -> None:
    """Draw them all."""
    from matplotlib.figure import Figure

    scenarios = list(dict.fromkeys(point.scenario for point in points))
    figure = Figure(figsize=(3.4 * len(scenarios), 5), layout="constrained")
    panels = figure.subplots(1, len(scenarios), squeeze=False)[0]
    for panel, scenario in zip(panels, scenarios, strict=True):
        for point in points:
            if point.scenario == scenario:
                panel.scatter(
                    100 * point.cost, 100 * point.met, s=55, alpha=0.85,
                    marker=MARKERS[point.order], color=COLOURS[point.policy],
                    label=f"{point.text}, {point.order}",
                )  # fmt: skip
        worst = min(point.met for point in points if point.scenario == scenario)
        panel.set_ylim(100 * min(0.98, worst) - 0.4, 100.2)
        panel.set_title(scenario)
        panel.set_xlabel("cost, % of always dedicated")
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("deadlines met, % of batches")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(f"1,000 replicas, {title} (better is up and to the left)")
    figure.savefig(path, dpi=130)
