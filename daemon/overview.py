"""What `top` shows: the batches that go on, and the queue, pools and engines of a daemon that answers."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from daemon import outbox
from daemon.follow import span

# For a daemon to answer, seconds; on one machine it takes milliseconds.
SCRAPE_S = 2.0


class Numbers(NamedTuple):
    """A daemon's metrics: by name, (labels, value) of each series."""

    series: dict[str, list[tuple[dict[str, str], float]]]

    def of(self, name: str, label: str) -> dict[str, float]:
        """Values of a metric by one of its labels, added up over the others."""
        found: dict[str, float] = {}
        for labels, value in self.series.get(name, []):
            found[labels.get(label, "")] = found.get(labels.get(label, ""), 0.0) + value
        return found

    def sum(self, name: str) -> float:
        """All series of a metric added up."""
        return sum(value for _, value in self.series.get(name, []))


def scrape(url: str) -> Numbers | None:
    """What a daemon's /metrics says; None where nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=SCRAPE_S) as answer:  # noqa: S310 (the user's own choice)
            text = answer.read().decode()
    except (OSError, urllib.error.URLError, ValueError):
        return None
    series: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            series.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return Numbers(series)


def panel(
    active: Sequence[outbox.Shown],
    waiting: int,
    numbers: Numbers | None,
    now: float,
    *,
    url: str,
    is_served: bool,
) -> RenderableType:
    """Everything, for a terminal.

    Args:
        active: batches that go on.
        waiting: drops in the inbox.
        numbers: None where no daemon answered.
        now: Unix seconds.
        url: where it was asked.
        is_served: whether a daemon holds a live lease.
    """
    parts: list[RenderableType] = [_head(active, waiting)]
    if numbers:
        parts += [_pools(numbers), _engines(numbers)]
    else:
        parts.append(
            Text(f"no daemon answers at {url} (--metrics names another): no queue, pools, engines", "dim")
        )
    if not is_served:
        parts.append(Text(outbox.UNSERVED, "yellow"))
    return Group(*parts, Text(), _batches(active, now))


def _head(active: Sequence[outbox.Shown], waiting: int) -> Text:
    rate = sum(shown.extra["progress"]["requests_per_s"] or 0.0 for shown in active)
    tokens = sum(shown.extra["progress"]["tokens_per_s"] or 0.0 for shown in active)
    at_risk = sum(bool(shown.extra["sla"]["at_risk"]) for shown in active)
    head = Text(f"{waiting:,} in the inbox   {len(active):,} batches   ", "bold")
    head.append(f"{rate:,.1f} requests/s   {tokens:,.0f} tokens/s", "")
    if at_risk:
        head.append(f"   {at_risk} AT RISK", "red")
    return head


def _pools(numbers: Numbers) -> Text:
    capacity, free = numbers.of("batchd_pool_capacity", "pool"), numbers.of("batchd_pool_available", "pool")
    pools = [f"{pool} {capacity[pool] - free.get(pool, 0.0):.0f}/{capacity[pool]:.0f}" for pool in capacity]
    return Text(f"queue {numbers.sum('batchd_queue_depth'):.0f}   pools {'   '.join(pools)}")


def _engines(numbers: Numbers) -> Text:
    up, inside = numbers.of("batchd_engine_up", "model"), numbers.of("batchd_inflight_requests", "model")
    wanted = numbers.of("batchd_engine_replicas_wanted", "model")
    engines = Text("engines")
    for model, count in up.items():
        if count:
            state, style = f"{inside.get(model, 0.0):.0f} requests inside", ""
        elif wanted.get(model):
            state, style = "down or starting", "red"
        else:
            state, style = "stopped", "dim"
        engines.append(f"   {model} ").append(state, style)
    return engines


def _batches(active: Sequence[outbox.Shown], now: float) -> RenderableType:
    if not active:
        return Text("no batch goes on", "dim")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("batch", "where", "pool"):
        table.add_column(name, overflow="ellipsis", no_wrap=True)
    for name in ("done", "of", "failed", "requests/s", "ends in", "deadline in"):
        table.add_column(name, justify="right", no_wrap=True)
    for shown in active:
        total, completed, failed = shown.counts
        progress = shown.extra["progress"]
        rate, eta = progress["requests_per_s"], progress["eta_at"]
        is_late = shown.extra["sla"]["at_risk"] or shown.tree["expires_at"] < now
        table.add_row(
            shown.name,
            str(shown.extra["phase"]),
            shown.extra["pool"] or "",
            f"{completed + failed:,}",
            f"{total:,}",
            Text(f"{failed:,}", "red" if failed else ""),
            f"{rate:,.1f}" if rate else "",
            span(eta - now) if eta else "",
            Text(span(shown.tree["expires_at"] - now), "red" if is_late else ""),
        )
    return table
