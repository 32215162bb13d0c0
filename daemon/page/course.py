"""Sections on the course of a batch: its states, its deadline, its pools, what it cost, and what it is."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from daemon.page import charts, figures, history
from daemon.page.blocks import known, legend, section
from daemon.page.charts import Piece
from daemon.page.elements import Child, tag
from daemon.page.facts import Facts
from daemon.page.history import PoolUse, Stretch

_NAMES = {
    "validating": "validating",
    "queued": "waiting in the queue",
    "spot": "running in spot",
    "dedicated": "running in dedicated",
    "running": "running",
    "preempted": "pre-empted, waiting",
    "merging": "merging",
}
# In the list of steps; what is between is folded away.
_MOST_STEPS = 12


def _kind(stretch: Stretch) -> str:
    if stretch.phase == "running":
        return stretch.pool if stretch.pool in ("spot", "dedicated") else "running"
    if stretch.phase == "preempted" and not history.is_preemption(stretch):
        return "queued"
    return stretch.phase


def states(found: Sequence[Stretch], facts: Facts) -> Element:
    """What it did when."""
    pieces = [
        Piece(
            _kind(each), each.seconds, f"{_NAMES.get(_kind(each), each.phase)}: {figures.span(each.seconds)}"
        )
        for each in found
    ]
    kinds = dict.fromkeys(piece.kind for piece in pieces)
    chart = tag(
        "figure",
        charts.strip("States over time", pieces),
        legend(*((kind, f"{_NAMES.get(kind, kind)} {_total(pieces, kind)}") for kind in kinds)),
    )
    notes: list[Child] = []
    if any(history.is_adoption(each) for each in found):
        note = (
            "A daemon took it up again: when the one before ended is not recorded, so what stands before "
            "that includes the time in which nobody worked on it."
        )
        notes.append(tag("p", note, class_="soft"))
    if not history.is_complete(facts.shown.extra):
        notes.append(tag("p", "Its history is long, and the middle of it was dropped.", class_="warn"))
    return section("Timeline", chart, *_steps(found, facts), *notes)


def _total(pieces: Sequence[Piece], kind: str) -> str:
    return figures.span(sum(piece.length for piece in pieces if piece.kind == kind))


def _steps(found: Sequence[Stretch], facts: Facts) -> list[Child]:
    rows = [
        _step(each.began, _NAMES.get(_kind(each), each.phase), figures.span(each.seconds), each.why)
        for each in found
    ]
    if facts.shown.is_terminal:
        end = facts.shown.extra["history"][-1]
        rows.append(_step(end["at"], facts.shown.status, "", end["reason"]))
    if len(rows) <= _MOST_STEPS:
        return [tag("ol", *rows, class_="steps")]
    half = _MOST_STEPS // 2
    middle = tag(
        "details",
        tag("summary", f"{len(rows) - 2 * half} more"),
        tag("ol", *rows[half:-half], class_="steps"),
    )
    return [tag("ol", *rows[:half], class_="steps"), middle, tag("ol", *rows[-half:], class_="steps")]


def _step(at: float, name: str, took: str, why: str) -> Element:
    return tag(
        "li",
        tag("span", figures.moment(at), class_="when soft"),
        tag("strong", name),
        tag("span", took),
        tag("span", why, class_="why"),
    )


def deadline(facts: Facts) -> Element:
    """How much of its window was left."""
    sla = facts.shown.extra["sla"]
    ended = facts.shown.is_terminal
    at = facts.shown.extra["history"][-1]["at"] if ended else facts.at
    window, margin = sla["deadline_at"] - sla["submitted_at"], sla["deadline_at"] - at
    share = (at - sla["submitted_at"]) / window if window > 0 else 1.0
    told = margin_text(margin, ended=ended)
    kind = "bad" if margin < 0 or sla["at_risk"] else "good"
    numbers = {
        "deadline": figures.moment(sla["deadline_at"]),
        "window": figures.span(window),
        "used": figures.percent(max(0.0, min(share, 1.0))),
    }
    notes: list[Child] = []
    if sla["at_risk"]:
        notes.append(tag("p", "At the speed measured so far it will probably be late.", class_="warn"))
    return section(
        "Deadline",
        tag("p", tag("strong", told)),
        charts.bar(f"used: {numbers['used']}", share, kind),
        known(numbers),
        *notes,
    )


def margin_text(margin_s: float, *, ended: bool) -> str:
    """The margin in words."""
    if ended:
        return f"ended {figures.span(abs(margin_s))} {'after' if margin_s < 0 else 'before'} its deadline"
    return f"{figures.span(margin_s)} left" if margin_s >= 0 else f"{figures.span(-margin_s)} too late"


def pools(uses: Sequence[PoolUse]) -> Element | None:
    """Where it ran, and why there; None where it did not run."""
    if not uses:
        return None
    children: list[Child] = []
    for each in uses:
        reasons = ", ".join(
            f"{reason} {count:,}" if len(each.reasons) > 1 else reason
            for reason, count in each.reasons.items()
        )
        numbers = {"runs": f"{each.runs:,}", "time": figures.span(each.seconds), "why": reasons}
        if each.preemptions:
            numbers["pre-empted"] = f"{each.preemptions:,}"
        children += [tag("h3", each.pool), known(numbers)]
    return section("Pools", *children)


def cost(uses: Sequence[PoolUse], facts: Facts) -> Element | None:
    """What it cost; None where no pool that it used has a price."""
    if not any(each.price_per_hour for each in uses):
        return None
    if not history.is_complete(facts.shown.extra):
        text = "Cannot be told: the middle of its long history was dropped, and runs with it."
        return section("Cost", tag("p", text, class_="soft"))
    total = sum(each.cost for each in uses)
    lines = [
        f"{each.pool}: {figures.span(each.seconds)} at {each.price_per_hour:g} an hour = {money(each.cost)}"
        if each.price_per_hour
        else f"{each.pool}: {figures.span(each.seconds)}, without a price"
        for each in uses
    ]
    note = (
        "In the currency of scheduler.pools.*.price_per_hour, which is the price of an hour of one run, as "
        "the settings are now. Small batches of one model may share a run: its whole price then counts for "
        "each, so this is the most that it can have cost."
    )
    per = {}
    _, completed, _ = facts.shown.counts
    if completed:
        per["for 1,000 answers"] = money(total / completed * 1000)
    usage = facts.shown.extra["usage"]
    if usage and usage["total_tokens"]:
        per["for 1M tokens"] = money(total / usage["total_tokens"] * 1e6)
    return section(
        "Cost",
        known({"at most": money(total), **per}),
        *(tag("p", line) for line in lines),
        tag("p", note, class_="soft"),
    )


def money(amount: float) -> str:
    """An amount with two digits behind the point, or three that count if it is small."""
    return f"{amount:,.2f}" if amount >= 1 or amount == 0 else f"{amount:.3g}"


def validation(facts: Facts) -> Element | None:
    """What validation found; None if that was nothing."""
    found = (facts.shown.tree["errors"] or {}).get("data", [])
    if not found:
        return None
    rows = [
        tag(
            "li",
            tag("strong", "the file" if each["line"] is None else f"line {each['line']:,}"),
            " ",
            tag("code", each["code"]),
            tag("p", each["message"]),
        )
        for each in found
    ]
    return section("Errors of validation", tag("ul", *rows, class_="kinds"))


def details(facts: Facts) -> Element:
    """What it is, and what its user and batchd noted about it."""
    tree, extra = facts.shown.tree, facts.shown.extra
    noted: list[tuple[str, str | None]] = [
        ("file", tree["input_file_id"]),
        ("model", tree["model"]),
        ("endpoint", tree["endpoint"]),
        ("batch", tree["id"]),
        ("submission", extra["submission"]),
        *((f"metadata: {key}", value) for key, value in (tree["metadata"] or {}).items()),
        *(("warning", each) for each in extra["warnings"]),
    ]
    pairs = [each for name, text in noted if text for each in (tag("dt", name), tag("dd", text))]
    return section("Details", tag("dl", *pairs, class_="facts"))
