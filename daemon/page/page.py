"""The whole page: what is known of a batch goes in, HTML comes out that needs nothing else."""

from __future__ import annotations

from xml.etree.ElementTree import Element

from config.settings import PoolsSettings
from daemon.page import course, figures, history, progress, style
from daemon.page.elements import Child, document, tag
from daemon.page.facts import Facts


def render(facts: Facts, prices: PoolsSettings) -> bytes:
    """A page about a batch.

    Args:
        facts: what is known of it.
        prices: of its pools, as they are set now.
    """
    extra = facts.shown.extra
    found = history.stretches(extra["history"], facts.at)
    uses = history.pools(found, prices)
    running_s = sum(each.seconds for each in found if each.phase == "running")
    if not history.is_complete(extra):
        running_s = 0.0  # unknown
    total, _, failed = facts.shown.counts
    work: list[Child] = []
    if total:
        work = [
            progress.throughput(facts, running_s),
            progress.latency(facts),
            progress.tokens(facts),
            progress.errors(facts, failed),
        ]
    return document(
        f"{facts.shown.name} · batchd",
        style.CSS,
        tag("header", *_head(facts)),
        _tiles(facts, running_s),
        course.validation(facts),
        course.states(found, facts),
        *work,
        course.deadline(facts),
        course.pools(uses),
        course.cost(uses, facts),
        course.details(facts),
        tag("footer", f"Made by batchd report, {figures.moment(facts.at)}.", class_="soft"),
    )


def _head(facts: Facts) -> list[Child]:
    shown = facts.shown
    line: list[Child] = [tag("span", shown.stage, class_=f"status {shown.status}")]
    if not shown.is_terminal:
        line.append(tag("span", f"as of {figures.moment(facts.at)}; it has not ended yet", class_="soft"))
    elif facts.why_no_results:
        line.append(tag("span", facts.why_no_results, class_="warn"))
    return [tag("h1", shown.name), tag("div", *line), *_reason(facts)]


def _reason(facts: Facts) -> list[Child]:
    history_ = facts.shown.extra["history"]
    return [tag("p", history_[-1]["reason"])] if history_ else []


def _tiles(facts: Facts, running_s: float) -> Element:
    total, completed, failed = facts.shown.counts
    sla, usage = facts.shown.extra["sla"], facts.shown.extra["usage"]
    ended = facts.shown.is_terminal
    at = facts.shown.extra["history"][-1]["at"] if ended else facts.at
    tiles = [
        _tile("requests", f"{total:,}", _shared(facts)),
        _tile("answered", f"{completed:,}", figures.percent(completed / total) if total else ""),
        _tile("failed", f"{failed:,}", figures.percent(failed / total) if total else ""),
        _tile("took" if ended else "so far", figures.span(at - sla["submitted_at"]), _running(running_s)),
        _tile("deadline", *_margin(sla["deadline_at"] - at, ended=ended)),
    ]
    if usage and total:
        detail = f"{figures.short(usage['input_tokens'])} in, {figures.short(usage['output_tokens'])} out"
        tiles.append(_tile("tokens", figures.short(usage["total_tokens"]), detail))
    elif facts.shown.extra["progress"]["eta_at"]:
        eta = facts.shown.extra["progress"]["eta_at"]
        tiles.append(
            _tile("expected end", f"in {figures.span(max(0.0, eta - facts.at))}", figures.moment(eta))
        )
    return tag("dl", *tiles, class_="tiles")


def _tile(name: str, value: str, detail: str = "") -> Element:
    return tag("div", tag("dt", name), tag("dd", value, tag("small", detail) if detail else None))


def _shared(facts: Facts) -> str:
    shared = facts.shown.extra.get("shared_requests") or 0
    return f"{shared:,} took the answer of an identical one" if shared else ""


def _running(running_s: float) -> str:
    return f"{figures.span(running_s)} of it running" if running_s else ""


def _margin(margin_s: float, *, ended: bool) -> tuple[str, str]:
    text = figures.span(abs(margin_s))
    if ended:
        return text, "too late" if margin_s < 0 else "left at the end"
    return text, "too late" if margin_s < 0 else "left"
