"""What was measured, and what becomes of it: medians, ratios, marks against a bar, a table, JSON and plots.

A bar that is missed says so in words; answers that are wrong are worse than any figure and are told first.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import orjson


class Mark(NamedTuple):
    """A figure that is held to a bar.

    Attributes:
        text: what the figure is, such as "x bare engine".
        value: NaN where nothing was measured.
        bar: what it must reach, or what it may not exceed.
        is_least: whether the bar is the least that it must reach.
    """

    text: str
    value: float
    bar: float
    is_least: bool = True

    @property
    def is_met(self) -> bool:
        """Whether it holds; never where nothing was measured."""
        return self.value >= self.bar if self.is_least else self.value <= self.bar


@dataclass
class Series:
    """One figure, measured several times."""

    name: str
    unit: str
    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """NaN where nothing was measured."""
        return statistics.median(self.values) if self.values else math.nan


@dataclass
class Outcome:
    """All that is known of one workload at the end.

    Attributes:
        wrong: answers that are not what they must be.
        broken: why it could not be measured; None if it could.
        is_judged: whether its bars count; not where sizes were too small to mean anything.
    """

    name: str
    title: str
    series: list[Series] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    broken: str | None = None
    is_judged: bool = True

    @property
    def is_right(self) -> bool:
        """Whether it was measured and all answers are what they must be."""
        return not self.wrong and self.broken is None

    @property
    def misses_a_bar(self) -> bool:
        """Whether it counts and a bar is missed."""
        return self.is_judged and not all(mark.is_met for mark in self.marks)


class Book:
    """Series by name and unit, in the order in which they were begun."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, str], Series] = {}

    def add(self, name: str, unit: str, value: float) -> None:
        """Note one measurement."""
        self._series.setdefault((name, unit), Series(name, unit)).values.append(value)

    def median(self, name: str, unit: str = "s") -> float:
        """NaN where nothing was measured."""
        found = self._series.get((name, unit))
        return found.median if found else math.nan

    def all(self) -> list[Series]:
        """Every series."""
        return list(self._series.values())


def ratio(dividend: float, divisor: float) -> float:
    """NaN where the divisor is 0."""
    return dividend / divisor if divisor else math.nan


def show(outcome: Outcome) -> str:
    """A workload's part of the table."""
    lines = [f"{outcome.name}: {outcome.title}"]
    lines += [f"  WRONG     {problem}" for problem in outcome.wrong]
    lines += [f"  BROKEN    {outcome.broken}"] if outcome.broken else []
    for mark in outcome.marks:
        verdict = ("MET" if mark.is_met else "MISSED") if outcome.is_judged else "not judged"
        sign = ">=" if mark.is_least else "<="
        lines.append(f"  {verdict:<11}{number(mark.value)} {mark.text}  (bar {sign} {number(mark.bar)})")
    for series in outcome.series:
        several = f"  of {' '.join(number(value) for value in series.values)}" if series.values[1:] else ""
        lines.append(f"  {series.name:<44}{number(series.median):>11} {series.unit}{several}")
    lines += [f"  {note}" for note in outcome.notes]
    return "\n".join(lines)


def number(value: float) -> str:
    """Three digits that mean something, or all of a large number."""
    if math.isnan(value):
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def write_json(path: Path, machine: dict[str, Any], outcomes: Sequence[Outcome]) -> None:
    """Every figure, with what it was measured on."""
    workloads = []
    for outcome in outcomes:
        tree = dataclasses.asdict(outcome)
        tree["series"] = [{**dataclasses.asdict(each), "median": each.median} for each in outcome.series]
        tree["marks"] = [{**mark._asdict(), "is_met": mark.is_met} for mark in outcome.marks]
        workloads.append(tree)
    body = {"machine": machine, "workloads": workloads}
    path.write_bytes(orjson.dumps(body, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def plot(path: Path, outcome: Outcome) -> None:
    """A picture of a workload: a panel for each unit, medians as bars, repetitions as dots."""
    from matplotlib.figure import Figure

    units = list(dict.fromkeys(series.unit for series in outcome.series if series.values))
    if not units:
        return
    panels = [[each for each in outcome.series if each.unit == unit and each.values] for unit in units]
    heights = [len(panel) + 1 for panel in panels]
    figure = Figure(figsize=(9, 1.6 + 0.42 * sum(heights)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axis, unit, panel in zip(axes[:, 0], units, panels, strict=True):
        rows = list(range(len(panel)))
        bars = axis.barh(rows, [each.median for each in panel], color="#9ecae1")
        axis.bar_label(bars, [f" {number(each.median)}" for each in panel])
        for row, each in zip(rows, panel, strict=True):
            axis.plot(each.values, [row] * len(each.values), "o", color="#08519c", markersize=3)
        axis.set_yticks(rows, [each.name for each in panel])
        axis.invert_yaxis()
        axis.margins(x=0.12)
        axis.set_xlabel(unit)
        axis.spines[["top", "right"]].set_visible(False)
    said = [f"{number(mark.value)} {mark.text}: {_verdict(outcome, mark)}" for mark in outcome.marks]
    figure.suptitle("\n".join([f"{outcome.name}: {outcome.title}", *said]), fontsize=9)
    figure.savefig(path, dpi=130)


def _verdict(outcome: Outcome, mark: Mark) -> str:
    sign = "≥" if mark.is_least else "≤"
    verdict = ("met" if mark.is_met else "missed") if outcome.is_judged else "not judged"
    return f"bar {sign} {number(mark.bar)} {verdict}"
