"""Sections on the work itself: throughput, latency, tokens, errors."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from daemon.page import charts, figures
from daemon.page.blocks import known, legend, missing, section
from daemon.page.charts import Column, Label
from daemon.page.elements import Child, tag
from daemon.page.facts import Facts
from daemon.page.lengths import Lengths
from daemon.page.results import Results
from spool.record import Latency, Timeline

# More would be too thin on a phone; with as many as there are parts it would be those that one sees.
_MOST_COLUMNS, _LEAST_COLUMNS, _INTERVALS_PER_COLUMN = 50, 8, 3
_MOST_TICKS = 6
_DURATIONS = (
    *(step * 10.0**size for size in range(-4, 1) for step in (1, 2, 5)),
    *(
        10,
        15,
        30,
        60,
        120,
        300,
        600,
        900,
        1800,
        3600,
        7200,
        14400,
        21600,
        43200,
        86400,
        172800,
        432000,
        864000,
    ),
)


def throughput(facts: Facts, running_s: float) -> Element:
    """Results and tokens by time."""
    timeline = facts.timeline
    if timeline is None:
        return section("Throughput", missing(facts.why_no_timeline))
    done, tokens = sum(timeline.completed) + sum(timeline.failed), sum(timeline.tokens)
    numbers = {"results": f"{done:,}"}
    if running_s > 0:
        numbers |= {
            "while running": f"{figures.short(done / running_s)} requests/s",
            "tokens": f"{figures.short(tokens / running_s)} tokens/s",
        }
    note = (
        "A result counts when it is durable, with the other requests of its shard (up to 128), so short "
        "batches look uneven. Times are those of the files, by the volume's clock. Tokens are those of "
        "prompts and answers."
    )
    drawn: list[Child] = []
    if len(timeline.completed) > 1 and timeline.interval_s > 0:
        failed = [("bad", "failed")] if any(timeline.failed) else []
        drawn = [_rates(timeline), legend(("good", "answered"), *failed), *_token_rates(timeline)]
    return section("Throughput", known(numbers), *drawn, tag("p", note, class_="soft"))


def _grouped(timeline: Timeline) -> tuple[float, list[tuple[int, int, int]]]:
    """Seconds of an interval as it is drawn, and (completed, failed, tokens) of each."""
    count = len(timeline.completed)
    size = -(-count // min(_MOST_COLUMNS, max(_LEAST_COLUMNS, count // _INTERVALS_PER_COLUMN)))
    rows = list(zip(timeline.completed, timeline.failed, timeline.tokens, strict=True))
    sums = []
    for start in range(0, len(rows), size):
        completed, failed, tokens = map(sum, zip(*rows[start : start + size], strict=True))
        sums.append((completed, failed, tokens))
    return timeline.interval_s * size, sums


def _rates(timeline: Timeline) -> Element:
    seconds, sums = _grouped(timeline)
    shown = [
        Column(
            [("good", completed / seconds), ("bad", failed / seconds)],
            f"{_when(index, seconds)}: {completed:,} answered, {failed:,} failed",
        )
        for index, (completed, failed, _) in enumerate(sums)
    ]
    return tag(
        "figure",
        tag("figcaption", "Results a second, by time since its first run began"),
        charts.columns("Results a second over time", shown, _time_labels(seconds * len(sums))),
    )


def _token_rates(timeline: Timeline) -> list[Child]:
    if not any(timeline.tokens):
        return []
    seconds, sums = _grouped(timeline)
    shown = [
        Column([("third", tokens / seconds)], f"{_when(index, seconds)}: {tokens:,} tokens")
        for index, (_, _, tokens) in enumerate(sums)
    ]
    chart = charts.columns("Tokens a second over time", shown, _time_labels(seconds * len(sums)))
    return [tag("h3", "Tokens a second"), tag("figure", chart)]


def _when(index: int, seconds: float) -> str:
    return f"{figures.span(index * seconds)} to {figures.span((index + 1) * seconds)}"


def _time_labels(span_s: float) -> list[Label]:
    step = next((each for each in _DURATIONS if span_s / each <= _MOST_TICKS), span_s)
    count = int(span_s / step * (1 + 1e-9))
    return [
        Label(index * step / span_s, figures.span(index * step) if index else "0")
        for index in range(count + 1)
    ]


def latency(facts: Facts) -> Element:
    """How long the engine took for each answer."""
    if facts.latency is None:
        return section("Latency", missing(facts.why_no_latency))
    found = facts.latency
    note = (
        "From the moment in which a request was given to the engine to its answer, with its wait inside the "
        "engine and without that in batchd's queue. Recorded in buckets, so shares are said as bounds. "
        "Failed requests, and those that took the answer of an identical one, are left out."
    )
    bounds = {f"{share * 100:g} %": _bound(found, share) for share in (0.5, 0.9, 0.99)}
    first, last = _used(found.counts)
    edges = (0.0, *found.bounds_s)
    shown, labels = [], []
    width = last - first + 1
    for index in range(first, last + 1):
        is_open = index == len(found.bounds_s)
        to = "more" if is_open else figures.span(found.bounds_s[index])
        title = f"{figures.span(edges[index]) if index else '0'} to {to}: {found.counts[index]:,}"
        shown.append(Column([("good", found.counts[index])], title))
        labels.append(Label((index - first) / width, figures.span(edges[index]) if index else "0"))
    labels.append(Label(1.0, "∞" if last == len(found.bounds_s) else figures.span(found.bounds_s[last])))
    return section(
        "Latency",
        known({"answers": f"{sum(found.counts):,}", **bounds}),
        tag(
            "figure",
            tag("figcaption", "Answers by the time that the engine took"),
            charts.columns("Answers by latency", shown, labels),
        ),
        tag("p", note, class_="soft"),
    )


def _used(counts: Sequence[int]) -> tuple[int, int]:
    """The first and the last bucket to show: an empty one stands at each end, where there is one."""
    used = [index for index, count in enumerate(counts) if count]
    return max(0, used[0] - 1), min(len(counts) - 1, used[-1] + 1)


def _bound(found: Latency, share: float) -> str:
    """What this share of the answers took at most."""
    wanted, seen = share * sum(found.counts), 0
    for index, count in enumerate(found.counts):
        seen += count
        if seen >= wanted:
            is_open = index == len(found.bounds_s)
            return (
                f"> {figures.span(found.bounds_s[-1])}"
                if is_open
                else f"≤ {figures.span(found.bounds_s[index])}"
            )
    raise AssertionError


def tokens(facts: Facts) -> Element:
    """How long prompts and answers were."""
    if facts.results is None:
        return section("Tokens", missing(facts.why_no_results))
    found = facts.results
    children: list[Child] = []
    for title, name, lengths in (
        ("Answers", "answers", found.outputs),
        ("Prompts", "prompts", found.inputs),
    ):
        if lengths.total:
            children += _lengths(title, name, lengths)
    if found.unread_answers:
        text = f"{found.unread_answers:,} answers do not say their tokens, or cannot be read."
        children.append(tag("p", text, class_="soft"))
    return section("Tokens", *children or [tag("p", "There is no answer.", class_="soft")])


def _lengths(title: str, name: str, lengths: Lengths) -> list[Child]:
    bins = lengths.bins()
    shown = [
        Column([("good", each.answers)], f"{_range(each.low, each.high)} tokens: {each.answers:,} {name}")
        for each in bins
    ]
    every = -(-len(bins) // (2 * _MOST_TICKS))
    middle = 0.5 if all(each.low == each.high for each in bins) else 0.0
    labels = [
        Label((index + middle) / len(bins), figures.short(each.low))
        for index, each in enumerate(bins[:-1])
        if index % every == 0 and index + every < len(bins)
    ]
    is_open = bins[-1].high - bins[-1].low > 2 * (bins[0].high - bins[0].low)
    last = f"{figures.short(bins[-1].low)}{'+' if is_open else ''}"
    labels.append(Label(1 - (1 - middle) / len(bins), last))
    return [
        tag("h3", title),
        known(
            {
                "total": f"{lengths.total:,}",
                "mean": figures.short(lengths.total / lengths.count),
                "median": f"{lengths.quantile(0.5):,}",
                "99 %": f"≤ {lengths.quantile(0.99):,}",
                "longest": f"{lengths.longest:,}",
            }
        ),
        tag(
            "figure",
            tag("figcaption", f"{title} by their length in tokens"),
            charts.columns(f"{title} by length", shown, labels),
        ),
    ]


def _range(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def errors(facts: Facts, failed: int) -> Element:
    """What failed, by code."""
    if not failed:
        return section("Errors", tag("p", "None: every request so far was answered.", class_="soft"))
    if facts.results is None:
        return section("Errors", tag("p", f"{failed:,} requests failed."), missing(facts.why_no_results))
    return section("Errors", *_kinds(facts.results, failed))


def _kinds(results: Results, failed: int) -> list[Child]:
    rows = []
    for code, kind in sorted(results.errors.items(), key=lambda item: -item[1].count):
        share = kind.count / failed
        head = tag(
            "div",
            tag("strong", code),
            tag("span", f"{kind.count:,} · {figures.percent(share)}"),
            class_="head",
        )
        example = (
            [": ", kind.message]
            if kind.custom_id is None
            else [" ", tag("code", kind.custom_id), ": ", kind.message]
        )
        rows.append(
            tag(
                "li",
                head,
                charts.bar(f"{code}: {kind.count}", share, "bad"),
                tag("p", "The first", *example, class_="soft"),
            )
        )
    children: list[Child] = [tag("ul", *rows, class_="kinds")]
    if results.unread_failures:
        text = f"{results.unread_failures:,} lines of errors.jsonl cannot be read."
        children.append(tag("p", text, class_="soft"))
    return children
