"""Charts as inline SVG: columns, a strip of stretches, a bar.

Positions are percentages and texts have sizes of their own, so that a chart is as wide as its place and its
texts are as large on a phone as on a desk. Colours are classes of style.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple
from xml.etree.ElementTree import Element

from daemon.page import figures
from daemon.page.elements import tag

_PLOT_PX, _ABOVE_PX, _BELOW_PX, _SCALE_PX = 150, 10, 24, 44
_STEPS = 4
# What is there is seen, however little it is: percent of the height or width.
_LEAST = 0.6
# More labels below a chart than these are thinned out on a phone.
_MOST_LABELS = 5


class Column(NamedTuple):
    """A column.

    Attributes:
        stack: from the bottom up, the class and the value of each of its parts.
        title: what it says when it is pointed at.
    """

    stack: Sequence[tuple[str, float]]
    title: str


class Label(NamedTuple):
    """A label below a chart, at a share of its width."""

    at: float
    text: str


def columns(name: str, shown: Sequence[Column], labels: Sequence[Label]) -> Element:
    """Columns of one width side by side.

    Args:
        name: what the chart shows, for those who do not see it.
        shown: at least one.
        labels: below them, from left to right.
    """
    highest = max(sum(value for _, value in column.stack) for column in shown)
    step = figures.nice_step(highest, _STEPS) if highest else 1.0
    top = math.ceil(highest / step - 1e-9) * step or 1.0
    steps = [index * step for index in range(round(top / step) + 1)]
    scale = tag("svg", class_="scale", width=_SCALE_PX, height=_ABOVE_PX + _PLOT_PX + 6, aria_hidden="true")
    plot = tag("svg", y=_ABOVE_PX, width="100%", height=_PLOT_PX, overflow="visible")
    for value in steps:
        y = _percent(1 - value / top)
        plot.append(tag("line", x1="0", x2="100%", y1=y, y2=y, class_="axis" if value == 0 else "grid"))
        at = _ABOVE_PX + _PLOT_PX * (1 - value / top) + 4
        scale.append(tag("text", figures.short(value), x=_SCALE_PX - 6, y=at, text_anchor="end"))
    for index, column in enumerate(shown):
        plot.append(_column(column, index / len(shown), 1 / len(shown), top))
    height = _ABOVE_PX + _PLOT_PX + _BELOW_PX
    drawn = tag("svg", plot, *_labels(labels, height - 6), width="100%", height=height)
    return tag("div", scale, drawn, class_="chart", role="img", aria_label=name)


def _column(column: Column, at: float, width: float, top: float) -> Element:
    group = tag("g", tag("title", column.title))
    # So that it can be pointed at where it is low.
    group.append(tag("rect", x=_percent(at), width=_percent(width), y="0", height="100%", class_="touch"))
    below = 0.0
    for kind, value in column.stack:
        if value <= 0:
            continue
        height = max(value / top * 100, _LEAST)
        group.append(
            tag(
                "rect",
                x=_percent(at + 0.06 * width),
                width=_percent(0.88 * width),
                y=f"{100 - below - height:.6g}%",
                height=f"{height:.6g}%",
                class_=kind,
            )
        )
        below += height
    return group


def _labels(labels: Sequence[Label], y: float) -> list[Element]:
    found = []
    every = -(-len(labels) // _MOST_LABELS)
    for index, label in enumerate(labels):
        anchor = "start" if label.at < 0.04 else "end" if label.at > 0.96 else "middle"
        kind = "label" if index % every == 0 else "label minor"
        found.append(tag("text", label.text, x=_percent(label.at), y=y, text_anchor=anchor, class_=kind))
    return found


class Piece(NamedTuple):
    """A piece of a strip."""

    kind: str
    length: float
    title: str


def strip(name: str, pieces: Sequence[Piece]) -> Element:
    """Pieces end to end, each as wide as its share; the shortest can still be seen."""
    total = sum(piece.length for piece in pieces) or 1.0
    widths = [max(piece.length / total * 100, _LEAST) for piece in pieces]
    scale = 100 / (sum(widths) or 1.0)
    drawn = tag("svg", width="100%", height=28, role="img", aria_label=name)
    at = 0.0
    for piece, width in zip(pieces, widths, strict=True):
        place = {"x": f"{at * scale:.6g}%", "width": f"{width * scale:.6g}%"}
        drawn.append(tag("rect", tag("title", piece.title), y=0, height=28, class_=piece.kind, **place))
        at += width
    return drawn


def bar(name: str, share: float, kind: str) -> Element:
    """A bar that is filled to a share of its width."""
    width = 0.0 if share <= 0 else max(min(share, 1.0) * 100, _LEAST)
    return tag(
        "svg",
        tag("rect", width="100%", height=8, rx=4, class_="track"),
        tag("rect", width=f"{width:.6g}%", height=8, rx=4, class_=kind),
        width="100%",
        height=8,
        role="img",
        aria_label=name,
    )


def _percent(share: float) -> str:
    return f"{share * 100:.6g}%"
