"""Pages for tests: one that shows all there is, and a reader that refuses elements which ours do not have."""

from __future__ import annotations

import random
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import orjson

from daemon import outbox
from daemon.page.facts import Facts
from daemon.page.results import Kind, Results
from spool import latency, status
from spool.parts import PartName
from spool.record import Final, Phase, Sidecar, Status, UsageTotals
from spool.timeline import Pace
from tests import spools

_OURS = {
    *(
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "header",
        "section",
        "footer",
        "div",
        "p",
        "span",
        "small",
    ),
    *("h1", "h2", "h3", "dl", "dt", "dd", "ul", "ol", "li", "strong", "code", "details", "summary"),
    *("figure", "figcaption", "svg", "g", "rect", "line", "text"),
}


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in _OURS, tag
        self._in_style = tag == "style"
        for name, value in attrs:
            assert not name.startswith("on"), (tag, name)
            assert name not in ("src", "href", "style", "srcdoc"), (tag, name, value)

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if not self._in_style and data.strip():
            self.texts.append(data)


def text_of(file: Path) -> str:
    """What stands on a page, a line for each text."""
    reader = _Reader()
    reader.feed(file.read_text())
    return "\n".join(["", *reader.texts, ""])


def sample(tmp_path: Path, hostile: str = "") -> Facts:
    """A batch that has all that a page can show: pre-empted, adopted, errors, tokens, latencies, warnings.

    Args:
        tmp_path: for a spool.
        hostile: stands where users may write what they want.
    """
    home, instance = spools.make(tmp_path)
    batch = spools.planned(spools.claimed(home, instance), requests=6016)
    sidecar = Sidecar(metadata={"team": "weather", "note": hostile or "none"})
    batch.save(sidecar=sidecar, warnings=(hostile or "a warning",))
    courses = (
        (1100.0, Phase.RUNNING, "assigned to spot: spot_first"),
        (2000.0, Phase.PREEMPTED, "preempted: 4000 requests left"),
        (2100.0, Phase.RUNNING, "assigned to dedicated: deadline_at_risk"),
        (4000.0, Phase.QUEUED, "taken up again"),
        (4100.0, Phase.RUNNING, "assigned to spot: spot_first"),
        (5200.0, Phase.MERGING, "all requests were worked on"),
    )
    for at, phase, reason in courses:
        runs = batch.record.runs + (phase is Phase.RUNNING)
        batch.advance(at, Status.IN_PROGRESS, phase, reason, runs=runs, in_progress_at=1100.0, pool="spot")
    pace = Pace()
    random_ = random.Random(5)
    for shard in range(47):
        times = Counter(latency.bucket(random_.lognormvariate(-0.5, 0.7)) for _ in range(120))
        name = PartName(shard, 1, 120, 8, 128 * 300, 0, latency.encode(times))
        pace.add(name, 1150.0 + 4000 * (shard / 46) ** 1.3)
    results = Results()
    for _ in range(5640):
        results.inputs.add(int(random_.lognormvariate(5, 0.5)))
        results.outputs.add(int(random_.lognormvariate(4, 1.1)))
    for code, count in ((hostile or "HTTP 400", 300), ("request_timeout", 75), ("engine_error", 1)):
        results.errors[code] = Kind(count, hostile or "c-1", hostile * 3 or "a message of some length")
    final = Final(
        batch_id=batch.id,
        outcome=Status.COMPLETED,
        reason="all requests were worked on",
        at=5201.5,
        total=6016,
        completed=5640,
        failed=376,
        usage=UsageTotals(input_tokens=900_000, output_tokens=500_000),
        shared_requests=7,
        timeline=pace.timeline(1100.0),
        latency=pace.latency(),
        warnings=batch.record.warnings,
    )
    tree = orjson.loads(status.render(batch.record, "i0", final=final))
    shown = outbox.Shown(hostile or "jan", tree)
    return Facts(shown, 9000.0, final.timeline, "", final.latency, "", results, "")
