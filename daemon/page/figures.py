"""Figures as people read them: counts, durations, times, and steps of an axis."""

from __future__ import annotations

import math
from datetime import UTC, datetime

_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def short(number: float) -> str:
    """Three digits that count: 950, 1.2k, 34.5M, 0.07."""
    for size, unit in _UNITS:
        if abs(number) >= size * 0.9995:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def span(seconds: float) -> str:
    """A duration in the two units that count: 340 ms, 4.2 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    if seconds < 0:
        return f"-{span(-seconds)}"
    if seconds < 0.9995:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    for size, unit, part_size, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = round((whole % size) / part_size)
            if rest * part_size == size:
                return span((whole // size + 1) * size)  # the other unit may be full by that, too
            return f"{whole // size} {unit} {rest} {part}" if rest else f"{whole // size} {unit}"
    raise AssertionError


def moment(at: float) -> str:
    """A time in UTC, to the second."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"


def percent(share: float) -> str:
    """A share; what is neither none nor all never looks like it."""
    if 0 < share < 0.001:
        return "< 0.1 %"
    if 0.999 < share < 1:
        return "> 99.9 %"
    return f"{share * 100:.3g} %"


def nice_step(span_: float, most: int) -> float:
    """The smallest of 1, 2, 5, 10, 20, … (or 0.5, 0.2, …) that cuts a span into at most so many pieces."""
    least = span_ / most
    size = 10.0 ** math.floor(math.log10(least))
    for factor in (1, 2, 5):
        if factor * size >= least * (1 - 1e-9):
            return factor * size
    return 10 * size
