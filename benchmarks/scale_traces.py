"""What is simulated from outside: arrivals of batches, and when the spot zones have nodes.

All of it is drawn from seeded streams of its own, one thing at a time and in the order of time, so that
memory does not grow with the trace and nothing depends on what a scheduler does with it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
# Lines of a batch: lognormal, a median of 400 and a mean of about 1,200, none of more than 40,000.
MEDIAN_LINES, SIGMA, MOST_LINES = 400, 1.5, 40_000
# OpenAI's window, and for this share of the batches one that is 1.2 to 2 times what the batch takes alone on
# a node.
WINDOW_S, TIGHT_SHARE, TIGHT, LEAST_WINDOW_S = DAY_S, 0.4, (1.2, 2.0), HOUR_S
# The diurnal trace swings by this share around its mean, lowest at 3 and highest at 15 o'clock.
SWING = 0.8
# Bursts: three tenths of all lines, about one burst an hour, in files of 10 to 100 lines.
BURST_SHARE, BURST_EVERY_S, BURST_LINES = 0.3, HOUR_S, (10, 100)
# Long batches, as in the paper: 5.6 to 22 h on a node, and windows of 1.1 to 1.7 times that (there: up to
# 1.67).
LONG_LINES, LONG_TIGHT = (20_000, 80_000), (1.1, 1.7)


class Arrival(NamedTuple):
    """A file that is dropped.

    Attributes:
        at: seconds since the begin of the trace.
        window_s: seconds from claim to deadline.
        is_tight: whether the window goes by its size.
    """

    at: float
    lines: int
    window_s: float
    is_tight: bool


class Zone(NamedTuple):
    """A zone of spot nodes: all of its nodes can be had, or none.

    Attributes:
        on_s, off_s: mean seconds of a period; periods are drawn from exponential distributions.
    """

    name: str
    on_s: float
    off_s: float

    @property
    def availability(self) -> float:
        """Share of the time in which its nodes can be had."""
        return self.on_s / (self.on_s + self.off_s)


# Mean periods of the nine zones of the 45 days' trace of one V100 from 15 February 2023 that belongs to
# "Can't Be Late" (NSDI 2024, github.com/skypilot-org/spot-traces, availability/1-node/aws-02-15-2023), in
# hours. There the median of a period is 0.3 to 1.3 h, so the real ones have more short and more very long
# periods than these.
ZONES = tuple(
    Zone(name, on_h * HOUR_S, off_h * HOUR_S)
    for name, on_h, off_h in (
        ("us-east-1a", 0.72, 3.59),
        ("us-east-1c", 1.48, 1.69),
        ("us-east-1d", 1.66, 2.05),
        ("us-east-1f", 2.18, 1.56),
        ("us-east-2a", 5.51, 1.80),
        ("us-east-2b", 4.27, 1.98),
        ("us-west-2a", 5.74, 0.81),
        ("us-west-2b", 9.68, 1.10),
        ("us-west-2c", 6.45, 0.84),
    )
)

Trace = Callable[[int, int, float, float], Iterator[Arrival]]


def poisson(seed: int, lines: int, lines_per_s: float, node_rate: float) -> Iterator[Arrival]:
    """Batches of mixed sizes, evenly over the time.

    Args:
        seed: of all that is drawn.
        lines: of all batches together.
        lines_per_s: that arrive, on average.
        node_rate: lines per second of a node, by which the tight windows go.
    """
    return _up_to(lines, _mixed(random.Random(f"poisson/{seed}"), lines_per_s, node_rate, swing=0.0))


def diurnal(seed: int, lines: int, lines_per_s: float, node_rate: float) -> Iterator[Arrival]:
    """The same, by day up to nine times as many as by night; arguments as `poisson`."""
    return _up_to(lines, _mixed(random.Random(f"diurnal/{seed}"), lines_per_s, node_rate, swing=SWING))


def bursts(seed: int, lines: int, lines_per_s: float, node_rate: float) -> Iterator[Arrival]:
    """Most lines as `poisson`, the others in hundreds of small files at once; arguments as `poisson`."""
    rng = random.Random(f"bursts/{seed}")
    calm = _mixed(random.Random(f"calm/{seed}"), (1 - BURST_SHARE) * lines_per_s, node_rate, swing=0.0)
    small = _small_files(rng, BURST_SHARE * lines_per_s, node_rate)
    return _up_to(lines, _merged(calm, small))


def long(seed: int, lines: int, lines_per_s: float, node_rate: float) -> Iterator[Arrival]:
    """Few batches that each need a node for many hours, all with tight windows; arguments as `poisson`."""
    return _up_to(lines, _long(random.Random(f"long/{seed}"), lines_per_s, node_rate))


TRACES: dict[str, Trace] = {"poisson": poisson, "diurnal": diurnal, "bursts": bursts, "long": long}


def toggles(zone: Zone, seed: int) -> tuple[bool, Iterator[float]]:
    """Whether a zone has its nodes at second 0, and the seconds at which that changes, without end."""
    rng = random.Random(f"zone/{seed}/{zone.name}")
    is_on = rng.random() < zone.availability

    def changes() -> Iterator[float]:
        at, state = 0.0, is_on
        while True:
            at += rng.expovariate(1 / (zone.on_s if state else zone.off_s))
            state = not state
            yield at

    return is_on, changes()


def mean_lines() -> float:
    """Lines of a batch of mixed size, on average, but for the bound."""
    return MEDIAN_LINES * math.exp(SIGMA**2 / 2)


def _mixed(rng: random.Random, lines_per_s: float, node_rate: float, swing: float) -> Iterator[Arrival]:
    """By thinning: drawn at the highest rate, and kept with the share that the hour has of it."""
    at, most_per_s = 0.0, lines_per_s / mean_lines() * (1 + swing)
    while True:
        at += rng.expovariate(most_per_s)
        share = (1 - swing * math.cos(2 * math.pi * (at / DAY_S - 3 / 24))) / (1 + swing)
        if rng.random() < share:
            lines = max(1, min(MOST_LINES, round(rng.lognormvariate(math.log(MEDIAN_LINES), SIGMA))))
            yield _arrival(rng, at, lines, node_rate)


def _long(rng: random.Random, lines_per_s: float, node_rate: float) -> Iterator[Arrival]:
    at = 0.0
    while True:
        at += rng.expovariate(lines_per_s / (sum(LONG_LINES) / 2))
        lines = rng.randint(*LONG_LINES)
        yield Arrival(at, lines, rng.uniform(*LONG_TIGHT) * lines / node_rate, is_tight=True)


def _small_files(rng: random.Random, lines_per_s: float, node_rate: float) -> Iterator[Arrival]:
    mean_files = BURST_EVERY_S * lines_per_s / (sum(BURST_LINES) / 2)
    at = 0.0
    while True:
        at += rng.expovariate(1 / BURST_EVERY_S)
        for _ in range(max(1, round(rng.uniform(0.2, 1.8) * mean_files))):
            yield _arrival(rng, at, rng.randint(*BURST_LINES), node_rate)


def _arrival(rng: random.Random, at: float, lines: int, node_rate: float) -> Arrival:
    is_tight = rng.random() < TIGHT_SHARE
    factor = rng.uniform(*TIGHT)
    window_s = max(LEAST_WINDOW_S, factor * lines / node_rate) if is_tight else WINDOW_S
    return Arrival(at, lines, window_s, is_tight)


def _merged(*streams: Iterator[Arrival]) -> Iterator[Arrival]:
    """By time; heapq.merge would do, but looks one further into the future than is asked for."""
    heads = [next(stream) for stream in streams]
    while True:
        first = min(range(len(heads)), key=lambda n: heads[n].at)
        yield heads[first]
        heads[first] = next(streams[first])


def _up_to(lines: int, stream: Iterator[Arrival]) -> Iterator[Arrival]:
    """The first arrivals, until they hold so many lines; the last is cut."""
    left = lines
    while left > 0:
        arrival = next(stream)
        yield arrival._replace(lines=min(left, arrival.lines))
        left -= arrival.lines
